"""Random ways to train, interrupted in random hooks by exceptions and signals: the same bits, metrics and records."""

import os
import random
import signal
from contextlib import suppress

import lightning as L
import pytest
import torch
from killing import Augmented, assert_same_directories
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, GradientAccumulationScheduler
from test_exact_restart import MODELS, Measuring
from test_lottery import Stop
from tiny import Tiny, data, play, trainer
from torch.utils.data import DataLoader, RandomSampler
from trained import TwoOptimizers

from lt_lightning import cubically, fine_tune, keep_weights, linearly, lottery, settled, to_point

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
HOOKS = ["batch_start", "batch_end", "epoch_start", "epoch_end", "end"]
HOOKS = [f"on_train_{name}" for name in HOOKS] + ["on_validation_end", "on_before_optimizer_step", "on_save_checkpoint"]


class Interrupt(L.Callback):
    """Raises, or sends a signal, at the n-th call of a hook."""

    def __init__(self, hook, left, how):
        self.left, self.how = left, how
        setattr(self, hook, self.interrupt)

    def interrupt(self, *_, **__):
        self.left -= 1
        if self.left == 0 and self.how is Stop:
            raise Stop
        if self.left == 0:
            os.kill(os.getpid(), self.how)


class Skipping(Tiny):
    """Some batches give no loss."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        return None if index == 2 else loss


class Lbfgs(Tiny):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.1, max_iter=3)


LOADERS = {
    "shuffled": lambda: DataLoader(data(), 20, shuffle=True),
    "augmented": lambda: DataLoader(Augmented(), 20, shuffle=True),
    "own generator": lambda: DataLoader(Augmented(), 20, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "drawn": lambda: DataLoader(Augmented(), 20, sampler=RandomSampler(Augmented(), True, 90)),
    "persistent workers": lambda: DataLoader(Augmented(), 20, True, num_workers=1, persistent_workers=True),
}
CALLBACKS = {
    "none": list,
    "stopping": lambda: [EarlyStopping("val/loss", patience=0, min_delta=0.02)],
    "averaging": lambda: [EMAWeightAveraging(decay=0.9, update_every_n_steps=1)],
    "accumulating": lambda: [GradientAccumulationScheduler({1: 2})],
}
CHOICES = {
    "max_epochs": [2, 3, 4],
    "accumulate_grad_batches": [1, 1, 2, 3],
    "val_check_interval": [1.0, 1.0, 1, 2, 3],
    "check_val_every_n_epoch": [1, 1, 2],
    "limit_train_batches": [1.0, 1.0, 3],
    "num_sanity_val_steps": [0, 2],
    "gradient_clip_val": [None, 0.1],
    "log_every_n_steps": [1, 3],
    "min_epochs": [None, None, 3],
}
MADE = {"tiny": Tiny, "skipping": Skipping, "lbfgs": Lbfgs, "measuring": Measuring, "hook": MODELS["hook"]}
MADE |= {"by hand": TwoOptimizers, "plateau": MODELS["plateau by training"]}


def drawn(draws):
    """A way to train, a list of interruptions, and the `steps_per_batch` before, between and after them."""
    options = {key: draws.choice(values) for key, values in CHOICES.items()}
    way = {
        "model": draws.choice(list(MADE)),
        "loader": draws.choice(list(LOADERS)),
        "callbacks": draws.choice(list(CALLBACKS)),
        "every": draws.choice(["1 step", "2 steps", "1 epoch", "auto", None]),
        "rewind_step": draws.choice([0, 2, "1 epoch"]),
        "rewind": draws.choice([to_point, to_point, keep_weights, fine_tune]),
        "monitor": draws.choice(["val/loss", None]),
        "gradual": draws.choice([None, None, None, cubically(end=0.5), linearly(end=0.2)]),
        "gradual_every": draws.choice(["1 step", "2 steps", "1 epoch"]),
        "early_bird": draws.choice([None, None, None, settled(0.5, epochs=1)]),
    }
    if draws.random() < 0.4 and way["model"] != "by hand":  # whose steps end an epoch too soon for "1 epoch"
        options |= {"max_steps": draws.choice([7, 10, 12]), "max_epochs": -1}
    if way["callbacks"] == "accumulating" or way["model"] == "by hand":
        options |= {"accumulate_grad_batches": 1}
    if way["model"] == "by hand":
        options |= {"gradient_clip_val": None}
        way["callbacks"] = draws.choice(["none", "averaging"])
    stops = [(draws.choice(HOOKS), draws.randint(1, 12), draws.choice([Stop, Stop, *SIGNALS])) for _ in range(2)]
    accumulates = way["callbacks"] == "accumulating" or options["accumulate_grad_batches"] > 1
    sizes = [1 if accumulates or way["model"] == "by hand" else draws.choice([1, 2, 5]) for _ in range(3)]
    return way | {"options": options}, stops, sizes


def run(directory, way, interrupt=()):
    way = dict(way)
    model, loader, callbacks, options = (way.pop(key) for key in ("model", "loader", "callbacks", "options"))
    for ticket in lottery(MADE[model], rounds=1, directory=directory, **way):
        fit = trainer(ticket, [*CALLBACKS[callbacks](), *interrupt], **options)
        fit.fit(ticket.model, LOADERS[loader](), DataLoader(data(), 50), ckpt_path=ticket.ckpt_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 100))
def test_a_random_way_to_train_that_is_interrupted_anywhere_ends_with_the_same_bits(tmp_path, seed):
    way, stops, sizes = drawn(random.Random(seed))
    run(tmp_path / "whole", way)
    for stop, steps in zip(stops, sizes, strict=False):
        with suppress(Stop, SystemExit):
            run(tmp_path / "stopped", way | {"steps_per_batch": steps}, [Interrupt(*stop)])
    run(tmp_path / "stopped", way | {"steps_per_batch": sizes[-1]})
    assert_same_directories(tmp_path / "whole", tmp_path / "stopped")


# What such runs have found, each once


def interrupted(directory, stop, make_callbacks=lambda: [], **arguments):
    with pytest.raises((Stop, SystemExit)):
        play(directory / "stopped", make_callbacks=lambda: [*make_callbacks(), Interrupt(*stop)], **arguments)
    for name in ("stopped", "whole"):
        play(directory / name, make_callbacks=make_callbacks, **arguments)
    assert_same_directories(directory / "whole", directory / "stopped")


def test_a_signal_at_the_last_step_of_a_fit_that_ends_within_an_epoch(tmp_path):
    options = {"max_steps": 12, "max_epochs": -1}
    interrupted(tmp_path, ("on_train_batch_end", 12, signal.SIGTERM), options=options)


def test_a_signal_at_the_step_at_which_early_stopping_ends_the_fit(tmp_path):
    options = {"max_epochs": 6, "val_check_interval": 2}
    stopping = CALLBACKS["stopping"]
    interrupted(tmp_path, ("on_validation_end", 3, signal.SIGTERM), stopping, options=options, every=None)


def test_early_stopping_that_waits_for_min_epochs_is_not_forgotten(tmp_path):
    stopping = lambda: [EarlyStopping("val/loss", patience=0, min_delta=9.0)]  # noqa: E731
    options = {"max_epochs": 6, "min_epochs": 3}
    interrupted(tmp_path, ("on_train_batch_end", 14, Stop), stopping, options=options)
    assert tmp_path.joinpath("whole", "round-00", "metrics.csv").read_text().count("\n") < 20


def test_a_schedule_of_accumulation_goes_on_within_an_epoch(tmp_path):
    options = {"max_epochs": 3}
    interrupted(tmp_path, ("on_train_batch_end", 8, signal.SIGTERM), CALLBACKS["accumulating"], options=options)
