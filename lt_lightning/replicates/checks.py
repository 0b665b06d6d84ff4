"""What can be trained together, and to the same results as alone."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.optim import Optimizer

from lt_lightning.data import Images
from lt_lightning.fit.guard import Guard
from lt_lightning.fit.pulse import Pulse
from lt_lightning.models import Classifier
from lt_lightning.replicates.stacked import run, stack
from lt_lightning.sparse import ELEMENTWISE
from lt_lightning.ticket import Ticket

_ONE_BY_ONE = "train the seeds one after the other: --multirun seed=0,1,2 instead of replicates=3"


def check(trainers: Sequence[L.Trainer], tickets: Sequence[Ticket], data: Sequence[Any]) -> None:
    """Raise a ValueError for what cannot be trained together; the message says which line to change."""
    for trainer, ticket, images in zip(trainers, tickets, data, strict=True):
        _check_plan(ticket)
        _check_trainer(trainer)
        check_data(images)
        if type(ticket.model) is not Classifier:
            raise refusal(
                f"the module {type(ticket.model).__name__}", "choose a model of lt_lightning.models.Classifier"
            )
    if any(cast(Classifier, ticket.model).channels_last for ticket in tickets):
        raise refusal("channels last, as stacked tensors have an order of their own", "set model.channels_last=false")
    optimizers = [_optimizer_of(ticket.model) for ticket in tickets]
    for optimizer in optimizers:
        _check_optimizer(optimizer)
    if any(_options(each) != _options(optimizers[0]) for each in optimizers):
        raise refusal("optimizers that differ from seed to seed", "set the same model.optimizer for all")
    _check_network(cast(Classifier, tickets[0].model).network, data[0].shape)


def refusal(what: str, instead: str) -> ValueError:
    """The error that says what stands in the way, and what to do in its place."""
    return ValueError(f"replicates cannot be trained together with {what}: {instead}; or {_ONE_BY_ONE}.")


def _check_plan(ticket: Ticket) -> None:
    plan = ticket.plan
    if plan.gradual is not None:
        raise refusal("masks that tighten while they train", "leave out prune=gradual")
    if plan.early_bird is not None:
        raise refusal("a round 0 whose length its masks decide", "leave out prune=early_bird")
    if plan.sparse != "off":
        raise refusal(f"prune.sparse={plan.sparse}", "set prune.sparse=off")
    if plan.steps_per_batch > 1:
        raise refusal(f"prune.steps_per_batch={plan.steps_per_batch}", "set prune.steps_per_batch=1")


def _check_trainer(trainer: Any) -> None:
    if not isinstance(trainer.strategy, SingleDeviceStrategy) or trainer.world_size > 1:
        name = f"{type(trainer.strategy).__name__} on {trainer.world_size} processes"
        raise refusal(name, "choose one device: trainer=cpu or trainer=gpu")
    plugin = trainer.precision_plugin
    scaled = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
    if type(plugin) not in (Precision, DoublePrecision, MixedPrecision) or scaled:
        known = "32-true, bf16-mixed or 64-true"
        raise refusal(f"precision={trainer.precision}", f"set trainer.precision to {known}")
    for callback in trainer.callbacks:
        if not isinstance(callback, (Ticket, Guard, Pulse, ProgressBar)):
            name = type(callback).__name__
            raise refusal(f"the callback {name}, which would see one seed alone", "leave it out (callbacks, trainer)")


def check_data(data: Any) -> None:
    """Raise a ValueError for a data module whose loaders cannot have the order of another seed."""
    if not isinstance(data, Images):
        raise refusal(f"the data module {type(data).__name__}", "choose one of lt_lightning.data.Images (data=)")


def _check_optimizer(optimizer: Optimizer) -> None:
    if type(optimizer) not in ELEMENTWISE:
        known = ", ".join(each.__name__ for each in ELEMENTWISE)
        name = type(optimizer).__name__
        raise refusal(f"{name}, in which one weight may look at another", f"set model.optimizer to one of {known}")


def _check_network(network: nn.Module, shape: Sequence[int]) -> None:
    """Run copies of the network side by side, once."""
    if network._compiled_call_impl is not None:
        raise refusal("a compiled network, as vmap runs it otherwise", "set model.compile=null")
    for name, layer in network.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.p > 0:
            raise refusal(f"dropout ({name}, p={layer.p}), whose draws would be others", "set its p to 0")
    dtype = next(network.parameters()).dtype
    try:
        with torch.no_grad():
            run(stack([network, network]).train(), torch.zeros(2, 2, *shape, dtype=dtype))
    except RuntimeError as error:
        what = f"{type(network).__name__}, which torch.func.vmap cannot run ({str(error).splitlines()[0]})"
        raise refusal(what, "choose another model") from error


def _optimizer_of(model: Any) -> Optimizer:
    made = model.configure_optimizers()
    return made["optimizer"] if isinstance(made, Mapping) else made


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
