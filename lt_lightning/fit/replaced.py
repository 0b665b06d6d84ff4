"""One layer on sparse kernels: its weight is a flat parameter of the kept values, in the module and in the optimizers.

Whatever is saved or loaded meanwhile is dense, with zeros at pruned places, through hooks of layer and optimizers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lt_lightning.fit import csr
from lt_lightning.fit.csr import Pattern


class Replaced:
    """A layer that runs on sparse kernels, until it is restored.

    The dense weight is emptied, so that whoever still looks at it notices.

    Args:
        layer: a Linear or Conv2d layer.
        mask: of its weight.
        optimizers: those that may hold its weight.
    """

    def __init__(self, layer: Any, mask: Tensor, optimizers: list[Optimizer]) -> None:
        self._layer, self._optimizers = layer, optimizers
        self._dense: nn.Parameter = layer.weight
        self._pattern = pattern = Pattern(mask.cpu())
        self._values = nn.Parameter(pattern.gather(self._dense))
        if self._dense.grad is not None:
            self._values.grad = pattern.gather(self._dense.grad)
        for optimizer in optimizers:
            _exchange(optimizer, self._dense, self._values, partial(_gathered, pattern))
        pattern.matrix(self._values)  # here, as a validation in inference mode would make one of its own kind
        layer.weight, layer.forward = self._values, partial(_forward(layer), layer, pattern)
        self._dense.grad, self._dense.data = None, self._dense.new_empty(0)
        self._handles = [
            layer.register_state_dict_post_hook(partial(_save, pattern)),
            layer.register_load_state_dict_pre_hook(partial(_load, pattern)),
            *(each.register_state_dict_post_hook(partial(_save_state, self._values, pattern)) for each in optimizers),
            *(
                each.register_load_state_dict_pre_hook(partial(_load_state, self._values, pattern))
                for each in optimizers
            ),
        ]

    def restore(self) -> None:
        """Give the layer its dense weight back."""
        for handle in self._handles:
            handle.remove()
        del self._layer.forward
        self._dense.data = self._pattern.scatter(self._values)
        if self._values.grad is not None:
            self._dense.grad = self._pattern.scatter(self._values.grad)
        self._layer.weight = self._dense
        for optimizer in self._optimizers:
            _exchange(optimizer, self._values, self._dense, partial(_scattered, self._pattern, len(self._values)))


def _forward(layer: nn.Module) -> Callable[..., Tensor]:
    return _linear if isinstance(layer, nn.Linear) else _conv2d


def _linear(layer: nn.Linear, pattern: Pattern, input: Tensor) -> Tensor:
    if layer.weight.dim() > 1:  # a dense one that `torch.func.functional_call` has put in its place
        return F.linear(input, layer.weight, layer.bias)
    _refuse_autocast()
    return csr.linear(input, layer.weight, layer.bias, pattern)


def _conv2d(layer: nn.Conv2d, pattern: Pattern, input: Tensor) -> Tensor:
    if layer.weight.dim() > 1:
        return layer._conv_forward(input, layer.weight, layer.bias)
    _refuse_autocast()
    sizes: Any = (layer.stride, layer.padding)
    return csr.conv2d(input, layer.weight, layer.bias, pattern, *sizes)


def _refuse_autocast() -> None:
    if torch.is_autocast_enabled("cpu"):
        raise ValueError(
            "sparse execution is not possible within torch.autocast: the kernels know single and double precision. "
            "Leave it out: sparse='off' (prune.sparse=off)."
        )


def _exchange(optimizer: Optimizer, old: Tensor, new: Tensor, change: Callable[[Any], Any]) -> None:
    """Let an optimizer hold another parameter in the place of one, with its state."""
    for group in optimizer.param_groups:
        group["params"][:] = [new if each is old else each for each in group["params"]]
    held = list(optimizer.state.items())
    optimizer.state.clear()
    for parameter, state in held:  # in their old order, in which they are saved
        ours = parameter is old
        optimizer.state[new if ours else parameter] = {k: change(v) for k, v in state.items()} if ours else state


def _gathered(pattern: Pattern, value: Any) -> Any:
    return pattern.gather(value) if isinstance(value, Tensor) and value.shape == pattern.shape else value


def _scattered(pattern: Pattern, kept: int, value: Any) -> Any:
    return pattern.scatter(value) if isinstance(value, Tensor) and value.shape == (kept,) else value


def _save(pattern: Pattern, layer: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[prefix + "weight"] = pattern.scatter(state[prefix + "weight"])


def _load(pattern: Pattern, layer: nn.Module, state: dict[str, Any], prefix: str, *others: Any) -> None:
    if prefix + "weight" in state:
        state[prefix + "weight"] = _gathered(pattern, state[prefix + "weight"])


def _save_state(values: Tensor, pattern: Pattern, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _with_state_of(values, optimizer, state, partial(_scattered, pattern, len(values)))


def _load_state(values: Tensor, pattern: Pattern, optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _with_state_of(values, optimizer, state, partial(_gathered, pattern))


def _with_state_of(
    parameter: Tensor, optimizer: Optimizer, state: dict[str, Any], change: Callable[[Any], Any]
) -> dict[str, Any]:
    """The saved state of an optimizer, with another state of one parameter."""
    number = _number_of(parameter, optimizer)
    if number not in state["state"]:
        return state
    changed = {key: change(value) for key, value in state["state"][number].items()}
    return {**state, "state": {**state["state"], number: changed}}


def _number_of(parameter: Tensor, optimizer: Optimizer) -> int | None:
    """The number under which an optimizer saves the state of a parameter."""
    held = (each for group in optimizer.param_groups for each in group["params"])
    return next((number for number, each in enumerate(held) if each is parameter), None)
