"""The hooks of a training step: who has them, and how Lightning is kept from calling those that do nothing."""

from collections.abc import Iterable
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden

from lt_lightning.twins import twins

START, END = "on_train_batch_start", "on_train_batch_end"
_PACKAGES = ("lightning", "pytorch_lightning", "lt_lightning")
WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")


def hooked(module: Any, callbacks: Iterable[Any]) -> set[str]:
    """The hooks of a step that the module or one of the callbacks has.

    >>> hooked(LightningModule(), [Callback()])
    set()
    """
    parents = [(module, LightningModule), *((each, Callback) for each in callbacks)]
    return {name for name in (START, END, *WITHIN) if any(is_overridden(name, *each) for each in parents)}


def foreign(callbacks: Iterable[Any]) -> list[Any]:
    """The callbacks that neither Lightning nor this package wrote.

    >>> foreign([Callback()])
    []
    """
    return [each for each in callbacks if not is_known(type(each))]


def is_known(kind: Any) -> bool:
    """Whether a class or a function is Lightning's or this package's.

    >>> is_known(Callback), is_known(dict)
    (True, False)
    """
    return (kind.__module__ or "").partition(".")[0] in _PACKAGES


def overrides(module: Any, *names: str) -> bool:
    """Whether the class of a module has any of these hooks of its own.

    >>> overrides(LightningModule(), "setup")
    False
    """
    classes = twins(LightningModule)
    return any(getattr(type(module), name) not in [getattr(each, name) for each in classes] for name in names)


def leave_out_empty(callback: Any) -> None:
    """Let Lightning pass over the hooks that a callback of ours leaves empty: it takes microseconds to call each.

    >>> callback = Callback()
    >>> leave_out_empty(callback)
    >>> callback.on_before_zero_grad is None
    True
    """
    for name in (START, END, *WITHIN):
        if not is_overridden(name, callback, Callback):
            setattr(callback, name, None)  # it asks whether a hook is callable


def leave_out(callback: Any, name: str, when: bool) -> None:
    """Let Lightning pass over this hook of ours in the fit that begins, where there is nothing to do in it.

    >>> callback = Callback()
    >>> leave_out(callback, END, when=True)
    >>> leave_out(callback, END, when=False)
    >>> callable(callback.on_train_batch_end)
    True
    """
    vars(callback).pop(name, None)
    if when:
        setattr(callback, name, None)
