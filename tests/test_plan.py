"""What a lottery was asked for: described as plain values, and refused where it cannot work."""

from functools import partial

import numpy as np
import pytest
import torch
import yaml
from tiny import Tiny

from lt_lightning import geometric, globally, lottery, magnitude, one_shot, random_mask, reinit
from lt_lightning.plan import control_name, describe, unwrap
from lt_lightning.rewinds import redraw


class Halving:
    def __call__(self, round):
        return 0.5**round

    def at(self, round):
        return 0.5**round


def scaled(ticket, by, inner=None):
    return ticket


# Describing


SCALED = "test_plan.scaled"


@pytest.mark.parametrize(
    ("value", "described"),
    [
        (magnitude, "lt_lightning.criteria.magnitude"),
        (len, "builtins.len"),
        (Tiny, "tiny.Tiny"),
        (Halving(), "test_plan.Halving"),
        (Halving().at, "test_plan.Halving.at"),
        (partial(scaled, by=2), {"function": SCALED, "by": 2}),
        (partial(scaled, 3, by=2), {"function": SCALED, "0": 3, "by": 2}),
        (partial(partial(scaled, by=2), inner=len), {"function": SCALED, "by": 2, "inner": "builtins.len"}),
        (partial(scaled, inner=partial(scaled, by=1)), {"function": SCALED, "inner": {"function": SCALED, "by": 1}}),
        (
            geometric({"*output*": 0.1, "*": 0.2}),
            {"function": "lt_lightning.schedules._geometric", "fraction": {"*output*": 0.1, "*": 0.2}},
        ),
        (one_shot(0.1), {"function": "lt_lightning.schedules._explicit", "densities": [0.1]}),
        (
            {"a": {1: magnitude}, "b": (1, [globally])},
            {"a": {"1": "lt_lightning.criteria.magnitude"}, "b": [1, ["lt_lightning.scopes.globally"]]},
        ),
        ([True, None, 1, 0.5, "x"], [True, None, 1, 0.5, "x"]),
        (torch.float16, "torch.float16"),
    ],
)
def test_functions_and_partials_are_described_as_plain_values(value, described):
    assert describe(value) == described


def test_two_partials_of_one_function_differ_by_their_arguments():
    assert describe(geometric(0.2)) == describe(geometric(0.2))
    assert describe(geometric(0.2)) != describe(geometric(0.3))


def test_a_control_is_called_by_the_name_of_its_function():
    assert control_name(reinit) == "reinit"
    assert control_name(partial(partial(scaled, by=1), inner=None)) == "scaled_1"
    assert unwrap(partial(partial(scaled, by=1), inner=None)) is scaled
    assert unwrap(reinit) is reinit


def test_a_ticket_file_knows_its_configuration_by_a_hash_that_ignores_what_may_grow(tmp_path):
    def fingerprint(name, **arguments):
        return next(lottery(Tiny, directory=tmp_path / name, **arguments)).plan.fingerprint

    first = fingerprint("a", rounds=1)
    assert fingerprint("b", rounds=4, controls=["reinit"], keep_last=True) == first
    assert fingerprint("c", rounds=1, seed=1) != first
    assert fingerprint("d", rounds=1, schedule=geometric(0.3)) != first
    assert fingerprint("e", rounds=1, config={"model": "wide"}) != first


def test_the_stored_configuration_is_the_arguments_in_plain_values(tmp_path):
    plan = next(
        lottery(Tiny, rounds=2, directory=tmp_path, controls=["reinit", random_mask], rewind_step="2 epochs")
    ).plan
    assert plan.config == {
        "lottery": {
            "layout": 3,
            "rounds": 2,
            "schedule": {"function": "lt_lightning.schedules._geometric", "fraction": 0.2},
            "criterion": "lt_lightning.criteria.magnitude",
            "scope": "lt_lightning.scopes.globally",
            "rewind": "lt_lightning.rewinds.to_point",
            "points": [],
            "rewind_step": "2 epochs",
            "controls": ["reinit", "random_mask"],
            "prunable": "lt_lightning.layers.layer_weights",
            "monitor": "auto",
            "mode": "min",
            "seed": 0,
            "dense": True,
        }
    }


# Refusing


