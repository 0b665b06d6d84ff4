"""What the ticket costs a fit: the same fit with the callback and without it, both of the same masked weights.

python -m benchmarks callback
"""

import tempfile
import time

import lightning as L

from benchmarks.networks import ADAM, SGD, images, lenet, make_model, mlp, tickets, trainer
from benchmarks.side_by_side import alternated

FITS = {
    "lenet, batch 128 SGD": (lenet, SGD, 128, {}, 1.05),
    "lenet, batch 60 Adam": (lenet, ADAM, 60, {}, 1.05),
    "lenet, batch 128 SGD, clipped": (lenet, SGD, 128, {"gradient_clip_val": 1.0}, 1.1),
    "mlp, batch 128 SGD": (mlp, SGD, 128, {}, None),
}


def rows(quick):
    """Rows of the table: what, the ratio to reach, the ratio, seconds of both."""
    for what, (network, optimizer, batch_size, options, goal) in FITS.items():
        steps = (20 if network is mlp else 200) // (2 if quick else 1)
        measured = fits(network, optimizer, batch_size, options, steps, repeats=5 if quick else 15)
        yield f"steps of a fit of {what}: with the callback / without", goal, *measured


def fits(network, optimizer, batch_size, options, steps, repeats):
    """Steps of a pruned round, and of a fit without a ticket, less the first ones."""
    with tempfile.TemporaryDirectory() as directory:
        data = images(network, batch_size)

        def bare():
            clock = Clock(steps)
            fit = trainer(directory, [clock], max_steps=steps + 20, max_epochs=-1, **options)
            fit.fit(make_model(network, optimizer), data)
            return clock.seconds

        run = tickets(network, f"{directory}/run", optimizer, rounds=repeats + 1, every=None)

        def masked():
            ticket, clock = next(run), Clock(steps)
            fit = trainer(ticket.directory, [clock, ticket], max_steps=steps + 20, max_epochs=-1, **options)
            fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
            return clock.seconds

        masked()  # round 0, which is dense
        return alternated(masked, bare, repeats)


class Clock(L.Callback):
    """CPU seconds of the last steps of a fit, its end left out."""

    def __init__(self, steps):
        self.steps, self.seconds = steps, None

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 20:
            self.start = time.process_time()

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 20 + self.steps - 1:
            self.seconds = time.process_time() - self.start
