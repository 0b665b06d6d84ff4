"""Sparse execution: the layers of a ticket that run on sparse kernels while it is fitted, where that is faster.

The first step of a fit is dense, and shows what each layer takes in. Then it is measured which of them are faster on
the kernels of `fit/csr.py` at their density, and these are replaced (`fit/replaced.py`). What was chosen is written
beside the fit's other files, so that a restarted fit chooses the same, and has the same bits.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import DoublePrecision, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn, optim
from torch._dynamo import OptimizedModule
from torch.optim import Optimizer

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.checksum import from_json, to_json
from lt_lightning.fit import csr
from lt_lightning.fit.csr import Pattern
from lt_lightning.fit.gradient_use import WEIGHT_BY_WEIGHT
from lt_lightning.fit.replaced import Replaced
from lt_lightning.masks import Masks, few
from lt_lightning.twins import twins

Sparse = str | float
""""auto": where it was measured to be faster; "off": nowhere; a density in (0, 1]: in layers that are no denser."""

ELEMENTWISE = (*WEIGHT_BY_WEIGHT, optim.ASGD)
"""Optimizers that do to kept weights alone what they do to all, up to rounding.

ASGD: its average is of kept weights alone, too. Not Rprop, whose step grows or shrinks by signs of gradients: of small
ones rounding decides, and sparse kernels round in another way than dense ones.
"""

_BUDGET = 0.05
"""Seconds that measuring one layer may take, beyond the first few turns."""

_GAIN = 0.9
"""The part of a dense layer's time that a sparse one may take at most, so that it is worth it and no accident."""


def checked(value: Any) -> Sparse:
    """The value of `sparse`, or a ValueError; YAML reads a bare `off` as False.

    >>> checked(False), checked("auto"), checked("0.1")
    ('off', 'auto', 0.1)
    """
    if value is False or value is None or value in ("off", "auto"):
        return value or "off"
    try:
        if not isinstance(value, bool) and 0 < float(value) <= 1:
            return float(value)
    except (TypeError, ValueError):
        pass
    raise ValueError(
        f'sparse={value!r} must be "auto" (layers that run faster so), "off", or a density in (0, 1] (layers that are '
        "no denser)."
    )


def check(trainer: L.Trainer, model: nn.Module, module: nn.Module) -> None:
    """Raise a ValueError for a fit that cannot run on sparse kernels; `model` is what the project calls its model."""
    if not isinstance(trainer.strategy, twins(SingleDeviceStrategy)) or trainer.strategy.root_device.type != "cpu":
        name = f"{type(trainer.strategy).__name__} on {trainer.strategy.root_device.type}"
        raise _refusal(f"{name}: the kernels are exact, and repeat their bits, on one CPU process")
    if type(trainer.precision_plugin) not in twins(Precision, DoublePrecision):
        raise _refusal(f"precision={trainer.precision}: the kernels know single and double precision")
    if model is not module or any(map(_is_compiled, module.modules())):
        raise _refusal("torch.compile: compiled layers do not call what they are replaced with")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, twins(WeightAveraging, StochasticWeightAveraging)):
            raise _refusal(f"{type(callback).__name__}: it averages dense weights")


def check_optimizers(optimizers: list[Optimizer]) -> None:
    """Raise a ValueError for an optimizer that does something else to kept weights alone."""
    for optimizer in optimizers:
        if type(optimizer) not in ELEMENTWISE:
            known = ", ".join(each.__name__ for each in ELEMENTWISE)
            raise _refusal(
                f"{type(optimizer).__name__}: it may look at several weights together, and nobody has told how it "
                f"treats kept ones alone (known are {known})"
            )


def _refusal(what: str) -> ValueError:
    return ValueError(f"sparse execution is not possible with {what}. Leave it out: sparse='off' (prune.sparse=off).")


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or isinstance(module, OptimizedModule)


@dataclass(frozen=True)
class Choice:
    """What was chosen for one layer.

    Args:
        sparse: whether it runs on sparse kernels.
        why: in words.
        density: of its mask.
        dense_seconds: of a step of this layer alone; None: not measured.
        sparse_seconds: the same on sparse kernels.
    """

    sparse: bool
    why: str
    density: float
    dense_seconds: float | None = None
    sparse_seconds: float | None = None


