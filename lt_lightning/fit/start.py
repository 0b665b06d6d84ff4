"""The start of a fit from a checkpoint: the weights are the checkpoint's, whatever the hooks of a start write.

Lightning restores weights before `on_fit_start` and calls `on_train_start` in every fit. A module that draws or changes
weights there would train others than its ticket holds, and an interrupted fit would not continue with its own.
"""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from lt_lightning.disk.loading import read_into
from lt_lightning.disk.rundir import Checkpoint, model_state
from lt_lightning.fit.hooks import foreign, overrides
from lt_lightning.masks import plain_name

HOOKS = ("on_fit_start", "on_train_start")
"""Hooks at the start of a fit, in which weights may be drawn or changed."""


def may_write(trainer: L.Trainer) -> bool:
    """Return whether the module, or a callback of others, has a hook in which it could write weights at the start."""
    callbacks = foreign(trainer.callbacks)  # type: ignore[attr-defined]
    return overrides(trainer.lightning_module, *HOOKS) or any(
        is_overridden(name, each, Callback) for name in HOOKS for each in callbacks
    )


def restore_weights(module: L.LightningModule, path: Path) -> None:
    """Give the parameters of a module the values that a checkpoint holds; call on every process."""
    checkpoint = Checkpoint(path, mapped=True)
    held = {plain_name(name) for name in model_state(checkpoint)}
    found = {plain_name(name): each for name, each in module.named_parameters()}
    read_into(checkpoint, {name: each for name, each in found.items() if name in held})
