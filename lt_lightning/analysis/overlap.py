"""How much masks have in common: between seeds and methods, between rounds, and with controls, against chance."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lt_lightning.analysis import fits, report
from lt_lightning.analysis.fits import ALL, Fit
from lt_lightning.disk import runs
from lt_lightning.disk.rundir import TICKET
from lt_lightning.masks import Masks
from lt_lightning.wording import percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

RUNS, ROUNDS, CONTROLS = "runs", "rounds", "controls"
"""What a pair of masks differs by: `kind` in the table."""

_MOST_PAIRS = 6
"""How many pairs of runs have a line of their own; of more there is their mean, in a band."""


def jaccard(one: Tensor, other: Tensor) -> float:
    """The Jaccard index of two masks: kept by both over kept by either, in [0, 1]; NaN if neither keeps anything.

    Args:
        one: bool tensor.
        other: bool tensor of the same shape.

    Source: Jaccard 1912, "The distribution of the flora in the alpine zone".

    >>> import torch
    >>> jaccard(torch.tensor([True, True, False]), torch.tensor([True, False, True]))  # 1 of 3
    0.3333333333333333
    """
    return _ratio(int((one & other).sum()), int((one | other).sum()))


def chance(one: float, other: float) -> float:
    """The Jaccard index to expect of masks of these densities, in (0, 1], that know nothing of each other.

    The expected number kept by both over that kept by either: their ratio's own expectation differs from it by a term
    that vanishes as layers grow.

    >>> chance(0.5, 0.5), chance(1.0, 0.2)  # a quarter of three quarters; a fifth of all
    (0.3333333333333333, 0.2)
    """
    return _ratio(one * other, one + other - one * other)


def compare(one: Masks, other: Masks) -> list[Row]:
    """How much two sets of masks have in common, layer by layer and over all.

    Over all layers, chance is that of masks which keep as many weights in each layer as these do: so it does not count
    as agreement that both keep, say, most of the output layer.

    Args:
        one: parameter name → bool tensor.
        other: the same; parameters that only one of them holds are left out.

    Returns:
        A row for each layer and one for `all`: layer, total (weights), density_a, density_b, jaccard, chance.

    Raises:
        ValueError: if they have no parameter in common, or one of another shape.

    >>> import torch
    >>> mask = torch.tensor([True, True, False, False])
    >>> [(row["layer"], row["jaccard"]) for row in compare({"w": mask}, {"w": ~mask})]
    [('w', 0.0), ('all', 0.0)]
    """
    common = [name for name in one if name in other]
    if not common:
        raise ValueError(f"the masks have no layer in common: {', '.join(one)} and {', '.join(other)}.")
    for name in common:
        if one[name].shape != other[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(one[name].shape)} in one run and {tuple(other[name].shape)} in the other: "
                "compare runs of the same model."
            )
    counts = [_count(one[name], other[name]) for name in common]
    rows = [_row(name, [count]) for name, count in zip(common, counts, strict=True)]
    return [*rows, _row(ALL, counts)]


def _count(one: Tensor, other: Tensor) -> tuple[int, int, int, int]:
    """How many weights there are, that one keeps, the other keeps, and both keep."""
    return one.numel(), int(one.sum()), int(other.sum()), int((one & other).sum())


def _row(layer: str, counts: Sequence[tuple[int, int, int, int]]) -> Row:
    total, one, other, both = map(sum, zip(*counts, strict=True))
    expected = sum(a * b / n for n, a, b, _ in counts)
    return {
        "layer": layer,
        "total": total,
        "density_a": one / total,
        "density_b": other / total,
        "jaccard": _ratio(both, one + other - both),
        "chance": _ratio(expected, one + other - expected),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan


def tabulate(found: Sequence[runs.Run]) -> list[Row]:
    """Compare the masks of runs, of those fits that are done.

    Returns:
        Rows of `compare`, each with `kind`, and run, round and arm of both (`run_a` ...). The kinds: `runs`, the
        tickets of two runs after as many rounds; `rounds`, two tickets of one run; `controls`, a ticket and a control
        beside it whose masks are its own (those of a control such as reinit are the ticket's).
    """
    names = fits.names(found)
    rows: list[Row] = []
    tickets = [[fit for fit in fits.of(run, controls=False) if fit.round] for run in found]
    for own, run in zip(tickets, found, strict=True):
        held = {fit: fit.masks() for fit in own}
        rows += [row for pair in combinations(own, 2) for row in _pair(ROUNDS, *pair, held, names)]
        for fit in fits.of(run):
            ticket = Fit(fit.run, fit.round, TICKET)
            if fit.arm != TICKET and ticket in held and differ(held[ticket], masks := fit.masks()):
                rows += _pair(CONTROLS, ticket, fit, held | {fit: masks}, names)
    for one, other in combinations(tickets, 2):
        for a, b in ((a, b) for a in one for b in other if a.round == b.round):
            rows += _pair(RUNS, a, b, {a: a.masks(), b: b.masks()}, names)
    return rows


def differ(one: Masks, other: Masks) -> bool:
    """Whether masks differ in any parameter that both hold; those of a control such as reinit are the ticket's."""
    return any(bool((one[name] != other[name]).any()) for name in one if name in other)


def _pair(kind: str, a: Fit, b: Fit, held: Mapping[Fit, Masks], names: Mapping[str, str]) -> Iterator[Row]:
    about: Row = {"kind": kind}
    for letter, fit in (("a", a), ("b", b)):
        about |= {f"run_{letter}": names[fit.run], f"round_{letter}": fit.round, f"arm_{letter}": fit.arm}
    try:
        yield from (about | row for row in compare(held[a], held[b]))
    except ValueError as error:
        raise ValueError(f"{a.run} and {b.run} cannot be compared: {error}") from error


def text(rows: Sequence[Row]) -> str:
    """The table for people, over all layers: runs against each other if there are several, else fits of the one."""
    kinds = (RUNS,) if any(row["kind"] == RUNS for row in rows) else (CONTROLS, ROUNDS)
    chosen = [row for kind in kinds for row in rows if row["kind"] == kind and row["layer"] == ALL]
    if kinds != (RUNS,):  # of rounds, those that follow each other
        chosen = [row for row in chosen if row["kind"] == CONTROLS or row["round_b"] == row["round_a"] + 1]
    several = len({row[end] for row in rows for end in ("run_a", "run_b")}) > 1
    cells = [
        [
            *(_told(row, letter, several) for letter in "ab"),
            *(percent(row[f"density_{letter}"]) for letter in "ab"),
            *(f"{row[key]:.3f}" for key in ("jaccard", "chance")),
        ]
        for row in chosen
    ]
    header = ["masks", "and", "density", "and ", "jaccard", "chance"]
    return "\n".join(table(header, cells, header[2:]))


def _told(row: Row, letter: str, several: bool) -> str:
    run, arm = row[f"run_{letter}"], row[f"arm_{letter}"]
    return " ".join([*([run] if several else []), f"round {row[f'round_{letter}']}", *([arm] if arm != TICKET else [])])


def draw(path: Path, rows: Sequence[Row]) -> Path:
    """Draw the overlap: of several runs against density, and by layer; of one run between all its rounds.

    Args:
        path: the picture, a PNG. The same rows give the same bytes.
        rows: of `tabulate`.

    Raises:
        ValueError: if there is nothing to compare.
    """
    if not rows:
        raise ValueError("there are no two masks to compare yet: two pruned rounds must be done, or one of two runs.")
    several = [row for row in rows if row["kind"] == RUNS]
    return report.save(path, lambda: _of_runs(several) if several else _of_rounds(rows))


def _of_runs(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.4), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.08)
    left, right = figure.subplots(1, 2)
    over_all = [row for row in rows if row["layer"] == ALL]
    _lines(left, over_all)
    _heat(right, [row for row in rows if row["layer"] != ALL])
    figure.suptitle("weights that masks of two runs have in common", fontsize=9)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=7)
    return figure


