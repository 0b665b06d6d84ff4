"""What a fit trains with, as far as it changes results: noted in the first fit of a run, compared in every other one.

A program of the user's own has no configuration that could be compared. If its learning rate is edited between two
starts, tickets would go on with the rate of the rewind point, and controls begin with the new one. So optimizers and
schedules are looked at as they are made, before a checkpoint restores what they were.

Devices, strategies, workers and loggers are no facts: they cannot change a result.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from numbers import Integral, Real
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    GradientAccumulationScheduler,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from torch import Tensor, nn

from lt_lightning.disk.checksum import digest
from lt_lightning.masks import plain_name
from lt_lightning.twins import twins

Facts = dict[str, Any]
"""Name → number, text, truth value, or a list or a mapping of those."""

_TRAINING = (
    *(BaseFinetuning, EarlyStopping, GradientAccumulationScheduler),
    *(StochasticWeightAveraging, Timer, WeightAveraging),
)
"""Callbacks that change what is trained. What a callback of the user's own does cannot be known."""

_OF_TRAINER = (
    *("max_epochs", "min_epochs", "max_steps", "min_steps", "accumulate_grad_batches"),
    *("gradient_clip_val", "gradient_clip_algorithm", "precision", "overfit_batches"),
)

_OF_VALIDATION = ("check_val_every_n_epoch", "val_check_interval", "limit_val_batches")
"""They decide among which networks, and by which numbers, the early stop is found."""

_NEUTRAL = (
    *("path", "*_path", "paths", "*_paths", "dir", "*_dir", "directory", "*_directory", "folder", "*_folder"),
    *("root", "*_root", "file", "*_file", "files", "*_files", "filename", "*_filename"),
    *("*num_workers", "device", "*_device", "devices", "*logger*", "*log_every*"),
    *("automatic_optimization", "prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices"),
    *("training", "verbose", "strict_loading", "log_rank_zero_only", "check_on_train_epoch_end", "avg_fn"),
)
"""Names of hyperparameters and options that cannot change a result, or that a fit changes itself."""

_SPEED = ("params", "param_names", "foreach", "fused", "capturable", "differentiable", "initial_lr")
"""Entries of an optimizer's group that are no options, or change no more than rounding."""

_COUNTERS = ("base_lrs", "last_epoch", "best", "num_bad_epochs", "cooldown_counter", "mode_worse", "lr_lambdas")

_SAMPLES = (1, 10, 100, 1000)
"""Steps or epochs at which the factors of a schedule are stored to be read."""

_ALL_SAMPLES = (*range(200), *range(200, 10_000, 100))
"""Steps or epochs at which they are compared, by a checksum."""

_LIBRARIES = ("torch", "torchmetrics", "lightning", "pytorch_lightning", "transformers")
"""Packages whose layers say in `extra_repr` what they are."""


def of_model(module: L.LightningModule) -> Facts:
    """A module as its function has made it: plain hyperparameters, layers and parameters.

    Its class may have another name. Empty if a Trainer has had it already: it may be frozen, cast or built by then.

    >>> from torch import nn
    >>> class Net(L.LightningModule):
    ...     def __init__(self, lr=0.1):
    ...         super().__init__()
    ...         self.lr, self.out = lr, nn.Linear(3, 2, bias=False)
    >>> of_model(Net())  # doctest: +NORMALIZE_WHITESPACE
    {'hyperparameters.lr': 0.1, 'parameters.out.weight': '2x3 float32',
     'layers.out': 'Linear(in_features=3, out_features=2, bias=False)'}
    """
    if getattr(module, "_trainer", None) is not None:
        return {}
    hyperparameters = _numbers(module) | _plain_items(dict(module.hparams_initial))
    parameters = {plain_name(name): _parameter(each) for name, each in module.named_parameters()}
    layers = {plain_name(f"{name}.")[:-1]: _layer(each) for name, each in module.named_modules()}
    return {
        **_under("hyperparameters", hyperparameters),
        **_under("parameters", parameters),
        **_under("layers", {name: told for name, told in layers.items() if name and told}),
    }


