"""Criteria that look at the weights where the next round starts, and need no training: SNIP, GraSP, SynFlow.

They score the weights of the rewind point, under the masks so far: with `dense=False, rewind_step=0` those of the
initialization (`prune=snip`), with a later `rewind_step` those of an early step, and with a dense round 0 the same
ones, whatever that has learned. One process scores, on its own share of the batches; sharded weights are refused.

SNIP and GraSP ask the module's `training_step` for its loss, on batches as a fit would see them in epoch 0, in training
mode; nothing is logged, and the module is left alone. So any module will do that returns a loss.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lt_lightning import require
from lt_lightning.criteria import Evidence
from lt_lightning.fit import probe
from lt_lightning.masks import Density, Masks, Scores, density
from lt_lightning.scopes import group_by_pattern, select
from lt_lightning.seeding import derive, seeded
from lt_lightning.sharded import any_sharded


def snip(evidence: Evidence, *, batches: int = 1, per_class: int | None = None) -> Scores:
    """`|g · w|`: keep what changes the loss most if it is removed, to first order; g is the gradient of the loss.

    Args:
        evidence: of the round.
        batches: how many training batches the loss is a mean over.
        per_class: take so many examples of each class instead, as one batch.

    Raises:
        ValueError: if the module returns no loss, weights are sharded, or examples have no classes.

    Source: Lee, Ajanthan & Torr 2019 (arXiv 1810.02340), section 4.1: one mini-batch. The paper divides by the sum of
    all scores, which changes no order.
    """
    _check_amounts("snip", batches, per_class)
    module, weights = _at_start(evidence, "snip")
    probe.require_loss(module, "snip")
    losses = _losses(evidence, module, "snip", batches, per_class, temperature=1)
    gradients = [_gradients(make(), weights) for make in losses]
    return {name: _score((sum(g[name] for g in gradients) * w).abs()) for name, w in weights.items()}


def grasp(
    evidence: Evidence,
    *,
    batches: int = 1,
    per_class: int | None = None,
    temperature: float = 200.0,
    absolute: bool = False,
) -> Scores:
    """w · Hg: keep what would weaken the flow of gradients most if it were removed; g is the gradient, H the Hessian.

    Args:
        evidence: of the round.
        batches: how many training batches the loss is a mean over.
        per_class: take so many examples of each class instead, as one batch.
        temperature: by which logits are divided; 1 leaves them alone.
        absolute: score `|w · Hg|` instead, the variant that Frankle et al. 2021 (2009.08576) compare with.

    Raises:
        ValueError: if the module returns no loss, weights are sharded, examples have no classes, or there are no logits
            to divide.

    Source: Wang, Zhang & Grosse 2020 (arXiv 2002.07376), section 4 and algorithm 1: those with the largest -w · Hg are
    pruned. `per_class=10` and the temperature are those of github.com/alecwangcq/GraSP.
    """
    _check_amounts("grasp", batches, per_class)
    require.flag("absolute", absolute, "prune.criterion.absolute")
    if not require.is_number(temperature) or not 0 < temperature < float("inf"):
        raise ValueError(
            f"temperature={temperature!r} of grasp must be a positive number, by which logits are divided; 1 leaves "
            "them alone (prune.criterion.temperature=1)."
        )
    module, weights = _at_start(evidence, "grasp")
    probe.require_loss(module, "grasp")
    losses = _losses(evidence, module, "grasp", batches, per_class, temperature)
    gradients = [_gradients(make(), weights) for make in losses]
    flow = {name: sum(g[name] for g in gradients) for name in weights}
    products = [_products(make(), weights, flow) for make in losses]
    scores = {name: sum(p[name] for p in products) * w for name, w in weights.items()}
    return {name: _score(score.abs() if absolute else score) for name, score in scores.items()}


def synflow(evidence: Evidence, *, iterations: int = 100) -> Scores:
    """w · dR/dw, where R is the sum of the outputs for an input of ones, all weights and buffers in absolute values.

    No data is needed. Scores are computed anew `iterations` times, while the density falls exponentially to that of the
    next round, in the scope of the lottery; what is pruned on the way comes last. All is computed in double precision,
    and in evaluation mode, where batch norm uses its running statistics (in absolute values too).

    Args:
        evidence: of the round.
        iterations: from 1, which is single-shot SynFlow.

    Raises:
        ValueError: if weights are sharded, or the shape of the input is not known.

    Source: Tanaka et al. 2020 (arXiv 2006.05467), section 6 and algorithm 1: 100 iterations; evaluation mode and the
    absolute values of everything as in github.com/ganguli-lab/Synaptic-Flow.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"iterations={iterations!r} of synflow must be a whole number, 1 or more; the paper's is 100.")
    module, weights = _at_start(evidence, "synflow")
    ones = _ones(evidence, module)
    module.double().eval()
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.abs_()
    masks: Masks = dict(evidence.masks)
    for iteration in range(1, iterations):
        scores = _flow(module, weights, masks, ones)
        masks = select(scores, masks, _on_the_way(evidence, iteration / iterations), evidence.scope)
    scores = _flow(module, weights, masks, ones)
    return {name: torch.where(masks[name], score, -1.0) for name, score in scores.items()}


