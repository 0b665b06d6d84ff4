"""Holding a module to masks during a fit: pruned weights are exactly zero at every step. Only here is a model edited.

Weights are masked after every optimizer step, by a hook of the optimizer itself: so it holds with accumulation, manual
optimization, several optimizers, mixed precision and weight averaging. Gradients are masked before clipping, where
anything but an elementwise optimizer may look at them; else optimizer states are masked when they are saved.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn, optim
from torch.optim import Optimizer

from lt_lightning.masks import Masks, kept, plain_name, total
from lt_lightning.sharded import local
from lt_lightning.twins import twins

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

_READERS = ("on_before_optimizer_step", "configure_gradient_clipping", "optimizer_step")
"""Hooks of a module that may look at gradients once they are masked."""


def gradients_matter(trainer: L.Trainer) -> bool:
    """Whether gradients of pruned weights could be seen, by clipping, a hook, or an optimizer that we do not know."""
    module: Any = trainer.lightning_module
    hooked = any(is_overridden(name, module, L.LightningModule) for name in _READERS)
    known = all(type(each) in INDEPENDENT and not each._optimizer_step_pre_hooks for each in trainer.optimizers)
    return bool(trainer.gradient_clip_val) or hooked or not known or not module.automatic_optimization


class Enforcement:
    """The masks of a fit, on the device and in the type in which they multiply fastest.

    Args:
        masks: parameter name → bool tensor; if they keep everything, nothing is done.
        parameters: parameter name → the parameter to hold to its mask.
    """

    def __init__(self, masks: Masks, parameters: Mapping[str, nn.Parameter]) -> None:
        held = parameters if kept(masks) < total(masks) else {}
        self._multipliers = {parameter: _multiplier(masks[name], parameter) for name, parameter in held.items()}
        self._weights = [local(parameter) for parameter in held.values()]
        self._masks = masks
        self._handles: list[Any] = []
        self._masks_gradients = True

    @torch.no_grad()
    def mask_weights(self) -> None:
        """Set pruned weights to zero."""
        if self._multipliers:
            torch._foreach_mul_(self._weights, list(self._multipliers.values()))

    @torch.no_grad()
    def mask_gradients(self, optimizer: Optimizer) -> None:
        """Mask gradients, so that pruned weights have no part in a clipped norm or an optimizer's statistics."""
        if not self._masks_gradients:
            return
        pairs = [
            (local(parameter.grad), self._multipliers[parameter])
            for group in (optimizer.param_groups if self._multipliers else ())
            for parameter in group["params"]
            if parameter.grad is not None and parameter in self._multipliers
        ]
        if pairs:
            torch._foreach_mul_([gradient for gradient, _ in pairs], [multiplier for _, multiplier in pairs])

    def begin(self, trainer: L.Trainer) -> None:
        """Mask all that was restored, and from now on the weights after every step."""
        if not self._multipliers:
            return
        self.clear(trainer)
        self._masks_gradients = gradients_matter(trainer)
        self._hook_steps(trainer)

    @torch.no_grad()
    def clear(self, trainer: L.Trainer) -> None:
        """Set pruned weights, and what averages and optimizers hold of them, to zero, before any of it is saved.

        To +0.0: multiplied by a mask a weight may be -0.0, and which it is depends on when a fit was saved before.
        """
        for parameter, multiplier in self._multipliers.items():
            pruned = multiplier == 0
            local(parameter).masked_fill_(pruned, 0.0)
            for optimizer in trainer.optimizers:
                for value in optimizer.state.get(parameter, {}).values():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        local(value).masked_fill_(pruned.to(value.device), 0.0)
        for callback in trainer.callbacks if self._multipliers else ():  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if isinstance(callback, twins(WeightAveraging)) and average is not None:
                self._clear_average(average.module)
            elif isinstance(callback, twins(StochasticWeightAveraging)) and average is not None:
                self._clear_average(average)

    def begin_search(self, trainer: L.Trainer) -> None:
        """As `begin`, where no callback is called: gradients are masked by hooks too."""
        self.mask_weights()
        for parameter, multiplier in self._multipliers.items():
            if parameter.requires_grad:
                hook = partial(_mask_gradient, multiplier)
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))
        self._hook_steps(trainer)

    def release(self) -> None:
        """Let go of the optimizers and the parameters."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Hold these no more: they are about to be made of kept weights alone."""
        for parameter in parameters:
            del self._multipliers[parameter]
        self._weights = [local(parameter) for parameter in self._multipliers]

    def _hook_steps(self, trainer: L.Trainer) -> None:
        for optimizer in trainer.optimizers if self._multipliers else ():
            self._handles.append(optimizer.register_step_post_hook(self._after_step))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.mask_weights()

    def _clear_average(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if plain_name(name) in self._masks:
                local(parameter).masked_fill_(~local(self._masks[plain_name(name)]).to(parameter.device), 0.0)


def _mask_gradient(multiplier: Tensor, parameter: Tensor) -> None:
    if parameter.grad is not None:
        local(parameter.grad).mul_(multiplier)


def _multiplier(mask: Tensor, parameter: nn.Parameter) -> Tensor:
    """What this process holds of the mask, on the parameter's device, in its order in memory; bool is slow on a CPU."""
    dtype = parameter.dtype if parameter.device.type == "cpu" else torch.bool
    return torch.empty_like(local(parameter), dtype=dtype, requires_grad=False).copy_(local(mask))