def of_trainer(trainer: L.Trainer, monitors: bool) -> Facts:
    """How long a Trainer trains, what it does with gradients, and its callbacks that change what is trained.

    Args:
        trainer: before its fit.
        monitors: whether validations decide an early stop.
    """
    callbacks = [each for each in trainer.callbacks if isinstance(each, twins(*_TRAINING))]  # type: ignore[attr-defined]
    monitors = monitors or any(isinstance(each, twins(EarlyStopping)) for each in callbacks)
    names = (*_OF_TRAINER, *(_OF_VALIDATION if monitors else ()))
    facts = {name: getattr(trainer, name) for name in names}
    if facts["gradient_clip_val"] is not None:
        facts["gradient_clip_algorithm"] = str(facts["gradient_clip_algorithm"] or "norm").rpartition(".")[2].lower()
    return _plain_items(facts) | _numbered("callbacks", [(type(each).__name__, _options(each)) for each in callbacks])


def of_optimizers(optimizers: Iterable[Any], schedules: Iterable[Any]) -> Facts:
    """Optimizers and learning-rate schedules as `configure_optimizers` makes them.

    Args:
        optimizers: with their `param_groups`.
        schedules: Lightning's `LRSchedulerConfig` of each schedule.

    >>> facts = of_optimizers([torch.optim.SGD([torch.zeros(1)], lr=0.1)], [])
    >>> {key: facts[key] for key in ("optimizer", "optimizer.lr", "optimizer.momentum")}
    {'optimizer': 'SGD', 'optimizer.lr': 0.1, 'optimizer.momentum': 0}
    """
    made = [(type(each).__name__, _groups(getattr(each, "param_groups", []))) for each in optimizers]
    planned = [(type(each.scheduler).__name__, _of_schedule(each)) for each in schedules]
    return _listed("optimizer", made) | _listed("schedule", planned)


def of_data(trainer: L.Trainer) -> Facts:
    """How many batches an epoch has, and of how many samples, all processes together. Call in `on_train_start`."""
    if trainer.reload_dataloaders_every_n_epochs:  # type: ignore[attr-defined]
        return {}
    kwargs: Any = trainer.distributed_sampler_kwargs or {}
    replicas = kwargs.get("num_replicas", 1)
    combined: Any = trainer.fit_loop._combined_loader
    sizes = {size for each in combined.flattened if (size := _batch_size(each, replicas))}
    batches = trainer.num_training_batches
    counted = {"data.batches_an_epoch": int(batches)} if batches < float("inf") else {}
    return counted | ({"data.batch_size": sorted(sizes) if len(sizes) > 1 else sizes.pop()} if sizes else {})


def differences(stored: Facts, given: Facts, may_vary: Iterable[str] = ()) -> list[str]:
    """Names of facts that differ, in the order in which they were noted; unset, None and False are alike.

    >>> differences({"max_epochs": 20, "lr": 0.1}, {"max_epochs": 30, "lr": 0.2}, may_vary=["l*"])
    ['max_epochs']
    """
    names = [name for name in stored | given if not any(fnmatchcase(name, pattern) for pattern in may_vary)]
    return [name for name in names if _canonical(stored.get(name)) != _canonical(given.get(name))]


def _canonical(value: Any) -> Any:
    if value is None or value is False:
        return None
    if isinstance(value, (list, tuple)):
        return [_canonical(each) for each in value]
    if isinstance(value, Mapping):
        return {key: _canonical(each) for key, each in value.items()}
    return repr(float(value)) if isinstance(value, Real) else value


def _parameter(parameter: nn.Parameter) -> str:
    shape = "x".join(map(str, parameter.shape)) or "scalar"
    frozen = "" if parameter.requires_grad else ", frozen"
    return f"{shape} {str(parameter.dtype).removeprefix('torch.')}{frozen}"


def _layer(layer: nn.Module) -> str | None:
    """What a layer is, beside its parameters; None for what only wraps or lists others."""
    if isinstance(layer, (nn.Sequential, nn.ModuleList, nn.ModuleDict, torch._dynamo.OptimizedModule)):
        return None
    of_library = type(layer).__module__.partition(".")[0] in _LIBRARIES
    told = layer.extra_repr() or ("" if of_library else ", ".join(f"{k}={v}" for k, v in _numbers(layer).items()))
    return f"{type(layer).__name__}({re.sub('0x[0-9a-fA-F]+', '0x', told)})"


def _numbers(module: nn.Module) -> Facts:
    """Attributes of a module that are numbers or truth values."""
    public = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: value for name, value in _plain_items(public).items() if isinstance(value, (bool, int, float))}


