"""A control that changes nothing is an error, before it is trained; what is drawn is what is trained and written."""

import re
from dataclasses import replace
from functools import partial

import lightning as L
import pytest
import torch
from tiny import loaders, play, trainer
from torch import nn
from trained import Backboned, BuiltInSetup, BuiltWhenConfigured, Plain, Thaw

from lt_lightning import lottery, redraw, reinit, rewinds, snip, transfer
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.exchange.ticketfile import load_ticket, read

STEPS = []


class Watched(Plain):
    """Keeps the weights of every fit as they are when its first step begins."""

    def on_train_batch_start(self, batch, index):
        if self.global_step == 0:
            STEPS.append({name: value.clone() for name, value in self.state_dict().items()})


class DrawnAtTheStart(Watched):
    def on_fit_start(self):
        for layer in (self.hidden, self.output):
            layer.reset_parameters()


class BuiltAndWatched(BuiltInSetup, Watched):
    pass


class ConfiguredAndWatched(BuiltWhenConfigured, Watched):
    pass


@pytest.fixture(autouse=True)
def _nothing_trained_yet():
    STEPS.clear()


def seeded(make=Watched):
    L.seed_everything(1, verbose=False)
    return make()


def loaded(names=("hidden.weight", "output.weight")):
    module, saved = Watched(), Watched.saved
    module.load_state_dict({name: saved[name] for name in names}, strict=False)
    return module


Watched.saved = Watched().state_dict()


class Around(Watched):
    """A module around a network that is made elsewhere."""

    def __init__(self, hidden):
        super().__init__()
        self.hidden = hidden


