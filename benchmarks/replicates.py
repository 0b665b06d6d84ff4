"""What seeds that are trained together take, against the same seeds one after the other.

python -m benchmarks replicates                    # on one thread of the CPU
python -m benchmarks.replicates --device cuda      # on a GPU, in seconds of the clock
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

from benchmarks.networks import ADAM, images, lenet, tickets, trainer
from benchmarks.side_by_side import alternated, seconds
from lt_lightning.replicates import fit, side_by_side

SEEDS = range(5)


def rows(quick):
    """Rows of the table: what, the ratio to reach, the ratio, seconds of both."""
    measured = runs(steps=100 if quick else 1000, repeats=1 if quick else 3)
    yield "5 seeds of lenet, batch 60 Adam, round 0 and a ticket: together / one after the other", 1.1, *measured


def runs(steps, repeats, clock=seconds, **machine):
    """Whole lotteries, all that is between rounds included."""
    together, apart = (partial(clock, partial(play, each, steps, machine)) for each in ([SEEDS], [[n] for n in SEEDS]))
    play([[0, 1], [2]], 20, machine)  # the first calls of anything take longer
    return alternated(together, apart, repeats)


def play(parts, steps, machine):
    data = images(lenet, batch_size=60, val_size=1000)
    options = {
        "max_steps": steps,
        "max_epochs": -1,
        "val_check_interval": 100,
        "check_val_every_n_epoch": None,
        **machine,
    }
    with tempfile.TemporaryDirectory() as directory:
        for seeds in parts:
            lotteries = [tickets(lenet, Path(directory, str(seed)), ADAM, rounds=1, seed=seed) for seed in seeds]
            for group in side_by_side(lotteries):
                make = partial(trainer, directory, **options)
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
    print(*(f"{value:.3f}" for value in runs(asked.steps, 3, clock, accelerator=accelerator)))
