"""The LightningModule around the standard networks: cross entropy, accuracy, one optimizer."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from lt_lightning import require
from lt_lightning.models.compiled import compile_network
from lt_lightning.models.optimizers import MakeOptimizer, MakeScheduler, check_interval, configured
from lt_lightning.models.sharding import shard

Batch = tuple[Tensor, Tensor]  # inputs (batch, ...) and int64 labels (batch,)


class Classifier(LightningModule):
    """Train `network` to classify, and log the metrics that a lottery-ticket study reads.

    `network` maps inputs (batch, ...) to logits (batch, num_classes); a batch is inputs and int64 labels
    (batch,). `optimizer` makes the optimizer from the parameters, `scheduler` the learning-rate schedule from
    the optimizer; the schedule advances every `scheduler_interval`, "step" or "epoch". `compile` has arguments of
    `torch.compile` for the network, as `{}` or `{"mode": "reduce-overhead"}`, which replays CUDA graphs on a GPU; None
    compiles nothing. With `channels_last` images and weights of convolutions lie in memory with their channels last,
    for which GPUs have faster kernels. Both change the order in which floats are added, and no name.

    Logged: `train/loss` in nats, of the steps that a Trainer passes on to its loggers (`log_every_n_steps`) and of the
    last of an epoch, since logging takes Lightning a tenth of a small step; `train/acc` in [0, 1], over the epoch;
    `val/loss`, `val/acc`, `test/loss` and `test/acc` over the whole set, each example weighing the same.

    Raises:
        ValueError: when `scheduler_interval` is neither "step" nor "epoch"; when a fit begins, for a data module of
            another number of classes.

    >>> from functools import partial
    >>> from torch.optim import Adam
    >>> from lt_lightning.models import lenet_300_100
    >>> model = Classifier(lenet_300_100(), partial(Adam, lr=1.2e-3))
    >>> next(name for name, _ in model.named_parameters())
    'network.hidden1.weight'
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        scheduler_interval: str = "step",
        num_classes: int = 10,
        compile: Mapping[str, Any] | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        check_interval(scheduler_interval)
        self.network = network
        self.num_classes = require.whole("num_classes", num_classes, 1, "that accuracy is counted over")
        self.channels_last = require.flag("channels_last", channels_last, "model.channels_last")
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        compile_network(network, compile)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        self.train_accuracy = _accuracy(num_classes)
        self.val_accuracy = _accuracy(num_classes)
        self.test_accuracy = _accuracy(num_classes)
        self.is_accuracy_logged = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (batch, ...) to logits (batch, num_classes)."""
        if self.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return self.network(inputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross entropy of the batch, in nats."""
        loss = self._loss(batch, self.train_accuracy)
        self.log_step(loss)
        return loss

    def log_step(self, loss: Tensor) -> None:
        """Log what a training step logs, where it is read."""
        if is_read(self.trainer):
            self.log("train/loss", loss, on_step=True, on_epoch=False)
        if not self.is_accuracy_logged:  # once an epoch: Lightning then has the metric, and asks it at the end
            self.log("train/acc", self.train_accuracy, on_step=False, on_epoch=True)
            self.is_accuracy_logged = True

    def on_train_start(self) -> None:
        """Log the accuracy anew, also where a fit restarts in the middle of an epoch."""
        self.is_accuracy_logged = False

    def on_train_epoch_start(self) -> None:
        """Log the accuracy of the new epoch."""
        self.is_accuracy_logged = False

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log `val/loss` and `val/acc`."""
        self._evaluate("val", batch, self.val_accuracy)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log `test/loss` and `test/acc`."""
        self._evaluate("test", batch, self.test_accuracy)

    def setup(self, stage: str) -> None:
        """Raise a ValueError for a data module of another number of classes."""
        there = getattr(self.trainer.datamodule, "num_classes", self.num_classes)  # type: ignore[attr-defined]
        if there != self.num_classes:
            raise ValueError(
                f"num_classes={self.num_classes} of the Classifier, and the data module has {there}: write "
                f"Classifier(..., num_classes={there}), or leave model.num_classes to the data."
            )

    def configure_model(self) -> None:
        """Shard the network where the strategy has processes to share it: `ModelParallelStrategy`."""
        shard(self.network, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters, with its learning-rate schedule if there is one."""
        return configured(self.parameters(), self.make_optimizer, self.make_scheduler, self.scheduler_interval)

    def _evaluate(self, stage: str, batch: Batch, accuracy: MulticlassAccuracy) -> None:
        loss = self._loss(batch, accuracy)
        # The batch size weighs the last, smaller batch; sync_dist averages over processes once, at the end.
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]), sync_dist=True)
        self.log(f"{stage}/acc", accuracy, on_step=False, on_epoch=True)

    def _loss(self, batch: Batch, accuracy: MulticlassAccuracy) -> Tensor:
        inputs, labels = batch
        logits = self(inputs)
        # update, not forward: the batch's own accuracy is never read.
        accuracy.update(logits, labels)
        return cross_entropy(logits, labels)


def is_read(trainer: Trainer) -> bool:
    """Whether what a training step logs is looked at: by loggers, or as the last of an epoch or of the fit."""
    step, every = trainer.global_step + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
    return trainer.is_last_batch or step == trainer.max_steps or bool(every and step % every == 0)


class _Accuracy(MulticlassAccuracy):
    """Counts right answers, with the same results: torchmetrics counts four ways, in a tenth of a small step's time."""

    tp: Tensor
    fn: Tensor

    def update(self, preds: Tensor, target: Tensor) -> None:
        right = ((preds if preds.ndim == target.ndim else preds.argmax(1)) == target).sum()
        self.tp.add_(right)
        self.fn.add_(len(target) - right)


def _accuracy(num_classes: int) -> MulticlassAccuracy:
    # Checking the labels would wait for the device at every step; cross entropy refuses bad ones anyway.
    return _Accuracy(num_classes, average="micro", validate_args=False)
