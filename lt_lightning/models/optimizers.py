"""Optimizer and learning-rate schedule of a module, and which parameters decay."""

from collections.abc import Callable, Iterable
from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

MakeOptimizer = Callable[[Iterable], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


def decay_matrices(
    parameters: Iterable[Tensor], optimizer: Callable[..., Optimizer], weight_decay: float, **options: Any
) -> Optimizer:
    """Make an optimizer whose weight decay acts on matrices and larger tensors; biases and norms do not decay.

    Args:
        parameters: of the module.
        optimizer: class or function of (parameter groups, **options).
        weight_decay: of the parameters with two dimensions or more.
        options: of the optimizer: lr, betas ...

    Source: Radford et al. 2018 (Improving Language Understanding by Generative Pre-Training), section 4.1: "on all
    non bias or gain weights".

    >>> from torch import nn, optim
    >>> groups = decay_matrices(nn.Linear(2, 3).parameters(), optim.AdamW, weight_decay=0.1, lr=1e-3).param_groups
    >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
    [(1, 0.1), (1, 0.0)]
    """
    parameters = list(parameters)
    groups = [
        {"params": [each for each in parameters if each.dim() >= 2], "weight_decay": weight_decay},
        {"params": [each for each in parameters if each.dim() < 2], "weight_decay": 0.0},
    ]
    return optimizer([group for group in groups if group["params"]], **options)


def configured(
    parameters: Iterable[Tensor], optimizer: MakeOptimizer, scheduler: MakeScheduler | None, interval: str
) -> OptimizerLRScheduler:
    """Make what `configure_optimizers` returns: the optimizer over these parameters, with its schedule if there is one.

    >>> from functools import partial
    >>> from torch import nn, optim
    >>> type(configured(nn.Linear(2, 3).parameters(), partial(optim.SGD, lr=0.1), None, "step")).__name__
    'SGD'
    """
    made = optimizer(parameters)
    if scheduler is None:
        return made
    return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler(made), "interval": interval}}


def check_interval(interval: str) -> None:
    """Raise a ValueError unless the schedule advances by "step" or "epoch".

    >>> check_interval("step")
    """
    if interval not in ("step", "epoch"):
        raise ValueError(
            f"scheduler_interval is {interval!r}, expected 'step' or 'epoch': "
            "set model.scheduler_interval to one of them"
        )
