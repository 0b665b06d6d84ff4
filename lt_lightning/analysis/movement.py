"""How far training moves weights, those that are kept and those that are pruned next, and which change their sign."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_lightning.analysis import fits, report
from lt_lightning.analysis.fits import ALL, Fit
from lt_lightning.disk import runs
from lt_lightning.disk.rundir import TICKET
from lt_lightning.masks import Masks, Weights, density
from lt_lightning.wording import percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

KEPT, PRUNED = "kept", "pruned"

_BINS = 80
"""Of the distributions."""

_MOST_LAYERS = 4
"""How many layers the picture of the distributions shows."""


def move(start: Tensor, end: Tensor) -> dict[str, float]:
    """How far weights moved from the start of a fit to its end.

    Args:
        start: the weights, of any shape.
        end: the same weights after training.

    Returns:
        count; start_abs, end_abs: mean |w| at both ends; moved: mean |w_T - w_0|; moved_median; relative: `moved` over
        `start_abs`; sign_changes: the share whose sign changed (zero has none). All but `count` are NaN of no weights.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), appendix F: how far the weights of winning tickets move.

    >>> found = move(torch.tensor([1.0, -1.0]), torch.tensor([1.5, 0.5]))
    >>> found["moved"], found["relative"], found["sign_changes"]
    (1.0, 1.0, 0.5)
    """
    if not start.numel():
        empty = ("start_abs", "end_abs", "moved", "moved_median", "relative", "sign_changes")
        return {"count": 0} | dict.fromkeys(empty, math.nan)
    start, end = start.double().flatten(), end.double().flatten()
    way = (end - start).abs()
    before, moved = float(start.abs().mean()), float(way.mean())
    return {
        "count": start.numel(),
        "start_abs": before,
        "end_abs": float(end.abs().mean()),
        "moved": moved,
        "moved_median": float(way.median()),
        "relative": moved / before if before else math.nan,
        "sign_changes": float((start.sign() * end.sign() < 0).double().mean()),
    }


def compare(start: Weights, end: Weights, groups: Mapping[str, Masks]) -> list[Row]:
    """How far the weights of each group moved, layer by layer and over all.

    Args:
        start: parameter name → weight at the start.
        end: the same at the end.
        groups: name of a group → parameter name → bool tensor, True for the weights that belong to it.

    Returns:
        For each group a row for each layer and one for `all`: layer, group and what `move` tells.

    >>> start, end = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([2.0, 2.0])}
    >>> rows = compare(start, end, {"kept": {"w": torch.tensor([True, False])}})
    >>> [(row["layer"], row["group"], row["moved"]) for row in rows]
    [('w', 'kept', 1.0), ('all', 'kept', 1.0)]
    """
    rows = []
    for group, masks in groups.items():
        chosen = {name: (start[name][mask], end[name][mask]) for name, mask in masks.items()}
        rows += [{"layer": name, "group": group} | move(*pair) for name, pair in chosen.items()]
        whole = (torch.cat([pair[place] for pair in chosen.values()]) for place in (0, 1))
        rows.append({"layer": ALL, "group": group} | move(*whole))
    return rows


def split(before: Masks, after: Masks) -> dict[str, Masks]:
    """The weights that were there before, in those that `after` keeps and those that it prunes."""
    return {
        KEPT: {name: mask & after[name] for name, mask in before.items()},
        PRUNED: {name: mask & ~after[name] for name, mask in before.items()},
    }


def tabulate(run: runs.Run) -> list[Row]:
    """How far weights moved in every fit of a run that is done.

    Returns:
        Rows of `compare`, each with round, arm and density of the fit, and `mask_round`: the round by whose masks its
        weights are grouped. With the fit's own round, `kept` are all that it trained; with the next one, they are
        divided into those that were kept then and those that were pruned. The weights of the dense round are also
        divided by the masks of every later round. Fits of whose start nothing is stored, those of a run that redraws,
        are left out.
    """
    rows: list[Row] = []
    done = fits.of(run)
    for fit in done:
        masks, start = fit.masks(), fit.start()
        if start is None:
            continue
        end = fit.end()
        groups: list[tuple[int, dict[str, Masks]]] = [(fit.round, {KEPT: masks})]
        if (next_masks := fit.next_masks()) is not None:
            groups.append((fit.round + 1, split(masks, next_masks)))
        later = [each for each in done if each.arm == TICKET and each.round > 1] if fit.round == 0 else []
        groups += [(each.round, split(masks, each.masks())) for each in later]
        about = {"round": fit.round, "arm": fit.arm, "density": density(masks)}
        rows += [about | {"mask_round": n} | row for n, each in groups for row in compare(start, end, each)]
    return rows


def distributions(start: Weights, end: Weights, masks: Masks) -> list[Row]:
    """Histograms of weights, at both ends of a fit, of those that masks keep and those that they prune.

    Args:
        start: parameter name → weight at the start.
        end: the same at the end.
        masks: parameter name → bool tensor.

    Returns:
        A row for each bin: layer, when (`start` or `end`), group, low, high (its bounds) and share (of the group's
        weights that lie in it). A layer has the same bins in all; the outermost thousandth of its weights lies in its
        first and last bin.
    """
    rows: list[Row] = []
    for name, mask in masks.items():
        ends = {"start": start[name], "end": end[name]}
        size = torch.cat([weight.abs().flatten() for weight in ends.values()])
        reach = float(size.kthvalue(math.ceil(0.999 * size.numel())).values) or 1.0
        edges = torch.linspace(-reach, reach, _BINS + 1).tolist()
        for when, weight in ends.items():
            for group, chosen in ((KEPT, weight[mask]), (PRUNED, weight[~mask])):
                counts = torch.histc(chosen.clamp(-reach, reach), _BINS, -reach, reach)
                shares = (counts / max(1, chosen.numel())).tolist()
                about: Row = {"layer": name, "when": when, "group": group}
                bins = zip(edges, edges[1:], shares, strict=False)
                rows += [about | {"low": low, "high": high, "share": share} for low, high, share in bins]
    return rows


def dense_and_last(run: runs.Run) -> tuple[Fit, Fit] | None:
    """The dense round and the last ticket that are done; None if there is no ticket yet."""
    tickets = fits.of(run, controls=False)
    return (tickets[0], tickets[-1]) if len(tickets) > 1 else None


def text(rows: Sequence[Row]) -> str:
    """The table for people, over all layers: what each fit trained, and what was pruned after it."""
    whole = [row for row in rows if row["layer"] == ALL and row["mask_round"] - row["round"] in (0, 1)]
    cells = []
    for row in whole:
        if row["mask_round"] == row["round"] and row["arm"] == TICKET and _is_divided(row, whole):
            continue  # its two parts are told
        told = "trained" if row["mask_round"] == row["round"] else f"{row['group']} next"
        cells.append(
            [str(row["round"]), row["arm"], percent(row["density"]), told]
            + [f"{row[key]:.3g}" for key in ("start_abs", "moved", "relative")]
            + [percent(row["sign_changes"])]
        )
    header = ["round", "arm", "density", "weights"]
    numbers = ["mean |w0|", "moved", "relative", "sign changes"]
    return "\n".join(table([*header, *numbers], cells, ["round", "density", *numbers]))


def _is_divided(row: Row, rows: Iterable[Row]) -> bool:
    same = ("round", "arm")
    return any(other["group"] == PRUNED and all(other[key] == row[key] for key in same) for other in rows)


def draw(path: Path, rows: Sequence[Row], heading: str) -> Path:
    """Draw how far weights moved, relative to where they began, and how many changed sign, against density.

    Args:
        path: the picture, a PNG. The same rows give the same bytes.
        rows: of `tabulate`.
        heading: the name of the run.
    """
    whole = [row for row in rows if row["layer"] == ALL]
    return report.save(path, lambda: _figure(whole, heading))


def _figure(rows: Sequence[Row], heading: str) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 3.3), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.06)
    panels = figure.subplots(1, 3)
    measures = {
        "moved": "mean |w at the end - w at the start|",
        "relative": "the same, over mean |w at the start|",
        "sign_changes": "weights that changed sign (%)",
    }
    for panel, (key, label) in zip(panels, measures.items(), strict=True):
        _panel(panel, rows, key)
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    figure.suptitle(report.shorten(heading, 90), fontsize=9, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=7)
    return figure


def _panel(axes: "Axes", rows: Sequence[Row], key: str) -> None:
    lines: dict[str, list[Row]] = {}
    for row in rows:
        after = row["mask_round"] - row["round"]
        if row["arm"] == TICKET and after == 1:
            lines.setdefault(f"ticket: {row['group']} next", []).append(row)
        elif row["arm"] != TICKET and after == 0:
            lines.setdefault(f"{row['arm']}: all", []).append(row)
    for place, (label, own) in enumerate(lines.items()):
        scale = 100 if key == "sign_changes" else 1
        values = [scale * row[key] for row in own]
        axes.plot([row["density"] for row in own], values, label=label, **report.look(place, place, dashed=place > 1))
    report.density_axis(axes, [row["density"] for row in rows], most=5)


def draw_distributions(path: Path, rows: Sequence[Row], heading: str) -> Path:
    """Draw histograms of weights: a line of panels for each layer, at the start and at the end.

    Args:
        path: the picture, a PNG.
        rows: of `distributions`; of many layers the first, the last and some between are shown.
        heading: what the weights are.
    """
    return report.save(path, lambda: _histograms(rows, heading))


def _histograms(rows: Sequence[Row], heading: str) -> "Figure":
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row["layer"] for row in rows))
    count = min(len(layers), _MOST_LAYERS)
    shown = sorted({round(place * (len(layers) - 1) / max(1, count - 1)) for place in range(count)})
    figure = Figure(figsize=(6.4, 1.0 + 1.35 * len(shown)), dpi=200)
    figure.set_layout_engine("constrained", hspace=0.04)
    panels = figure.subplots(len(shown), 2, squeeze=False, sharex="row", sharey="row")
    told = report.short_names(layers)
    for line, layer in zip(panels, shown, strict=True):
        for panel, when in zip(line, ("start", "end"), strict=True):
            _histogram(panel, [row for row in rows if (row["layer"], row["when"]) == (layers[layer], when)])
        line[0].set_ylabel(f"{told[layer]}\nshare of weights (%)")
    for panel, when in zip(panels[0], ("start", "end"), strict=True):
        panel.set_title(f"at the {when} of round 0", fontsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("weight")
    figure.suptitle(report.shorten(heading, 80), fontsize=9, parse_math=False)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    return figure


def _histogram(axes: "Axes", rows: Sequence[Row]) -> None:
    for place, group in enumerate((KEPT, PRUNED)):
        own = [row for row in rows if row["group"] == group]
        edges = [row["low"] for row in own] + [own[-1]["high"]]
        shares = [100 * row["share"] for row in own]
        axes.stairs(shares, edges, label=f"{group} in the end", color=report.COLOURS[place], linewidth=1.2, fill=False)
