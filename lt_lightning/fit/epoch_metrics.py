"""The metrics of a running epoch: what `self.log` and torchmetrics have gathered over its batches so far.

Lightning keeps them in memory alone, so a fit that restarts in the middle of an epoch would report the mean over the
rest of it. Its private names below are held by `tests/test_exact_restart.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torchmetrics import Metric

State = dict[str, Any]
"""Tensors and primitives that `torch.load(weights_only=True)` reads."""

_GATHERED = ("value", "cumulated_batch_size")


def logged(trainer: L.Trainer, kind: str = "log") -> dict[str, Tensor]:
    """What was just logged, of every validation loader; where there are several, Lightning shows one at a time.

    Args:
        trainer: in the hook of a step, or at the end of a validation or an epoch.
        kind: "log": for loggers; "callback": for callbacks, such as an early stop.
    """
    results: Any = trainer._results
    shown = results.dataloader_idx
    loaders = {each.meta.dataloader_idx for each in results.values()} - {shown, None}
    found: dict[str, Tensor] = {}
    try:
        for results.dataloader_idx in (shown, *sorted(loaders)):
            found |= trainer._logger_connector.metrics[kind]  # type: ignore[literal-required]
    finally:
        results.dataloader_idx = shown
    return found


def validated_names(trainer: L.Trainer) -> set[str]:
    """The names of what a validation logged, of every loader; nothing is computed, which two batches may not allow."""
    results: Any = trainer._results
    metrics = [each for each in results.values() if each.meta.on_epoch and not each.has_reset]
    return {name for each in metrics for name in results._forked_name(each, on_step=False)}


def state(trainer: L.Trainer, in_epoch: bool) -> State:
    """What this process has gathered so far; between epochs, only the last values are of use."""
    logged = {key: metric for key, metric in _logged(trainer).items() if in_epoch and _counts(metric)}
    return {
        "logged": {key: dict(_gathered(metric)) for key, metric in logged.items()},
        "metrics": {name: _content(metric) for name, metric in _metrics(trainer) if in_epoch},
        "callback_metrics": {name: value.detach().cpu() for name, value in trainer.callback_metrics.items()},
    }


def restore(trainer: L.Trainer, state: Mapping[str, Any]) -> None:
    """Give the module's torchmetrics back what they had gathered. Call before the first batch."""
    device = trainer.strategy.root_device
    for name, metric in _metrics(trainer):
        for key, value in state["metrics"].get(name, {}).items():
            setattr(metric, key, move_data_to_device(value, device))


def restore_callback_metrics(trainer: L.Trainer, state: Mapping[str, Any]) -> None:
    """Give the Trainer back the last values, which schedules and callbacks may look at before the next ones come."""
    trainer.callback_metrics.update(state["callback_metrics"])


def add(trainer: L.Trainer, logged: dict[str, Any]) -> None:
    """Add what had been logged to what has been logged since, and forget it. Call after each batch until it is empty.

    A value comes into being when it is first logged, so it cannot be given back earlier.
    """
    there = _logged(trainer)
    for key in [key for key in logged if key in there and _counts(there[key])]:
        _combine(there[key], logged.pop(key))


def _combine(metric: Any, before: Mapping[str, Tensor]) -> None:
    value = before["value"].to(metric.value.device)
    if metric.meta.is_min_reduction or metric.meta.is_max_reduction:
        metric.value = metric.meta.reduce_fx(metric.value, value)
    else:
        metric.value = value + metric.value
    if metric.meta.is_mean_reduction:
        metric.cumulated_batch_size = metric.cumulated_batch_size + before["cumulated_batch_size"].to(value.device)
    metric._computed = None


def _logged(trainer: L.Trainer) -> dict[str, Any]:
    loop: Any = trainer.fit_loop
    return loop.epoch_loop._results


def _counts(metric: Any) -> bool:
    """Whether this is a number that an epoch gathers; torchmetrics gather for themselves."""
    return metric.is_tensor and metric.meta.on_epoch and not metric.has_reset


def _gathered(metric: Any) -> Iterator[tuple[str, Tensor]]:
    return ((key, getattr(metric, key).detach().cpu()) for key in _GATHERED if hasattr(metric, key))


def _metrics(trainer: L.Trainer) -> list[tuple[str, Any]]:
    return [(name, each) for name, each in trainer.lightning_module.named_modules() if isinstance(each, Metric)]


def _content(metric: Any) -> State:
    values = {key: getattr(metric, key) for key in (*metric._defaults, "_update_count")}
    return move_data_to_device({key: _copy(value) for key, value in values.items()}, "cpu")


def _copy(value: Any) -> Any:
    if isinstance(value, list):
        return [_copy(each) for each in value]
    return value.detach().clone() if isinstance(value, Tensor) else value
