"""When the dense round may end: once the masks that would be drawn from it have settled.

After every epoch of round 0 the masks of round 1 are drawn as if it were over. A function of this family looks at how
far they moved from epoch to epoch, and says whether the round ends here.
"""

from collections.abc import Callable, Sequence
from functools import partial

from lt_lightning import require
from lt_lightning.masks import Masks, total

EarlyBird = Callable[[Sequence[float]], bool]
"""Distances between the masks of successive epochs, in [0, 1], the last one last → whether round 0 ends."""


def settled(distance: float = 0.1, epochs: int = 5) -> EarlyBird:
    """End once the last distances are all below a threshold.

    Args:
        distance: the threshold, in (0, 1]: the part of all prunable weights that may change sides from one epoch to the
            next.
        epochs: how many distances in a row must be below it, 1 or more; there is none before the second epoch.

    Raises:
        ValueError: for values that cannot work.

    Source: You et al. 2020 (arXiv 1909.11957), section 4: early-bird tickets, 0.1 over five epochs.

    Example:
        >>> settled(0.1, epochs=2)([0.3, 0.09]), settled(0.1, epochs=2)([0.3, 0.09, 0.05])
        (False, True)
    """
    if not require.is_number(distance) or not 0 < distance <= 1:
        raise ValueError(f"distance={distance!r} must lie in (0, 1]: a part of all prunable weights, such as 0.1.")
    require.whole("epochs", epochs, 1, "how many distances in a row")
    return partial(_settled, distance=float(distance), epochs=epochs)


def _settled(distances: Sequence[float], *, distance: float, epochs: int) -> bool:
    return len(distances) >= epochs and max(distances[-epochs:]) < distance


def mask_distance(one: Masks, other: Masks) -> float:
    """The part of all weights that one of two masks keeps and the other does not: their normalized Hamming distance.

    >>> import torch
    >>> mask_distance({"w": torch.tensor([True, True, False, False])}, {"w": torch.tensor([True, False, True, False])})
    0.5
    """
    return sum(int((mask ^ other[name]).sum()) for name, mask in one.items()) / total(one)
