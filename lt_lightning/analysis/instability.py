"""Instability analysis: do two copies that see the data in another order end in one linearly connected region?

Copies are trained from one point of a run under the masks of one of its rounds, and evaluated at weights on the line
between their ends. Frankle et al. 2020 (arXiv 1912.05671), sections 2 and 3: a network is stable at a step if the error
on the line rises by less than two points above the mean of the ends.

Statistics of batch norm are computed anew at every place on the line, the ends included; see `evaluation.py`. What the
paper did about them is not in the code that its authors published (open_lth), which holds no such analysis.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lt_lightning.analysis import copies, report
from lt_lightning.analysis.evaluation import Evaluate, evaluator
from lt_lightning.analysis.recipe import Recipe
from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.rundir import Checkpoint, RunDirectory, model_state
from lt_lightning.masks import density
from lt_lightning.records import read_records, to_csv
from lt_lightning.wording import percent, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

STABLE = 0.02
"""A barrier below this is stable: two points of error (section 2)."""

PLACES = 30
"""How many weights on the line are evaluated, as in the paper."""


def barrier(values: Sequence[float]) -> float:
    """How far the largest value on a line lies above the mean of its ends, 0 or more.

    Args:
        values: error or loss along the line, the ends first and last.

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 2: the error barrier height, "instability".

    >>> barrier([1.0, 4.0, 2.0])
    2.5
    """
    return max(values) - (values[0] + values[-1]) / 2


def interpolate(one: Mapping[str, Tensor], other: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The state between two states of one module: (1 - alpha) * one + alpha * other, exact at both ends.

    Args:
        one: name → tensor, such as a `state_dict`; whole numbers (counters) are taken from here.
        other: the same names.
        alpha: in [0, 1].

    >>> interpolate({"w": torch.tensor([0.0, 1.0])}, {"w": torch.tensor([1.0, 3.0])}, 0.5)
    {'w': tensor([0.5000, 2.0000])}
    """
    return {
        name: torch.lerp(value, other[name], alpha) if value.is_floating_point() else value
        for name, value in one.items()
    }


def line(one: Mapping[str, Tensor], other: Mapping[str, Tensor], evaluate: Evaluate, places: int = PLACES) -> list[Row]:
    """Evaluate states on the line between two.

    Args:
        one: at alpha = 0.
        other: at alpha = 1.
        evaluate: state → metrics by name.
        places: how many, the ends included.

    Returns:
        A row for each place: alpha and the metrics.

    Raises:
        ValueError: for fewer than three places.

    >>> square = lambda state: {"loss": float(state["w"] ** 2)}
    >>> rows = line({"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}, square, 3)
    >>> [(row["alpha"], row["loss"]) for row in rows]
    [(0.0, 1.0), (0.5, 0.0), (1.0, 1.0)]
    """
    if places < 3:
        raise ValueError(f"{places} places on the line are too few: take 3 or more, the ends included; the paper, 30.")
    alphas = [place / (places - 1) for place in range(places)]
    return [{"alpha": alpha} | dict(evaluate(interpolate(one, other, alpha))) for alpha in alphas]


