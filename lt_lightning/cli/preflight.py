"""The configuration of `train.py`, looked through before a run directory is made: unknown keys, parts that do not fit.

Parts are made once for it where that costs little: the Trainer, the data module, the optimizer, and the network without
memory for its weights.
"""

import difflib
import inspect
import logging
import math
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from lt_lightning import require
from lt_lightning.cli.refusals import in_one_line, refusal
from lt_lightning.disk.configuration import flatten
from lt_lightning.fit.monitor import AUTO
from lt_lightning.masks import few

READ = (
    *("model", "data", "prune", "trainer", "logger", "callbacks", "hydra"),
    *("name", "seed", "seed_init", "seed_data", "replicates", "share_dense", "threads"),
)
"""Keys at the top that `train.py` reads."""

_PASSES_ON = {"lt_lightning.transfer": "lt_lightning.lottery"}
"""Functions that hand all further arguments to another one."""

_THREADS_PER_CORE = 16


class Preflight(Callback):
    """Look through the configuration before Hydra makes the directory of a single run; jobs of a sweep do so later."""

    def on_run_start(self, config: DictConfig, **options: Any) -> None:
        """End the program with one line if something cannot work."""
        with in_one_line(config.hydra.mode in (None, RunMode.RUN)), _hydra(config):
            check(config)
            _make(config.hydra.run.dir)


