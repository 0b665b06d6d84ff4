"""Hold a module to its masks during a fit: pruned weights are zero in every forward pass. Only here is a model edited.

Four things together, each for what the others cannot see:

- weights are masked after every step of any optimizer of torch, also of one that was made later;
- gradients are masked as they accumulate, where anything may look at them (see `gradient_use.py`);
- before a layer runs, a weight that somebody else wrote is masked once more: tensors count their writes;
- at validations, epoch ends, saves and the end of a fit the weights are checked. If the network may have run with a
  pruned weight that is not zero, the fit raises an error and is never recorded as sparse.

Bits are cleared, not multiplied: zero times NaN is NaN, and zero times a negative number is -0.0.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lt_lightning.fit.gradient_use import gradients_are_rewritten, gradients_matter, is_independent
from lt_lightning.masks import Masks, kept, plain_name, total
from lt_lightning.sharded import any_sharded, is_sharded, local
from lt_lightning.twins import twins

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → the integer of as many bytes."""


class Enforcement:
    """The masks of a fit.

    Args:
        masks: parameter name → bool tensor; if they keep everything, nothing is done.
        parameters: parameter name → the parameter to hold to its mask.
    """

    def __init__(self, masks: Masks, parameters: Mapping[str, nn.Parameter]) -> None:
        held = parameters if kept(masks) < total(masks) else {}
        self._held = {each: _Held(name, each, masks[name]) for name, each in held.items()}
        self._masks = masks
        self._handles: list[Any] = []
        self._masks_gradients = self._are_rewritten = False
        self._is_alone = self._knows_calls = False
        self.looks_closely = False
        """Whether forward passes look for zeros themselves, not only for writes that torch counts."""

    @property
    def rewrites_gradients(self) -> bool:
        """Whether gradients may be assigned by hand, so that they are masked once more before a step."""
        return self._are_rewritten and bool(self._held)

    @property
    def checks_steps(self) -> bool:
        """Whether there is something to look at between the backward pass and the step."""
        return self.rewrites_gradients or self.checks_batches

    @property
    def checks_batches(self) -> bool:
        """Whether some weights can only be checked when a batch starts: no hook precedes their use."""
        return not all(each.is_watched for each in self._held.values())

    @property
    def was_masked_again(self) -> bool:
        """Whether a layer found a weight that somebody else wrote, and masked it again."""
        return any(each.was_masked_again for each in self._held.values())

    def mask_state(self, state: Mapping[str, Any]) -> Mapping[str, Any]:
        """Mask what a checkpoint holds instead of the parameters, such as averages that a module puts there."""
        held = {each.name: each for each in self._held.values()}
        named = [(held[plain_name(name)], name, value) for name, value in state.items() if plain_name(name) in held]
        others = {name: _masked(each, value) for each, name, value in named if each.is_another(value)}
        return {**state, **others} if others else state

    def mask_weights(self) -> None:
        """Set pruned weights to zero."""
        for each in self._held.values():
            each.mask()

    def mask_gradients(self) -> None:
        """Mask the present gradients, also those that were assigned instead of accumulated."""
        for each in self._held.values() if self._are_rewritten else ():
            _mask_gradient(each, each.parameter)

    def begin(self, trainer: L.Trainer, module: nn.Module | None) -> None:
        """Mask what was restored, and from now on weights after every step and gradients where anything sees them.

        Args:
            trainer: of the fit.
            module: its layers check their weights before they run; None: no layer does.
        """
        if not self._held:
            return
        self.clear(trainer)
        self._follow_steps()
        self._are_rewritten = gradients_are_rewritten(trainer)
        if gradients_matter(trainer):
            self._mask_gradients_from_now_on()
        if module is not None and not any_sharded(self._masks):
            self.watch(module)
        self._note_trained(trainer)
        self.looks_closely = True

    def continue_from(self, before: "Enforcement") -> None:
        """Keep what is known of the layers, as masks change while a fit trains. Call after `begin`.

        Nothing has run under these masks yet, so a weight that was not pruned before counts as called.
        """
        self._knows_calls = before._knows_calls
        for parameter, each in self._held.items():
            known = before._held.get(parameter)
            each.was_called = known is None or known.was_called
            each.is_watched = each.is_watched and (known is None or known.is_watched)

    def begin_search(self) -> None:
        """Do as `begin` for a search that calls no callback."""
        self.mask_weights()
        if self._held:
            self._follow_steps()
            self._are_rewritten = True
            self._mask_gradients_from_now_on()

    def check_step(self) -> None:
        """Raise a RuntimeError if somebody wrote a weight that is read without a call of its layer.

        Call between the backward pass and the optimizer's step: what was written since the batch began, or since the
        last step, may have been seen.
        """
        for each in self._held.values():
            if not each.is_watched and each.is_trained and each.was_written() and (leak := each.leak()) > 0:
                raise RuntimeError(_leaked(each.name, leak, "in a training step"))

    def check_batch(self) -> None:
        """Mask the weights that no layer checks, if somebody wrote them. Call when a batch starts."""
        for each in self._held.values():
            if not each.is_watched and each.was_written():
                each.mask()

    def look(self, batches: int) -> bool:
        """Decide whether the coming forward passes are looked at closely, which takes longer than a small step.

        Args:
            batches: how many batches the fit has trained since it began or was continued. After each of the first ten
                and after every hundredth the forward passes are looked at.

        Returns:
            Whether it is known only now which layers are called, and so when their weights are checked.
        """
        self.looks_closely = batches < 10 or batches % 100 == 0
        knew, self._knows_calls = self._knows_calls, True
        for each in () if knew else self._held.values():
            each.is_watched = each.is_watched and (each.was_called or not each.is_trained)
        return not knew

    def require_zeros(self, trainer: L.Trainer, moment: str) -> None:
        """Mask the weights; first raise a RuntimeError if the network may have run with unmasked ones.

        A write that torch counts is masked before the layer runs and does no harm. A write through `.data`, or to a
        weight whose layer is never called, may have been seen.

        Args:
            trainer: of the fit.
            moment: for the message, such as "at a validation".
        """
        self._note_trained(trainer)
        for each in self._held.values():
            if not each.is_harmless() and (leak := each.leak()) > 0:
                raise RuntimeError(_leaked(each.name, leak, moment))
            each.was_called = False
        self.mask_weights()
        self.looks_closely = True  # at what hooks write from here on, such as averages that are swapped in

    def clear(self, trainer: L.Trainer) -> None:
        """Set pruned weights, and what averages and optimizers hold of them, to zero, before any of it is saved."""
        self.mask_weights()
        for parameter, each in self._held.items():
            for value in _states(trainer, parameter):
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    _zero(local(value), each.bits)
        for callback in trainer.callbacks if self._held else ():  # type: ignore[attr-defined]
            average = getattr(callback, "_average_model", None)
            if isinstance(callback, twins(WeightAveraging)) and average is not None:
                self._clear_average(average.module)
            elif isinstance(callback, twins(StochasticWeightAveraging)) and average is not None:
                self._clear_average(average)

    def release(self) -> None:
        """Let go of the optimizers, the parameters and the layers."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def leave(self, parameters: Iterable[nn.Parameter]) -> None:
        """Hold these no more: they are about to be made of kept weights alone."""
        for parameter in parameters:
            self._held.pop(parameter).is_left = True

    def _follow_steps(self) -> None:
        self._handles.append(register_optimizer_step_pre_hook(self._before_step))
        self._handles.append(register_optimizer_step_post_hook(self._after_step))

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Mask gradients for an optimizer that came later, or whose step Lightning does not take."""
        if not self._masks_gradients and not is_independent(optimizer):
            self._mask_gradients_from_now_on()
        if self._are_rewritten:
            self.check_step()
            self.mask_gradients()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        """Mask the weights of an optimizer; of several, leave alone what another will still differentiate."""
        if self._is_alone:
            self.mask_weights()
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter, each in self._held.items():
            if id(parameter) in stepped or each.was_written():
                each.mask()

    def _mask_gradients_from_now_on(self) -> None:
        self._masks_gradients = True
        for parameter, each in self._held.items():
            _mask_gradient(each, parameter)
            self._handles += _hook_gradient(parameter, each, early=self._are_rewritten)

    def watch(self, module: nn.Module) -> None:
        """Let each layer check its weights before it runs, ahead of all hooks of others."""
        # a LightningModule's own weights are used by any of its methods
        unseen = {*_read_elsewhere(module), *_compiled(module), module}
        for layer in module.modules():
            found = [self._held[each] for each in layer._parameters.values() if each in self._held]
            if found and layer not in unseen:
                self._handles.append(layer.register_forward_pre_hook(_Look(self, layer, found), prepend=True))
                for each in found:
                    each.is_watched = True

    def _note_trained(self, trainer: L.Trainer) -> None:
        """Note which weights optimizers train; others may be written at will, as a target network is."""
        groups = [group for optimizer in trainer.optimizers for group in getattr(optimizer, "param_groups", ())]
        trained = {id(each) for group in groups for each in group["params"]}
        self._is_alone = len(trainer.optimizers) == 1
        for parameter, each in self._held.items():
            each.is_trained = not trained or id(parameter) in trained

    def _clear_average(self, module: nn.Module) -> None:
        for name, parameter in module.named_parameters():
            if plain_name(name) in self._masks:
                local(parameter).masked_fill_(~local(self._masks[plain_name(name)]).to(parameter.device), 0.0)


