"""How dense each round is.

A schedule is a function from round to density in (0, 1], or to a density per name pattern. Round 0 is dense: 1.0.
Densities are absolute, so that rounding does not add up: round n of `geometric(0.2)` keeps `round(0.8**n * total)`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from lt_lightning.masks import Density

Schedule = Callable[[int], Density]
"""Round → density."""


def geometric(fraction: float | Mapping[str, float] = 0.2) -> Schedule:
    """Prune the same fraction of what is left in every round: density `(1 - fraction) ** round`.

    Args:
        fraction: in (0, 1), or one per name pattern. Parameters that no pattern matches are not pruned.

    Raises:
        ValueError: if a fraction lies outside (0, 1).

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2; the output layer at half the rate: figure 2.

    Example:
        >>> geometric(0.2)(2)
        0.6400000000000001
        >>> geometric({"*output*": 0.1, "*": 0.2})(1)
        {'*output*': 0.9, '*': 0.8}
    """
    if isinstance(fraction, Mapping):
        fraction = {str(pattern): float(value) for pattern, value in fraction.items()}
    for value in fraction.values() if isinstance(fraction, dict) else (fraction,):
        _require_fraction(value)
    return partial(_geometric, fraction=fraction)


def _geometric(round: int, *, fraction: float | Mapping[str, float]) -> Density:
    if isinstance(fraction, Mapping):
        return {pattern: (1 - value) ** round for pattern, value in fraction.items()}
    return (1 - fraction) ** round


def one_shot(density: float) -> Schedule:
    """Prune once, straight to `density`: round 0 is dense, every later round has this density.

    Raises:
        ValueError: if the density lies outside (0, 1).

    Source: Frankle & Carbin 2019, section 2, "one-shot pruning".

    Example:
        >>> one_shot(0.1)(0), one_shot(0.1)(1)
        (1.0, 0.1)
    """
    _require_density(density)
    return partial(_explicit, densities=(float(density),))


def explicit(densities: Sequence[float]) -> Schedule:
    """The densities of round 1, 2, ..., as given; rounds after the last keep its density.

    Raises:
        ValueError: if the list is empty, not falling, or a density lies outside (0, 1).

    Example:
        >>> [explicit([0.5, 0.2])(n) for n in range(3)]
        [1.0, 0.5, 0.2]
    """
    given = tuple(float(density) for density in densities)
    if not given:
        raise ValueError("an explicit schedule needs at least one density, for example explicit([0.5, 0.2]).")
    for density in given:
        _require_density(density)
    if list(given) != sorted(given, reverse=True):
        raise ValueError(f"an explicit schedule must not rise, because a pruned weight never comes back: {given}.")
    return partial(_explicit, densities=given)


def _explicit(round: int, *, densities: tuple[float, ...]) -> float:
    return 1.0 if round == 0 else densities[min(round, len(densities)) - 1]


def cubic(density: float, rounds: int) -> Schedule:
    """Prune much at first and little at the end: density `final + (1 - final) * (1 - round / rounds) ** 3`.

    Args:
        density: the final one, in (0, 1); rounds after the last keep it.
        rounds: the number of rounds, from 1, in which it is reached. Another number changes all densities, so the
            rounds of a run with this schedule cannot grow.

    Raises:
        ValueError: if the density lies outside (0, 1), or there is no round.

    Source: Zhu & Gupta 2017 (arXiv 1710.01878), section 3, equation 1, with rounds in the place of steps.

    Example:
        >>> [round(cubic(0.1, 3)(n), 4) for n in range(5)]
        [1.0, 0.3667, 0.1333, 0.1, 0.1]
    """
    _require_density(density)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds={rounds!r} must be a whole number, 1 or more: in which the density is reached.")
    return partial(_cubic, density=float(density), rounds=rounds)


def _cubic(round: int, *, density: float, rounds: int) -> float:
    left = 1 - min(round, rounds) / rounds
    return density + (1 - density) * left**3 if left < 1 else 1.0


def rounds_to(density: float, fraction: float = 0.2) -> int:
    """The number of rounds of `geometric(fraction)` after which at most `density` is left.

    >>> rounds_to(0.036), 0.8 ** 15
    (15, 0.03518437208883203)
    """
    _require_density(density)
    _require_fraction(fraction)
    rounds = math.ceil(math.log(density) / math.log(1 - fraction) - 1e-9)
    return max(rounds, 1)


def _require_density(density: float) -> None:
    if not 0 < density < 1:
        raise ValueError(f"a density to prune to must lie inside (0, 1), got {density}; 0.1 keeps a tenth.")


def _require_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise ValueError(f"a fraction to prune must lie inside (0, 1), got {fraction}; 0.2 prunes a fifth a round.")
