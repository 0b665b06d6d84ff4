"""Which weights compete with which, and the exact selection of the best.

A scope keeps exactly `round(density * total)` weights, the best ones among those still kept, so masks are nested: a
pruned weight never comes back. `n_m` and `channels` keep whole groups, and as many as come nearest to that. Equal
scores are decided by position, earlier weights first, so that the same scores give the same masks on every machine, and
on any number of processes.

In a sharded fit scores and masks are `DTensor`s, in the same dictionaries; a scope then runs on all processes.
"""

import math
import operator
from collections.abc import Callable, Mapping
from heapq import heapify, heappop, heappush
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lt_lightning import require, sharded
from lt_lightning.masks import Density, Masks, Scores, kept, matches, require_match, total

Scope = Callable[[Scores, Masks, float], Masks]
"""(scores, masks so far, density in (0, 1]) → masks that keep `round(density * total)` weights."""


def globally(scores: Scores, masks: Masks, density: float, *, least: float = 0.0) -> Masks:
    """All weights compete with all others, whatever their layer.

    Args:
        scores: name → float tensor.
        masks: so far.
        density: of all weights together.
        least: density that each tensor keeps, in [0, 1): its best weights, before all others compete for what is left
            of `round(density * total)`. With 0 a tensor may lose every weight.

    Raises:
        ValueError: if more weights are asked for than are still kept, or tensors keep more than the density allows.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 4, for deep networks.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 2.0])}
        >>> globally(scores, {"a": torch.ones(2).bool(), "b": torch.ones(2).bool()}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    count = round(density * total(masks))
    if not require.is_number(least) or not 0 <= least < 1:
        raise ValueError(f"least={least!r} must be a density in [0, 1) that each layer keeps (prune.scope.least=0.01).")
    return _globally_at_least(scores, masks, count, least) if least else _best_of_all(scores, masks, count)


def _best_of_all(scores: Scores, masks: Masks, count: int) -> Masks:
    if sharded.any_sharded(masks):
        return sharded.keep_best(dict(scores), masks, count)
    flat_scores = torch.cat([scores[name].flatten() for name in masks])
    flat_masks = torch.cat([mask.flatten() for mask in masks.values()])
    parts = keep_best(flat_scores, flat_masks, count).split([mask.numel() for mask in masks.values()])
    return {name: part.view(masks[name].shape).clone() for name, part in zip(masks, parts, strict=True)}


def _globally_at_least(scores: Scores, masks: Masks, count: int, least: float) -> Masks:
    """The best of each tensor first, as many in all rounds, and then the best of all others."""
    left = sharded.tally(lambda mask: mask, masks)
    counts = {name: min(left[name], math.ceil(least * mask.numel())) for name, mask in masks.items()}
    if sum(counts.values()) > count:
        raise ValueError(
            f"least={least} keeps {sum(counts.values()):,} of {total(masks):,} weights, and the density of the round "
            f"allows {count:,}: ask for less (prune.scope.least), for fewer rounds or a higher density."
        )
    keep = sharded.keep_best if sharded.any_sharded(masks) else _keep_best_of_one
    best = {name: keep({name: scores[name]}, {name: mask}, counts[name])[name] for name, mask in masks.items()}
    others = {name: _together(mask, best[name], operator.gt) for name, mask in masks.items()}
    rest = _best_of_all(scores, others, count - sum(counts.values()))
    return {name: _together(rest[name], best[name], operator.or_) for name in masks}


def _together(one: Tensor, other: Tensor, how: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A mask made of two, laid out as they are; `gt` is what the first has and the second has not."""
    return sharded.wrap(how(sharded.local(one), sharded.local(other)), one)


