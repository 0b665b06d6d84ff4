"""Every argument of `lottery` and of the functions that make its parts, given what it cannot be."""

import os
import re
from functools import partial

import pytest
import torch
from tiny import Tiny

from lt_lightning import (
    at_step,
    cubic,
    cubically,
    explicit,
    geometric,
    geometrically,
    lottery,
    magnitude,
    one_shot,
    reinit,
    settled,
    to_point,
    worse_than_dense,
)
from lt_lightning.controls import noise
from lt_lightning.rewinds import noise as noisy

NAN, INF = float("nan"), float("inf")


def unfit(round, second):
    return 1.0


def made(value) -> "geometric.__annotations__":  # an annotation that names nothing
    return value


FUNCTIONS = {
    "schedule": (geometric, one_shot, explicit, cubic, unfit, 0.2, "geometric", True, [0.5]),
    "criterion": (None, 5, unfit, "magnitude", geometric, [magnitude], True),
    "scope": (None, 5, "globally", magnitude, reinit, True),
    "rewind": (None, 0, "to_point", noisy, magnitude, True),
    "gradual": (cubically, geometrically, 5, "cubically", True, magnitude),
    "early_bird": (settled, 5, "settled", True, unfit),
    "stop_when": (worse_than_dense, 0.01, "worse_than_dense", True, unfit),
}
PLAIN = {
    "rounds": (-1, 1.5, "3", True, NAN, [2], len),
    "density": (0, 1, -0.1, 1.5, NAN, INF, "0.1", True, [0.1], {}, {"*": 0}, {"*": "0.1"}, one_shot),
    "directory": ("", "  ", None, 5, True, ["runs"], os.devnull, f"{os.devnull}/run"),
    "rewind_step": (None, -1, 1.5, NAN, "soon", True, [1], "", INF),
    "points": (5, None, True, [None], [-1], ["soon"], [NAN], [True], {1}, len),
    "controls": (5, None, True, [None], [5], [noise], [at_step], [reinit, noise], [geometric(0.2), 3], [""], len),
    "prunable": (5, [], "", [None], ["!"], [5], True, unfit, [(torch.nn.Linear(2, 2), "weight")], {"*": 1}),
    "monitor": (5, "", True, ["val/loss"], NAN),
    "mode": (None, "best", 1, True),
    "seed": (None, "0", 1.5, NAN, True),
    "seed_init": ("0", 1.5, NAN, True),
    "seed_data": ("0", 1.5, NAN, True),
    "dense": ("no", "false", 0, 1, None, NAN),
    "keep_last": ("yes", 1, None),
    "dry_run": ("maybe", 1, None),
    "gradual_every": (None, 0, -1, NAN, "often", True),
    "every": (0, -1, NAN, "often", True, 1.5),
    "sparse": ("on", 0, 1.5, NAN, True, [0.1], -1),
    "steps_per_batch": (0, 1.5, NAN, "20", True, None),
    "config": (5, "lr=1", [1], {"a": object()}, {"a": [{"b": torch.nn.Linear(2, 2)}]}, {"a": {1, 2}}, True),
    "dense_directory": ("", 5, True, os.devnull),
    "model": (None, 5, "lenet", [Tiny]),
}
ROWS = [(name, value) for table in (FUNCTIONS, PLAIN) for name, values in table.items() for value in values]


def told(value):
    """A test's name, the same in every process."""
    return re.sub(r" at 0x\w+", "", repr(value))[:60]