class Execution:
    """How the layers of one fit are executed.

    Args:
        asked: what was asked for.
        path: where the choice is written.
    """

    def __init__(self, asked: Sparse, path: Path) -> None:
        self._asked, self._path = asked, path
        self._seen: dict[str, _Seen] = {}
        self._handles: list[Any] = []
        self._replaced: list[Replaced] = []
        self._start: Callable[[], None] | None = None

    def begin(
        self, trainer: L.Trainer, module: nn.Module, masks: Masks, resuming: bool, leave: Callable[[Any], None]
    ) -> None:
        """Begin with sparse kernels; in a new fit, watch its first step. Call when everything is restored.

        Args:
            trainer: of the fit.
            module: of the fit, masked.
            masks: its masks.
            resuming: whether the fit has taken steps before.
            leave: is called with the parameters whose zeros need no more care.
        """
        if self._asked == "off":
            return
        check_optimizers(trainer.optimizers)
        candidates = dict(_candidates(module, masks, trainer.optimizers))
        if not any(isinstance(each, _Layer) for each in candidates.values()):
            return
        self._start = partial(self._replace, trainer, candidates, masks, leave)
        choices = _read(self._path, self._asked) if resuming else None
        if choices is not None and set(choices) == set(candidates):
            self._start()
            return
        self._first = trainer.global_step
        for name, layer in candidates.items():
            if isinstance(layer, _Layer):
                note = partial(_note, self._seen, name)
                self._handles.append(layer.module.register_forward_pre_hook(note))

    @property
    def is_watching(self) -> bool:
        """Whether it waits for the end of the first step."""
        return self._start is not None

    def after_batch(self, trainer: L.Trainer, last: bool) -> None:
        """Replace layers if the first step is behind us; `last` is whether it was the only one."""
        if self._start is not None and trainer.global_step > self._first:
            self._release_hooks()
            if not last:
                self._start()
            self._start = None

    def end(self) -> None:
        """Make everything dense again."""
        self._release_hooks()
        self._start = None
        while self._replaced:
            self._replaced.pop().restore()

    def _release_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _replace(
        self, trainer: L.Trainer, candidates: Mapping[str, Any], masks: Masks, leave: Callable[[Any], None]
    ) -> None:
        choices = _read(self._path, self._asked)
        if choices is None or set(choices) != set(candidates):
            choices = {name: self._choose(name, layer, masks[name]) for name, layer in candidates.items()}
            _write(self._path, self._asked, choices)
        chosen = [name for name, choice in choices.items() if choice.sparse]
        leave([candidates[name].module.weight for name in chosen])
        self._replaced = [Replaced(candidates[name].module, masks[name], trainer.optimizers) for name in chosen]
        self._start = None
        rank_zero_info(f"on sparse kernels: {few(chosen, 20) or 'nothing'}; {self._path} says why")

    def _choose(self, name: str, layer: "_Layer | str", mask: Tensor) -> Choice:
        density = float(mask.sum()) / max(mask.numel(), 1)
        if isinstance(layer, str):
            return Choice(False, layer, density)
        if isinstance(self._asked, float):
            sparse = density <= self._asked
            return Choice(sparse, f"{'no' if sparse else ''} denser than {self._asked}".strip(), density)
        if name not in self._seen:
            return Choice(False, "not called in the first step", density)
        seconds = measure(layer.module, mask, self._seen[name])
        return Choice(seconds[1] < _GAIN * seconds[0], "measured", density, *seconds)


@dataclass(frozen=True)
class _Layer:
    """A layer that could run on sparse kernels."""

    module: Any


@dataclass(frozen=True)
class _Seen:
    """What a layer has taken in."""

    shape: torch.Size
    requires_grad: bool


