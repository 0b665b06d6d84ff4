"""Several steps in one turn of Lightning's loop, where the loop and its hooks take longer than the arithmetic.

`lottery(steps_per_batch=N)`. What Lightning does in a turn is done for each step: the batch is fetched and moved, the
network trained, schedules and every counter advanced. What only looks on (the ticket, signs of life, progress bars,
loggers) is told at the last step of a chunk alone. A chunk ends where any of them has something to do, before a
validation, and at the end of an epoch or of the fit; so a result never depends on N.

The private names of Lightning's loops are held by `tests/test_chunks.py`, which compares with its own loop.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer import call
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lt_lightning.fit import position
from lt_lightning.fit.gradient_use import gradients_matter
from lt_lightning.fit.hooks import END, START, WITHIN, hooked
from lt_lightning.twins import twins

_MOVING = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def checked(steps: Any) -> int:
    """The number of steps as it was given; a ValueError unless it is a whole number, 1 or more."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(
            f"steps_per_batch={steps!r} must be a whole number, 1 or more: 1 leaves Lightning's loop as it is, 20 "
            "takes up to twenty steps in each of its turns (prune.steps_per_batch)."
        )
    return steps


def check(trainer: L.Trainer) -> None:
    """Raise a ValueError for a fit whose steps cannot be taken several at once. Call in `setup`."""
    if not isinstance(trainer.strategy, twins(SingleDeviceStrategy)):
        raise _refusal(f"{type(trainer.strategy).__name__}: several processes would end their chunks each for itself")
    if not trainer.lightning_module.automatic_optimization:
        raise _refusal("manual optimization: how many steps a batch takes is for the module to say")
    accumulates = [each for each in _callbacks(trainer) if isinstance(each, twins(GradientAccumulationScheduler))]
    if trainer.accumulate_grad_batches != 1 or any(each.going_to_accumulate_grad_batches() for each in accumulates):
        raise _refusal("accumulate_grad_batches: a step takes several batches already, and the loop is little of it")


def _refusal(what: str) -> ValueError:
    return ValueError(
        f"several steps at once are not possible with {what}. Leave them out: steps_per_batch=1 "
        "(prune.steps_per_batch=1)."
    )