class _Held:
    """A weight under its mask, and what is known of it since it was masked."""

    def __init__(self, name: str, parameter: nn.Parameter, mask: Tensor) -> None:
        self.name, self.parameter = name, parameter
        self.bits = _bits(mask, parameter)
        self.is_trained, self.is_watched, self.was_called, self.is_left = True, False, False, False
        self.was_masked_again = False
        self._is_sharded = is_sharded(parameter)
        self._part, self.place, self.version = parameter.detach(), -1, -1

    def mask(self) -> None:
        """Set pruned weights to zero, wherever the parameter lies by now."""
        source = self._source
        if source.data_ptr() != self.place:
            self._bind()
        if self.bits.dtype is torch.bool:
            self._part.masked_fill_(self.bits, 0)
        else:
            self._part.bitwise_and_(self.bits)
        self.version = source._version

    def was_written(self) -> bool:
        """Whether anything else wrote the weight since; torch does not count what is written through `.data`."""
        source = self._source
        return source._version != self.version or source.data_ptr() != self.place

    def is_harmless(self) -> bool:
        """Whether no forward pass can have seen what was written since the weight was masked."""
        return self.is_watched and (not self.is_trained or (self.was_called and self.was_written()))

    def is_another(self, value: Any) -> bool:
        """Whether a value is a tensor like the weight, and not the weight itself."""
        alike = isinstance(value, Tensor) and value.shape == self.parameter.shape and not is_sharded(value)
        return alike and not self._is_sharded and value.data_ptr() != self.parameter.data_ptr()

    def leak(self) -> float:
        """The largest absolute value of a pruned weight; NaN, where training diverged, as the kept ones tell."""
        part = local(self.parameter)
        if self.bits.dtype == torch.bool:
            return float(part.masked_fill(~self.bits, 0).abs().max()) if part.numel() else 0.0
        pruned = part.view(self.bits.dtype) & ~self.bits
        return float(pruned.view(part.dtype).abs().max()) if pruned.any() else 0.0

    @property
    def _source(self) -> Tensor:
        return self.parameter._local_tensor if self._is_sharded else self.parameter  # type: ignore[attr-defined]

    def _bind(self) -> None:
        with torch.inference_mode(False):  # within it, views count no writes
            part = local(self.parameter)
        self.place = part.data_ptr()
        self._part = part if self.bits.dtype == torch.bool else part.view(self.bits.dtype)


