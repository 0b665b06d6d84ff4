"""What is asked between rounds is asked once before the first step, and nothing is lost by it."""

import os
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import Tiny, loaders, play, trainer

from lt_lightning import channels, explicit, geometric, globally, lottery, magnitude, n_m, snip
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.exchange.ticketfile import read

STEPS = []


class Watched(Tiny):
    def training_step(self, batch, index):
        STEPS.append(index)
        return super().training_step(batch, index)


@pytest.fixture(autouse=True)
def _nothing_trained_yet():
    STEPS.clear()


def nothing(*given):
    return None


def an_empty_one(evidence):
    return {}


def half(evidence):
    return {"hidden.weight": evidence.trained["hidden.weight"]}


def of_other_shape(evidence):
    return {name: weight[0] for name, weight in evidence.trained.items()}


def misspelt(evidence):
    return evidence.trained["hiden.weight"]


def numbers(evidence):
    return dict.fromkeys(evidence.trained, 0.5)


def inside(ticket):
    return lambda ticket: ticket


def without_masks(ticket):
    return replace(ticket, masks={})


def with_floats(ticket):
    return replace(ticket, masks={name: mask.float() for name, mask in ticket.masks.items()})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"controls": [without_masks]}, "the control without_masks returned no mask for hidden.weight: it must return"),
        ({"controls": [with_floats]}, "returned a mask of torch.float32 and shape torch.Size([12, 8]) for hidden.wei"),
        (
            {"criterion": nothing},
            "criterion=nothing returned None: it must return {name: scores} with a tensor for",
        ),
        (
            {"criterion": an_empty_one},
            "criterion=an_empty_one returned a dict without ['hidden.weight', 'output.",
        ),
        ({"criterion": half}, "criterion=half returned a dict without ['output.weight']"),
        ({"criterion": numbers}, "criterion=numbers returned a dict without ['hidden.weight', 'output.weight']"),
        ({"criterion": of_other_shape}, "and returned other shapes: hidden.weight (8,) for (12, 8)"),
        ({"criterion": misspelt}, "criterion=misspelt raised KeyError: 'hiden.weight', when it was asked once before"),
        ({"criterion": partial(snip, batches=0)}, "batches=0 of snip must be a whole number, 1 or more."),
        ({"criterion": partial(snip, per_class=float("nan"))}, "per_class=nan of snip must be a whole number"),
        ({"scope": nothing}, "no masks of round 1 can be drawn, whose density is 0.8: scope=nothing raised TypeError"),
        ({"scope": partial(n_m, m=0)}, "m=0 must be a whole number, 1 or more"),
        ({"scope": partial(channels, norm=float("nan"))}, "norm=nan must be a positive number"),
        ({"scope": partial(n_m, m=4), "schedule": explicit([0.5, 0.1])}, "no masks of round 2 can be drawn"),
        ({"scope": partial(globally, least=0.7)}, "no masks of round 2 can be drawn, whose density is 0.64"),
        ({"schedule": geometric(0.9999999)}, "nothing would be kept of 132 weights: ask for a higher density"),
        ({"density": 1e-9, "rounds": 1}, "no masks of round 1 can be drawn, whose density is 1e-09: nothing would be"),
        ({"schedule": geometric(0.9), "rounds": 9}, "no masks of round 9 can be drawn"),
        ({"schedule": geometric(1e-12)}, "round 1 would prune none of 132 weights at a density of 0.999999999999"),
        ({"schedule": geometric({"hidden*": 1e-12, "*": 1e-9})}, "round 1 would prune none of 132 weights"),
        ({"rewind": lambda point, trained: 5}, "returned 5: it must return a checkpoint to start from"),
        ({"controls": [os.system]}, "the control system raised TypeError:"),
        ({"controls": ["reinit", nothing]}, "the control nothing returned None in the place of Ingredients. A control"),
        ({"controls": [inside]}, "in the place of Ingredients: inside makes one, so write inside(...)."),
    ],
    ids=lambda each: re.sub(r" at 0x\w+", "", str(each))[:40],
)
def test_what_cannot_work_between_rounds_costs_no_step(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        play(tmp_path, model=Watched, **({"rounds": 2} | arguments))
    assert not STEPS
    assert len(str(error.value).splitlines()) == 1


def test_a_shared_dense_round_is_not_trained_either(tmp_path):
    arguments = {"dense_directory": tmp_path / "dense", "config": {"model": "tiny"}}
    with pytest.raises(ValueError, match="criterion=an_empty_one returned a dict without"):
        play(tmp_path / "run", model=Watched, criterion=an_empty_one, **arguments)
    assert not STEPS
    play(tmp_path / "other", rounds=0, test=False, **arguments)
    with pytest.raises(ValueError, match="round 1 would prune none of 132 weights"):  # nor where it lies there already
        play(tmp_path / "third", model=Watched, schedule=geometric(1e-12), rounds=1, test=False, **arguments)
    assert not STEPS


def test_rounds_that_a_rule_may_end_need_not_all_be_drawn(tmp_path):
    rule = {"schedule": geometric(0.9), "rounds": 9, "stop_when": lambda records: len(records) > 1}
    assert list(play(tmp_path, options={"max_epochs": 1}, test=False, **rule)) == ["round-00", "round-01"]


def overwriting(evidence):
    torch.rand(3)
    return {name: weight.mul_(0) for name, weight in evidence.trained.items()} if not STEPS else magnitude(evidence)


def late(evidence):
    """A criterion that reads what training has written."""
    if not STEPS:
        raise FileNotFoundError("importance.pt")
    return magnitude(evidence)


def moving(ticket):
    return replace(ticket, masks={name: mask.flip(-1) for name, mask in ticket.masks.items()})


@pytest.mark.parametrize("criterion", [overwriting, late])
def test_what_is_asked_once_more_changes_no_bit(criterion, tmp_path):
    short = {"model": Watched, "test": False, "options": {"max_epochs": 1}}
    play(tmp_path / "plain", **short)
    STEPS.clear()
    play(tmp_path / "asked", criterion=criterion, controls=[moving], **short)
    for name in ("points/step-0.ckpt", "round-01/final.ckpt"):
        plain, asked = (Checkpoint(tmp_path / run / name)["state_dict"] for run in ("plain", "asked"))
        assert all(torch.equal(plain[key], asked[key]) for key in plain)


class Lopsided(Tiny):
    """Its output layer is far smaller than the hidden one from the first step on."""

    def on_train_end(self):
        torch.nn.init.normal_(self.output.weight, 0, 1e-6)


@pytest.mark.parametrize(("least", "kept"), [(0.0, 0), (0.1, 4)])
def test_a_layer_that_loses_every_weight_is_named_with_a_way_out(least, kept, tmp_path, recwarn):
    tickets = lottery(Lopsided, rounds=1, density=0.5, scope=partial(globally, least=least), directory=tmp_path)
    ticket = next(tickets)
    trainer(ticket, max_epochs=1).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "hidden.weight": 66 - kept,
        "output.weight": kept,
    }
    told = [str(each.message) for each in recwarn if "nothing is kept" in str(each.message)]
    assert told == ([] if kept else [
        "nothing is kept of output.weight in round 1: 0 of 36 weights. scope=partial(globally, least=0.01) keeps a "
        'hundredth of every layer (prune.scope.least=0.01), prunable=["!output.weight"] leaves it dense.'
    ])  # fmt: skip