class Chunks:
    """The steps of one fit, taken up to `size` at once.

    Args:
        trainer: of the fit.
        size: how many steps at most, 2 or more.
        lookers: the callbacks of ours, which only look on.
        due_in: in how many steps one of them has something to do, if at most so many are taken; 0: at this one.
    """

    def __init__(self, trainer: L.Trainer, size: int, lookers: tuple[type, ...], due_in: Callable[[int], int]) -> None:
        self._trainer, self._size, self._due_in = trainer, size, due_in
        self._loop: Any = trainer.fit_loop.epoch_loop
        self._module: Any = trainer.lightning_module
        self._single = self._loop.advance
        others = [each for each in _callbacks(trainer) if not isinstance(each, (*lookers, *twins(ProgressBar)))]
        self._hooked = hooked(self._module, others)
        self._is_plain = self._hooked.isdisjoint(WITHIN) and _is_plain(trainer)
        self._stays = self._is_plain and not _moves_batches(trainer)
        is_direct = trainer.strategy.model is self._module
        self._run = self._module.training_step if is_direct else trainer.strategy.training_step
        self._takes_index = len(self._loop._build_kwargs(OrderedDict(), None, 0)) > 1

    def begin(self) -> None:
        """Take several steps at once from now on. Call in `on_train_start`."""
        if isinstance(self._trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
            raise _refusal("training_step(dataloader_iter): it fetches its batches itself")
        self._loop.advance = self._advance

    def _advance(self, fetcher: Any) -> None:
        """In place of `_TrainingEpochLoop.advance`, whose caller ends the batch that comes last."""
        skips = self._trainer.fit_loop._skip_backward  # as the last epoch of StochasticWeightAveraging does
        if self._loop.restarting or skips or self._trainer.accumulate_grad_batches != 1:
            self._single(fetcher)
            return
        self._loop.val_loop.restarting = False
        left = self._ahead()
        while not self._step(fetcher, is_last=left <= 1):
            if self._trainer.lr_scheduler_configs:
                self._loop.update_lr_schedulers("step", update_plateau_schedulers=True)
            self._loop._batches_that_stepped += 1
            left -= 1

    def _ahead(self) -> int:
        """How many steps to take, as far as that is known before."""
        trainer, loop = self._trainer, self._loop
        most = min(self._size, position.validation_in(trainer))
        if trainer.max_steps != -1:
            most = min(most, trainer.max_steps - trainer.global_step)
        if every := trainer.log_every_n_steps:  # type: ignore[attr-defined]
            most = min(most, every - loop._batches_that_stepped % every)
        return min(most, self._due_in(most))

    def _step(self, fetcher: Any, is_last: bool) -> bool:
        """Train a batch, as `_TrainingEpochLoop.advance` does; whether the chunk ends with it."""
        trainer, loop = self._trainer, self._loop
        batch, _, _ = next(fetcher)
        loop.batch_progress.is_last_batch = fetcher.done
        batch = self._moved(batch)
        index = loop.batch_idx + 1
        loop.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        outputs, skips = None, False
        if batch is None:
            loop._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        elif skips := START in self._hooked and self._starts(batch, index) == -1:
            loop.batch_progress.is_last_batch = True
        else:
            loop.batch_progress.increment_started()
            outputs = self._train(batch, index)
        loop.batch_progress.increment_processed()
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if loop._num_ready_batches_reached():
                loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
        if skips:
            raise StopIteration
        ends = is_last or batch is None or trainer.should_stop or loop._num_ready_batches_reached()
        if ends or END in self._hooked:
            call._call_callback_hooks(trainer, END, outputs, batch, index)
            call._call_lightning_module_hook(trainer, END, outputs, batch, index)
            ends = ends or trainer.should_stop or self._due_in(1) == 0  # which a hook, or a signal, may have changed
        if ends:
            trainer._logger_connector.on_batch_end()
        loop.batch_progress.increment_completed()
        if ends:
            trainer._logger_connector.update_train_step_metrics()
        return ends

    def _moved(self, batch: Any) -> Any:
        """The batch as the module takes it."""
        device = self._trainer.strategy.root_device
        if self._stays and isinstance(batch, (list, tuple)) and all(_lies_on(device, each) for each in batch):
            return batch
        batch = self._trainer.precision_plugin.convert_input(batch)
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return self._trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _starts(self, batch: Any, index: int) -> Any:
        call._call_callback_hooks(self._trainer, START, batch, index)
        return call._call_lightning_module_hook(self._trainer, START, batch, index)

    def _train(self, batch: Any, index: int) -> dict[str, Any]:
        """One optimizer step; where nobody looks on, without asking who does."""
        trainer = self._trainer
        optimizer = trainer.optimizers[0]
        arguments = (batch, index) if self._takes_index else (batch,)
        if not self._is_plain:
            named = OrderedDict(zip(("batch", "batch_idx"), arguments, strict=False))
            return self._loop.automatic_optimization.run(optimizer, index, named)
        progress = self._loop.automatic_optimization.optim_progress.optimizer
        progress.step.increment_ready()
        self._module._current_fx_name = "training_step"
        output = self._run(*arguments)
        self._module._current_fx_name = None
        loss, others = _parts(output)
        optimizer.zero_grad()
        progress.zero_grad.increment_by(1)
        if loss is None:
            Closure.warning_cache.warn("`training_step` returned `None`. If this was on purpose, ignore this warning.")
        else:
            self._module.backward(loss)
        optimizer.step()
        progress.step.increment_completed()
        return {} if loss is None else {"loss": loss.detach(), **others}


def _parts(output: Any) -> tuple[Tensor | None, dict[str, Any]]:
    """The loss that `training_step` returned, and what else it did."""
    if isinstance(output, Tensor):
        return output, {}
    result = ClosureResult.from_training_step_output(output)  # which also says what is wrong with it
    return result.closure_loss, result.extra


def release(trainer: L.Trainer) -> None:
    """Give Lightning's loop its own way back."""
    vars(trainer.fit_loop.epoch_loop).pop("advance", None)


def _callbacks(trainer: L.Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def _is_plain(trainer: L.Trainer) -> bool:
    """Whether nothing but the module's `training_step` and the optimizer has a part in a step."""
    module: Any = trainer.lightning_module
    return (
        not gradients_matter(trainer)
        and not is_overridden("optimizer_zero_grad", module, L.LightningModule)
        and type(trainer.strategy) in twins(SingleDeviceStrategy)
        and type(trainer.precision_plugin) in twins(Precision)
        and isinstance(trainer.profiler, twins(PassThroughProfiler))  # type: ignore[attr-defined]
    )


def _moves_batches(trainer: L.Trainer) -> bool:
    """Whether the module or the data module has its own way to move batches."""
    sources = (trainer.lightning_module, trainer.datamodule)  # type: ignore[attr-defined]
    return any(is_overridden(name, each, DataHooks) for name in _MOVING for each in sources)


def _lies_on(device: torch.device, value: Any) -> bool:
    return type(value) is Tensor and value.device == device