def layerwise(scores: Scores, masks: Masks, density: float) -> Masks:
    """Weights compete within their own tensor; each tensor keeps `round(density * its size)`.

    Raises:
        ValueError: if more weights are asked for than are still kept.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2, for LeNet and the Conv networks.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 2.0])}
        >>> layerwise(scores, {"a": torch.ones(2).bool(), "b": torch.ones(2).bool()}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    return {name: globally({name: scores[name]}, {name: mask}, density)[name] for name, mask in masks.items()}


def erk(scores: Scores, masks: Masks, density: float) -> Masks:
    """Erdős-Rényi-Kernel: a tensor keeps weights in proportion to the sum of its dimensions, so small ones are denser.

    A tensor that would keep more than it has keeps all, and the others share the rest in the same proportion: together
    they keep exactly `round(density * total)`. In each tensor the best are kept.

    Raises:
        ValueError: if more weights are asked for than are still kept.

    Source: Evci et al. 2020 (arXiv 1911.11134), section 3: the sparsity of a convolution scales with
    1 - (n_in + n_out + w + h) / (n_in · n_out · w · h).

    Example:
        >>> scores = {"a": torch.arange(16.0).view(4, 4), "b": torch.arange(16.0).view(2, 8)}
        >>> chosen = erk(scores, {name: torch.ones(score.shape).bool() for name, score in scores.items()}, 9 / 32)
        >>> {name: int(mask.sum()) for name, mask in chosen.items()}
        {'a': 4, 'b': 5}
    """
    return _keep_shares(scores, masks, density, {name: max(sum(mask.shape), 1) for name, mask in masks.items()})


def balanced(scores: Scores, masks: Masks, density: float) -> Masks:
    """Every tensor keeps the same number of weights.

    A tensor with fewer weights keeps all, and the others share the rest evenly: together they keep exactly
    `round(density * total)`. In each tensor the best are kept.

    Raises:
        ValueError: if more weights are asked for than are still kept.

    Source: Gadhikar, Mukherjee & Burkholz 2023 (arXiv 2210.02412), section 3, "balanced".

    Example:
        >>> scores = {"a": torch.arange(2.0), "b": torch.arange(8.0)}
        >>> balanced(scores, {name: torch.ones(score.shape).bool() for name, score in scores.items()}, 0.2)["a"]
        tensor([False,  True])
    """
    return _keep_shares(scores, masks, density, dict.fromkeys(masks, 1))


def n_m(scores: Scores, masks: Masks, density: float, *, m: int = 4) -> Masks:
    """N of every `m` weights in a row, along the input dimension: 2:4 is `m=4` at density 0.5.

    N is `density * m` as the nearest whole number. The input dimension is the second of a tensor, or its only one; of
    transposed convolutions and Hugging Face's `Conv1D` that is the output's. Where its length is no multiple of `m`,
    the last, shorter group keeps at most N. If tensors are sharded, one at a time is put together.

    Raises:
        ValueError: if N would be 0, or a group has fewer weights left.

    Source: Zhou et al. 2021 (arXiv 2102.04010), section 2; 2:4 is what NVIDIA's sparse tensor cores multiply
    (Mishra et al. 2021, arXiv 2104.08378).

    Example:
        >>> n_m({"w": torch.tensor([[1.0, 4.0, 3.0, 2.0]])}, {"w": torch.ones(1, 4).bool()}, 0.5)
        {'w': tensor([[False,  True,  True, False]])}
    """
    m = require.whole("m", m, 1, "how many weights in a row make a group (prune.scope.m=4)")
    n = round(density * m)
    if n == 0:
        raise ValueError(
            f"a density of {density:g} is nearest to 0 of {m} weights, and nothing would be kept: ask for a density of "
            f"at least {1 / m:g}, or for longer groups (prune.scope.m={2 * m})."
        )
    return {name: _whole(_best_of_groups, scores[name], mask, name, n, m) for name, mask in masks.items()}


def channels(scores: Scores, masks: Masks, density: float, *, norm: float = 2) -> Masks:
    """Whole output channels, or neurons: each tensor keeps those with the largest norm of scores.

    Of its C channels a tensor keeps `density * C` as the nearest whole number, one at least; they are its slices along
    the first dimension (of transposed convolutions and Hugging Face's `Conv1D` those are of the input). Leave out a
    layer whose outputs are all needed, such as the last: `prunable=["!*output*"]`. The norm is over the scores of the
    weights still kept: 1 is the sum of absolutes, 2 the Euclidean norm. If tensors are sharded, one at a time is put
    together.

    Raises:
        ValueError: if fewer channels are left than are asked for.

    Source: Li et al. 2017 (arXiv 1608.08710), section 3.1: filters by the sum of their absolute weights.

    Example:
        >>> channels({"w": torch.tensor([[1.0, 1.0], [0.0, 3.0]])}, {"w": torch.ones(2, 2).bool()}, 0.5)
        {'w': tensor([[False, False],
                [ True,  True]])}
    """
    if not require.is_number(norm) or not norm > 0:
        raise ValueError(f"norm={norm!r} must be a positive number, 1 or 2 as a rule (prune.scope.norm=2).")
    return {name: _whole(_best_channels, scores[name], mask, name, density, norm) for name, mask in masks.items()}


def keep_best(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """Keep exactly the `count` best scores of a flat tensor among those where `mask` is True; ties by position.

    Args:
        scores: [n], higher is better, no NaN.
        mask: [n] bool, the candidates.
        count: how many to keep, at most as many as there are candidates.

    Returns:
        [n] bool.

    >>> keep_best(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([False, True, True, True]), 1)
    tensor([False,  True, False, False])
    """
    candidates = scores[mask]
    if count > candidates.numel():
        raise ValueError(sharded.too_many(count, candidates.numel(), mask.numel()))
    if count == 0:
        return torch.zeros_like(mask)
    threshold = candidates.kthvalue(candidates.numel() - count + 1).values
    chosen = mask & (scores > threshold)
    tied = (mask & (scores == threshold)).nonzero().flatten()
    chosen[tied[: count - int(chosen.sum())]] = True
    return chosen


def select(scores: Scores, masks: Masks, density: Density, scope: Scope) -> Masks:
    """The next masks: `scope` applied to everything, or to each pattern's group if the density is given per pattern.

    Parameters that no pattern matches keep the masks they have. If any mask is sharded, all processes select together
    and all raise or none; and under `globally` and `layerwise` scores leave the dictionary as their masks are made, so
    that no process ever holds much more than its scores: give it a dictionary that you do not need.

    Raises:
        ValueError: if scores and masks differ in names, shapes or layouts, a score is NaN, a pattern matches nothing,
            or the scope returns what no scope may: other names or shapes, a pruned weight that is back, nothing at all.
    """
    _check_scores(scores, masks)
    if sharded.any_sharded(masks) and scope in (globally, layerwise):
        scope = _globally_consuming if scope is globally else _layerwise_consuming
    groups = group_by_pattern(density, masks) if isinstance(density, Mapping) else {"": list(masks)}
    chosen = dict(masks)
    for pattern, names in groups.items():
        wanted = density[pattern] if isinstance(density, Mapping) else density
        chosen |= scope(scores, {name: masks[name] for name in names}, wanted)
    _check_chosen(chosen, masks)
    return chosen


def require_pruned(chosen: Masks, density: Density) -> None:
    """Raise a ValueError if the masks of a first round keep everything, though its density is lower than that."""
    densities = density.values() if isinstance(density, Mapping) else [density]
    if any(each < 1 for each in densities) and kept(chosen) == total(chosen):
        raise ValueError(
            f"round 1 would prune none of {total(chosen):,} weights at a density of {density}, as none is the nearest "
            "whole number: prune more (prune.schedule.fraction=0.2, or a lower prune.density)."
        )


def emptied(chosen: Masks, masks: Masks) -> dict[str, int]:
    """Name → size of each tensor of which nothing is kept any more; if any is sharded, all processes ask together."""
    before, now = (sharded.tally(lambda mask: mask, each) for each in (masks, chosen))
    return {name: chosen[name].numel() for name, count in now.items() if count == 0 < before[name]}


def _keep_shares(scores: Scores, masks: Masks, density: float, shares: Mapping[str, float]) -> Masks:
    """As many weights of each tensor as its share of them all says, the best ones."""
    left = sharded.tally(lambda mask: mask, masks)
    count = round(density * total(masks))
    if count > sum(left.values()):
        raise ValueError(sharded.too_many(count, sum(left.values()), total(masks)))
    counts = apportion(count, shares, left)
    keep = sharded.keep_best if sharded.any_sharded(masks) else _keep_best_of_one
    return {name: keep({name: scores[name]}, {name: mask}, counts[name])[name] for name, mask in masks.items()}


def _keep_best_of_one(scores: Scores, masks: Masks, count: int) -> Masks:
    """As `sharded.keep_best`, of a tensor that lies here: faster, and with more memory."""
    ((name, mask),) = masks.items()
    return {name: keep_best(scores[name].flatten(), mask.flatten(), count).view(mask.shape)}


def apportion(count: int, shares: Mapping[str, float], limits: Mapping[str, int]) -> dict[str, int]:
    """Divide a number among names in proportion to their shares, none above its limit, by Sainte-Laguë's method.

    It is divided exactly, and if there is less to divide nobody gets more: so tensors that are pruned further and
    further lose weights only.

    Args:
        count: to divide, at most the sum of the limits.
        shares: name → positive number.
        limits: name → the most that it gets.

    Source: Balinski & Young 1982, "Fair Representation": methods of divisors, which have no paradoxes.

    >>> apportion(10, {"a": 1, "b": 1, "c": 2}, {"a": 1, "b": 9, "c": 9})
    {'a': 1, 'b': 3, 'c': 6}
    """
    low, high = 0.0, 1.0
    while sum(_quotas(high, shares, limits).values()) < count:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if sum(_quotas(middle, shares, limits).values()) <= count else (low, middle)
    counts = _quotas(low * (1 - 1e-9), shares, limits)  # a little less, since floats may have rounded a tie up
    # What is left goes, one by one, to who is nearest to another one; ties to the earlier name.
    waiting = [((counts[name] + 0.5) / share, order, name) for order, (name, share) in enumerate(shares.items())]
    heapify(waiting)
    for _ in range(count - sum(counts.values())):
        while counts[waiting[0][2]] == limits[waiting[0][2]]:
            heappop(waiting)
        _, order, name = heappop(waiting)
        counts[name] += 1
        heappush(waiting, ((counts[name] + 0.5) / shares[name], order, name))
    return counts


def _quotas(factor: float, shares: Mapping[str, float], limits: Mapping[str, int]) -> dict[str, int]:
    return {name: min(limits[name], int(factor * share + 0.5)) for name, share in shares.items()}


def _whole(choose: Callable[..., Tensor], scores: Tensor, mask: Tensor, *arguments: Any) -> Tensor:
    """What is chosen from the whole tensor, laid out as the mask."""
    return sharded.spread(choose(sharded.whole(scores), sharded.whole(mask), *arguments), mask)


def _best_of_groups(scores: Tensor, mask: Tensor, name: str, n: int, m: int) -> Tensor:
    dim = min(1, scores.dim() - 1)
    if scores.dim() == 0:
        return mask.clone()
    length = scores.shape[dim]
    missing = -length % m
    rows, candidates = (F.pad(each.movedim(dim, -1), (0, missing)).unflatten(-1, (-1, m)) for each in (scores, mask))
    wanted = F.pad(mask.new_ones(length), (0, missing)).view(-1, m).sum(-1).clamp(max=n)
    _require_left(name, candidates.sum(-1), wanted, f"weights of every {m}")
    chosen = (_ranks(rows, candidates) < n) & candidates
    return chosen.flatten(-2)[..., :length].movedim(-1, dim).contiguous()


def _best_channels(scores: Tensor, mask: Tensor, name: str, density: float, norm: float) -> Tensor:
    rows, candidates = (each.reshape(each.shape[0] if each.dim() else 1, -1) for each in (scores, mask))
    count = max(1, round(density * len(rows)))
    left = candidates.any(1)
    _require_left(name, left.sum(), torch.tensor(count), f"of {len(rows)} channels")
    size = torch.linalg.vector_norm((rows * candidates).double(), norm, dim=1)
    kept = left & (_ranks(size, left) < count)
    return (candidates & kept.unsqueeze(1)).view(mask.shape)


def _ranks(scores: Tensor, candidates: Tensor) -> Tensor:
    """The place of each score in its row, 0 for the best; ties by position, those that are no candidates last."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    order = order.gather(-1, candidates.gather(-1, order).byte().argsort(dim=-1, descending=True, stable=True))
    return order.argsort(dim=-1)


def _require_left(name: str, left: Tensor, wanted: Tensor, what: str) -> None:
    short = (left < wanted).nonzero()
    if len(short):
        have = left.expand(torch.broadcast_shapes(left.shape, wanted.shape))[tuple(short[0])]
        raise ValueError(
            f"asked to keep {int(wanted.max())} {what} of {name}, where only {int(have)} are still kept: a pruned "
            "weight never comes back, so a schedule must not rise, and all rounds need the same scope."
        )


def _globally_consuming(scores: Scores, masks: Masks, density: float) -> Masks:
    return sharded.keep_best(_own(scores), masks, round(density * total(masks)))


def _layerwise_consuming(scores: Scores, masks: Masks, density: float) -> Masks:
    own = _own(scores)
    return {name: _globally_consuming(own, {name: mask}, density)[name] for name, mask in masks.items()}


def _own(scores: Scores) -> dict[str, Tensor]:
    """The dictionary itself, if scores can leave it."""
    return scores if isinstance(scores, dict) else dict(scores)


def group_by_pattern(density: Mapping[str, float], masks: Masks) -> dict[str, list[str]]:
    """Pattern → the names it owns: each name goes to the first pattern that matches it.

    Raises:
        ValueError: if a pattern matches no name, or none that an earlier one has not taken.
    """
    groups: dict[str, list[str]] = {pattern: [] for pattern in density}
    for pattern in density:
        require_match(pattern, masks)
    for name in masks:
        owner = next((pattern for pattern in density if matches(name, [pattern])), None)
        if owner is not None:
            groups[owner].append(name)
    for pattern, names in groups.items():
        if not names:
            raise ValueError(
                f"the pattern {pattern!r} owns nothing, because an earlier one of {list(density)} takes all that it "
                "matches: put it first."
            )
    return groups


def _check_chosen(chosen: Masks, masks: Masks) -> None:
    names = {**masks, **chosen}
    if sharded.seen([name for name in names if not _fits(chosen.get(name), masks.get(name))], masks):
        shape = "shape, sharded as that one is" if sharded.any_sharded(masks) else "shape"
        raise ValueError(f"a scope must return a bool mask for every mask that it was given, of the same {shape}.")
    returned = sharded.tally(lambda new, old: new & ~old, {name: chosen[name] for name in masks}, masks)
    back = [name for name, weights in returned.items() if weights]
    if back:
        raise ValueError(f"a scope must choose among the weights still kept; pruned ones are back in {back}.")
    if kept(chosen) == 0:
        raise ValueError(f"nothing would be kept of {total(masks)} weights: ask for a higher density or fewer rounds.")


def _fits(chosen: Tensor | None, mask: Tensor | None) -> bool:
    if chosen is None or mask is None:
        return False
    return chosen.dtype == mask.dtype and sharded.same_layout(chosen, mask)


def _check_scores(scores: Scores, masks: Masks) -> None:
    mine = [name for name, mask in masks.items() if name not in scores or not sharded.same_layout(scores[name], mask)]
    wrong = sharded.seen(mine, masks)
    if wrong:
        shape = "shape, sharded as its mask (lt_lightning.sharded.spread)" if sharded.any_sharded(masks) else "shape"
        raise ValueError(f"a criterion must score every prunable weight in its {shape}; missing or misshapen: {wrong}.")
    for name, undefined in sharded.tally(torch.isnan, {name: scores[name] for name in masks}).items():
        if undefined:
            raise ValueError(
                f"{undefined} of the {scores[name].numel()} scores of {name} are NaN, so no weight is the best. "
                "Training diverged: lower the learning rate or clip the gradients."
            )
