"""What there is beside arithmetic: imports, the steps of a fit against a bare loop, selection.

python -m benchmarks plugin
"""

import io
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from rich.console import Console
from torch.nn.functional import cross_entropy

from benchmarks.networks import ADAM, SGD, images, lenet, make_model, trainer
from benchmarks.side_by_side import alternated
from lt_lightning.cli import naming
from lt_lightning.cli.progress import Progress
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.loggers import log_curves
from lt_lightning.scopes import globally


def rows(quick):
    """Rows of the table: what, what to reach, what was measured, and of what it is made."""
    for what, optimizer, batch_size in (("128 SGD", SGD, 128), ("60 Adam", ADAM, 60)):
        steps = 100 if quick else 55_000 // batch_size  # an epoch of MNIST without its validation images
        for at_once, goal in ((1, 1.4), (20, 1.15)):
            measured = steps_of_a_fit(optimizer, batch_size, at_once, steps, repeats=5 if quick else 15)
            yield f"step of lenet, batch {what}, steps_per_batch={at_once}: train.py / bare loop", goal, *measured
        if not quick:
            measured = steps_of_lightning(optimizer, batch_size, steps, repeats=15)
            yield f"step of lenet, batch {what}: Lightning alone / bare loop, both without masks", None, *measured
    yield "import lt_lightning beyond import lightning, CPU seconds", 0.2, *imports(3 if quick else 7)
    size = 1_000_000 if quick else 10_000_000
    yield f"selection among {size:,} weights, CPU seconds", None, selection(size), None, None


def steps_of_a_fit(optimizer, batch_size, at_once, steps, repeats):
    """Steps of a pruned round as `train.py` runs it, and the same in a bare loop with that optimizer and those masks.

    With the configuration's Trainer, its logger and its bars; the bare loop has neither metrics nor curves.
    """
    with ExitStack() as stack:
        data = images(lenet, batch_size, count=55_000)
        data.setup("fit")
        fits = train_py(optimizer, data, at_once, steps, repeats + 1, stack)

        next(fits)  # round 0, which is dense
        return alternated(partial(next, fits), partial(bare, optimizer, data, steps, masked=True), repeats)


def steps_of_lightning(optimizer, batch_size, steps, repeats):
    """Steps of a Trainer that does nothing else: no logger, bar, metric, callback or mask. It is the floor of a fit."""
    data = images(lenet, batch_size, count=55_000)
    data.setup("fit")

    def alone(directory):
        clock = Clock()
        trainer(directory, [clock], max_steps=steps, max_epochs=-1).fit(Plain(optimizer), data)
        return clock.seconds

    with tempfile.TemporaryDirectory() as directory:
        return alternated(partial(alone, directory), partial(bare, optimizer, data, steps, masked=False), repeats)


class Plain(L.LightningModule):
    """What every Lightning user writes first."""

    def __init__(self, optimizer):
        super().__init__()
        self.network, self.optimizer = lenet(), optimizer

    def training_step(self, batch):
        return cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


def bare(optimizer, data, steps, masked):
    """CPU seconds of the steps of a loop without Lightning."""
    model = lenet()
    weights = {name: each for name, each in model.named_parameters() if each.dim() > 1}
    masks = {name: torch.rand(each.shape) < 0.5 for name, each in weights.items()}
    enforcement = Enforcement(masks if masked else {}, weights if masked else {})
    made = optimizer(model.parameters())
    start = time.process_time()
    for _, (inputs, labels) in zip(range(steps), data.train_dataloader(), strict=False):
        made.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        made.step()
        enforcement.mask_weights()
    return time.process_time() - start


def train_py(optimizer, data, at_once, steps, rounds, stack):
    """Fit round after round as `train.py` does on a terminal, with W&B offline; yields the CPU seconds of the steps."""
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    naming.register()
    trial = [f"trainer.max_steps={steps}", f"prune.rounds={rounds}", "prune.controls=[]", "prune.monitor=null"]
    with initialize_config_dir(str(Path(__file__).parents[1] / "conf"), version_base="1.3"):
        cfg = compose("train", ["experiment=lth_lenet_mnist", "logger.mode=offline", *trial])
    cfg.prune.steps_per_batch = at_once
    tickets = instantiate(cfg.prune)(partial(make_model, lenet, optimizer), directory=directory)
    loggers = stack.enter_context(instantiate(cfg.logger)(directory))
    progress = stack.enter_context(Progress(directory, rounds, Console(file=Terminal(), force_terminal=True)))
    for ticket in tickets:
        clock = Clock()
        fit = instantiate(cfg.trainer)(
            default_root_dir=ticket.directory,
            logger=log_curves(loggers.start(ticket), ticket),
            callbacks=[clock, ticket, progress.bar(ticket)],
        )
        fit.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
        loggers.finish(ticket)
        progress.row(ticket)
        yield clock.seconds


class Clock(L.Callback):
    """CPU seconds of the steps of a fit of one epoch. It has no hook of a batch, which would be called at each."""

    def on_train_epoch_start(self, *_):
        self.start = time.process_time()

    def on_train_epoch_end(self, *_):
        self.seconds = time.process_time() - self.start


class Terminal(io.StringIO):
    """Bars are drawn on it, and nobody sees them."""

    def isatty(self):
        return True


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
