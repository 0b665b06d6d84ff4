"""Optimizers whose steps nobody hears of: wrappers, such as Lookahead, that never call `Optimizer.__init__`.

torch calls the hooks of a step, by which weights are masked, from a wrapper that `Optimizer.__init__` puts around the
`step` of the class. Without it `register_step_post_hook` fails, or succeeds and is never called.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import wraps
from types import MethodType
from typing import Any

from torch.optim import Optimizer

_WHEN = ("step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")
_HOOKS = tuple(f"_optimizer_{when}_hooks" for when in _WHEN)
_REGISTER = ("register_step_pre_hook", "register_step_post_hook")


def make_hookable(optimizers: Iterable[Any]) -> None:
    """Let each optimizer call the hooks of its steps, as torch's own do. Call as soon as they are made.

    The class is left alone: other objects of it may not have what its `step` would then ask for.
    """
    for optimizer in optimizers:
        if not getattr(type(optimizer).step, "hooked", False) and not hasattr(optimizer.step, "hooked"):
            _add_hooks(optimizer)


def _add_hooks(optimizer: Any) -> None:
    for name in _HOOKS:
        if name not in vars(optimizer):
            setattr(optimizer, name, OrderedDict())
    for name in _REGISTER:
        if not hasattr(optimizer, name):
            setattr(optimizer, name, MethodType(getattr(Optimizer, name), optimizer))
    step = optimizer.step

    @wraps(step)
    def hooked_step(optimizer: Any, *arguments: Any, **options: Any) -> Any:
        given = (optimizer, *arguments)  # as torch gives them to hooks
        for hook in tuple(optimizer._optimizer_step_pre_hooks.values()):
            given, options = hook(optimizer, given, options) or (given, options)
        result = step(*given[1:], **options)
        for hook in tuple(optimizer._optimizer_step_post_hooks.values()):
            hook(optimizer, given, options)
        return result

    hooked_step.hooked = True  # type: ignore[attr-defined]
    optimizer.step = MethodType(hooked_step, optimizer)  # schedulers ask a step for its __func__
