"""What is between two rounds: from the end of a fit's last step to the first step of the next.

python -m benchmarks rounds
"""

import tempfile
import time

import lightning as L
import torch
from torch import nn

from benchmarks.networks import ADAM, images, mlp, tickets, trainer


def rows(quick):
    """Rows of the table: what, seconds to reach, the seconds."""
    width = 1000 if quick else 3162
    weights = width * width
    seconds = between(width, rounds=2 if quick else 5)
    yield f"between two rounds of {weights:,} weights, Adam, seconds", None if quick else 2.0, seconds, None, None


def network(width):
    """One hidden layer of `width` by `width` weights, which alone is pruned."""
    return nn.Sequential(
        nn.Flatten(), nn.AdaptiveAvgPool1d(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def between(width, rounds):
    """The median over rounds: selection, saving, rewinding, and a new module and Trainer."""
    gaps, ended = [], None
    with tempfile.TemporaryDirectory() as directory:
        data = images(mlp, count=256)
        for ticket in tickets(
            lambda: network(width), directory, ADAM, rounds=rounds, every=None, prunable=["*.2.weight"]
        ):
            watch = Steps()
            fit = trainer(ticket.directory, [watch, ticket], max_steps=2, max_epochs=-1)
            fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
            gaps += [watch.first - ended] if ended else []
            ended = watch.last
    return float(torch.tensor(gaps).median())


class Steps(L.Callback):
    """When the first step of a fit began and its last ended."""

    first = None

    def on_train_batch_start(self, *_):
        self.first = self.first or time.perf_counter()

    def on_train_batch_end(self, *_):
        self.last = time.perf_counter()
