"""Who may look at gradients, or write them, between the backward pass and the next one.

Where nothing can, gradients of pruned weights need no mask: an elementwise optimizer moves the kept weights alike.
Where anything may, each gradient is masked as soon as it is accumulated. The answers err on the careful side: a project
that needs no masks pays a few percent of a step for them.
"""

from collections.abc import Iterator
from types import CodeType
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import optim

from lt_lightning.fit.hooks import WITHIN, foreign, is_known

WEIGHT_BY_WEIGHT = (
    *(optim.SGD, optim.Adam, optim.AdamW, optim.NAdam, optim.RAdam, optim.Adamax),
    *(optim.Adagrad, optim.Adadelta, optim.RMSprop),
)
"""Optimizers in which no weight has a part in the step of another, and that keep no weights in their states."""

INDEPENDENT = (*WEIGHT_BY_WEIGHT, optim.Rprop)
"""Optimizers under which gradients of pruned weights need no mask.

Rprop: the gradients of kept weights are the same bits, and so are their signs. Not ASGD: it averages weights before
they are masked after its step, and a project may take that average (`ax`) for its weights.
"""

_WRITERS = ("backward", *WITHIN, "optimizer_step", "configure_gradient_clipping", "optimizer_zero_grad")
"""Hooks of a module that may read or write gradients once they are accumulated."""

_HARMLESS = frozenset(
    ("no_grad", "enable_grad", "set_grad_enabled", "requires_grad", "requires_grad_", "zero_grad", "is_grad_enabled")
)
"""Names with "grad" in them that read no gradient."""


def gradients_matter(trainer: L.Trainer) -> bool:
    """Return whether anything could see gradients of pruned weights: clipping, hooks, code, or unknown optimizers."""
    module: Any = trainer.lightning_module
    return (
        bool(trainer.gradient_clip_val)
        or gradients_are_rewritten(trainer)
        or not all(map(is_independent, trainer.optimizers))
        or any(each._backward_hooks or each._post_accumulate_grad_hooks for each in module.parameters())
        or any(map(_mentions_gradients, (module, *_others(trainer))))
    )


def gradients_are_rewritten(trainer: L.Trainer) -> bool:
    """Return whether the module or a callback has a say between the backward pass and the step."""
    module: Any = trainer.lightning_module
    return (
        not module.automatic_optimization
        or any(is_overridden(name, module, L.LightningModule) for name in _WRITERS)
        or any(is_overridden(name, each, Callback) for name in WITHIN for each in _others(trainer))
    )


def is_independent(optimizer: Any) -> bool:
    """Return whether an optimizer is one of `INDEPENDENT`, with no hook of its own around a step.

    >>> from torch import nn
    >>> [is_independent(kind(nn.Linear(1, 1).parameters())) for kind in (optim.SGD, optim.LBFGS)]
    [True, False]
    """
    return (
        type(optimizer) in INDEPENDENT
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
    )


def _others(trainer: L.Trainer) -> list[Any]:
    return foreign(trainer.callbacks)  # type: ignore[attr-defined]


def _mentions_gradients(thing: Any) -> bool:
    """Return whether the code of an object's own classes names a gradient, as `weight.grad` or `grad_norm(...)`."""
    kinds = (
        kind for kind in type(thing).__mro__ if not is_known(kind) and kind.__module__.partition(".")[0] != "torch"
    )
    members = (member for kind in kinds for member in vars(kind).values())
    codes = (getattr(_function(member), "__code__", None) for member in members)
    names = (name for code in codes if isinstance(code, CodeType) for name in _names(code))
    return any("grad" in name and name not in _HARMLESS for name in names)


def _function(member: Any) -> Any:
    """The function within a property or a static method."""
    return getattr(member, "fget", None) or getattr(member, "__func__", member)


def _names(code: CodeType) -> Iterator[str]:
    """Every global name and attribute in a function, and in the functions within it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