@contextmanager
def _hydra(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` have its values, which it otherwise has only in a job."""
    hydra = HydraConfig.instance()
    before = hydra.cfg
    hydra.set_config(config)
    try:
        yield
    finally:
        hydra.cfg = before


def _make(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"hydra.run.dir={path!r} cannot be made: {error}. Choose another folder: hydra.run.dir=FOLDER."
        ) from error


def check(cfg: DictConfig) -> None:
    """Raise a ValueError for a configuration of `train.py` that cannot work, or a key in it that nobody reads.

    Args:
        cfg: as composed, with or without Hydra's own part.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    _check_keys(plain)
    with _quietly():
        _check_values(cfg)
        _check_trainer(cfg)
        _check_lottery(cfg)
        _check_parts(cfg)


# Keys


def _check_keys(plain: Mapping[str, Any]) -> None:
    texts = [text for text in _texts(plain) if "${" in text]
    for key in plain:
        if key not in READ and not any(re.search(rf"\$\{{[^}}]*(?<![\w.]){re.escape(key)}\b", text) for text in texts):
            raise ValueError(f"nothing reads {key}, so it would change nothing{_did_you_mean(key, plain)}")
    for group in READ:
        _check_arguments(plain.get(group), group)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(each)


def _did_you_mean(key: str, plain: Mapping[str, Any]) -> str:
    """The known key that is nearest: one of the same last name, or one that is spelt alike."""
    known = [name for name in flatten({**plain, "hydra": {}}) if name != key]
    same = [name for name in known if name.rpartition(".")[2] == key]
    groups = [name for name in plain if name in READ and name != "hydra"]
    alike = difflib.get_close_matches(key, [*groups, *(name.rpartition(".")[2] for name in known)], 1, cutoff=0.7)
    near = same or [name for name in (*groups, *known) if name.rpartition(".")[2] in alike]
    return f": did you mean {near[0]}?" if near else f"; the keys at the top are {', '.join(sorted(groups))}."


def _check_arguments(value: Any, path: str) -> None:
    """Look through what is made by `_target_`, at any depth, for arguments that its function does not take."""
    if isinstance(value, list):
        for number, each in enumerate(value):
            _check_arguments(each, f"{path}[{number}]")
    if not isinstance(value, Mapping) or path == "hydra":
        return
    for key, each in value.items():
        _check_arguments(each, f"{path}.{key}")
    if isinstance(target := value.get("_target_"), str) and "${" not in target:
        takes = _takes(target, path)
        given = [str(key) for key in value if not re.fullmatch(r"_\w+_", str(key))]
        for key in given if takes is not None else ():
            if key not in takes:  # type: ignore[operator]
                near = difflib.get_close_matches(key, list(takes or ()), 1)
                hint = f": did you mean {path}.{near[0]}?" if near else f"; it takes {few(takes or ['none'], 12)}."
                raise ValueError(f"{target} takes no {key} ({path}.{key}){hint}")


def _takes(target: str, path: str) -> list[str] | None:
    """The names of the arguments of a function; None if it takes any."""
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except (ImportError, InstantiationException) as error:
        raise ValueError(f"{path}._target_={target} cannot be imported: {_line(error)}") from error
    except (TypeError, ValueError):
        return None
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        return [*names, *(_takes(_PASSES_ON[target], path) or ())] if target in _PASSES_ON else None
    return names


# Values


def _check_values(cfg: DictConfig) -> None:
    for name in ("model", "data", "prune", "trainer"):
        if not isinstance(cfg.get(name), DictConfig):
            raise ValueError(f"{name}={cfg.get(name)!r} is no configuration: choose one, such as {_choices(name)}.")
    for key, value in flatten(_plain({name: cfg[name] for name in cfg if name != "hydra"})).items():
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"{key}=nan is no number that anything can be trained with: give another ({key}=...).")
    if not isinstance(cfg.name, str) or not cfg.name.strip():
        raise ValueError(f"name={cfg.name!r} must be the name of a folder: name=default.")
    if not isinstance(cfg.get("callbacks") or {}, Mapping | DictConfig):
        raise ValueError(f"callbacks={cfg.callbacks!r} must be a mapping: +callbacks.NAME._target_=...")
    require.flag("share_dense", cfg.share_dense, "share_dense")
    require.flag("dry_run", cfg.prune.get("dry_run", False), "prune.dry_run")
    _check_threads(cfg.threads)


def _choices(group: str) -> str:
    return {"model": "model=lenet_300_100", "data": "data=digits", "prune": "prune=iterative"}.get(group, "trainer=cpu")


def _check_threads(threads: Any) -> None:
    most = _THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads is not None and not (type(threads) is int and 1 <= threads <= most):
        raise ValueError(
            f"threads={threads!r} must be a whole number from 1 to {most}, {_THREADS_PER_CORE} for each core of this "
            "machine, or null, which takes one for each."
        )


# Parts

_WHOLE = {
    **{"max_epochs": (1, -1), "max_steps": (1, -1), "min_epochs": (0,), "min_steps": (0,), "num_nodes": (1,)},
    **{"accumulate_grad_batches": (1,), "check_val_every_n_epoch": (1,), "log_every_n_steps": (0,)},
}
"""Argument of the Trainer → the least whole number that it can be, and another one; None is allowed too."""

_PART = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches", "gradient_clip_val")
"""Arguments of the Trainer that are numbers, 0 or more."""


def _check_trainer(cfg: DictConfig) -> None:
    given: dict[str, Any] = _plain(cfg.trainer)
    for name, (least, *others) in _WHOLE.items():
        value = given.get(name)
        if value is not None and not (type(value) is int and (value >= least or value in others)):
            also = f", or {others[0]} for no limit" if others else ""
            raise ValueError(
                f"trainer.{name}={value!r} must be a whole number, {least} or more{also}: trainer.{name}=..."
            )
    for name in _PART:
        value = given.get(name)
        if value is not None and not (require.is_number(value) and 0 <= value < math.inf):
            raise ValueError(f"trainer.{name}={value!r} must be a number, 0 or more: trainer.{name}=...")
    devices = given.get("devices", 1)
    if devices in (0, []) or devices is None or isinstance(devices, bool | float):
        raise ValueError(
            f"trainer.devices={devices!r} must be 1 or more, a list of devices, or auto: trainer.devices=1."
        )
    plugins = [partial(instantiate, each) for each in cfg.trainer.get("plugins") or ()]
    options = {"logger": False, "enable_progress_bar": False, "callbacks": []}
    _made("trainer", lambda: instantiate(cfg.trainer)(**options, plugins=[make() for make in plugins]))


def _check_lottery(cfg: DictConfig) -> None:
    """Call the lottery with what it is given, for a directory that is not there; its iterator is left alone."""
    for part in ("schedule", "criterion", "scope", "rewind", "gradual", "early_bird", "stop_when", "controls"):
        given = cfg.prune.get(part)
        if not isinstance(given, str):
            _made(f"prune.{part}", partial(instantiate, given or {}))
        elif part != "controls":  # of which one name is a list of one
            written = f"prune/{part}={given}"
            raise ValueError(f"prune.{part}={given}: {part} is chosen from a group, with a slash: {written}.")
    if cfg.prune.get("_target_") == "lt_lightning.lottery":
        seeds = {name: cfg[name] for name in ("seed", "seed_init", "seed_data")}
        options = {"directory": Path(tempfile.gettempdir(), "lt_lightning-preflight"), "dry_run": False, **seeds}
        _made("prune", lambda: instantiate(cfg.prune)(partial(instantiate, cfg.model), **options))


def _check_parts(cfg: DictConfig) -> None:
    data = _made("data", lambda: instantiate(cfg.data))
    monitor = cfg.prune.get("monitor")
    if (
        isinstance(monitor, str)
        and monitor != AUTO
        and 0 in (cfg.data.get("val_size"), cfg.trainer.get("limit_val_batches"))
    ):
        key = "data.val_size" if cfg.data.get("val_size") == 0 else "trainer.limit_val_batches"
        raise ValueError(
            f"prune.monitor={monitor} is measured in validations, and {key}=0 leaves none: give {key} another value, "
            "or set prune.monitor=null, which goes without an early stop."
        )
    if str(cfg.model.get("_target_")).startswith("lt_lightning.models."):
        _check_optimizer(cfg.model)
        _check_network(cfg, data)


def _check_optimizer(model: DictConfig) -> None:
    """Make optimizer and schedule over two parameters."""
    parameters = [nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2))]
    make = instantiate(model.optimizer, _convert_="all")
    optimizer = _made("model.optimizer", lambda: make(parameters))
    for group in optimizer.param_groups:
        rate = group.get("lr", 0.0)
        if not isinstance(rate, torch.Tensor) and not (require.is_number(rate) and 0 <= rate < math.inf):
            raise ValueError(f"model.optimizer.lr={rate!r} must be a number, 0 or more: model.optimizer.lr=...")
    if model.get("scheduler") is not None:
        _made("model.scheduler", lambda: instantiate(model.scheduler, _convert_="all")(optimizer))


def _check_network(cfg: DictConfig, data: Any) -> None:
    """Let one example of zeros through the network, on the device that computes shapes alone."""
    with torch.device("meta"):
        module = _made("model", lambda: instantiate(cfg.model, compile=None))
    if hasattr(module, "num_classes") and hasattr(data, "num_classes"):
        inputs, wanted, key = torch.zeros(1, *data.shape, device="meta"), data.num_classes, "num_classes"
        if module.num_classes != wanted:
            raise ValueError(_classes(module.num_classes, wanted, "model.num_classes"))
    elif hasattr(data, "vocabulary"):
        inputs, wanted, key = torch.zeros(1, data.context, device="meta").long(), data.vocabulary, "vocabulary"
    else:
        return
    with torch.no_grad():
        outputs = _made("model.network does not fit the data", lambda: module.eval()(inputs))
    if outputs.shape[-1] != wanted:
        raise ValueError(_classes(outputs.shape[-1], wanted, f"model.network.{key}"))


def _classes(found: int, wanted: int, key: str) -> str:
    data_key = f"data.{key.rpartition('.')[2]}"
    return f"{key}={found}, and the data has {wanted} ({data_key}): leave {key} to the data, or set {key}={wanted}."


def _made(key: str, make: Callable[[], Any]) -> Any:
    """What a function makes; what it raises becomes one line, which names the key if another package has raised it."""
    try:
        return make()
    except Exception as error:
        raise ValueError(refusal(error) or f"{key}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """An error in one line: of Hydra's the one that it was raised from."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    told = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    return told if isinstance(error, ValueError) else f"{type(error).__name__}: {told}"


def _plain(value: Any) -> Any:
    if isinstance(value, DictConfig):
        return OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


@contextmanager
def _quietly() -> Iterator[None]:
    """Say nothing of what is made here: the run says it all again."""
    loggers: Sequence[logging.Logger] = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [each.level for each in loggers]
    state = torch.get_rng_state()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(state)
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