def ticket(ingredients):
    return ingredients


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": -1}, "rounds=-1 must be a whole number, 0 or more: 10 is dense and ten pruned rounds."),
        ({"rounds": 1.5}, "rounds=1.5 must be a whole number, 0 or more: 10 is dense and ten pruned rounds."),
        ({"rounds": "3"}, "rounds='3' must be a whole number, 0 or more: 10 is dense and ten pruned rounds."),
        ({"mode": "best"}, 'mode=\'best\' must be "min" or "max": which val/loss is the best?'),
        ({"mode": None, "monitor": "val/acc"}, 'mode=None must be "min" or "max": which val/acc is the best?'),
        (
            {"controls": ["reinit", reinit]},
            "controls need names of their own, other than 'ticket' and 'next': ['reinit', 'reinit'].",
        ),
        (
            {"controls": [partial(scaled, by=1), partial(scaled, by=1)]},
            "controls need names of their own, other than 'ticket' and 'next': ['scaled_1', 'scaled_1'].",
        ),
        ({"controls": [ticket]}, "controls need names of their own, other than 'ticket' and 'next': ['ticket']."),
        (
            {"controls": ["reinitt"]},
            "there is no control 'reinitt': choose from ['reinit', 'random_mask', 'random_mask_globally', "
            "'signed_constant', 'kept_signs', 'shuffled_weights', 'noise(0.5)', 'at_step(100)'], or give the dotted "
            "path of a function.",
        ),
        ({"controls": ["noise"]}, "the control 'noise' needs a value: write 'noise(0.5)'."),
        (
            {"controls": ["noise(-1)"]},
            "sigma=-1 of noise must be a positive number, in standard deviations of a layer's initial weights: "
            "noise(0.5).",
        ),
        (
            {"controls": ["kept_signs"], "rewind": redraw},
            "the control kept_signs changes the weights of the rewind point, and with rewind=redraw a round starts "
            "from a fresh model: leave out one of them.",
        ),
        ({"schedule": lambda n: 0.5}, "round 0 is dense, but schedule(0) is 0.5; it must be 1.0."),
        (
            {"schedule": lambda n: {"*": 1.0, "a": 0.9}},
            "round 0 is dense, but schedule(0) is {'*': 1.0, 'a': 0.9}; it must be 1.0.",
        ),
        (
            {"schedule": lambda n: 1 - n / 2, "rounds": 2},
            "schedule(2) is 0.0; a density must lie in (0, 1].",
        ),
        (
            {"schedule": lambda n: {"a": 1.0, "b": 1.0 + n}},
            "schedule(1) is 2.0; a density must lie in (0, 1].",
        ),
        (
            {"schedule": lambda n: 1.0 if n == 0 else float("nan")},
            "schedule(1) is nan; a density must lie in (0, 1].",
        ),
        (
            {"rewind_step": "2 batches"},
            'rewind_step=\'2 batches\' is not understood: write 0, 500, "500 steps" or "2 epochs".',
        ),
        ({"every": "often"}, 'every=\'often\' is not understood: write "auto", None, 500, "500 steps" or "2 epochs".'),
        ({"every": "0 steps"}, 'every="0 steps" must be at least 1; "auto" and None are possible too.'),
        (
            {"model": "lenet"},
            "model must be a function that makes a LightningModule, or an instance; got 'lenet'.",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_the_call_and_nothing_is_stored(tmp_path, arguments, message):
    given = {"model": Tiny, "rounds": 1, "directory": tmp_path / "run"} | arguments
    with pytest.raises(ValueError, match=r"\w") as error:
        lottery(given.pop("model"), **given)
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


def test_a_control_cannot_be_called_next(tmp_path):
    def next(ingredients):
        return ingredients

    with pytest.raises(ValueError, match="controls need names of their own"):
        lottery(Tiny, rounds=1, directory=tmp_path / "run", controls=[next])


@pytest.mark.parametrize("value", [float("nan"), np.float64(0.5)])
def test_any_number_in_a_configuration_equals_itself_when_the_run_goes_on(tmp_path, value):
    for _ in range(2):
        lottery(Tiny, rounds=0, directory=tmp_path / "run", config={"value": value})


def test_zero_rounds_are_the_dense_one(tmp_path):
    assert next(lottery(Tiny, rounds=0, directory=tmp_path)).name == "round-00"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": "abc"}, "seed='abc' must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"schedule": 0.2}, r"schedule=0.2 is not a function: pass one such as geometric\(0.2\)"),
        (
            {"criterion": "magnitude"},
            "criterion='magnitude' is not a function: pass one such as lt_light",
        ),
        ({"scope": "globally"}, "scope='globally' is not a function"),
        ({"rewind": 0}, "rewind=0 is not a function"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_at_the_call(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        lottery(Tiny, **({"rounds": 1, "directory": tmp_path / "run"} | arguments))
    assert not (tmp_path / "run").exists()


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(ValueError, match="run' is a file; a run needs a directory"):
        lottery(Tiny, rounds=1, directory=tmp_path / "run")


def test_a_text_alone_stands_for_a_list_of_one(tmp_path):
    next(lottery(Tiny, rounds=1, directory=tmp_path, controls="reinit", prunable="hidden*"))
    plan = yaml.safe_load((tmp_path / "config.yaml").read_text())["lottery"]
    assert (plan["controls"], plan["prunable"]) == (["reinit"], ["hidden*"])


def test_a_function_that_makes_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a LightningModule, got Linear: wrap it in one"):
        next(lottery(lambda: torch.nn.Linear(2, 2), rounds=1, directory=tmp_path))