def measure(
    run: str | os.PathLike[str],
    recipe: Recipe,
    *,
    round: int = 0,
    step: int | None = None,
    orders: int = 2,
    places: int = PLACES,
    output: str | os.PathLike[str] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Train copies of a ticket with other orders of the data, and evaluate the lines between their ends.

    What is done, a copy or a line, is not done again; an interrupted copy goes on where it was.

    Args:
        run: a run directory.
        recipe: what makes its fits.
        round: by whose masks the copies are held; 0: the dense network.
        step: the point of the run from which they start; None: where the round itself started, the dense one at the
            rewind point.
        orders: how many copies; each two are compared.
        places: how many weights on a line are evaluated.
        output: where copies and lines are kept; `analysis/instability` in the run if None.
        tell: is told what happens.

    Returns:
        A row for each pair and place, of round, step, density, order_a, order_b, alpha, error (1 - accuracy, in [0, 1];
        None if the module tests no accuracy), loss (None if it tests none).

    Raises:
        ValueError: for a round or a step that the run does not have, or fewer than two orders.

    Source: Frankle et al. 2020 (arXiv 1912.05671), section 2, algorithm 1; tickets in section 4.

    Example:
        ```python
        recipe = Recipe(make_model, lambda seed: MyData(seed=seed), partial(L.Trainer, max_epochs=20))
        rows = measure("runs/mine", recipe, round=3)
        summarize(rows)[0]["error_barrier"]
        ```
    """
    if orders < 2:
        raise ValueError(f"orders={orders} must be 2 or more: a line has two ends.")
    seed = copies.seed_of(run)
    start = copies.find_start(run, round, step)
    folder = Path(output if output is not None else Path(run, "analysis", "instability")) / start.name
    ends = [copies.train(start, recipe, order, folder, seed, tell) for order in range(1, orders + 1)]
    about = {"round": start.round, "step": start.step, "density": density(start.masks)}
    rows: list[Row] = []
    evaluate = None
    for a, b in combinations(range(orders), 2):
        path = RunDirectory(folder).arm(start.round).path / f"line-{a + 1}-{b + 1}.csv"
        found = read_records(path) if path.exists() else []
        if len(found) != places:
            tell(f"{start}: evaluating {places} weights between copies {a + 1} and {b + 1}")
            evaluate = evaluate or evaluator(recipe, path.parent, seed)
            one, other = (model_state(Checkpoint(ends[end])) for end in (a, b))
            found = line(one, other, evaluate, places)
            write_text(path, to_csv(found))
        rows += [about | {"order_a": a + 1, "order_b": b + 1} | row for row in found]
    return rows


def summarize(rows: Sequence[Row]) -> list[Row]:
    """The barrier of each pair of copies.

    Args:
        rows: of `measure`; those of several runs have a `run`.

    Returns:
        A row for each pair, of what tells it (run, round, step, density, order_a, order_b), error_barrier, loss_barrier
        (None where not measured), error_of_ends and loss_of_ends (means); stable, None without errors.

    >>> about = {"round": 0, "step": 0, "density": 1.0, "order_a": 1, "order_b": 2}
    >>> rows = [about | {"alpha": a, "error": e, "loss": None} for a, e in ((0, 0.1), (0.5, 0.2), (1, 0.1))]
    >>> found = summarize(rows)[0]
    >>> found["error_barrier"], found["stable"], found["loss_barrier"]
    (0.1, False, None)
    """
    found = []
    for own in _lines(rows):
        row: Row = {key: value for key, value in own[0].items() if key not in ("alpha", "error", "loss")}
        for key in ("error", "loss"):
            values = [each[key] for each in own]
            known = all(value is not None for value in values)
            row[f"{key}_barrier"] = barrier(values) if known else None
            row[f"{key}_of_ends"] = (values[0] + values[-1]) / 2 if known else None
        row["stable"] = row["error_barrier"] < STABLE if row["error_barrier"] is not None else None
        found.append(row)
    return found


def _lines(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each line, in order."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key) for key in ("run", "round", "step", "order_a", "order_b")), []).append(row)
    yield from found.values()


def _settings(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each round and step: its lines, of all runs and pairs."""
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault((row["round"], row["step"]), []).append(row)
    yield from found.values()


def text(rows: Sequence[Row]) -> str:
    """The table for people: the barrier for each round and step, over runs and pairs."""
    cells = []
    for own in _settings(summarize(rows)):
        errors = [row["error_barrier"] for row in own if row["error_barrier"] is not None]
        losses = [row["loss_barrier"] for row in own if row["loss_barrier"] is not None]
        ends = [row["error_of_ends"] for row in own if row["error_of_ends"] is not None]
        cells.append(
            [str(own[0]["round"]), str(own[0]["step"]), percent(own[0]["density"]), str(len(own))]
            + ([f"{100 * fmean(ends):.2f}%", _spread([100 * each for each in errors])] if errors else ["-", "-"])
            + [_spread(losses) if losses else "-", _verdict(errors)]
        )
    header = ["round", "step", "density", "pairs", "error of ends", "error barrier (points)", "loss barrier", "verdict"]
    return "\n".join(table(header, cells, header[:-1]))


def _verdict(errors: Sequence[float]) -> str:
    if not errors:
        return "no accuracy was tested"
    return "stable (< 2)" if fmean(errors) < STABLE else "unstable"


def _spread(values: Sequence[float]) -> str:
    told = f"{fmean(values):.3g}"
    return told if len(values) == 1 else f"{told} ({min(values):.3g} to {max(values):.3g})"


def draw(path: Path, rows: Sequence[Row]) -> Path:
    """Draw error and loss along the lines: for each round and step the mean over runs and pairs, and each pair thin.

    Args:
        path: the picture, a PNG. The same rows give the same bytes.
        rows: of `measure`.

    Raises:
        ValueError: if neither error nor loss was measured.
    """
    measured = [key for key in ("error", "loss") if any(row[key] is not None for row in rows)]
    if not measured:
        raise ValueError("the module tests neither an accuracy nor a loss: log one in test_step, such as test/acc.")
    return report.save(path, lambda: _figure(rows, measured))


def _figure(rows: Sequence[Row], measured: Sequence[str]) -> "Figure":
    from matplotlib.figure import Figure

    settings = list(_settings(rows))
    figure = Figure(figsize=(3.7 * len(measured), 3.1 + 0.16 * len(settings)), dpi=200)
    figure.set_layout_engine("constrained", wspace=0.06)
    panels = figure.subplots(1, len(measured), squeeze=False)[0]
    for panel, key in zip(panels, measured, strict=True):
        for place, own in enumerate(settings):
            _curves(panel, own, key, place)
        panel.set_xlabel("from one copy (0) to the other (1)")
        panel.set_ylabel("test error (%)" if key == "error" else "test loss")
        _give_room(panel, key)
    figure.suptitle("between copies trained with other orders of the data", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1, frameon=False, fontsize=7)
    return figure


def _curves(axes: "Axes", rows: Sequence[Row], key: str, place: int) -> None:
    scale = 100 if key == "error" else 1
    lines = [[scale * row[key] for row in own] for own in _lines(rows) if own[0][key] is not None]
    if not lines:
        return
    alphas = [row["alpha"] for row in next(_lines(rows))]
    colour = report.COLOURS[place % len(report.COLOURS)]
    if len(lines) > 1:
        for values in lines:
            axes.plot(alphas, values, color=colour, linewidth=0.6, alpha=0.5)
    told = f"round {rows[0]['round']} ({percent(rows[0]['density'])} kept) from step {rows[0]['step']}"
    height = fmean([barrier(values) for values in lines])
    unit = " points" if key == "error" else ""
    means = [fmean(values) for values in zip(*lines, strict=True)]
    look = report.look(place, place, dashed=place % 2 == 1) | {"markersize": 3, "markevery": max(1, len(alphas) // 6)}
    pairs = f", mean of {len(lines)} pairs" if len(lines) > 1 else ""
    axes.plot(alphas, means, label=f"{told}: barrier {height:.2g}{unit}{pairs}", **look)


def _give_room(axes: "Axes", key: str) -> None:
    """Show at least the two points that a stable network may rise by, so that noise does not look like a barrier."""
    low, high = axes.get_ylim()
    least = 100 * STABLE if key == "error" else 0.0
    axes.set_ylim(max(0.0, low - 0.1 * (high - low)) if low >= 0 else low, max(high, low + 1.5 * least))
