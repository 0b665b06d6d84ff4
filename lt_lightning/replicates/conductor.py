"""The leader's callback, which lets each seed see the fit of all as its own.

Private names of Lightning are used where there are no others; `tests/test_replicates.py` holds them to that.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import TrainerState
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.optim import Optimizer

from lt_lightning.data import Images
from lt_lightning.fit import moments
from lt_lightning.fit.enforcement import Enforcement
from lt_lightning.fit.interruption import Interruption
from lt_lightning.models import Classifier
from lt_lightning.replicates.joined import joined, own
from lt_lightning.replicates.stacked import Stacked, clip
from lt_lightning.ticket import Ticket


class _Heard(Interruption):
    """What a ticket knows of signals while others train with it: the leader listens, and obeys when all are saved."""

    def __init__(self, conductor: "Conductor") -> None:
        self._conductor = conductor
        self.is_obeyed = False

    @property
    def signal(self) -> int | None:  # type: ignore[override]
        """The signal that all knew of when this batch or epoch ended."""
        return self._conductor.signal

    def note(self, alone: bool = True) -> None:
        """Leave it to the leader."""

    def stop_noting(self) -> None:
        """Leave it to the leader."""

    def obey(self) -> None:
        """Tell the leader that this ticket is saved."""
        self.is_obeyed = self.signal is not None


class Conductor(Callback):
    """The leader's only callback: it lets each ticket, with its Trainer and its module, see the fit as its own."""

    def __init__(self, trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Images]) -> None:
        self._trainers: Sequence[Any] = trainers
        self._tickets, self._data = tickets, data
        self._heard = [_Heard(self) for _ in tickets]
        self._members = [cast(Classifier, each.model) for each in tickets]
        self.stacked = Stacked(self._members, self._turn_to)
        self.signal: int | None = None
        self._interruption = Interruption()
        self._results = [(_ResultCollection(training=True), _ResultCollection(training=False)) for _ in tickets]
        self._loaded: list[dict[str, Any]] = []
        self._leader: Any = None
        self._said = False
        self._enforcement = Enforcement({}, {})  # a fit that was over when it was interrupted never begins to train

    # One seed at a time

    def _turn_to(self, number: int) -> Any:
        """Let Lightning gather metrics for one seed from now on; returns its Trainer."""
        loop = self._leader.fit_loop.epoch_loop
        loop._results, loop.val_loop._results = self._results[number]
        return self._trainers[number]

    def _forward(self, hook: str, *arguments: Any) -> None:
        """Call a hook of all seeds' callbacks."""
        for number in range(len(self._tickets)):
            trainer = self._turn_to(number)
            call._call_callback_hooks(trainer, hook, *arguments)
        self._agree()

    def _agree(self) -> None:
        """All end when one does: they do so at the same step, such as at the rewind point without a dense round."""
        if any(trainer.should_stop for trainer in self._trainers):
            for each in (self._leader, *self._trainers):
                each.should_stop = True

    # Before the fit

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the seeds' Trainers share the leader's loops, and set them up."""
        self._leader = trainer
        trainer.strategy.load_checkpoint = self._load  # type: ignore[assignment,method-assign]
        for number, (each, ticket) in enumerate(zip(self._trainers, self._tickets, strict=True)):
            each._data_connector.attach_data(self._members[number], datamodule=self._data[number])
            each.fit_loop, each.state, each.should_stop = trainer.fit_loop, trainer.state, False
            each.save_checkpoint = partial(self._save, number)
            each.strategy.broadcast = partial(self._decide, number)
            each.strategy.connect(self._members[number])
            each._checkpoint_connector._ckpt_path = ticket.ckpt_path
            each._callback_connector._attach_model_callbacks()
            self._turn_to(number)
            call._call_setup_hook(each)
            ticket.follow(self._heard[number], len(self._tickets))
        trainer._logger_connector = cast(Any, _Connectors(self._trainers, self._turn_to))

    def _load(self, path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """The checkpoints of all seeds, as one of the stacked module; `path` is that of the first."""
        pairs = zip(self._trainers, self._tickets, strict=True)
        self._loaded = [dict(trainer.strategy.load_checkpoint(ticket.ckpt_path)) for trainer, ticket in pairs]
        return joined(self._loaded)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let each seed's callbacks see its own checkpoint."""
        for number, loaded in enumerate(self._loaded):
            each = self._turn_to(number)
            call._call_callbacks_on_load_checkpoint(each, loaded)
            call._call_callbacks_load_state_dict(each, loaded)
        if "loops" not in self._loaded[0]:
            checkpoint.pop("loops", None)
        self._loaded = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the seeds' modules be views of what is trained."""
        self.stacked.make_views()
        for each in self._trainers:
            each.strategy.optimizers = trainer.strategy.optimizers
            each.strategy.lr_scheduler_configs = trainer.strategy.lr_scheduler_configs
        self._forward("on_fit_start")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold the stacked weights to the masks of all, and call each seed when a batch or an epoch is over."""
        masks = {name: torch.stack([each.masks[name] for each in self._tickets]) for name in self._tickets[0].masks}
        parameters = dict(self.stacked.named_parameters())
        self._enforcement = Enforcement(masks, {name: parameters[name] for name in masks})
        self._enforcement.begin(self._trainers[0], None)
        for member in self._members:
            member.on_train_start()
        loops: list[Any] = [trainer.fit_loop.epoch_loop, trainer.fit_loop]
        calls: list[list[Callable[[], None]]] = [[], []]
        for number in range(len(self._tickets)):
            for loop in loops:
                loop.on_advance_end = _nothing
            each = self._turn_to(number)
            call._call_callback_hooks(each, "on_train_start")
            each.strategy.on_train_start()
            for gathered, loop in zip(calls, loops, strict=True):
                gathered.append(vars(loop).pop("on_advance_end"))
        self._agree()
        trainer.strategy.lr_scheduler_configs = self._trainers[0].strategy.lr_scheduler_configs
        moments.after_each_batch(trainer, partial(self._after, calls[0]))
        moments.after_each_epoch(trainer, partial(self._after, calls[1]))
        self._interruption.note()

    def _after(self, calls: Sequence[Callable[[], None]]) -> None:
        """After a batch or an epoch: each seed saves what is due; once all have, a signal is obeyed."""
        for number, moment in enumerate(calls):
            self._turn_to(number)
            moment()
        self._agree()
        self._obey()

    def _obey(self) -> None:
        if all(each.is_obeyed for each in self._heard):
            self._interruption.obey()

    # During the fit

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_sanity_check_start")

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_sanity_check_end")

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        for member in self._members:
            member.on_train_epoch_start()
        self._forward("on_train_epoch_start")

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Clip the gradients of each seed; they were masked as they accumulated."""
        first = self._trainers[0]
        if first.gradient_clip_val:
            gradients = [each.grad for each in self.stacked.parameters() if each.grad is not None]
            clip(gradients, first.gradient_clip_val, first.gradient_clip_algorithm or "norm")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Forward; a signal that comes later waits for the next batch, so that all seeds save at the same."""
        self.signal = self._interruption.signal
        self._forward("on_train_batch_end", outputs, batch, batch_idx)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_validation_start")

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Forward."""
        self._forward("on_validation_batch_end", outputs, batch, batch_idx, 0)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_validation_end")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward, once the accuracies are complete."""
        self.signal = self._interruption.signal
        self.stacked.update_accuracies()
        self._forward("on_train_epoch_end")

    def _save(self, number: int, path: Any, weights_only: bool | None = None, storage_options: Any = None) -> None:
        """Save the checkpoint of one seed, in the place of `Trainer.save_checkpoint`."""
        trainer = self._turn_to(number)
        self.stacked.update_accuracies()
        self._enforcement.clear(self._leader)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only)
        trainer.strategy.save_checkpoint(own(checkpoint, number), path, storage_options)

    def _decide(self, number: int, value: Any, src: int = 0) -> Any:
        """In the place of `strategy.broadcast`: what the first seed decides, that saving is cheap, all do."""
        if not isinstance(value, bool):
            return value
        self._said = value if number == 0 else self._said
        return self._said

    # After the fit

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forward."""
        self._forward("on_train_end")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let each seed save its end and draw its next ticket, for which it may look at its batches."""
        self.signal = self._interruption.signal
        self.stacked.make_views()  # Lightning has put the stacked weights back onto the CPU
        loop: Any = trainer.fit_loop
        together, loaders = loop._combined_loader, loop._combined_loader.flattened
        for number, loader in enumerate(loaders):
            loop._combined_loader = CombinedLoader(loader, "max_size_cycle")
            call._call_callback_hooks(self._turn_to(number), "on_fit_end")
        loop._combined_loader = together
        self._obey()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Forward, and let the loggers know."""
        self._leader = trainer  # it may come before `setup`
        self._forward("on_exception", exception)
        for logger in (logger for each in self._trainers for logger in each.loggers):
            logger.finalize("failed")
        self._release(trainer)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give each seed's Trainer and module what is theirs, for the tests."""
        self.stacked.take_copies()
        for number in range(len(self._tickets)):
            call._call_teardown_hook(self._turn_to(number))
        self._release(trainer)
        for each in self._trainers:
            each.state = TrainerState()
            del each.save_checkpoint, each.strategy.broadcast

    def _release(self, trainer: L.Trainer) -> None:
        self._interruption.stop_noting()
        moments.release(trainer)
        self._enforcement.release()


