"""Moments of a fit that no hook of Lightning marks: when every hook of its start, of a batch or of an epoch is over.

`on_train_batch_end` comes before the validation that belongs to the batch, before the module's own hook of that name
and before ReduceLROnPlateau's step; `on_train_epoch_end` likewise. What is saved there lacks them, and a restarted fit
does not make up for them.
"""

from collections.abc import Callable
from typing import Any

import lightning as L


def after_each_batch(trainer: L.Trainer, do: Callable[[], None]) -> None:
    """Call `do` when a training batch and the validation after it are over."""
    _after(trainer.fit_loop.epoch_loop, do)


def after_each_epoch(trainer: L.Trainer, do: Callable[[], None]) -> None:
    """Call `do` when an epoch is over, the last batch's moment included."""
    _after(trainer.fit_loop, do)


def after_start(trainer: L.Trainer, do: Callable[[], None]) -> None:
    """Call `do` once when training is about to begin, after every `on_train_start`, the module's own included."""
    strategy: Any = trainer.strategy
    started = strategy.on_train_start  # Lightning calls it last

    def on_train_start() -> None:
        del strategy.on_train_start
        started()
        do()

    strategy.on_train_start = on_train_start


def after_optimizers(trainer: L.Trainer, do: Callable[[], None]) -> None:
    """Call `do` whenever the optimizers of a fit have been made, until `release_optimizers`."""
    strategy: Any = trainer.strategy
    make = strategy.setup_optimizers

    def setup_optimizers(trainer: L.Trainer) -> None:
        make(trainer)
        do()

    strategy.setup_optimizers = setup_optimizers


def release_optimizers(trainer: L.Trainer) -> None:
    """Call nothing any more when optimizers are made."""
    vars(trainer.strategy).pop("setup_optimizers", None)


def before_the_end(trainer: L.Trainer, do: Callable[[], None]) -> None:
    """Call `do` when training is over, before any hook of its end."""
    loop: Any = trainer.fit_loop
    ended = loop.on_run_end

    def on_run_end() -> None:
        do()
        ended()

    loop.on_run_end = on_run_end


def release(trainer: L.Trainer) -> None:
    """Call nothing any more."""
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop):
        for name in ("on_advance_end", "on_run_end"):
            vars(loop).pop(name, None)
    vars(trainer.strategy).pop("on_train_start", None)
    release_optimizers(trainer)


def _after(loop: Any, do: Callable[[], None]) -> None:
    ended = loop.on_advance_end

    def on_advance_end(*arguments: Any) -> None:
        ended(*arguments)
        do()

    loop.on_advance_end = on_advance_end