def _at_start(evidence: Evidence, why: str) -> tuple[Any, dict[str, Tensor]]:
    """A probe at the rewind point, pruned, and its prunable weights."""
    if any_sharded(evidence.masks):
        raise ValueError(
            f'{why} needs whole weights, and here each process holds a part: train under strategy="ddp" or on one '
            "device, or choose a criterion that looks at weights, such as magnitude."
        )
    module = evidence.make_module()
    parameters = probe.parameters_of(module)
    weights: dict[str, Tensor] = {name: parameters[name] for name in evidence.masks}
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(evidence.masks[name].to(weight.device))
            weight.requires_grad_()  # the fit may have ended with it frozen
    return module, weights


def _losses(
    evidence: Evidence, module: Any, why: str, batches: int, per_class: int | None, temperature: float
) -> list[Callable[[], Tensor]]:
    """Functions that compute the loss of a batch, with the same draws (dropout) at every call."""
    with seeded(derive(evidence.seed, "evidence", evidence.round)):
        every = evidence.batches()
        chosen = list(islice(every, batches)) if per_class is None else [_of_each_class(every, per_class, why)]

    def make(number: int, batch: Any) -> Tensor:
        with seeded(derive(evidence.seed, "loss", evidence.round, number)):
            return probe.loss(module, batch, why, temperature)

    return [partial(make, number, batch) for number, batch in enumerate(chosen)]


def _check_amounts(why: str, batches: int, per_class: int | None) -> None:
    for name, count in (("batches", batches), ("per_class", per_class)):
        if name == "per_class" and count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name}={count!r} of {why} must be a whole number, 1 or more.")


def _of_each_class(batches: Iterator[Any], count: int, why: str) -> tuple[Tensor, Tensor]:
    """The first `count` examples of each class in an epoch, as one batch, by class."""
    inputs: dict[int, list[Tensor]] = {}
    for batch in batches:
        if not _is_labelled(batch):
            raise ValueError(
                f"{why} can take examples per class only of batches (inputs, int64 labels [batch]), and these are "
                "others: leave out per_class (prune.criterion.per_class=null), and say how many batches."
            )
        for example, label in zip(batch[0], batch[1].tolist(), strict=True):
            if len(found := inputs.setdefault(label, [])) < count:
                found.append(example)
    labels = sorted(inputs)
    short = [label for label in labels if len(inputs[label]) < count]
    if short:
        raise ValueError(f"{why} wants {count} examples of each class, and of {short} the data holds fewer.")
    together = torch.stack([example for label in labels for example in inputs[label]])
    return together, torch.tensor(labels, device=together.device).repeat_interleave(count)


def _is_labelled(batch: Any) -> bool:
    if not (isinstance(batch, list | tuple) and len(batch) == 2 and all(isinstance(each, Tensor) for each in batch)):
        return False
    return batch[1].dim() == 1 and not batch[1].is_floating_point() and len(batch[0]) == len(batch[1])


def _gradients(loss: Tensor, weights: Mapping[str, Tensor], *, create_graph: bool = False) -> dict[str, Tensor]:
    found = torch.autograd.grad(
        loss, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(weights, found, strict=True))


def _products(loss: Tensor, weights: Mapping[str, Tensor], vector: Mapping[str, Any]) -> dict[str, Tensor]:
    """Hessian times vector: the gradient of (gradient · vector)."""
    gradients = _gradients(loss, weights, create_graph=True)
    product = sum((gradients[name] * vector[name].detach()).sum() for name in weights)
    if not isinstance(product, Tensor) or not product.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    return _gradients(product, weights)


def _score(score: Tensor) -> Tensor:
    return score.detach().cpu()


def _flow(module: Any, weights: Mapping[str, Tensor], masks: Masks, ones: Tensor) -> dict[str, Tensor]:
    with torch.no_grad():
        for name, weight in weights.items():
            weight.mul_(masks[name].to(weight.device))
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        output = module(ones)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"synflow adds up the output, and forward of {type(module).__name__} returns a "
                f"{type(output).__name__}: let it return a tensor, or choose another criterion."
            )
        gradients = _gradients(output.sum(), weights)
    return {name: (gradients[name] * weight).detach().cpu() for name, weight in weights.items()}


def _ones(evidence: Evidence, module: Any) -> Tensor:
    """One example of ones, shaped as the module's input."""
    example = module.example_input_array
    if example is None:
        with seeded(derive(evidence.seed, "evidence", evidence.round)):
            batch = next(evidence.batches())
        example = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(example, Tensor) or not example.is_floating_point():
        kind = example.dtype if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(
            f"synflow puts an input of ones into forward, and what comes first in a batch is {kind}: set "
            f"example_input_array of {type(module).__name__} to a floating-point tensor (batch, ...), or choose "
            "another criterion."
        )
    return torch.ones_like(example[:1], dtype=torch.float64, device=module.device)


def _on_the_way(evidence: Evidence, share: float) -> Density:
    """The density after a share of the way from that of the masks to the next round's, on an exponential curve."""
    if not isinstance(evidence.density, Mapping):
        return _between(density(evidence.masks), evidence.density, share)
    groups = group_by_pattern(evidence.density, evidence.masks)
    now = {pattern: density({name: evidence.masks[name] for name in names}) for pattern, names in groups.items()}
    return {pattern: _between(now[pattern], aim, share) for pattern, aim in evidence.density.items()}


def _between(start: float, end: float, share: float) -> float:
    return start * (end / start) ** share
