"""Which weights compete with which, and the exact selection of the best.

A scope keeps exactly `round(density * total)` weights, the best ones among those still kept, so masks are nested: a
pruned weight never comes back. Equal scores are decided by position, earlier weights first, so that the same scores
give the same masks on every machine, and on any number of processes.

In a sharded fit scores and masks are `DTensor`s, in the same dictionaries; a scope then runs on all processes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lt_lightning import sharded
from lt_lightning.masks import Density, Masks, Scores, kept, matches, require_match, total

Scope = Callable[[Scores, Masks, float], Masks]
"""(scores, masks so far, density in (0, 1]) → masks that keep `round(density * total)` weights."""


def globally(scores: Scores, masks: Masks, density: float) -> Masks:
    """All weights compete with all others, whatever their layer.

    Raises:
        ValueError: if more weights are asked for than are still kept.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 4, for deep networks.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 2.0])}
        >>> globally(scores, {"a": torch.ones(2).bool(), "b": torch.ones(2).bool()}, 0.5)
        {'a': tensor([False,  True]), 'b': tensor([ True, False])}
    """
    if sharded.any_sharded(masks):
        return _globally_consuming(dict(scores), masks, density)
    flat_scores = torch.cat([scores[name].flatten() for name in masks])
    flat_masks = torch.cat([mask.flatten() for mask in masks.values()])
    chosen = keep_best(flat_scores, flat_masks, round(density * flat_masks.numel()))
    parts = chosen.split([mask.numel() for mask in masks.values()])
    return {name: part.view(masks[name].shape).clone() for name, part in zip(masks, parts, strict=True)}


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
    above = mask & (scores > threshold)
    tied = mask & (scores == threshold)
    return above | (tied & (tied.cumsum(0) <= count - above.sum()))


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


def expected_density(density: Density, masks: Masks) -> float:
    """The density over all masks that a density per pattern comes to, before rounding."""
    if not isinstance(density, Mapping):
        return density
    groups = group_by_pattern(density, masks)
    grouped = {name for names in groups.values() for name in names}
    left = kept({name: mask for name, mask in masks.items() if name not in grouped})
    parts = (density[p] * total({name: masks[name] for name in names}) for p, names in groups.items())
    return (left + sum(parts)) / total(masks)


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