@pytest.mark.parametrize(("name", "value"), ROWS, ids=told)
def test_an_argument_that_cannot_be_is_refused_at_the_call_by_its_name_in_one_line(name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    needed = {"gradual_every": {"gradual": cubically()}, "dense_directory": {"config": {"lr": 1}}}.get(name, {})
    given = {"model": Tiny, "rounds": 1, "directory": tmp_path / "run"} | needed | {name: value}
    with pytest.raises(ValueError, match=r"\w") as error:
        lottery(given.pop("model"), **given)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert re.search({"controls": "control|sigma"}.get(name, name), message), message
    assert not list(tmp_path.iterdir())


OPTIONS = [
    *((worse_than_dense, {"threshold": value}) for value in (-1, NAN, INF, "0.01", None, True)),
    *((worse_than_dense, {"threshold": 0.01, **more}) for more in ({"metric": 5}, {"metric": ""}, {"mode": "best"})),
    *((worse_than_dense, {"threshold": 0.01, "rounds": value}) for value in (0, 1.5, NAN, "1", True, None)),
    *((settled, {"distance": value}) for value in (0, 1.5, NAN, "0.1", None, True)),
    *((settled, {"epochs": value}) for value in (0, 1.5, NAN, "5", None, True)),
    *((make, {"begin": value}) for make in (cubically, geometrically) for value in (-1, 1, NAN, "0", None, True)),
    *((cubically, {"end": value}) for value in (0, 1.5, NAN, "1", None, True)),
    *((make, {"sigma": value}) for make in (noise, noisy) for value in (0, -1, NAN, INF, "0.5", None, True)),
    *((at_step, {"step": value}) for value in (-1, 1.5, NAN, "100", None, True)),
    *((cubic, {"density": 0.1, "rounds": value}) for value in (0, 1.5, NAN, "8", None, True)),
    *((geometric, {"density": 0.1, "rounds": value}) for value in (0, 1.5, NAN, "8", True)),
    *((geometric, {"fraction": value}) for value in (0, 1, NAN, INF, "0.2", True, [0.2], {}, {"*": None})),
    *((explicit, {"densities": value}) for value in ([], None, 0.5, "0.5", [0.5, None], [NAN], [True], [0.2, 0.5])),
    *((make, {"density": value}) for make in (one_shot, partial(cubic, rounds=3)) for value in (0, 1, NAN, "1", True)),
]


@pytest.mark.parametrize(("make", "options"), OPTIONS, ids=told)
def test_a_function_that_makes_a_part_refuses_what_it_cannot_be_in_one_line(make, options):
    with pytest.raises(ValueError, match=r"\w") as error:
        make(**options)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"schedule": geometric},
            "schedule: geometric is a function that makes one, and was not called: write geometric(0.2).",
        ),
        (
            {"stop_when": worse_than_dense},
            "stop_when: worse_than_dense is a function that makes one, and was not called: write "
            "worse_than_dense(0.01).",
        ),
        (
            {"controls": [noise]},
            "controls: noise is a function that makes one, and was not called: write noise(0.5).",
        ),
        (
            {"controls": [None]},
            "controls=None is not a function: pass one such as reinit or noise(0.5), or their names.",
        ),
        ({"points": 5}, 'points=5 must be a list: points=[500, "2 epochs"].'),
        ({"dense": "no"}, "dense='no' must be True or False (prune.dense=false)."),
        ({"config": 5}, 'config=5 must be a mapping of plain values: config={"lr": 0.1}.'),
        (
            {"directory": ""},
            "directory='' must be a path: directory=\"runs/mine\" (hydra.run.dir on the command line).",
        ),
        (
            {"prunable": [(torch.nn.Linear(2, 2), "weight")]},
            "prunable holds a pair of Linear and 'weight', as ModelPruning takes them: name the parameters, "
            'prunable=["hidden.weight"], or patterns of their names.',
        ),
        (
            {"criterion": unfit},
            "criterion=unfit is called with evidence, and takes (round, second): pass one such as "
            "lt_lightning.magnitude.",
        ),
        (
            {"schedule": lambda round: [1.0, 0.5][round], "rounds": 2},
            "schedule(2) raised IndexError: list index out of range; it must answer for every round that there is.",
        ),
    ],
    ids=lambda each: "" if isinstance(each, str) else next(iter(each)),
)
def test_a_refusal_says_what_to_write(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=r"\w") as error:
        lottery(Tiny, **({"rounds": 1, "directory": tmp_path / "run"} | arguments))
    assert str(error.value) == message


def test_a_directory_that_cannot_be_made_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match=r"run' cannot be written: .* is no directory that this process may write"):
        lottery(Tiny, rounds=1, directory=tmp_path / "run")
    monkeypatch.undo()
    tickets = lottery(Tiny, rounds=1, directory=tmp_path / "file" / "run")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be written: .*Not a directory.*hydra.run.dir on the command line"):
        next(tickets)


def test_functions_of_any_kind_are_accepted(tmp_path):
    class Halving:
        def __call__(self, round):
            return 0.5**round

    for number, schedule in enumerate((Halving(), Halving().__call__, partial(lambda by, round: by**round, 0.5))):
        lottery(Tiny, rounds=1, directory=tmp_path / str(number), schedule=schedule, rewind=partial(to_point))
    lottery(Tiny, rounds=1, directory=tmp_path, prunable=lambda *given: True, criterion=made, controls=[made])
