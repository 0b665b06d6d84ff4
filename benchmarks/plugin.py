"""What there is beside arithmetic: imports, the steps of a fit against a bare loop, selection.

python -m benchmarks plugin
"""

import subprocess
import sys
import tempfile
import time

import torch
from torch.nn.functional import cross_entropy

from benchmarks.callback import Clock
from benchmarks.networks import ADAM, SGD, images, lenet, make_model, tickets, trainer
from benchmarks.side_by_side import alternated
from lt_lightning.enforcement import Enforcement
from lt_lightning.scopes import globally


def rows(quick):
    """Rows of the table: what, what to reach, what was measured, and of what it is made."""
    for what, optimizer, batch_size in (("128 SGD", SGD, 128), ("60 Adam", ADAM, 60)):
        measured = steps_of_a_fit(optimizer, batch_size, 100 if quick else 300, repeats=5 if quick else 11)
        yield f"step of lenet, batch {what}: ticket's fit / bare loop with masks", 1.4, *measured
    yield "import lt_lightning beyond import lightning, CPU seconds", 0.2, *imports(3 if quick else 7)
    size = 1_000_000 if quick else 10_000_000
    yield f"selection among {size:,} weights, CPU seconds", None, selection(size), None, None


def steps_of_a_fit(optimizer, batch_size, steps, repeats):
    """Steps of a pruned round, and the same in a bare loop over tensors with the same optimizer and masks."""
    with tempfile.TemporaryDirectory() as directory:
        data = images(lenet, batch_size)
        data.setup("fit")
        run = tickets(lenet, directory, optimizer, rounds=repeats + 1, every=None)

        def fitted():
            ticket, clock = next(run), Clock(steps)
            fit = trainer(ticket.directory, [clock, ticket], max_steps=steps + 20, max_epochs=-1)
            fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
            return clock.seconds

        def bare():
            model = make_model(lenet, optimizer)
            weights = {name: each for name, each in model.named_parameters() if "hidden" in name and each.dim() > 1}
            enforcement = Enforcement({name: torch.rand(each.shape) < 0.5 for name, each in weights.items()}, weights)
            made, taken = optimizer(model.parameters()), 0
            while True:
                for inputs, labels in data.train_dataloader():
                    if taken == 20:
                        start = time.process_time()
                    made.zero_grad()
                    cross_entropy(model(inputs), labels).backward()
                    made.step()
                    enforcement.mask_weights()
                    taken += 1
                    if taken == 20 + steps:
                        return time.process_time() - start

        fitted()  # round 0, which is dense
        return alternated(fitted, bare, repeats)


def imports(repeats):
    """CPU seconds of the imports, those of `lightning` alone subtracted."""
    spans = {}
    for _ in range(repeats):
        for program in ("import lightning", "import lightning, lt_lightning; lt_lightning.lottery"):
            code = f"import time; {program}; print(time.process_time())"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            spans.setdefault(program, []).append(float(done.stdout))
    alone, both = (min(each) for each in spans.values())
    return both - alone, both, alone


def selection(size):
    scores, masks = {"w": torch.rand(size)}, {"w": torch.rand(size) < 0.8}
    start = time.process_time()
    globally(scores, masks, 0.64)
    return time.process_time() - start