class _Look:
    """A layer's hook: its weights are masked before it runs. A copy of the layer brings the hook along, unused.

    It is called at every step, so it asks as little as it can.
    """

    def __init__(self, enforcement: Enforcement, layer: nn.Module, held: list[_Held]) -> None:
        self._enforcement, self._layer, self._held = enforcement, layer, held

    def __call__(self, layer: nn.Module, inputs: Any) -> None:
        if layer is not self._layer or torch.compiler.is_compiling():
            return
        closely = self._enforcement.looks_closely
        for each in self._held:
            each.was_called = True
            parameter = each.parameter
            written = parameter._version != each.version or parameter.data_ptr() != each.place
            if closely or written or not each.is_trained:
                self._check(each)

    def _check(self, each: _Held) -> None:
        """Mask what somebody wrote, and leave all else: a graph that is to be differentiated may hold the weight."""
        if each.is_left:
            return
        if each.was_written():
            each.was_masked_again = True
            each.mask()
        elif (leak := each.leak()) != 0:
            if each.is_trained and leak > 0:
                raise RuntimeError(_leaked(each.name, leak, "in a forward pass"))
            each.mask()

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Look":
        return self


def _leaked(name: str, leak: float, moment: str) -> str:
    return (
        f"{name} holds a pruned weight of {leak:.3g} {moment}: something wrote it where the ticket cannot see it, so "
        "the network may have trained as a dense one, and this fit is not recorded. Look for weight.data = ... (write "
        "with torch.no_grad(): weight.copy_(...) instead), for an optimizer that is no torch.optim.Optimizer, or for a "
        "hook that changes a weight which is read without a call of its layer; or leave that weight out, "
        f'prunable=["!{name}"].'
    )


