"""Which weights compete with which, and the exact selection of the best.

A scope keeps exactly `round(density * total)` weights, the best ones among those still kept, so masks are nested: a
pruned weight never comes back. Equal scores are decided by position, earlier weights first, so that the same scores
give the same masks on every machine.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
        raise ValueError(
            f"asked to keep {count} weights where only {candidates.numel()} of {mask.numel()} are still kept: "
            "a pruned weight never comes back, so a schedule must not rise."
        )
    if count == 0:
        return torch.zeros_like(mask)
    threshold = candidates.kthvalue(candidates.numel() - count + 1).values
    above = mask & (scores > threshold)
    tied = mask & (scores == threshold)
    return above | (tied & (tied.cumsum(0) <= count - above.sum()))


def select(scores: Scores, masks: Masks, density: Density, scope: Scope) -> Masks:
    """The next masks: `scope` applied to everything, or to each pattern's group if the density is given per pattern.

    Parameters that no pattern matches keep the masks they have.

    Raises:
        ValueError: if scores and masks differ in names or shapes, a score is NaN, a pattern matches nothing, or the
            scope returns what no scope may: other names or shapes, a pruned weight that is back, nothing at all.
    """
    _check_scores(scores, masks)
    groups = group_by_pattern(density, masks) if isinstance(density, Mapping) else {"": list(masks)}
    chosen = dict(masks)
    for pattern, names in groups.items():
        wanted = density[pattern] if isinstance(density, Mapping) else density
        chosen |= scope(scores, {name: masks[name] for name in names}, wanted)
    _check_chosen(chosen, masks)
    return chosen


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
    shapes = {name: (tuple(mask.shape), mask.dtype) for name, mask in masks.items()}
    if {name: (tuple(mask.shape), mask.dtype) for name, mask in chosen.items()} != shapes:
        raise ValueError("a scope must return a bool mask for every mask that it was given, of the same shape.")
    back = [name for name in masks if bool((chosen[name] & ~masks[name]).any())]
    if back:
        raise ValueError(f"a scope must choose among the weights still kept; pruned ones are back in {back}.")
    if kept(chosen) == 0:
        raise ValueError(f"nothing would be kept of {total(masks)} weights: ask for a higher density or fewer rounds.")


def _check_scores(scores: Scores, masks: Masks) -> None:
    wrong = [n for n in masks if n not in scores or scores[n].shape != masks[n].shape]
    if wrong:
        raise ValueError(f"a criterion must score every prunable weight in its shape; missing or misshapen: {wrong}.")
    for name in masks:
        undefined = int(scores[name].isnan().sum())
        if undefined:
            raise ValueError(
                f"{undefined} of the {scores[name].numel()} scores of {name} are NaN, so no weight is the best. "
                "Training diverged: lower the learning rate or clip the gradients."
            )