def _note(seen: dict[str, _Seen], name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if module.training and inputs:
        seen[name] = _Seen(inputs[0].shape, inputs[0].requires_grad)


def _candidates(module: nn.Module, masks: Masks, optimizers: list[Optimizer]) -> Iterator[tuple[str, "_Layer | str"]]:
    """Every mask's layer, or why it stays dense."""
    names = dict(module.named_parameters(remove_duplicate=False))
    owners = dict(module.named_modules(remove_duplicate=False))
    within = {
        id(part)
        for each in module.modules()
        if type(each).__module__ == nn.TransformerEncoderLayer.__module__ or isinstance(each, nn.MultiheadAttention)
        for part in each.modules()
    }
    held = {id(each) for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    for name, mask in masks.items():
        owner, parameter = owners.get(name.rpartition(".")[0]), names.get(name)
        reason = _why_dense(name, owner, parameter, mask)
        if reason is None and sum(each is parameter for each in names.values()) > 1:
            reason = "its weight is tied"
        if reason is None and id(owner) in within:
            reason = "a part of torch's own attention, which reads its weight elsewhere"
        if reason is None and id(parameter) not in held:
            reason = "no optimizer holds its weight"
        yield name, reason or _Layer(owner)


def _why_dense(name: str, owner: nn.Module | None, parameter: Any, mask: Tensor) -> str | None:
    """Why a layer alone cannot run on sparse kernels; None: it can."""
    kind = type(owner)
    if kind not in (nn.Linear, nn.Conv2d) or name.rpartition(".")[2] != "weight" or parameter is None:
        return f"{kind.__name__}: sparse kernels are for the weights of plain Linear and Conv2d layers"
    if "forward" in vars(owner):
        return "its forward was replaced"
    if isinstance(owner, nn.Conv2d) and (owner.groups, owner.dilation, owner.padding_mode) != (1, (1, 1), "zeros"):
        return "a convolution with groups, dilation or another padding than zeros"
    if isinstance(owner, nn.Conv2d) and isinstance(owner.padding, str):
        return f'padding="{owner.padding}"'
    if parameter.device.type != "cpu" or parameter.dtype not in (torch.float32, torch.float64):
        return f"{parameter.dtype} on {parameter.device}"
    return None if 0 < int(mask.sum()) < mask.numel() else "nothing of it is pruned, or all"


def measure(layer: nn.Module, mask: Tensor, seen: _Seen) -> tuple[float, float]:
    """Seconds of a step of one layer alone (forward, backward, masks, update): masked dense, and on sparse kernels.

    The least of several interleaved repetitions; nothing that training draws from is touched.
    """
    made: Any = layer
    draws = torch.Generator().manual_seed(0)
    weight = made.weight.detach().clone()
    pattern = Pattern(mask.cpu())
    forward = cast(Callable[..., Tensor], F.linear if isinstance(layer, nn.Linear) else made._conv_forward)
    options = () if isinstance(layer, nn.Linear) else (made.stride, made.padding)
    kernel = csr.linear if isinstance(layer, nn.Linear) else csr.conv2d
    inputs = torch.randn(seen.shape, generator=draws, dtype=weight.dtype).requires_grad_(seen.requires_grad)
    bias = None if made.bias is None else made.bias.detach().clone().requires_grad_()
    dense, sparse = weight.requires_grad_(), pattern.gather(weight).requires_grad_()
    multiplier = mask.to(dense.dtype)
    with torch.inference_mode(False), torch.enable_grad():
        gradient = torch.randn(forward(inputs, dense, bias).shape, generator=draws, dtype=dense.dtype)

        def step_dense() -> None:
            forward(inputs, dense, bias).backward(gradient)
            _update(dense, multiplier)

        def step_sparse() -> None:
            kernel(inputs, sparse, bias, pattern, *options).backward(gradient)
            _update(sparse, None)

        return _least(step_dense, step_sparse)


@torch.no_grad()
def _update(weight: Tensor, multiplier: Tensor | None) -> None:
    gradient = cast(Tensor, weight.grad)
    if multiplier is not None:
        gradient.mul_(multiplier)
    weight.add_(gradient, alpha=0.0)
    if multiplier is not None:
        weight.mul_(multiplier)
    weight.grad = None


def _least(*functions: Callable[[], None]) -> tuple[float, float]:
    """The least seconds of each, by turns."""
    best = [float("inf")] * len(functions)
    end = time.perf_counter() + _BUDGET
    for turn in range(20):
        if turn > 2 and time.perf_counter() > end:
            break
        for number, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[number] = min(best[number], time.perf_counter() - start)
    return best[0], best[1]


def _write(path: Path, asked: Sparse, choices: Mapping[str, Choice]) -> None:
    content = {"sparse": asked, "layers": {name: asdict(choice) for name, choice in choices.items()}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, to_json(content))


def _read(path: Path, asked: Sparse) -> dict[str, Choice] | None:
    """What was chosen before, if the same was asked for then and the file holds what was written."""
    try:
        content = from_json(path.read_text("utf-8"))
        if content["sparse"] != asked:
            return None
        return {name: Choice(**choice) for name, choice in content["layers"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
