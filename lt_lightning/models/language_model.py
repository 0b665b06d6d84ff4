"""The LightningModule around a network that predicts the next token: cross entropy, one optimizer."""

from collections.abc import Mapping
from typing import Any

from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric

from lt_lightning.models.compiled import compile_network
from lt_lightning.models.optimizers import MakeOptimizer, MakeScheduler, check_interval, configured
from lt_lightning.models.sharding import shard

Batch = tuple[Tensor, Tensor]  # tokens and next tokens, both int64 (batch, time)

NO_TARGET = -100
"""Target of a position that fills up a row: it counts nowhere. It is the default of torch's `cross_entropy`."""


class LanguageModel(LightningModule):
    """Train `network` to predict the next token at every position, and log what a lottery-ticket study reads.

    `network` maps tokens int64 (batch, time) to logits (batch, time, vocabulary); a batch is tokens and targets, the
    next tokens, of the same shape; `NO_TARGET` among the targets counts nowhere. `optimizer` makes the optimizer from
    the parameters, `scheduler` the learning-rate schedule from the optimizer; the schedule advances every
    `scheduler_interval`, "step" or "epoch". `compile` has arguments of `torch.compile` for the network, as `{}` or
    `{"mode": "reduce-overhead"}`; None compiles nothing.

    Logged, in nats per token: `train/loss`, each step; `val/loss` and `test/loss` over the whole text, each token
    weighing the same.

    Raises:
        ValueError: when `scheduler_interval` is neither "step" nor "epoch".

    >>> from functools import partial
    >>> from torch.optim import AdamW
    >>> from lt_lightning.models import gpt
    >>> model = LanguageModel(gpt(vocabulary=65), partial(AdamW, lr=1e-3))
    >>> next(name for name, _ in model.named_parameters())
    'network.tokens.weight'
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer,
        scheduler: MakeScheduler | None = None,
        scheduler_interval: str = "step",
        compile: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_interval(scheduler_interval)
        self.network = network
        compile_network(network, compile)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.scheduler_interval = scheduler_interval
        # Lightning's own mean over processes truncates their mean number of tokens to a whole one.
        self.val_loss = MeanMetric()
        self.test_loss = MeanMetric()

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens int64 (batch, time) to logits (batch, time, vocabulary)."""
        return self.network(tokens)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross entropy of the batch's tokens, in nats."""
        loss = self._loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log `val/loss`."""
        self._evaluate("val", batch, self.val_loss)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log `test/loss`."""
        self._evaluate("test", batch, self.test_loss)

    def configure_model(self) -> None:
        """Shard the network where the strategy has processes to share it: `ModelParallelStrategy`."""
        shard(self.network, self.device_mesh)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all parameters, with its learning-rate schedule if there is one."""
        return configured(self.parameters(), self.make_optimizer, self.make_scheduler, self.scheduler_interval)

    def _evaluate(self, stage: str, batch: Batch, mean: MeanMetric) -> None:
        counted = int((batch[1] != NO_TARGET).sum())  # 0 in a batch that only fills up
        mean.update(self._loss(batch), weight=counted)
        self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True)

    def _loss(self, batch: Batch) -> Tensor:
        tokens, targets = batch
        total = cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="sum")
        return total / (targets != NO_TARGET).sum().clamp(min=1)  # a mean over no token would be NaN
