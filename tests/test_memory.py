"""One process, many rounds: nothing of an earlier round stays alive."""

import gc
import signal
import weakref

import pytest
from tiny import Tiny, loaders, trainer

from lt_lightning import cubically, lottery
from lt_lightning.fit.interruption import SIGNALS

slow = pytest.mark.slow


def living(directory, rounds, test=False, options=None, **arguments):
    """After each fit: how many modules, Trainers and tickets are alive."""
    alive = [weakref.WeakSet() for _ in range(3)]
    counts = []

    def make():
        alive[0].add(module := Tiny())
        return module

    for ticket in lottery(make, rounds=rounds, directory=directory, **arguments):
        fit = trainer(ticket, **{"max_epochs": 1} | (options or {}))
        alive[1].add(fit)
        alive[2].add(ticket)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        if test:
            fit.test(ticket.model, loaders()[1], verbose=False)
        gc.collect()
        counts.append(tuple(map(len, alive)))
    return counts


def test_the_models_and_trainers_of_earlier_rounds_are_gone(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    assert living(tmp_path, 2, controls=["reinit"], test=True) == [(1, 1, 1)] * 5
    assert [signal.getsignal(number) for number in SIGNALS] == before


@slow
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"options": {"logger": True, "enable_checkpointing": True, "enable_progress_bar": True}},
        {"steps_per_batch": 3},
        {"sparse": 0.9},
        {"schedule": lambda round: 0.9**round, "gradual": cubically(), "options": {"max_epochs": 2}},
    ],
    ids=["plain", "logged", "chunks", "sparse", "gradual"],
)
def test_twenty_rounds_take_the_memory_of_one(tmp_path, arguments):
    assert living(tmp_path, 20, **arguments) == [(1, 1, 1)] * 21
