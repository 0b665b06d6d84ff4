"""Who may look at gradients, or write them, between the backward pass and the next one.

Where nothing can, gradients of pruned weights need no mask: an elementwise optimizer moves the kept weights alike.
Where anything may, each gradient is masked as soon as it is accumulated. The answers err on the careful side: a project
that needs no masks pays a few percent of a step for them.
"""

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
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
        or getattr(trainer.precision_plugin, "scaler", None) is not None  # which skips steps with a NaN anywhere
        or gradients_are_rewritten(trainer)
        or not all(map(is_independent, trainer.optimizers))
        or any(each._backward_hooks or each._post_accumulate_grad_hooks for each in module.parameters())
    )


def gradients_are_rewritten(trainer: L.Trainer) -> bool:
    """Return whether the module or a callback has a say between the backward pass and the step, or names gradients."""
    module: Any = trainer.lightning_module
    return (
        not module.automatic_optimization
        or any(map(_mentions_gradients, {type(each) for each in (*module.modules(), *_others(trainer))}))
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


def _mentions_gradients(kind: type) -> bool:
    """Return whether the code of a class and its parents names a gradient, as `weight.grad` or `grad_norm(...)`.

    Functions of the same project that it calls are read too.
    """
    members = [_function(member) for each in kind.__mro__ if not _is_library(each) for member in vars(each).values()]
    return any(_reads_gradients(member, set()) for member in members)


def _reads_gradients(function: Any, seen: set[int]) -> bool:
    function = inspect.unwrap(function) if callable(function) else function  # within decorators
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType) or id(code) in seen:
        return False
    seen.add(id(code))
    names = set(_names(code))
    if any("grad" in name and name not in _HARMLESS for name in names) or "register_hook" in names:
        return True
    called = [function.__globals__.get(name) for name in names]
    own = [each for each in called if isinstance(each, FunctionType) and not _is_library(each)]
    return any(_reads_gradients(each, seen) for each in own)


def _is_library(thing: Any) -> bool:
    """Whether a class or a function is Lightning's, torch's or this package's."""
    return is_known(thing) or (thing.__module__ or "").partition(".")[0] in ("torch", "torchmetrics", "builtins")


def _function(member: Any) -> Any:
    """The function within a property or a static method."""
    return getattr(member, "fget", None) or getattr(member, "__func__", member)


def _names(code: CodeType) -> Iterator[str]:
    """Every global name, attribute and one-word text in a function, and in the functions within it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)
        elif isinstance(inner, str) and inner == "grad":  # getattr(weight, "grad")
            yield inner
