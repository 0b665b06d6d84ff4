"""How dense each round is.

A schedule is a function from round to density in (0, 1], or to a density per name pattern. Round 0 is dense: 1.0.
Densities are absolute, so that rounding does not add up: round n of `geometric(0.2)` keeps `round(0.8**n * total)`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lt_lightning import require
from lt_lightning.masks import Density

Schedule = Callable[[int], Density]
"""Round → density."""

FRACTION = 0.2
"""What a round prunes of what is left, unless told otherwise: Frankle & Carbin 2019, figure 2."""

ROUNDS = 12
"""How many rounds there are where neither they nor a last density are given: 6.9% are left."""

_A_DENSITY = ("a density to prune to", "0.1 keeps a tenth")
_A_FRACTION = ("a fraction to prune", "0.2 prunes a fifth a round")


def geometric(
    fraction: Density | None = None, *, density: Density | None = None, rounds: int | None = None
) -> Schedule:
    """Prune the same fraction of what is left in every round.

    A fraction alone gives the density `(1 - fraction) ** round`. With a density as well, rounds end there: the last one
    has exactly this density. A density and a number of rounds give `density ** (round / rounds)`.

    Args:
        fraction: in (0, 1), or one per name pattern; None: 0.2. Parameters that no pattern matches are not pruned.
        density: the last one, in (0, 1), or one per name pattern; None: there is no last one.
        rounds: the number of rounds, from 1, in which the density is reached; None: as many as the fraction takes.
            Another number changes all densities, so the rounds of a run with this schedule cannot grow.

    Raises:
        ValueError: if a fraction or a density lies outside (0, 1), all three are given, or the patterns differ.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), section 2: n rounds, each of which prunes p ** (1/n); the output
    layer at half the rate: figure 2.

    Example:
        >>> geometric(0.2)(2)
        0.6400000000000001
        >>> geometric({"*output*": 0.1, "*": 0.2})(1)
        {'*output*': 0.9, '*': 0.8}
        >>> [round(geometric(density=0.05, rounds=5)(n), 3) for n in (1, 4, 5)]
        [0.549, 0.091, 0.05]
        >>> [round(geometric(density=0.5)(n), 3) for n in (1, 2, 3, 4, 5)]
        [0.8, 0.64, 0.512, 0.5, 0.5]
    """
    if fraction is not None and density is not None and rounds is not None:
        raise ValueError(
            f"fraction={fraction}, density={density} and rounds={rounds} are given, and two of them decide how much a "
            "round prunes: leave one out (prune.schedule.fraction=null, prune.density=null or prune.rounds=null)."
        )
    if density is not None and rounds is not None:
        return partial(_in_rounds, density=_densities(density), rounds=_rounds(rounds))
    fractions = require.shares(FRACTION if fraction is None else fraction, *_A_FRACTION)
    if density is None:
        return partial(_geometric, fraction=fractions)
    fractions, density = _by_the_same_patterns(fractions, _densities(density))
    return partial(_down_to, fraction=fractions, density=density)


def _geometric(round: int, *, fraction: Density) -> Density:
    if isinstance(fraction, Mapping):
        return {pattern: (1 - value) ** round for pattern, value in fraction.items()}
    return (1 - fraction) ** round


def _down_to(round: int, *, fraction: Density, density: Density) -> Density:
    if isinstance(fraction, Mapping) and isinstance(density, Mapping):
        return {pattern: max((1 - value) ** round, density[pattern]) for pattern, value in fraction.items()}
    return max((1 - fraction) ** round, density)  # type: ignore[operator, type-var]


def _in_rounds(round: int, *, density: Density, rounds: int) -> Density:
    share = min(round, rounds) / rounds
    return {key: each**share for key, each in density.items()} if isinstance(density, Mapping) else density**share


def _by_the_same_patterns(fraction: Density, density: Density) -> tuple[Density, Density]:
    """Both as they are, or one number for the patterns of the other."""
    patterns = next((list(each) for each in (fraction, density) if isinstance(each, Mapping)), None)
    if patterns is None:
        return fraction, density
    told = [each if isinstance(each, Mapping) else dict.fromkeys(patterns, each) for each in (fraction, density)]
    if list(told[0]) != list(told[1]):
        raise ValueError(
            f"fraction has the patterns {list(told[0])} and density {list(told[1])}: give both the same ones, in the "
            "same order, or one number for all."
        )
    return told[0], told[1]


def one_shot(density: Density) -> Schedule:
    """Prune once, straight to `density`: round 0 is dense, every later round has this density.

    Args:
        density: in (0, 1), or one per name pattern.

    Raises:
        ValueError: if a density lies outside (0, 1).

    Source: Frankle & Carbin 2019, section 2, "one-shot pruning".

    Example:
        >>> one_shot(0.1)(0), one_shot(0.1)(1)
        (1.0, 0.1)
    """
    return partial(_explicit, densities=(_densities(density),))


def explicit(densities: Sequence[float]) -> Schedule:
    """The densities of round 1, 2, ..., as given; rounds after the last keep its density.

    Raises:
        ValueError: if the list is empty, not falling, or a density lies outside (0, 1).

    Example:
        >>> [explicit([0.5, 0.2])(n) for n in range(3)]
        [1.0, 0.5, 0.2]
    """
    if not isinstance(densities, Sequence) or isinstance(densities, str | bytes):
        raise ValueError(
            f"densities={densities!r} of explicit must be a list: explicit([0.5, 0.2]) "
            "(prune.schedule.densities=[0.5,0.2])."
        )
    if not densities:
        raise ValueError("an explicit schedule needs at least one density, for example explicit([0.5, 0.2]).")
    given = tuple(require.share(density, *_A_DENSITY) for density in densities)
    if list(given) != sorted(given, reverse=True):
        raise ValueError(f"an explicit schedule must not rise, because a pruned weight never comes back: {given}.")
    return partial(_explicit, densities=given)


def _explicit(round: int, *, densities: tuple[Density, ...]) -> Density:
    if round > 0:
        return densities[min(round, len(densities)) - 1]
    return dict.fromkeys(densities[0], 1.0) if isinstance(densities[0], Mapping) else 1.0


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
    return partial(_cubic, density=require.share(density, *_A_DENSITY), rounds=_rounds(rounds))


def _cubic(round: int, *, density: float, rounds: int) -> float:
    left = 1 - min(round, rounds) / rounds
    return density + (1 - density) * left**3 if left < 1 else 1.0


def rounds_to(density: float, fraction: float = 0.2) -> int:
    """The number of rounds of `geometric(fraction)` after which at most `density` is left.

    >>> rounds_to(0.036), 0.8 ** 15
    (15, 0.03518437208883203)
    """
    density, fraction = require.share(density, *_A_DENSITY), require.share(fraction, *_A_FRACTION)
    rounds = math.ceil(math.log(density) / math.log1p(-fraction) - 1e-9)
    return max(rounds, 1)


def planned(schedule: Schedule | None, density: Density | None, rounds: int | None) -> tuple[Schedule, int]:
    """The schedule and the number of rounds that a schedule or a density, and a number of rounds ask for.

    Args:
        schedule: round → density.
        density: of the last round, in the place of a schedule: reached in that many rounds, each with the same fraction
            of what is left; without a number of rounds a fifth a round, until it is reached exactly.
        rounds: as given; None: until the schedule falls no further, and 12 if it always does.

    Raises:
        ValueError: if both a schedule and a density are given, and the schedule ends at another one.

    >>> planned(None, 0.05, 5)[0](5), planned(None, 0.05, None)[1], planned(None, None, None)[1]
    (0.05, 14, 12)
    """
    density = None if density is None else _densities(density)
    if schedule is None:
        schedule = _of_density(density, rounds)
    elif density is not None and not (_ends_at(schedule, density) and rounds in (None, _length(schedule))):
        raise ValueError(
            f"schedule and density={density} are both given, and each says how dense the rounds are: leave one out "
            "(prune.schedule=null, or prune.density=null)."
        )
    return schedule, _length(schedule) if rounds is None else rounds


def _ends_at(schedule: Schedule, density: Density) -> bool:
    """Whether one of our schedules was made for this last density, as that of `prune=iterative` is."""
    last = _options(schedule).get("density")
    return last == density or (isinstance(last, Mapping) and all(each == density for each in last.values()))


def _of_density(density: Density | None, rounds: Any) -> Schedule:
    if density is None:
        return geometric()
    return one_shot(density) if rounds in (0, 1) else geometric(density=density, rounds=rounds)


def _length(schedule: Schedule) -> int:
    """After how many rounds one of our schedules falls no further; `ROUNDS` for others, and if it always falls."""
    options = _options(schedule)
    if "densities" in options:
        return len(options["densities"])
    if "density" not in options:
        return ROUNDS
    if "rounds" in options:
        return options["rounds"]
    fraction, density = options["fraction"], options["density"]
    if isinstance(density, Mapping):
        return max(rounds_to(last, fraction[pattern]) for pattern, last in density.items())
    return rounds_to(density, fraction)


def _options(schedule: Schedule) -> dict[str, Any]:
    ours = (_geometric, _down_to, _in_rounds, _explicit, _cubic)
    return schedule.keywords if isinstance(schedule, partial) and schedule.func in ours else {}


def _densities(density: Density) -> Density:
    return require.shares(density, *_A_DENSITY)


def _rounds(rounds: Any) -> int:
    return require.whole("rounds", rounds, 1, "in which the density is reached")
