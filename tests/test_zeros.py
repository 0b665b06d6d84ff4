"""Pruned weights are zero in every forward pass, whoever writes them; where that cannot be, the fit raises an error."""

import copy
from pathlib import Path

import hands_on
import lightning as L
import pytest
import torch
from hands_on import NORM, WRITERS, Functional, InFit, Plain, Uncounted, watched
from tiny import loaders, trainer
from torch import nn

from lt_lightning import lottery, one_shot
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.exchange.ticketfile import read
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.records import read_records


@pytest.mark.parametrize("name", WRITERS)
def test_no_forward_pass_sees_a_pruned_weight_whoever_writes_it(tmp_path, name):
    model, callbacks = WRITERS[name]
    watch, ticket = watched(tmp_path, model, callbacks)
    assert (watch.largest, watch.calls > 20) == (0.0, True)
    final = Checkpoint(RunDirectory(tmp_path).arm(1).final)["state_dict"]
    for name, mask in ticket.masks.items():
        assert not final[name][~mask].any()
        assert final[name].isfinite().all()


@pytest.mark.parametrize(
    ("model", "weight", "where"),
    [
        (Uncounted, "hidden.weight", r"0\.01 in a forward pass"),
        (InFit, "hidden.weight", r"0\.5 at a validation"),
        (Functional, "hidden.weight", r"0\.0\d+ (at|before|in) "),
    ],
)
def test_a_write_that_cannot_be_undone_in_time_ends_the_first_epoch_with_an_error(tmp_path, model, weight, where):
    with pytest.raises(RuntimeError, match=rf"^{weight} holds a pruned weight of {where}.*weight\.copy_") as raised:
        watched(tmp_path, model)
    assert f'prunable=["!{weight}"]' in str(raised.value)
    run = RunDirectory(tmp_path)
    assert not run.arm(1).done.exists()
    assert [row["round"] for row in read_records(run.records)] == [0]
    assert run.arm(0).done.exists()


def test_the_norm_that_manual_optimization_clips_to_is_that_of_usable_gradients(tmp_path):
    class Noted(hands_on.ByHand):
        def clip(self, optimizer):
            super().clip(optimizer)
            held = [each.grad for each in self.parameters()]
            self.norms.append(float(torch.stack([each.norm() for each in held]).norm()))
            self.unusable = [float(self.get_parameter(name).grad[~mask].abs().max()) for name, mask in self.masks]

    for ticket in lottery(Noted, rounds=1, schedule=one_shot(0.2), directory=tmp_path, monitor=None):
        ticket.model.masks = [(name, mask) for name, mask in ticket.masks.items() if not mask.all()]
        trainer(ticket, max_epochs=2).fit(ticket.model, *loaders(shuffle=False), ckpt_path=ticket.ckpt_path)
    assert ticket.model.norms == pytest.approx([NORM] * 10, rel=1e-4)
    assert ticket.model.unusable == [0.0, 0.0]


def test_hooks_of_parameters_see_masked_gradients(tmp_path):
    """As `wandb.watch` sets them."""
    seen = []

    class Watched(Plain):
        def on_fit_start(self):
            self.hidden.weight.register_hook(lambda gradient: seen.append(gradient.clone()))

    _, ticket = watched(tmp_path, Watched)
    assert len(seen) == 20
    assert not any(gradient[~ticket.masks["hidden.weight"]].any() for gradient in seen[10:])
    assert all(gradient.any() for gradient in seen)


def test_steps_within_the_backward_pass_see_masked_gradients(tmp_path):
    """As for saving memory: each parameter has an optimizer of its own, called as soon as its gradient is there."""

    class Within(Plain):
        def __init__(self):
            super().__init__(automatic=False)
            self.own = {each: torch.optim.SGD([each], 0.1) for each in self.parameters()}
            for each in self.parameters():
                each.register_post_accumulate_grad_hook(self.step)
            self.norms = []

        def step(self, parameter):
            if parameter is self.hidden.weight:
                self.norms.append(parameter.grad.clone())
            self.own[parameter].step()
            parameter.grad = None

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)  # for its state, which is empty

        def training_step(self, batch, index):
            self.manual_backward(self.loss(batch))

        def __deepcopy__(self, memo):
            return self

    _, ticket = watched(tmp_path, Within)
    assert len(ticket.model.norms) == 10
    assert not any(gradient[~ticket.masks["hidden.weight"]].any() for gradient in ticket.model.norms)


def outputs(module):
    with torch.no_grad():
        return module.eval()(loaders()[1].dataset.tensors[0])


@pytest.mark.parametrize("own", [True, False], ids=["by the ticket's Trainer", "by another Trainer"])
@pytest.mark.parametrize("way", ["validate", "test", "predict"])
def test_evaluations_see_the_ticket_also_before_its_fit(tmp_path, own, way):
    class Predicts(Plain):
        def predict_step(self, batch, index):
            return self(batch[0])

    for ticket in lottery(Predicts, rounds=1, schedule=one_shot(0.4), directory=tmp_path, monitor=None):
        expected = copy.deepcopy(ticket.model)
        if ticket.ckpt_path:
            expected.load_state_dict(Checkpoint(Path(ticket.ckpt_path))["state_dict"])
        for name, mask in ticket.masks.items():
            expected.get_parameter(name).data.mul_(mask)
        other = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        before = trainer(ticket) if own else L.Trainer(**other, enable_model_summary=False)
        quiet = {} if way == "predict" else {"verbose": False}
        found = getattr(before, way)(ticket.model, loaders()[1], ckpt_path=ticket.ckpt_path, **quiet)
        if way == "predict":
            assert torch.equal(torch.cat(found), outputs(expected))
        assert torch.equal(outputs(ticket.model), outputs(expected))
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


def test_weights_that_a_start_writes_are_those_of_the_file_and_of_the_training(tmp_path):
    """Also where every start writes others: later fits train what their checkpoint holds."""
    first = {}

    class Halves(Plain):
        def on_train_start(self):
            with torch.no_grad():
                self.hidden.weight.mul_(0.5)

        def training_step(self, batch, index):
            if self.global_step == 0:
                first[len(first)] = self.hidden.weight.detach().clone()
            return super().training_step(batch, index)

    watched(tmp_path, Halves)
    run = RunDirectory(tmp_path)
    point = Checkpoint(run.point(0))["state_dict"]["hidden.weight"]
    masks = read(run.arm(1).ticket).masks
    assert torch.equal(first[0], point)
    assert torch.equal(first[1], point * masks["hidden.weight"])


def test_a_layer_that_is_called_twice_before_the_backward_pass_is_left_alone(tmp_path):
    class Twice(Plain):
        def training_step(self, batch, index):
            loss = self.loss(batch)
            return loss + self.loss(batch)

    watch, _ = watched(tmp_path, Twice)
    assert watch.largest == 0.0


def test_masks_of_weights_that_are_not_numbers_and_below_zero_give_plus_zero():
    weight = nn.Parameter(torch.tensor([float("nan"), -1.0, 2.0, float("inf")]))
    mask = torch.tensor([False, False, True, False])
    for kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64):
        held = nn.Parameter(weight.detach().to(kind))
        Enforcement({"w": mask}, {"w": held}).mask_weights()
        assert held.tolist() == [0.0, 0.0, 2.0, 0.0]
        assert kind.is_complex or not torch.signbit(held).any()
