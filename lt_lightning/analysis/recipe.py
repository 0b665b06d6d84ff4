"""What makes the fits of a run, so that an analysis can train and test more of them."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import nn

from lt_lightning.analysis.trust import check
from lt_lightning.cli.jobs import cluster
from lt_lightning.disk.configuration import NEUTRAL

_ONE_DEVICE = {"devices": 1, "num_nodes": 1, "strategy": "auto", "fast_dev_run": False}
_QUIET = {"enable_progress_bar": False, "enable_model_summary": False}


@dataclass(frozen=True)
class Recipe:
    """What makes the fits of a run, besides weights and masks.

    Args:
        make_model: makes a fresh module.
        make_data: seed → a LightningDataModule whose training order, and whatever it augments with, depend on the seed;
            or, if it shuffles by torch's global generator, on nothing: that is seeded for every epoch.
        make_trainer: makes a Trainer on one device, of the run's length, from keywords that `lightning.Trainer` takes:
            `default_root_dir`, `callbacks`, `logger`, `limit_val_batches`.
        make_callbacks: makes the fit's own callbacks, without the ticket.
    """

    make_model: Callable[[], nn.Module]
    make_data: Callable[[int], L.LightningDataModule]
    make_trainer: Callable[..., L.Trainer]
    make_callbacks: Callable[[], Sequence[Callback]] = tuple


class NotTold(ValueError):
    """A configuration does not say what makes the fits of its run."""


def of_run(
    run: str | os.PathLike[str],
    changes: Sequence[str] = (),
    *,
    trust: bool = False,
    parts: Sequence[str] = ("model", "data", "trainer", "callbacks"),
) -> Recipe:
    """The recipe of a run that `train.py` has made, from its `config.yaml`; on one device, which changes no result.

    torch is given as many threads as the run had.

    Args:
        run: the run directory.
        changes: `key=value`, of keys that change no result, such as `data.path=FOLDER` or `trainer.accelerator=cpu`.
        trust: whether the configuration may name any code; else only what lt_lightning, lightning and torch make fits
            of, since a run may come from anybody.
        parts: which parts of the configuration are made use of.

    Raises:
        ValueError: if the configuration does not tell, or names other code; or if a change could change a result.
    """
    from omegaconf import OmegaConf

    path = Path(run, "config.yaml")
    config = yaml.safe_load(path.read_bytes()) if path.exists() else {}
    lacking = [key for key in ("model", "data", "trainer") if "_target_" not in (config.get(key) or {})]
    if lacking:
        raise NotTold(
            f"{path} does not tell how to make the {lacking[0]}, since train.py has not made this run: in your program "
            "call lt_lightning.analysis.instability.measure(run, Recipe(make_model, make_data, make_trainer))."
        )
    for part in () if trust else parts:
        check(path, config.get(part), part)
    for change in changes:
        key = change.partition("=")[0]
        if "=" not in change or not any(fnmatchcase(key, pattern) for pattern in NEUTRAL):
            raise ValueError(
                f"--set {change}: only what changes no result can be set, as in --set data.path=FOLDER or "
                "--set trainer.accelerator=cpu; copies are trained as the run was."
            )
    merged: Any = OmegaConf.merge(OmegaConf.create(config), OmegaConf.from_dotlist(list(changes)))
    if merged.get("threads"):
        torch.set_num_threads(merged.threads)
    return _of_config(OmegaConf.to_container(merged))


def _of_config(config: Any) -> Recipe:
    from hydra.utils import instantiate

    def make_data(seed: int) -> L.LightningDataModule:
        own = {"seed": seed} if "seed" in config["data"] else {}
        return instantiate({**config["data"], **own})

    def make_trainer(**options: Any) -> L.Trainer:
        settings: Mapping[str, Any] = {**config["trainer"], **_ONE_DEVICE, **_QUIET}
        plugins = [*cluster(), *map(instantiate, settings.get("plugins") or ())]
        return instantiate(settings)(plugins=plugins, **options)

    def make_callbacks() -> list[Callback]:
        return [instantiate(each) for each in (config.get("callbacks") or {}).values()]

    return Recipe(partial(instantiate, config["model"]), make_data, make_trainer, make_callbacks)