def _lines(axes: "Axes", rows: Sequence[Row]) -> None:
    by_pair: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_pair.setdefault((row["run_a"], row["run_b"]), []).append(row)
    groups = _by_round(rows)
    where = [fmean(_densities(own)) for own in groups]
    if len(by_pair) <= _MOST_PAIRS:
        for place, ((a, b), own) in enumerate(by_pair.items()):
            look = report.look(place, place, dashed=False)
            axes.plot(
                _densities(own), [row["jaccard"] for row in own], label=report.shorten(f"{a} and {b}", 60), **look
            )
    else:
        spread = [[row["jaccard"] for row in own] for own in groups]
        label = f"mean of {len(by_pair)} pairs of runs, from the least to the most"
        axes.plot(where, [*map(fmean, spread)], label=label, **report.look(0, 0, dashed=False))
        band: Any = {"color": report.COLOURS[0], "alpha": 0.15, "linewidth": 0}
        axes.fill_between(where, [*map(min, spread)], [*map(max, spread)], **band)
    chances = [fmean([row["chance"] for row in own]) for own in groups]
    axes.plot(where, chances, color="0.1", linestyle=":", linewidth=1.4, label="chance", zorder=5)
    axes.set_ylim(0, 1)
    axes.set_ylabel("Jaccard index, all layers")
    report.density_axis(axes, _densities(rows))


def _by_round(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row["round_a"] == n] for n in sorted({row["round_a"] for row in rows})]


def _densities(rows: Sequence[Row]) -> list[float]:
    return [math.sqrt(row["density_a"] * row["density_b"]) for row in rows]


def _heat(axes: "Axes", rows: Sequence[Row]) -> None:
    """By layer and round, the mean over pairs of runs of how far the overlap is above chance."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    rounds = sorted({row["round_a"] for row in rows})
    values = [
        [fmean([r["jaccard"] - r["chance"] for r in rows if (r["layer"], r["round_a"]) == (layer, n)]) for n in rounds]
        for layer in layers
    ]
    most = max([0.1, *(abs(value) for row in values for value in row if math.isfinite(value))])
    told = report.short_names(layers), [str(n) for n in rounds]
    report.heat(axes, values, *told, label="Jaccard index above chance", span=(-most, most))
    axes.set_xlabel("round")


def _of_rounds(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    over_all = [row for row in rows if row["layer"] == ALL]
    at = {(row["round_a"], row["arm_b"], row["round_b"]): row["jaccard"] for row in over_all}
    rounds = sorted({row[end] for row in over_all for end in ("round_a", "round_b")})
    controls = sorted({arm for _, arm, _ in at} - {TICKET})
    values = [[1.0 if a == b else at.get((min(a, b), TICKET, max(a, b)), math.nan) for b in rounds] for a in rounds] + [
        [at.get((n, arm, n), math.nan) for n in rounds] for arm in controls
    ]
    rows_told = [*(f"round {n}" for n in rounds), *(f"{arm}, same round" for arm in controls)]
    figure = Figure(figsize=(2.9 + 0.3 * len(rounds), 1.5 + 0.26 * len(values)), dpi=200)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    report.heat(axes, values, rows_told, [*map(str, rounds)], label="Jaccard index", span=(0.0, 1.0))
    axes.set_xlabel("round")
    figure.suptitle("weights that two masks have in common", fontsize=9)
    return figure
