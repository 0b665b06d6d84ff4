"""One picture of a study: how good the tickets of each method are against their density, over all seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_lightning.analysis import report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Line = tuple[str, str, str]
"""Experiment, method and arm."""

_LONGEST = 100
"""Characters of a name that fit beside a line of the legend."""

_NAMED = 24
"""How many lines have a name and a look of their own; more cannot be told apart, and the others are grey."""


def draw(path: Path, aggregated: Sequence[Mapping[str, Any]], metric: str) -> Path:
    """Draw one line per method and arm, the mean over seeds, in a band from their least to their most.

    Args:
        path: the picture, a PNG. The same rows give the same bytes.
        aggregated: rows of `summary.aggregate`.
        metric: which of its metrics.

    Raises:
        ValueError: if no row holds the metric.
    """
    rows = [row for row in aggregated if row["metric"] == metric]
    if not rows:
        known = ", ".join(dict.fromkeys(row["metric"] for row in aggregated))
        raise ValueError(f"no run has measured {metric}; there is: {known or 'nothing yet'}.")
    return report.save(path, lambda: _figure(rows, metric))


def _figure(rows: Sequence[Mapping[str, Any]], metric: str) -> "Figure":
    from matplotlib.figure import Figure

    by_line: dict[Line, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_line.setdefault(_line(row), []).append(row)
    lines = list(by_line)
    labels = labelled(lines)
    columns = min(len(lines), max(1, _LONGEST // (8 + max(map(len, labels.values())))))
    figure = Figure(figsize=(7.0, 3.6 + 0.16 * -(-min(len(lines), _NAMED + 1) // columns)), dpi=200)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    scale = 100.0 if report.is_fraction([{metric: row[end]} for row in rows for end in ("min", "max")], metric) else 1.0
    methods = list(dict.fromkeys(line[:2] for line in lines))
    arms = list(dict.fromkeys(line[2] for line in lines))
    for place, line in enumerate(lines):
        own = by_line[line]
        densities = [row["density"] for row in own]
        low, mean, high = ([scale * row[end] for row in own] for end in ("min", "mean", "max"))
        if place >= _NAMED:
            others = f"{len(lines) - _NAMED} others" if place == _NAMED else None
            axes.plot(densities, mean, label=others, color="0.75", linewidth=0.6, zorder=1)
            continue
        # Methods differ by colour and arms by marker; where that is not enough, or not needed, each line by both.
        arm, by_both = arms.index(line[2]), not 1 < len(methods) <= len(report.COLOURS)
        look = report.look(place if by_both else methods.index(line[:2]), place if by_both else arm, dashed=arm > 0)
        axes.plot(densities, mean, label=labels[line], **look)
        if low != high:
            axes.fill_between(densities, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set_ylabel(f"{metric}{' (%)' if scale == 100 else ''}")
    report.density_axis(axes, [row["density"] for row in rows])
    seeds = sorted({row["n"] for row in rows})
    over = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    axes.set_title(f"mean over {over} seed{'s' * (seeds[-1] != 1)}; bands from the least to the most", fontsize=8)
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=7)
    return figure


def _line(row: Mapping[str, Any]) -> Line:
    return row["experiment"], row["method"], row["arm"]


def labelled(lines: Sequence[Line]) -> dict[Line, str]:
    """A name for each line: what not all have in common, and the arm.

    >>> labelled([("e", "prune=iterative,lr=1", "ticket"), ("e", "prune=iterative,lr=2", "ticket")]).values()
    dict_values(['lr=1 ticket', 'lr=2 ticket'])
    >>> labelled([("e", "prune=iterative", "ticket"), ("e", "prune=iterative", "reinit")]).values()
    dict_values(['ticket', 'reinit'])
    """
    pieces = {line: [line[0], *line[1].split(",")] for line in lines}
    common = set.intersection(*map(set, pieces.values()))
    short = {line: [piece for piece in own if piece not in common] for line, own in pieces.items()}
    distinct = len({line[:2] for line in lines}) > 1
    return {
        line: report.shorten(" ".join([*(own or pieces[line][1:] if distinct else own), line[2]]), _LONGEST)
        for line, own in short.items()
    }
