"""Saving Lightning checkpoints atomically, and what each kind of them holds."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch.distributed.checkpoint.api import CheckpointException
from torch.optim import Optimizer

from lt_lightning.disk import parts
from lt_lightning.disk.atomic import explain, remove, stage_of_directory, staged, take_place
from lt_lightning.disk.checksum import digest_of, seal
from lt_lightning.disk.rundir import MARK
from lt_lightning.masks import plain_name
from lt_lightning.processes import broadcast, gather, is_writer, wait
from lt_lightning.strategies import is_sharded

Trim = Callable[[dict[str, Any]], None]
"""Drops parts of a checkpoint, in place."""

_ANY_MODEL = ("state_dict", "epoch", "global_step", "pytorch-lightning_version", MARK)


def save(trainer: L.Trainer, path: Path, trim: Trim) -> None:
    """Save a checkpoint; a kill at any instant leaves the old one or the new one. Call on every process.

    Under a sharded strategy it is a directory, to which every process writes its own part.

    Args:
        trainer: of the fit.
        path: where to.
        trim: drops what it is not to hold.
    """
    strategy: Any = trainer.strategy
    with _trimming(strategy, trim):
        if is_sharded(strategy):
            _save_parts(trainer, path)
            return
        theirs, strategy.checkpoint_io = strategy.checkpoint_io, _Atomic()
        try:
            trainer.save_checkpoint(path, weights_only=False)
        finally:
            strategy.checkpoint_io = theirs


@contextmanager
def _trimming(strategy: Any, trim: Trim) -> Iterator[None]:
    """Trim what is saved at last: a module's `on_save_checkpoint` may look at all of it, and comes after callbacks."""
    save = strategy.save_checkpoint

    def trimmed(checkpoint: dict[str, Any], *arguments: Any, **options: Any) -> None:
        trim(checkpoint)
        save(checkpoint, *arguments, **options)

    strategy.save_checkpoint = trimmed
    try:
        yield
    finally:
        del strategy.save_checkpoint


def _save_parts(trainer: L.Trainer, path: Path) -> None:
    strategy: Any = trainer.strategy
    stage = Path(broadcast(stage_of_directory(path)))
    strategy.optimizer_state = partial(_optimizer_state, strategy.model)
    try:
        trainer.save_checkpoint(stage, weights_only=False)
        mine = {file.name: digest_of(file) for file in stage.glob(f"__{trainer.global_rank}_*")}
        digests = {name: found for each in gather(mine) for name, found in each.items()}
        if is_writer():
            parts.seal(stage, digests)
            take_place(stage, path)
        wait()
    except BaseException as error:
        if is_writer():
            remove(stage)
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        explain(first, path)
        raise
    finally:
        del strategy.optimizer_state


def _optimizer_state(module: torch.nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The state of an optimizer by the names of its parameters.

    Lightning's own way, torch's `get_optimizer_state_dict`, lets an optimizer without a state take a step first: Adam
    would count it, and SGD begin with a momentum of its weight decay.
    """
    optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
    names: dict[Any, str] = {parameter: plain_name(name) for name, parameter in module.named_parameters()}
    groups = [{**group, "params": [names[each] for each in group["params"]]} for group in optimizer.param_groups]
    return {"state": {names[each]: state for each, state in optimizer.state.items()}, "param_groups": groups}


def write(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint atomically, with its checksum, by one process; in parts if it is made of such."""
    states = [checkpoint["state_dict"], *(each.get("state") for each in checkpoint.get("optimizer_states", ()))]
    if any(isinstance(state, parts.Stored) for state in states):
        parts.write(checkpoint, path)
        return
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
        torch.load(path / parts.META if path.is_dir() else path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read back, so no round could start from it: {str(error).splitlines()[0]}\n"
            "The LightningModule or LightningDataModule stores something else than tensors and primitives in its "
            "on_save_checkpoint or state_dict. Leave that out; where the class is not yours, in a subclass with "
            f"`def on_save_checkpoint(self, checkpoint): pass`, and on_load_checkpoint alike{_how_to_allow(path)}."
        ) from error


def _how_to_allow(path: Path) -> str:
    """The line that lets torch read a file with objects in it, if it can tell."""
    with suppress(Exception):
        if found := sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)):
            line = f"torch.serialization.add_safe_globals([{', '.join(found)}])"
            return f". Or import what it is made of and allow it: {line}"
    return ""
