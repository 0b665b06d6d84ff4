"""Saving Lightning checkpoints atomically, and what each kind of them holds."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from lt_lightning.atomic import staged
from lt_lightning.checksum import seal

_ANY_MODEL = ("state_dict", "epoch", "global_step", "pytorch-lightning_version")


def save(trainer: L.Trainer, path: Path) -> None:
    """Save a full checkpoint; a kill at any instant leaves the old file or the new one. Call on every process."""
    strategy: Any = trainer.strategy
    theirs, strategy.checkpoint_io = strategy.checkpoint_io, _Atomic()
    try:
        trainer.save_checkpoint(path, weights_only=False)
    finally:
        strategy.checkpoint_io = theirs


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, with its checksum."""
    with staged(path) as file:
        torch.save(dict(checkpoint), file)
        seal(file)


class _Atomic(TorchCheckpointIO):
    """Lightning's own stages in the temporary folder, from which a rename is not atomic (issues 21253 and 19970)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write(checkpoint, Path(path))


def trim_last(checkpoint: dict[str, Any]) -> None:
    """Drop the hyperparameters: unless they are primitives, Lightning cannot read the checkpoint back.

    Of the loops only that of the fit is ever continued.
    """
    if "loops" in checkpoint:
        checkpoint["loops"] = {"fit_loop": checkpoint["loops"]["fit_loop"]}
    for key in [key for key in checkpoint if "hparams_" in key or "hyper_parameters" in key]:
        del checkpoint[key]


def trim_point(checkpoint: dict[str, Any], callbacks: Iterable[str]) -> None:
    """Keep only the states of these callbacks: a restored EarlyStopping would end the next round by round 0's best.

    At step 0 the loop counters go as well: without them Lightning starts a fit instead of restarting one.
    """
    trim_last(checkpoint)
    kept = set(callbacks)
    checkpoint["callbacks"] = {key: state for key, state in checkpoint["callbacks"].items() if key in kept}
    if checkpoint["global_step"] == 0:
        del checkpoint["loops"]


def trim_weights(checkpoint: dict[str, Any]) -> None:
    """Keep weights and buffers."""
    for key in [key for key in checkpoint if key not in _ANY_MODEL]:
        del checkpoint[key]


def require_readable(path: Path) -> None:
    """Raise a ValueError unless the checkpoint can be read back, as every later round must.

    What cannot be read is something that the module or the data module put into it.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read back, so no round could start from it: {error}\n"
            "The LightningModule or LightningDataModule stores something else than tensors and primitives: look at "
            "its on_save_checkpoint and state_dict."
        ) from error