def _states(trainer: L.Trainer, parameter: nn.Parameter) -> Iterator[Any]:
    """All that the optimizers of a fit keep of a parameter."""
    for optimizer in trainer.optimizers:
        yield from getattr(optimizer, "state", {}).get(parameter, {}).values()


def _hook_gradient(parameter: nn.Parameter, held: _Held, *, early: bool) -> list[Any]:
    """Let the gradient of a parameter be masked before any other hook looks at it; returns the handles.

    `early` is whether it is masked before it is accumulated too, as `torch.autograd.grad` gives it.
    """
    needed = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen one, which may thaw, takes no hook
    early = early or bool(parameter._backward_hooks)  # such as those of wandb.watch
    handles = [parameter.register_post_accumulate_grad_hook(partial(_mask_gradient, held))]
    handles += [parameter.register_hook(partial(_masked, held))] if early else []
    parameter.requires_grad_(needed)
    kinds: tuple[Any, Any] = (parameter._post_accumulate_grad_hooks, parameter._backward_hooks)
    for handle, hooks in zip(handles, kinds, strict=False):
        _put_first(hooks, handle.id)
    return handles


def _put_first(hooks: dict[int, Any], key: int) -> None:
    """Let a hook be called before others; torch follows the order of insertion, not that of `move_to_end`."""
    ours = hooks.pop(key)
    others = dict(hooks)
    hooks.clear()
    hooks.update({key: ours, **others})


def _mask_gradient(held: _Held, parameter: Tensor) -> None:
    gradient = parameter.grad
    if gradient is not None and not held.is_left and gradient.layout == torch.strided:
        _zero(local(gradient), held.bits)


def _masked(held: _Held, gradient: Tensor) -> Tensor:
    """A copy of a gradient without what is pruned."""
    copied = gradient.clone()
    _zero(local(copied), held.bits)
    return copied


def _bits(mask: Tensor, parameter: nn.Parameter) -> Tensor:
    """What this process holds of the mask, in the parameter's order in memory.

    On a CPU integers with all bits set where a weight is kept, of the parameter's size, as they are cleared fastest;
    elsewhere a bool tensor, True where a weight is pruned.
    """
    part = local(parameter)
    kind = torch.bool
    if part.device.type == "cpu" and part.dtype.is_floating_point:
        kind = _WORDS[part.element_size()]
    kept_here = torch.empty_like(part, dtype=kind).copy_(local(mask))
    return ~kept_here if kind == torch.bool else kept_here.neg_()


def _zero(values: Tensor, bits: Tensor) -> None:
    """Set what is pruned to zero, in values that lie as a parameter does, of any type and on any device."""
    if bits.dtype != torch.bool and values.device == bits.device and values.element_size() == bits.element_size():
        values.view(bits.dtype).bitwise_and_(bits)
    else:
        values.masked_fill_((bits if bits.dtype == torch.bool else bits == 0).to(values.device), 0)


def _compiled(module: nn.Module) -> Iterator[nn.Module]:
    """The layers that run compiled, in which a hook is compiled too and looks at nothing."""
    for each in module.modules():
        if each._compiled_call_impl is not None or isinstance(each, OptimizedModule):
            yield from each.modules()


def _read_elsewhere(module: nn.Module) -> Iterator[nn.Module]:
    """The layers within torch's own attention, which reads their weights itself, and another way if they have hooks."""
    for each in module.modules():
        if type(each).__module__ == nn.TransformerEncoderLayer.__module__ or isinstance(each, nn.MultiheadAttention):
            yield from each.modules()