SHARED = nn.Linear(8, 12)
BOTH = "draws new weights, but hidden.weight, output.weight of a model that make_model returns under another seed are"
MAKERS = {
    "seeds itself": (seeded, f"{BOTH} equal to step 0: make_model seeds the random numbers itself (seed_everything"),
    "loads weights": (loaded, f"{BOTH} equal to step 0: make_model loads them, such as from a checkpoint"),
    "loads a layer": (lambda: loaded(["hidden.weight"]), "but hidden.weight of a model that make_model returns"),
    "shares a network": (lambda: Around(SHARED), "the modules that make_model returns share hidden.weight, which are"),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("redrawing", [{"controls": [reinit]}, {"rewind": redraw}])
def test_weights_that_no_seed_changes_are_refused_where_they_are_to_be_drawn_anew(tmp_path, maker, redrawing):
    make, message = MAKERS[maker]
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        next(lottery(make, rounds=1, directory=tmp_path, **redrawing))
    key = "prune.rewind" if "rewind" in redrawing else "prune.controls"
    assert f"or leave {'redraw' if 'rewind' in redrawing else 'reinit'} out ({key})" in str(raised.value)
    assert not any(tmp_path.iterdir())


def test_what_is_not_prunable_and_what_is_constant_may_be_equal(tmp_path):
    def make():
        module = loaded(["hidden.weight"])
        nn.init.zeros_(module.norm.bias)
        return module

    lottery(make, rounds=1, directory=tmp_path, controls=[reinit], prunable=["!hidden*"])

    def zeros():
        module = Watched()
        nn.init.zeros_(module.output.weight)
        return module

    lottery(zeros, rounds=1, directory=tmp_path, controls=[reinit])


@pytest.mark.slow
def test_loaded_weights_are_fine_where_nothing_redraws_them(tmp_path):
    play(tmp_path, model=loaded, controls=["random_mask"], test=False, seed=2)
    assert torch.equal(STEPS[0]["hidden.weight"], Watched.saved["hidden.weight"])


class SeededInSetup(BuiltAndWatched):
    def setup(self, stage):
        L.seed_everything(1, verbose=False)
        super().setup(stage)


class LoadedInSetup(Watched):
    def setup(self, stage):
        self.load_state_dict(Watched.saved)


class SeededAtTheStart(DrawnAtTheStart):
    def on_fit_start(self):
        L.seed_everything(1, verbose=False)
        super().on_fit_start()


@pytest.mark.parametrize("model", [SeededInSetup, LoadedInSetup, SeededAtTheStart])
def test_weights_that_come_from_hooks_are_compared_before_round_0_is_trained(tmp_path, model):
    message = "reinit draws new weights, but hidden.weight, output.weight of a model that make_model returns"
    with pytest.raises(ValueError, match=message):
        play(tmp_path, model=model, controls=[reinit], test=False)
    assert STEPS == []


def test_weights_that_a_callback_writes_are_refused_before_the_control_is_trained(tmp_path):
    class Loading(L.Callback):
        def on_fit_start(self, fit, module):
            module.load_state_dict(Watched.saved)

    message = "reinit starts from weights drawn anew, but hidden.weight, output.weight are equal to step 0, so it would"
    with pytest.raises(ValueError, match=message):
        play(tmp_path, model=Watched, controls=[reinit], test=False, make_callbacks=lambda: [Loading()])
    assert len(STEPS) == 2


def test_a_seed_that_does_not_reach_the_weights_is_refused(tmp_path):
    message = "seed=3 does not reach the weights: make_model seeds the random numbers itself"
    with pytest.raises(ValueError, match=message) as raised:
        next(lottery(seeded, rounds=1, directory=tmp_path / "a", seed=3))
    assert "seed_data=3 (prune.seed_data)" in str(raised.value)
    with pytest.raises(ValueError, match="seed_init=4 does not reach the weights"):
        next(lottery(seeded, rounds=1, directory=tmp_path / "b", seed=3, seed_init=4))
    next(lottery(seeded, rounds=1, directory=tmp_path / "c", seed_data=3))

    def passed_on():
        torch.manual_seed(torch.initial_seed() % 2**32)
        return Watched()

    next(lottery(passed_on, rounds=1, directory=tmp_path / "d", seed=3, controls=[reinit]))


def same(ticket):
    return ticket


def from_scratch(ticket):
    return replace(ticket, start=None, init_seed=5)


NOTHING = {
    "itself": ({"controls": [same]}, "the control same changes nothing in round 1: it has the masks of the ticket", 2),
    "its own step": ({"controls": ["at_step(0)"]}, "at_step_0 changes nothing: the ticket starts there", 0),
    "its own step, in epochs": (
        {"controls": ["at_step(5)"], "rewind_step": "1 epoch"},
        "the control at_step_5 changes nothing in round 1: it has the masks of the ticket and starts where it does",
        1,
    ),
    "full masks": (
        {"controls": ["random_mask"], "schedule": lambda round: 1.0},
        "random_mask changes nothing in round 1, whose masks keep every weight",
        0,
    ),
    "too little noise": (
        {"controls": ["noise(1e-30)"]},
        "the control noise_1e-30 changes nothing: every kept weight is what it is in the ticket",
        2,
    ),
    "the change of the rewind": (
        {"controls": ["signed_constant"], "rewind": rewinds.signed_constant},
        "the control signed_constant changes nothing: every kept weight",
        2,
    ),
}


@pytest.mark.parametrize("case", NOTHING)
@pytest.mark.filterwarnings("ignore:round 1 has the density")
def test_a_control_that_changes_nothing_is_refused_before_it_is_trained(tmp_path, case):
    arguments, message, fits = NOTHING[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        play(tmp_path, model=Watched, test=False, **arguments)
    assert len(STEPS) == fits
    assert not list(tmp_path.glob("round-01/*/done"))


@pytest.mark.slow
def test_a_network_that_was_trained_is_no_fresh_start_for_a_control_of_one_s_own(tmp_path):
    message = (
        "from_scratch starts from a fresh model, but the modules that the model argument gives share hidden.weight"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        play(tmp_path, model=partial(Around, nn.Linear(8, 12)), controls=[from_scratch], test=False)


# What is drawn, trained and written

MODELS = [Watched, BuiltAndWatched, ConfiguredAndWatched, DrawnAtTheStart]


class Stop(L.Callback):
    """Ends the fit of a control in its last epoch, or before its first step."""

    def __init__(self, arm, epoch):
        self.arm, self.epoch = arm, epoch

    def on_train_epoch_start(self, fit, module):
        if fit.current_epoch == self.epoch and fit.default_root_dir.endswith(self.arm):
            raise InterruptedError


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=[] if m in MODELS[1::2] else pytest.mark.slow) for m in MODELS]
)
def test_the_ticket_of_a_control_has_the_weights_that_it_trains_before_they_are_masked(tmp_path, model):
    play(tmp_path, model=model, controls=[reinit], test=False)
    dense, trained, control = STEPS
    file = load_ticket(tmp_path / "round-01" / "reinit" / "ticket.safetensors")
    assert file.start == "fresh"
    for name, mask in file.masks.items():
        drawn = file.state[name]
        assert bool(drawn[~mask].all()), "the file holds weights as they were drawn"
        assert torch.equal(drawn * mask, control[name])
        assert not torch.equal(control[name], dense[name] * mask)
        assert torch.equal(trained[name], dense[name] * mask)
    assert torch.equal(file.state["output.bias"], control["output.bias"])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("epoch", [2, 0])
