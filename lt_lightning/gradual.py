"""How the masks of a round tighten while it trains: pruning in one fit, without rewinding.

A function of this family takes how much of the fit is done and two densities, that of the round before and that of the
round, and says which density is due: `before` at 0, `after` at 1, and never more than it said earlier. So what a
schedule is for rounds, this is within one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

from lt_lightning import require
from lt_lightning.masks import Density

Gradual = Callable[[float, float, float], float]
"""(progress in [0, 1], density before, density after) → density now."""

_ROUNDING = 1e-12
"""What floats may add to a density that must not rise."""


def cubically(begin: float = 0.0, end: float = 0.75) -> Gradual:
    """Prune much at first and little at the end: `after + (before - after) * (1 - p) ** 3`.

    Args:
        begin: share of the fit at which pruning begins, in [0, 1).
        end: share at which the round's density is reached, in (begin, 1]; the rest of the fit trains at it. Between
            them p runs from 0 to 1.

    Raises:
        ValueError: unless 0 <= begin < end <= 1.

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), section 3, equation 1.

    Example:
        >>> [round(cubically()(progress, 1.0, 0.1), 4) for progress in (0, 0.25, 0.5, 0.75, 1)]
        [1.0, 0.3667, 0.1333, 0.1, 0.1]
    """
    return partial(_cubically, **_span(begin, end))


def _cubically(progress: float, before: float, after: float, *, begin: float, end: float) -> float:
    return after + (before - after) * (1 - _part(progress, begin, end)) ** 3


def linearly(begin: float = 0.0, end: float = 0.75) -> Gradual:
    """Prune at an even pace: `after + (before - after) * (1 - p)`, as many weights each time.

    Args:
        begin: as for `cubically`.
        end: as for `cubically`.

    Raises:
        ValueError: unless 0 <= begin < end <= 1.

    Source: the linear case of Zhu & Gupta 2017 (arXiv 1710.01878), section 3.

    Example:
        >>> linearly(end=1.0)(0.5, 1.0, 0.1)
        0.55
    """
    return partial(_linearly, **_span(begin, end))


def _linearly(progress: float, before: float, after: float, *, begin: float, end: float) -> float:
    return after + (before - after) * (1 - _part(progress, begin, end))


def geometrically(begin: float = 0.0, end: float = 0.75) -> Gradual:
    """Prune at a constant rate, the same part of what is left each time: `before ** (1 - p) * after ** p`.

    Args:
        begin: as for `cubically`.
        end: as for `cubically`.

    Raises:
        ValueError: unless 0 <= begin < end <= 1.

    Source: the rate of Frankle & Carbin 2019 (arXiv 1803.03635), section 2, within one fit.

    Example:
        >>> [round(geometrically(end=1.0)(progress, 1.0, 0.25), 4) for progress in (0, 0.5, 1)]
        [1.0, 0.5, 0.25]
    """
    return partial(_geometrically, **_span(begin, end))


def _geometrically(progress: float, before: float, after: float, *, begin: float, end: float) -> float:
    part = _part(progress, begin, end)
    return before ** (1 - part) * after**part


def _part(progress: float, begin: float, end: float) -> float:
    """How much of the way from begin to end is behind, in [0, 1]."""
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)


def _span(begin: float, end: float) -> dict[str, float]:
    if not (require.is_number(begin) and require.is_number(end) and 0 <= begin < end <= 1):
        raise ValueError(
            f"begin={begin!r} and end={end!r} are shares of the fit, between which weights are pruned: they need "
            "0 <= begin < end <= 1."
        )
    return {"begin": float(begin), "end": float(end)}


def density_at(gradual: Gradual, progress: float, before: Density, after: Density) -> Density:
    """The density that is due, or one per name pattern.

    >>> density_at(linearly(end=1.0), 0.5, 1.0, {"*output*": 0.8, "*": 0.5})
    {'*output*': 0.9, '*': 0.75}
    """
    if isinstance(after, Mapping):
        then = before if isinstance(before, Mapping) else {}
        return {pattern: gradual(progress, then.get(pattern, 1.0), value) for pattern, value in after.items()}
    return gradual(progress, 1.0 if isinstance(before, Mapping) else before, after)


def check(gradual: Gradual, round: int, before: Density, after: Density) -> None:
    """Raise a ValueError unless the function falls from one density to the other.

    Args:
        gradual: the function.
        round: whose fit it is, for the error.
        before: of the round before.
        after: of the round.
    """
    told = [density_at(gradual, number / 100, before, after) for number in range(101)]
    for pattern in after if isinstance(after, Mapping) else ("",):
        now = [each[pattern] if isinstance(each, Mapping) else each for each in told]
        if not all(map(require.is_number, now)):
            raise ValueError(f"gradual is {now[0]!r} at the start of round {round}; it must be a density, a number.")
        wanted = after[pattern] if isinstance(after, Mapping) else after
        if now[-1] != wanted:
            raise ValueError(f"gradual is {now[-1]} at the end of round {round}, whose density is {wanted}.")
        if not all(0 < later <= earlier + _ROUNDING for earlier, later in pairwise([1.0, *now])):
            raise ValueError(
                f"gradual must fall within (0, 1] in round {round}, because a pruned weight never comes back; at 0, "
                f"0.01, ... of the fit it is {', '.join(f'{each:.4g}' for each in now[:5])}, ..., {now[-1]:.4g}."
            )
