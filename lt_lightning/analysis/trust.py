"""What a stored `config.yaml` may name: a run may come from anybody, and Hydra calls whatever `_target_` says."""

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.fabric.plugins import Precision as FabricPrecision
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lt_lightning import data, models
from lt_lightning.twins import twins

_PLACES = ("lt_lightning.", "torch.nn.modules.", "torch.optim.", "lightning.", "pytorch_lightning.")
"""Beginnings of the modules in which what may be named is defined."""

_KINDS = (
    *(nn.Module, Optimizer, LRScheduler),
    *twins(L.Trainer, L.LightningDataModule, Callback, Strategy, Profiler),
    *(CheckpointIO, ClusterEnvironment, FabricPrecision),
)
_FUNCTIONS = (models, data)
"""Packages whose public functions may be named: they make networks, schedules and data."""


def check(path: Path, config: Any, where: str) -> None:
    """Look at a part of a stored configuration before Hydra makes something of it.

    Args:
        path: of the configuration.
        config: the part.
        where: its key.

    Raises:
        ValueError: if it names anything but kinds of objects that a fit is made of, of lt_lightning, lightning and
            torch; or if it holds an interpolation, which could make another configuration of it.
    """
    for key, value in _texts(config, where):
        if "${" in value:
            _refuse(path, f"{key} is {value!r}, which OmegaConf would fill in, and a stored configuration is filled in")
        if key.rpartition(".")[2] == "_target_" and not _is_known(value):
            _refuse(path, f"{key} is {value!r}, expected a part of lt_lightning, lightning or torch")


def _refuse(path: Path, told: str) -> None:
    raise ValueError(
        f"{path} may come from anybody, and it names code to run: {told}. Add --trust if you know where it comes from, "
        "or say in your own program what makes the fits."
    )


def _texts(config: Any, where: str) -> Iterator[tuple[str, str]]:
    """Dotted name and text of each leaf; a target that is no text is one all the same."""
    if where.endswith("._target_"):
        yield where, str(config)
    elif isinstance(config, dict):
        for key, value in config.items():
            yield from _texts(value, f"{where}.{key}")
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from _texts(value, f"{where}.{number}")
    elif isinstance(config, str):
        yield where, config


def _is_known(name: str) -> bool:
    """Whether a name is that of something which only makes an object of a fit.

    It counts where the object is defined, not how it is reached: `torch.os.system` is none of torch's.

    >>> [_is_known(name) for name in ("torch.optim.SGD", "torch.os.system", "torch.load", "os.system")]
    [True, False, False, False]
    """
    from hydra.utils import get_object

    if not name.startswith(("lt_lightning.", "torch.", "lightning.", "pytorch_lightning.")):
        return False
    try:
        found: Any = get_object(name)
    except Exception:  # whatever an import raises
        return False
    if isinstance(found, types.FunctionType):
        return any(vars(package).get(found.__name__) is found for package in _FUNCTIONS)
    return isinstance(found, type) and issubclass(found, _KINDS) and f"{found.__module__}.".startswith(_PLACES)