@pytest.mark.slow
def test_the_ticket_of_a_control_is_the_same_whether_it_was_interrupted_or_not(tmp_path, model, epoch):
    arguments = {"model": model, "controls": [reinit], "keep_last": True}
    play(tmp_path / "whole", **arguments)
    with pytest.raises(InterruptedError):
        play(tmp_path / "parts", make_callbacks=lambda: [Stop("reinit", epoch)], **arguments)
    play(tmp_path / "parts", **arguments)
    for name in ("round-01/reinit/ticket.safetensors", "round-01/ticket.safetensors", "round-01/reinit/done"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        assert one == other or name.endswith("done")
    one, other = (Checkpoint(tmp_path / run / "round-01/reinit/final.ckpt")["state_dict"] for run in ("whole", "parts"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
def test_a_control_whose_ticket_is_lost_begins_again_with_the_same_bits(tmp_path):
    arguments = {"model": BuiltAndWatched, "controls": [reinit]}
    play(tmp_path / "whole", **arguments)
    with pytest.raises(InterruptedError):
        play(tmp_path / "parts", make_callbacks=lambda: [Stop("reinit", 2)], **arguments)
    file = tmp_path / "parts" / "round-01" / "reinit" / "ticket.safetensors"
    file.unlink()
    play(tmp_path / "parts", **arguments)
    assert file.read_bytes() == (tmp_path / "whole" / "round-01" / "reinit" / "ticket.safetensors").read_bytes()


def test_weights_that_a_hook_draws_at_the_start_do_not_replace_those_of_a_checkpoint(tmp_path):
    class Counting(DrawnAtTheStart):
        fits = 0

        def on_fit_start(self):
            type(self).fits += 1
            torch.rand(self.fits)  # in every fit other numbers
            super().on_fit_start()

    play(tmp_path, model=Counting, rewind_step=7, test=False)
    point = Checkpoint(tmp_path / "rewind.ckpt")["state_dict"]
    final = read(tmp_path / "round-01" / "ticket.safetensors", state=True)
    assert Counting.fits == 2
    assert torch.equal(point["hidden.weight"], final.state["hidden.weight"])


@pytest.mark.slow
def test_an_instance_that_ends_frozen_trains_in_every_round(tmp_path):
    class Ending(Watched):
        def on_train_end(self):
            self.freeze()

    module = Ending()
    play(tmp_path, model=module, rounds=2, test=False)
    weights = [Checkpoint(tmp_path / f"round-0{n}" / "final.ckpt")["state_dict"]["output.weight"] for n in (0, 1, 2)]
    assert [len(STEPS), bool((weights[1] == weights[0]).all())] == [3, False]
    assert not torch.equal(weights[2], STEPS[2]["output.weight"])


def test_a_probe_of_a_module_that_ended_frozen_has_gradients(tmp_path):
    class Ending(Watched):
        def on_train_end(self):
            self.freeze()

    play(tmp_path, model=Ending, criterion=snip, density=0.5, test=False)
    assert round(float(sum(m.sum() for m in load_ticket(tmp_path / "round-01").masks.values()))) == 66


def test_finetuning_after_fine_tune_is_refused_before_round_0(tmp_path):
    with pytest.raises(ValueError, match=re.escape("choose rewind=to_point or keep_weights (prune.rewind), or leave")):
        play(tmp_path, model=Backboned, rewind=rewinds.fine_tune, make_callbacks=lambda: [Thaw()])


def test_masks_of_layers_that_are_not_made_yet_are_told_to_be_looked_at_later(tmp_path):
    ticket = next(lottery(BuiltInSetup, rounds=1, directory=tmp_path))
    assert repr(ticket) == "Ticket(round-00, density=1)"
    with pytest.raises(ValueError, match="BuiltInSetup has nothing to prune yet, as it makes its layers in setup"):
        _ = ticket.masks


def test_a_dry_run_shows_layers_made_in_setup_if_that_needs_no_trainer(tmp_path, capsys):
    list(lottery(BuiltInSetup, rounds=1, directory=tmp_path, dry_run=True))
    assert "hidden.weight  12x8" in capsys.readouterr().out

    class Needy(BuiltInSetup):
        def setup(self, stage):
            self.trainer.datamodule.setup("fit")

    with pytest.raises(ValueError, match="Needy makes its layers in setup\\(\\), which fails without a Trainer"):
        list(lottery(Needy, rounds=1, directory=tmp_path, dry_run=True))
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_ticket_is_transferred_to_a_module_that_is_built_in_setup(tmp_path):
    play(tmp_path / "source", model=BuiltInSetup, test=False)
    path = tmp_path / "source" / "round-01" / "ticket.safetensors"
    for ticket in transfer(BuiltInSetup, path=path, directory=tmp_path / "target"):
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    masks = load_ticket(tmp_path / "target" / "round-01").masks
    assert all(torch.equal(mask, masks[name]) for name, mask in load_ticket(path).masks.items())
