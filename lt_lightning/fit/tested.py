"""Which weights a test is about: its results join the record only under a name that says so."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lt_lightning.disk.rundir import ArmDirectory, Checkpoint
from lt_lightning.masks import plain_name
from lt_lightning.records import BEST_CHECKPOINT, EARLY_STOP
from lt_lightning.sharded import any_sharded
from lt_lightning.twins import twins

END = ""
"""The moment at the end of the fit, as the names of columns begin."""


def moments(trainer: L.Trainer, module: nn.Module, files: ArmDirectory, loaded: str | None) -> list[str]:
    """The moments of a fit whose weights a module holds, by the weights themselves; empty: none that is recorded.

    Args:
        trainer: of the test that begins.
        module: whose weights are compared with the files.
        files: of the fit, which is over.
        loaded: the checkpoint that was last loaded; None: none since the fit. It decides where weights are sharded.

    Returns:
        Some of END, EARLY_STOP and BEST_CHECKPOINT, the best checkpoint of the Trainer's first ModelCheckpoint.
    """
    known = {END: files.final, EARLY_STOP: files.early_stop}
    given = [moment for moment, path in known.items() if trainer.ckpt_path and _is_same(trainer.ckpt_path, path)]
    found = given or [moment for moment, path in known.items() if _holds(module, path, loaded, is_end=moment == END)]
    best = best_checkpoint(trainer)
    if best and trainer.ckpt_path and _is_same(trainer.ckpt_path, best):
        found.append(BEST_CHECKPOINT)
    return found[:1] if not trainer.ckpt_path else found


def best_checkpoint(trainer: L.Trainer) -> str | None:
    """The best checkpoint that `ckpt_path="best"` stands for; None if no metric has decided which is the best."""
    first: Any = trainer.checkpoint_callback
    return first.best_model_path or None if isinstance(first, twins(ModelCheckpoint)) and first.monitor else None


def _holds(module: nn.Module, path: Path, loaded: str | None, *, is_end: bool) -> bool:
    """Whether a module has the weights of a file."""
    if not path.exists():
        return False
    parameters = {plain_name(name): each.detach() for name, each in module.named_parameters()}
    state = {} if any_sharded(parameters) or path.is_dir() else Checkpoint(path, mapped=True)["state_dict"]
    saved = {plain_name(name): value for name, value in state.items()}
    pairs = [(parameters[name], saved[name]) for name in parameters if name in saved]
    if not pairs:  # nothing to compare
        return is_end if loaded is None else _is_same(loaded, path)
    return all(_are_equal(*pair) for pair in pairs)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal, a NaN to a NaN."""
    if one.shape != other.shape:
        return False
    one = one.to(other.device, other.dtype)
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _is_same(one: Any, other: Any) -> bool:
    return Path(one).resolve() == Path(other).resolve()


def not_recorded(name: str, path: Any, *, fitted: bool, own: bool) -> str:
    """What to say of a test whose results belong to no column of the record; `own`: of the ticket's own module."""
    if not fitted:
        return (
            f"{name}: a test before the fit is not recorded, as a record tells of trained weights: call trainer.test "
            "after trainer.fit."
        )
    changed = f"the weights of {path}" if path else "weights that changed since the fit"
    what = changed if own else "another module"
    return (
        f"{name}: a test of {what} is not recorded, as it has neither the weights of the end nor of the early stop: "
        "test ticket.model as the fit left it, or with ckpt_path=ticket.early_stop_path, or with "
        'ckpt_path="best" and ModelCheckpoint(monitor=...).'
    )
