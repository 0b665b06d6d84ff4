"""What seeds that are trained together take, against the same seeds one after the other.

python -m benchmarks replicates                    # on one thread of the CPU
python -m benchmarks.replicates --device cuda      # on a GPU, in seconds of the clock
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from torch import nn

from benchmarks.networks import ADAM, images, lenet, make_model, trainer
from benchmarks.side_by_side import alternated, seconds
from lt_lightning import lottery
from lt_lightning.replicates import fit, side_by_side

SEEDS = range(5)


def small():
    """A network of which a step is all overhead, as those of larger ones are on a GPU."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))


RUNS = {(lenet, 60): ("lenet, batch 60 Adam", 1.1), (small, 4): ("Linear(784, 8, 10), batch 4 Adam", None)}
"""Network and batch size → what it is called, and the ratio to reach."""


def rows(quick):
    """Rows of the table: what, the ratio to reach, the ratio, seconds of both."""
    for (network, batch_size), (what, goal) in RUNS.items():
        measured = runs(network, batch_size, steps=100 if quick else 1000, repeats=1 if quick else 5)
        yield f"5 seeds of {what}, round 0 and a ticket: together / one after the other", goal, *measured


def runs(network, batch_size, steps, repeats, clock=seconds, **machine):
    """Whole lotteries, all that is between rounds included."""
    data = images(lenet, batch_size, val_size=1000)
    one = partial(play, network, data, machine, steps)
    one([[0, 1], [2]])  # the first calls of anything take longer
    together, apart = (partial(clock, partial(one, parts)) for parts in ([SEEDS], [[n] for n in SEEDS]))
    return alternated(together, apart, repeats)


def play(network, data, machine, steps, parts):
    validation = {"val_check_interval": 100, "check_val_every_n_epoch": None}
    options = {"max_steps": steps, "max_epochs": -1, **validation, **machine}
    with tempfile.TemporaryDirectory() as directory:
        make = partial(trainer, directory, **options)
        make_module = partial(make_model, network, ADAM)
        for seeds in parts:
            runs = [lottery(make_module, rounds=1, directory=Path(directory, str(seed)), seed=seed) for seed in seeds]
            for group in side_by_side(runs):
                trainers = [make(callbacks=[ticket]) for ticket in group.values()]
                fit(make, trainers, list(group.values()), [data.reordered(seed) for seed in seeds])


def elapsed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicates")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=1000)
    asked = parser.parse_args()
    clock, accelerator = (elapsed, "gpu") if asked.device == "cuda" else (seconds, "cpu")
    for (network, batch_size), (what, _) in RUNS.items():
        ratio, *of = runs(network, batch_size, asked.steps, 3, clock, accelerator=accelerator)
        print(f"{what}: {ratio:.3f} ({of[0]:.1f} and {of[1]:.1f} seconds)")
