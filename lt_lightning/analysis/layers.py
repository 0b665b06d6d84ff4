"""Where a ticket keeps its weights: the density of each layer, units that nothing reaches or leaves, pixels still seen.

A mask of shape (outputs, inputs, ...) is looked at as a table of connections: a unit is an output of its layer, or an
input. Of a convolution a unit is a channel. A transposed convolution and Hugging Face's `Conv1D` hold inputs first.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lt_lightning import masks as masking
from lt_lightning.analysis import fits, report
from lt_lightning.analysis.fits import ALL, Fit
from lt_lightning.analysis.overlap import differ
from lt_lightning.disk import runs
from lt_lightning.disk.rundir import TICKET
from lt_lightning.masks import Masks
from lt_lightning.wording import percent, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]

Shape = tuple[int, int, int]
"""Channels, height and width of an image."""

_MOST_COLUMNS = 6
"""How many layers have a column of their own in the table for people."""

_MOST_IMAGES = 8
"""How many rounds the picture of the pixels shows."""


def incoming(mask: Tensor) -> Tensor:
    """How many connections each output of a layer keeps.

    Args:
        mask: bool tensor (outputs, inputs, ...).

    Returns:
        int64 [outputs].

    >>> import torch
    >>> incoming(torch.tensor([[True, True], [False, False]]))
    tensor([2, 0])
    """
    return mask.flatten(1).sum(1) if mask.dim() > 1 else mask.long()


def outgoing(mask: Tensor) -> Tensor:
    """How many connections each input of a layer keeps.

    Args:
        mask: bool tensor (outputs, inputs, ...).

    Returns:
        int64 [inputs]; of a vector, such as a norm's scale, an input is its output.

    >>> import torch
    >>> outgoing(torch.tensor([[True, False], [True, False]]))
    tensor([2, 0])
    """
    return mask.transpose(0, 1).flatten(1).sum(1) if mask.dim() > 1 else mask.long()


def describe(masks: Masks) -> list[Row]:
    """What each layer keeps.

    Returns:
        A row for each layer and one for `all`: layer, total (weights), kept, density; outputs, and how many of them are
        dead for want of incoming connections (`dead_outputs`: they tell a constant, their bias); inputs, and how many
        of them are dead for want of outgoing ones (`dead_inputs`: nothing hears them); the least, mean and most
        connections of an output (`fan_in_min` ...) and of an input (`fan_out_min` ...).

    >>> import torch
    >>> row = describe({"w": torch.tensor([[True, False], [True, False], [False, False]])})[0]
    >>> row["density"], row["outputs"], row["dead_outputs"], row["inputs"], row["dead_inputs"]
    (0.3333333333333333, 3, 1, 2, 1)
    """
    rows = [_row(name, mask) for name, mask in masks.items()]
    sums = {key: sum(row[key] for row in rows) for key in ("outputs", "dead_outputs", "inputs", "dead_inputs")}
    kept, total = masking.kept(masks), masking.total(masks)
    return [*rows, {"layer": ALL, "total": total, "kept": kept, "density": kept / total, **sums}]


def _row(name: str, mask: Tensor) -> Row:
    into, out = incoming(mask), outgoing(mask)
    row: Row = {"layer": name, "total": mask.numel(), "kept": int(mask.sum())}
    row["density"] = row["kept"] / row["total"]
    row |= {"outputs": len(into), "dead_outputs": int((into == 0).sum())}
    row |= {"inputs": len(out), "dead_inputs": int((out == 0).sum())}
    for side, counts in (("fan_in", into), ("fan_out", out)):
        row |= {f"{side}_min": int(counts.min()), f"{side}_mean": float(counts.double().mean())}
        row |= {f"{side}_max": int(counts.max())}
    return row


def pixels(mask: Tensor, shape: Shape) -> Tensor:
    """How many connections of a first layer each pixel keeps, over all units and channels.

    Args:
        mask: bool tensor (units, channels * height * width), of a linear layer on a flattened image.
        shape: channels, height and width.

    Returns:
        int64 [height, width].

    >>> import torch
    >>> pixels(torch.tensor([[True, False, True, False], [True, False, False, False]]), (1, 2, 2))
    tensor([[2, 0],
            [1, 0]])
    """
    return outgoing(mask).view(shape).sum(0)


def image_shape(masks: Masks, config: Mapping[str, Any]) -> Shape | None:
    """The shape of the images that the first layer sees pixel by pixel; None if it is no linear layer on images.

    Args:
        masks: parameter name → bool tensor, the first layer first.
        config: of the run; its `data.shape` is believed if it fits. Else a square image of one or three channels is.

    >>> import torch
    >>> image_shape({"w": torch.ones(300, 784).bool()}, {})
    (1, 28, 28)
    """
    first = next(iter(masks.values()))
    if first.dim() != 2:
        return None
    told = (config.get("data") or {}).get("shape") if isinstance(config.get("data"), Mapping) else None
    if isinstance(told, Sequence) and len(told) == 3 and math.prod(told) == first.shape[1]:
        return told[0], told[1], told[2]
    for channels in (1, 3):
        side = math.isqrt(first.shape[1] // channels)
        if side > 3 and channels * side * side == first.shape[1]:
            return channels, side, side
    return None


def tabulate(run: runs.Run) -> list[Row]:
    """Rows of `describe` for the fits of a run that are done, each with `round` and `arm`.

    Controls are there that have masks of their own: those of `reinit` are the ticket's.
    """
    return [_about(fit) | row for fit in _distinct(run) for row in describe(fit.masks())]


def units(run: runs.Run) -> list[Row]:
    """A row for every unit: round, arm, layer, side (`incoming`: an output; `outgoing`: an input), unit, kept."""
    return [
        _about(fit) | {"layer": name, "side": side.__name__, "unit": unit, "kept": count}
        for fit in _distinct(run)
        for name, mask in fit.masks().items()
        for side in (incoming, outgoing)
        for unit, count in enumerate(side(mask).tolist())
    ]


def _about(fit: Fit) -> Row:
    return {"round": fit.round, "arm": fit.arm}


def _distinct(run: runs.Run) -> list[Fit]:
    tickets = {fit.round: fit for fit in fits.of(run, controls=False)}
    others = [fit for fit in fits.of(run) if fit not in tickets.values()]
    own = (each for each in others if each.round not in tickets or differ(each.masks(), tickets[each.round].masks()))
    return [*tickets.values(), *own]


def text(rows: Sequence[Row]) -> str:
    """The table for people: the densities of the layers and the dead units, round by round.

    Of more than six layers the densest and the sparsest are told.
    """
    layers = [layer for layer in dict.fromkeys(row["layer"] for row in rows) if layer != ALL]
    told = report.short_names(layers) if len(layers) <= _MOST_COLUMNS else ["densest layer", "sparsest layer"]
    cells = []
    for n, own in _by_round(rows).items():
        densities = {row["layer"]: row["density"] for row in own if row["layer"] != ALL}
        shown = [densities.get(layer, math.nan) for layer in layers]
        if len(layers) > _MOST_COLUMNS:
            shown = [max(densities.values()), min(densities.values())]
        whole = next(row for row in own if row["layer"] == ALL)
        dead = [f"{whole[f'dead_{side}']} of {whole[side]}" for side in ("outputs", "inputs")]
        cells.append([str(n), *map(percent, (whole["density"], *shown)), *dead])
    header = ["round", "density", *told, "dead outputs", "dead inputs"]
    return "\n".join(table(header, cells, header))


def _by_round(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The rows of tickets, by round."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if row["arm"] == TICKET:
            found.setdefault(row["round"], []).append(row)
    return found


def draw(path: Path, rows: Sequence[Row], heading: str) -> Path:
    """Draw the density and the dead units of each layer, of the tickets.

    Args:
        path: the picture, a PNG. The same rows give the same bytes.
        rows: of `tabulate`.
        heading: the name of the run.
    """
    own = [row for row in rows if row["arm"] == TICKET]
    return report.save(path, lambda: _figure(own, heading))


def _figure(rows: Sequence[Row], heading: str) -> "Figure":
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    layers = [layer for layer in dict.fromkeys(row["layer"] for row in rows) if layer != ALL]
    figure = Figure(figsize=(7.4, 3.3 + 0.14 * -(-len(layers) // 4)), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.06)
    panels = figure.subplots(1, 3)
    over_all = {row["round"]: row["density"] for row in rows if row["layer"] == ALL}
    for place, (layer, told) in enumerate(zip(layers, report.short_names(layers), strict=True)):
        own = [row for row in rows if row["layer"] == layer]
        where = [over_all[row["round"]] for row in own]
        look = report.look(place, place, dashed=place % 2 == 1) | {"markersize": 3}
        panels[0].plot(where, [100 * row["density"] for row in own], label=told, **look)
        for panel, side in ((panels[1], "outputs"), (panels[2], "inputs")):
            panel.plot(where, [100 * row[f"dead_{side}"] / row[side] for row in own], **look)
    panels[0].set_yscale("log")
    shown = report.ticks([row["density"] for row in rows])
    panels[0].set_yticks([100 * density for density in shown], [f"{100 * density:.3g}" for density in shown])
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[0].set_ylabel("weights kept in the layer (%)")
    panels[1].set_ylabel("outputs that nothing reaches (%)")
    panels[2].set_ylabel("inputs that nothing hears (%)")
    for panel in panels:
        report.density_axis(panel, list(over_all.values()), most=5)
    for panel, side in ((panels[1], "outputs"), (panels[2], "inputs")):
        panel.set_ylim(bottom=0, top=max(1.0, 1.05 * panel.get_ylim()[1]))
        if not any(row[f"dead_{side}"] for row in rows):
            panel.text(0.5, 0.5, "none", transform=panel.transAxes, ha="center", color="0.35")
    figure.suptitle(report.shorten(heading, 90), fontsize=9, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=7)
    return figure


def draw_pixels(path: Path, run: runs.Run) -> Path | None:
    """Draw which pixels the first layer still sees, round by round, from round 1 on.

    The colour is the number of connections that a pixel keeps, over the mean of all pixels.

    Args:
        path: the picture, a PNG.
        run: whose tickets are looked at; up to eight of its rounds are shown.

    Returns:
        The path; None if the first layer is no linear layer on images, or no pruned round is done.
    """
    tickets = [fit for fit in fits.of(run, controls=False) if fit.round]
    shape = image_shape(tickets[0].masks(), run.config()) if tickets else None
    if shape is None:
        return None
    last = len(tickets) - 1
    count = min(len(tickets), _MOST_IMAGES)
    shown = [tickets[round(last * place / max(1, count - 1))] for place in range(count)]
    maps, densities = [], []
    for fit in shown:
        masks = fit.masks()
        first = next(iter(masks.values()))
        maps.append((pixels(first, shape) * math.prod(shape[1:]) / first.sum()).tolist())
        densities.append(masking.density(masks))
    told = [f"round {fit.round}: {percent(density)}" for fit, density in zip(shown, densities, strict=True)]
    return report.save(path, lambda: _images(maps, told, report.title(run.path)))


def _images(maps: Sequence[Sequence[Sequence[float]]], told: Sequence[str], heading: str) -> "Figure":
    from matplotlib.figure import Figure

    columns = len(maps) if len(maps) <= 5 else -(-len(maps) // 2)
    lines = -(-len(maps) // columns)
    figure = Figure(figsize=(1.5 * columns + 0.9, 1.65 * lines + 0.5), dpi=200)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels:
        panel.set_axis_off()
    most = max(value for image in maps for row in image for value in row)
    for panel, image, label in zip(panels, maps, told, strict=False):
        shown = panel.imshow(image, cmap="cividis", vmin=0.0, vmax=most, interpolation="nearest")
        panel.set_title(label, fontsize=7)
    bar = figure.colorbar(shown, ax=list(panels), label="connections of a pixel,\nover the mean", shrink=0.8)
    bar.outline.set_visible(False)
    figure.suptitle(report.shorten(heading, 60), fontsize=9, parse_math=False)
    return figure
