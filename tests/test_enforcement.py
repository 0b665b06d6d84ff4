"""When gradients have to be masked, and that nothing else changes where they do not."""

from functools import partial

import pytest
import torch
from sampling import few
from tiny import Tiny, loaders, play, trainer
from torch import optim

from lt_lightning import keep_weights, lottery
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import read
from lt_lightning.fit import enforcement
from lt_lightning.fit.gradient_use import INDEPENDENT


class Clips(Tiny):
    def configure_gradient_clipping(self, optimizer, **options):
        self.clip_gradients(optimizer, 0.1, "norm")


class Looks(Tiny):
    def on_before_optimizer_step(self, optimizer):
        self.log("norm", sum(each.grad.norm() for each in self.parameters()))


class Steps(Tiny):
    def optimizer_step(self, *arguments, **options):
        super().optimizer_step(*arguments, **options)


class Own(optim.SGD):
    pass


CASES = [
    (Tiny, {}, False),
    (partial(Tiny, optimizer=optim.SGD), {}, False),
    (Tiny, {"accumulate_grad_batches": 2}, False),
    (Tiny, {"gradient_clip_val": 1.0}, True),
    (Clips, {}, True),
    (Looks, {}, True),
    (Steps, {}, True),
    (partial(Tiny, optimizer=Own), {}, True),
    (partial(Tiny, optimizer=optim.ASGD), {}, True),
]


@pytest.mark.parametrize(("model", "options", "matter"), CASES)
def test_gradients_are_masked_where_something_may_look_at_them(tmp_path, monkeypatch, model, options, matter):
    seen = []
    decide = enforcement.gradients_matter
    monkeypatch.setattr(enforcement, "gradients_matter", lambda trainer: seen.append(decide(trainer)) or seen[-1])
    play(tmp_path, model=model, options=options, test=False)
    assert seen == [matter]  # once, in the pruned round


@pytest.mark.parametrize("kind", few(INDEPENDENT, 0, 1, 2))
def test_weights_and_checkpoints_are_those_of_masked_gradients(tmp_path, monkeypatch, kind):
    model = partial(Tiny, optimizer=kind)
    play(tmp_path / "without", model=model, keep_last=True)
    monkeypatch.setattr(enforcement, "gradients_matter", lambda trainer: True)
    play(tmp_path / "with", model=model, keep_last=True)
    one, other = (Checkpoint(RunDirectory(tmp_path / name).arm(1).last) for name in ("without", "with"))
    assert all(one["state_dict"][name].equal(value) for name, value in other["state_dict"].items())
    masks = RunDirectory(tmp_path / "with")
    hidden = Checkpoint(masks.arm(1).last)["state_dict"]["hidden.weight"] != 0
    for name, value in one["optimizer_states"][0]["state"].get(0, {}).items():
        if value.shape == hidden.shape:
            assert not value[~hidden].any()
            assert value[hidden].equal(other["optimizer_states"][0]["state"][0][name][hidden])


def test_pruned_weights_are_zero_at_every_step_without_masked_gradients(tmp_path):
    class Watched(Tiny):
        def on_train_batch_end(self, *_):
            assert not any(self.get_parameter(name)[~mask].any() for name, mask in self.masks.items())

    for ticket in lottery(Watched, rounds=1, directory=tmp_path):
        ticket.model.masks = {name: mask.clone() for name, mask in ticket.masks.items()}
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    assert not torch.stack([mask.all() for mask in ticket.masks.values()]).all()


@pytest.mark.parametrize("kind", few(INDEPENDENT, 0, 1))
def test_what_is_saved_of_pruned_weights_is_zero_without_a_sign(tmp_path, kind):
    """Multiplied by a mask they may be -0.0, which one depends on when the fit was saved before."""
    play(tmp_path, model=partial(Tiny, optimizer=kind), rounds=1, rewind=keep_weights)
    run = RunDirectory(tmp_path)
    masks = read(run.arm(1).ticket).masks
    drawn = read(run.arm(1).next / "ticket.safetensors", state=True).state  # what round 2 would start from
    saved = [Checkpoint(path)["state_dict"] for path in (run.arm(1).final, run.arm(1).early_stop)]
    for state in (drawn, *saved):
        for name, mask in masks.items():
            assert not torch.signbit(state[name][~mask]).any()
            assert torch.signbit(state[name][mask]).any()
