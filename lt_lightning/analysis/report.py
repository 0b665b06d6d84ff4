"""One picture of a run: how good each ticket is, and how soon, against its density."""

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_lightning.disk.atomic import write_bytes
from lt_lightning.disk.configuration import stored, trains_dense
from lt_lightning.records import BEST_CHECKPOINT, COLUMNS, EARLY_STOP, Record, read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFERRED = ("test/acc", "val/acc")
# Okabe and Ito's colours, told apart with every kind of colour vision, and in grey by their markers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# One more marker than colours, so that the pairs repeat late.
MARKERS = "osD^vPX"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "pdf.fonttype": 42,  # TrueType, which journals take; not the Type 3 of matplotlib
    "svg.fonttype": "path",  # so that it looks the same where the font is missing
    "svg.hashsalt": "lt_lightning",
}
FORMATS = ("png", "pdf", "svg")
# What matplotlib would write of itself and of the time, and the bytes would change with it.
_NO_METADATA = {
    "png": {"Software": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    "svg": {"Creator": None, "Date": None},
}

Span = tuple[float, float]
"""The least and the largest of the values that have a colour."""


def draw(directory: str | os.PathLike[str], path: Path | None = None) -> Path:
    """Draw a picture of the run in `directory` and return its path.

    The left panel shows the metric at the end of each round, the right one the step of its early stop, both
    against density, dense at the left. The right panel is left out where no early stop was measured, and a
    round 0 that is not trained where there is any other. The same records give the same bytes.

    Args:
        directory: a run directory.
        path: where to; ``report.png`` in the run if None. Its ending is one of `FORMATS`.

    Raises:
        FileNotFoundError: no round has finished yet, so there is no ``records.csv``.
        ValueError: ``records.csv`` holds no row, or the ending is another one.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> text = "round,arm,density,early_stop_step,test/acc" + chr(10) + "0,ticket,1.0,900,0.98" + chr(10)
    >>> _ = (folder / "records.csv").write_text(text)
    >>> draw(folder).name
    'report.png'
    """
    records = Path(directory) / "records.csv"
    rows = read_records(records)
    if not rows:
        raise ValueError(f"{records} holds no row, expected one per finished round")
    dense = trains_dense(stored(Path(directory) / "config.yaml"))
    shown = rows if dense else [row for row in rows if row["round"]] or rows
    return save(path or Path(directory) / "report.png", lambda: _figure(shown, title(directory), dense))


def save(path: Path, make: "Callable[[], Figure]") -> Path:
    """Write the figure that `make` makes, in the style of all our pictures; return its path.

    Raises:
        ValueError: the path ends with none of `FORMATS`.
    """
    from matplotlib import rc_context

    kind = path.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"{path} ends with {path.suffix!r}, expected one of .{', .'.join(FORMATS)}.")
    picture = io.BytesIO()
    with rc_context(STYLE):
        make().savefig(picture, format=kind, metadata=_NO_METADATA[kind])
    write_bytes(path, picture.getvalue())
    return path


def title(directory: str | os.PathLike[str]) -> str:
    """Name a run by its folders below ``runs``, or by its last two.

    >>> title("/home/me/runs/lenet/rewind_step=500/seed=0")
    'lenet/rewind_step=500/seed=0'
    """
    parts = Path(directory).resolve().parts[1:]
    last = max((at + 1 for at, part in enumerate(parts) if part == "runs"), default=len(parts))
    return "/".join(parts[last:] or parts[-2:])


def metric(rows: Sequence[Record]) -> str | None:
    """Choose the metric to draw: accuracy on test, on validation, any other, a loss; None without one.

    >>> metric([{"round": 0, "val/loss": 0.2, "val/acc": 0.9, "test/acc": None}])
    'val/acc'
    >>> metric([{"round": 0, "best_checkpoint_test_acc": 0.9, "early_stop_val_acc": 0.9, "val/loss": 0.2}])
    'val/loss'
    """
    measured = [
        column
        for column in dict.fromkeys(key for row in rows for key in row)
        if column not in COLUMNS
        and not column.startswith((EARLY_STOP, BEST_CHECKPOINT))
        and any(math.isfinite(_number(row.get(column))) for row in rows)
    ]
    accuracies = [column for column in measured if column.endswith(("acc", "accuracy"))]
    accuracies.sort(key=lambda column: not column.startswith("test"))
    losses = sorted((c for c in measured if c.endswith("loss")), key=lambda column: column != "val/loss")
    ranked = [*(column for column in PREFERRED if column in measured), *accuracies, *losses, *measured]
    return ranked[0] if ranked else None


def ticks(densities: Iterable[float], most: int = 6) -> list[float]:
    """Choose the densities to label, dense first, each at least a `most`-th of the logarithmic axis apart.

    >>> ticks([1.0, 0.8, 0.64, 0.512, 0.41, 0.328, 0.262, 0.21, 0.168, 0.134, 0.107])
    [1.0, 0.64, 0.41, 0.262, 0.168, 0.107]
    """
    ordered = sorted(set(densities), reverse=True)
    gap = math.log(ordered[0] / ordered[-1]) / most
    chosen = ordered[:1]
    for density in ordered[1:]:
        if math.log(chosen[-1] / density) >= gap:
            chosen.append(density)
    return chosen


def _number(value: Any) -> float:
    """Turn what cannot be drawn into NaN, which leaves a gap in a line."""
    return float(value) if isinstance(value, int | float) else math.nan