def _options(callback: Any) -> Facts:
    """The options of a callback, by the arguments of its class and its parents."""
    classes: tuple[Any, ...] = type(callback).__mro__[:-1]
    arguments = [name for each in classes for name in inspect.signature(each.__init__).parameters]
    missing = object()
    found = {name: getattr(callback, name, getattr(callback, f"_{name}", missing)) for name in dict.fromkeys(arguments)}
    average = getattr(callback, "_kwargs", {}).get("avg_fn")  # where EMAWeightAveraging keeps its decay
    return _plain_items(found) | (
        _plain_items(inspect.getclosurevars(inspect.unwrap(average)).nonlocals) if average else {}
    )


def _groups(groups: list[dict[str, Any]]) -> Facts:
    facts: Facts = {}
    for number, group in enumerate(groups):
        prefix = f"group {number + 1}." if len(groups) > 1 else ""
        options = {key: value for key, value in group.items() if key not in _SPEED}
        options |= {"lr": group.get("initial_lr", group.get("lr")), "parameters": len(group["params"])}
        facts |= {prefix + key: value for key, value in _plain_items(options).items()}
    return facts


def _of_schedule(config: Any) -> Facts:
    asked = {name: getattr(config, name, None) for name in ("interval", "frequency", "monitor")}
    return _schedule_options(config.scheduler) | _plain_items(asked)


def _schedule_options(schedule: Any) -> Facts:
    own = {name: value for name, value in vars(schedule).items() if name not in _COUNTERS and not name.startswith("_")}
    facts = _plain_items(own | {"milestones": getattr(schedule, "_milestones", own.get("milestones"))})
    for number, function in enumerate(getattr(schedule, "lr_lambdas", ())):
        facts[f"factors {number + 1}"] = [_factor(function, step) for step in _SAMPLES]
        factors = [_factor(function, step) for step in _ALL_SAMPLES]
        facts[f"factors {number + 1}, all"] = digest(repr(factors).encode())[:16]
    for number, each in enumerate(getattr(schedule, "_schedulers", ())):  # of a SequentialLR or a ChainedScheduler
        facts |= {f"{number + 1}": type(each).__name__} | _under(f"{number + 1}", _schedule_options(each))
    return facts


def _factor(function: Callable[[int], Any], step: int) -> float | None:
    """A function of the user's own at a step; None where it is not made for that step."""
    try:
        return float(function(step))
    except Exception:
        return None


def _batch_size(loader: Any, replicas: int) -> int | None:
    """Samples a step, of all processes together; a loader of ours counts them so, and tells its `world_size`."""
    sampler = getattr(loader, "batch_sampler", None)
    size = getattr(loader, "batch_size", None) or getattr(sampler, "batch_size", None)
    return size * replicas // getattr(loader, "world_size", 1) if isinstance(size, int) else None


_OMITTED: Any = object()


def _plain_items(values: Mapping[Any, Any]) -> Facts:
    """The plain ones among named values, less those whose names tell that they change no result."""
    named = {str(name): _plain(value) for name, value in values.items() if not _is_neutral(str(name))}
    return {name: value for name, value in named.items() if value is not _OMITTED and value is not None}


def _is_neutral(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _NEUTRAL)


def _plain(value: Any) -> Any:
    """A value as JSON holds it; `_OMITTED` for what cannot be compared, such as objects."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() == 1 else _OMITTED
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return _plain_items(value)
    if isinstance(value, (list, tuple)):
        return [each for each in map(_plain, value) if each is not _OMITTED]
    named = value.func if isinstance(value, partial) else value
    return getattr(named, "__qualname__", _OMITTED) if callable(named) else _OMITTED


def _under(name: str, facts: Facts) -> Facts:
    return {f"{name}.{key}": value for key, value in facts.items()}


def _listed(name: str, made: list[tuple[str, Facts]]) -> Facts:
    """Facts of one thing under its name, of several under numbered names."""
    facts: Facts = {}
    for number, (kind, options) in enumerate(made):
        each = f"{name} {number + 1}" if len(made) > 1 else name
        facts |= {each: kind, **_under(each, options)}
    return facts


def _numbered(name: str, made: list[tuple[str, Facts]]) -> Facts:
    """Facts of things that are told apart by their kind, and by a number where there are several of one."""
    facts: Facts = {}
    for number, (kind, options) in enumerate(made):
        same = [other for other, _ in made[:number]].count(kind)
        each = f"{name}.{kind}" + (f" {same + 1}" if same else "")
        facts |= {each: True, **_under(each, options)}
    return facts