def _nothing(*arguments: Any) -> None:
    """What comes before a seed's own part in a moment of the loop."""


class _Connectors:
    """The leader's `_logger_connector`: what its loops tell it, each seed's own is told, with its own metrics."""

    def __init__(self, trainers: Sequence[Any], turn_to: Callable[[int], Any]) -> None:
        vars(self).update(trainers=trainers, turn_to=turn_to, evaluated=[{} for _ in trainers])

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.turn_to(0)._logger_connector, name)
        return partial(self._all, name) if callable(found) else found

    def __setattr__(self, name: str, value: Any) -> None:
        for each in self.trainers:
            setattr(each._logger_connector, name, value)

    def _all(self, name: str, *arguments: Any, **options: Any) -> list[Any]:
        numbers = range(len(self.trainers))
        return [getattr(self.turn_to(n)._logger_connector, name)(*arguments, **options) for n in numbers]

    def update_eval_epoch_metrics(self) -> dict[str, Any]:
        """Keep what each has measured; the leader itself has measured nothing."""
        for evaluated, metrics in zip(self.evaluated, self._all("update_eval_epoch_metrics"), strict=True):
            evaluated |= metrics
        return {}

    def log_eval_end_metrics(self, metrics: Any) -> None:
        """Log what each has measured."""
        for number, evaluated in enumerate(self.evaluated):
            self.turn_to(number)._logger_connector.log_eval_end_metrics(dict(evaluated))
            evaluated.clear()