def _figure(rows: Sequence[Record], heading: str, dense: bool = True) -> "Figure":
    """Lay out the panels, the title and one legend below."""
    from matplotlib.figure import Figure

    stops = any(math.isfinite(_number(row.get("early_stop_step"))) for row in rows)
    figure = Figure(figsize=(7.0 if stops else 3.8, 3.1), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.06)
    panels = figure.subplots(1, 1 + stops, squeeze=False)[0]
    chosen = metric(rows) or ""
    scale = 100.0 if chosen and is_fraction(rows, chosen) else 1.0
    _panel(panels[0], rows, chosen, scale, dense=dense)
    panels[0].set_ylabel(f"{chosen or 'metric'} at the end{' (%)' if scale == 100 else ''}")
    if stops:
        _panel(panels[1], rows, "early_stop_step", 1.0, dense=dense)
        panels[1].set_ylabel("early stop (step)")
    figure.suptitle(shorten(heading, 90 if stops else 50), fontsize=9, parse_math=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False)
    return figure


def is_fraction(rows: Sequence[Record], column: str) -> bool:
    """Tell whether a metric is an accuracy in [0, 1], to be shown in percent."""
    values = [_number(row[column]) for row in rows]
    return column.endswith("acc") and all(0 <= value <= 1 for value in values if not math.isnan(value))


def _panel(axes: "Axes", rows: Sequence[Record], column: str, scale: float, *, dense: bool) -> None:
    """Draw one line per arm, and the dense round, if there is one, as the level to match."""
    for place, arm in enumerate(dict.fromkeys(str(row["arm"]) for row in rows)):
        own = sorted((row for row in rows if str(row["arm"]) == arm), key=lambda row: -row["density"])
        axes.plot(
            [row["density"] for row in own],
            [scale * _number(row.get(column)) for row in own],
            label=arm,
            **look(place, place, dashed=place > 0),
        )
    level = _number(rows[0].get(column)) if dense and rows[0]["round"] == 0 else math.nan
    # A line without a finite place is left out; the legend would still name it.
    if math.isfinite(level):
        axes.axhline(scale * level, color="0.35", linewidth=0.9, linestyle=":", label="dense", zorder=1)
    if not column:
        axes.text(0.5, 0.5, "no metric was logged", transform=axes.transAxes, ha="center", color="0.35")
    density_axis(axes, [row["density"] for row in rows])


def look(colour: int, marker: int, *, dashed: bool) -> dict[str, Any]:
    """Tell lines apart by colour, by marker, and by dashes."""
    return {
        "color": COLOURS[colour % len(COLOURS)],
        "marker": MARKERS[marker % len(MARKERS)],
        "linestyle": "--" if dashed else "-",
        "markersize": 4,
        "linewidth": 1.3,
    }


def density_axis(axes: "Axes", densities: list[float], most: int = 6) -> None:
    """Put dense at the left, sparse at the right, in percent of the weights kept, with up to `most` labels or so."""
    from matplotlib.ticker import NullLocator

    labelled = ticks(densities, most)
    margin = max(1.1, (max(densities) / min(densities)) ** 0.04)
    axes.set_xscale("log")
    axes.set_xlim(max(densities) * margin, min(densities) / margin)
    axes.set_xticks(labelled, [f"{100 * density:.3g}" for density in labelled])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("weights kept (%)")


def heat(
    axes: "Axes",
    values: Sequence[Sequence[float]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    label: str,
    span: Span,
) -> None:
    """Draw a matrix as colours, with a bar that tells the values, and the values themselves if they are few.

    Args:
        axes: where.
        values: a list for each row; NaN is left white.
        rows: names of the rows, from the top.
        columns: names of the columns; every so many are shown if there are many.
        label: what the values are.
        span: the least and the largest value; if 0 is in their middle it is white, and they differ in hue.
    """
    around_zero = span[0] == -span[1]
    colours = "PuOr_r" if around_zero else "cividis"
    image = axes.imshow(values, cmap=colours, aspect="auto", vmin=span[0], vmax=span[1], interpolation="nearest")
    for name, labels in (("x", columns), ("y", rows)):
        every = -(-len(labels) // (12 if name == "x" else 24))
        places = range(0, len(labels), every)
        getattr(axes, f"set_{name}ticks")(places, [labels[place] for place in places])
    axes.tick_params(length=0)
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, label=label, shrink=0.9)
    bar.outline.set_visible(False)
    if len(columns) > 8 or len(rows) > 12:
        return
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            if math.isfinite(value):
                share = (value - span[0]) / (span[1] - span[0])
                dark = abs(share - 0.5) > 0.3 if around_zero else share < 0.5
                text = f"{round(value, 2) + 0.0:.2f}"  # no -0.00
                axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")


def short_names(names: Sequence[str], most: int = 28) -> list[str]:
    """Names of parameters without the first and last parts that all have in common.

    >>> short_names(["network.hidden1.weight", "network.output.weight"])
    ['hidden1', 'output']
    >>> short_names(["weight"])
    ['weight']
    """
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while all(len(each) > 1 for each in parts) and len({each[end] for each in parts}) == 1:
            for each in parts:
                each.pop(end)
    return [shorten(".".join(each), most) for each in parts]


def shorten(text: str, most: int) -> str:
    """Cut the middle out of a text longer than `most` characters."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
