"""What `report.html` shows, read from the run directories: one value that JSON can hold, small enough for one page.

Records are exact. Curves are thinned, and details of masks and weights told of a few runs only, where there are too
many; `notes` says so. This module imports torch only when it looks at masks or weights.
"""

import csv
import math
import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_lightning.analysis import report, summary
from lt_lightning.disk import environment, runs
from lt_lightning.disk.configuration import trains_dense
from lt_lightning.disk.redact import redacted_text
from lt_lightning.records import Record, to_csv, told_if_damaged

if TYPE_CHECKING:
    from lt_lightning.masks import Masks

_TICKET = "ticket"

MOST_NUMBERS = 90_000
"""How many points all curves have together, if each keeps `_LEAST_POINTS`."""

_MOST_POINTS, _LEAST_POINTS = 150, 12
"""Of one curve."""

_MOST_RUNS = 8
"""How many runs have their masks and weights looked at."""

_MOST_METRICS = 8
"""How many metrics have curves."""

Value = dict[str, Any]


@dataclass
class _Page:
    """What is gathered, and what had to be left out."""

    value: Value
    notes: list[str] = field(default_factory=list)


def gather(directory: str | os.PathLike[str], most_bytes: float = math.inf) -> Value:
    """Everything that the page of a run, or of the runs below a directory, shows.

    Args:
        directory: a run directory, or one with runs below it.
        most_bytes: masks and weights are left out if the files that hold them are larger; reading them takes about a
            second for 200 MB.

    Returns:
        title, csv (`name` and `text`), metrics, chosen (the metrics to begin with), lines, curves, layers, pixels,
        overlap, movement, runs (configuration and environments of each), unfinished and notes.

    Raises:
        NotADirectoryError: if there is no such directory.
        ValueError: if no round has finished yet.
    """
    found = runs.find(directory)
    rows, unfinished = summary.collect(directory)
    if not rows:
        raise ValueError(f"no run at or below {os.fspath(directory)} has finished a round yet.")
    names = {row["run"]: row for row in rows}
    told = [run for run in found if os.path.relpath(run.path, directory) in names]
    configs = {run.path: _config(run) for run in told}
    page = _Page({"title": report.title(directory)})
    page.value |= _records(directory, told, rows) | _lines(rows, configs, directory)
    labels = _labels(told, names, directory)
    page.value["runs"] = [
        {
            "name": labels[run.path],
            "config": _text(Path(run.path, "config.yaml")),
            "environments": environment.read(run.path),
        }
        for run in told
    ]
    page.value["unfinished"] = [str(each) for each in unfinished]
    groups = {run.path: _group(names[os.path.relpath(run.path, directory)]) for run in told}
    page.value["groups"] = {labels[path]: group for path, group in groups.items()}
    page.value["curves"] = _curves(page, told, labels, {path for path in configs if not trains_dense(configs[path])})
    _look_inside(page, told, labels, groups, configs, most_bytes)
    return page.value | {"notes": page.notes}


def _records(directory: str | os.PathLike[str], told: Sequence[runs.Run], rows: Sequence[Record]) -> Value:
    """The table: of one run its records.csv, byte for byte; of several the table over runs."""
    if len(told) == 1:
        return {"csv": {"name": "records.csv", "text": _text(Path(told[0].path, "records.csv"))}}
    return {"csv": {"name": "summary.csv", "text": to_csv(rows, summary.FIRST)}}


def _text(path: Path) -> str:
    """A text as it is, line ends too, without secrets that a release before wrote down."""
    try:
        return redacted_text(path.read_bytes().decode("utf-8", "replace"))
    except OSError:
        return ""


def _config(run: runs.Run) -> Mapping[str, Any]:
    try:
        return run.config()
    except (OSError, ValueError):
        return {}


def _group(row: Record) -> str:
    return f"{row['experiment']} {row['method']}"


def _labels(told: Sequence[runs.Run], names: Mapping[str, Record], directory: str | os.PathLike[str]) -> dict[str, str]:
    """Run directory → its name on the page: the path from the study's directory, or its own name if it is alone."""
    if len(told) == 1:
        return {told[0].path: report.title(told[0].path)}
    return {run.path: os.path.relpath(run.path, directory) for run in told}


# Against density


def _lines(
    rows: Sequence[Record], configs: Mapping[str, Mapping[str, Any]], directory: str | os.PathLike[str]
) -> Value:
    """The aggregated rows as lines: one per method and arm, for every metric; the dense rounds as references."""
    from lt_lightning.analysis import comparison

    whole = {os.path.relpath(path, directory) for path, config in configs.items() if trains_dense(config)}
    rows = [row for row in rows if row["round"] or row["run"] in whole] or rows  # an untrained round 0 is no dense one
    aggregated = summary.aggregate(rows)
    keys = list(dict.fromkeys((row["experiment"], row["method"], row["arm"]) for row in aggregated))
    labels = comparison.labelled(keys)
    metrics = list(dict.fromkeys(row["metric"] for row in aggregated))
    lines = []
    for key in keys:
        own = [row for row in aggregated if (row["experiment"], row["method"], row["arm"]) == key]
        points = {
            name: [[row[end] for end in ("density", "mean", "min", "max", "n")] for row in own if row["metric"] == name]
            for name in metrics
        }
        lines.append({"label": labels[key], "group": f"{key[0]} {key[1]}", "arm": key[2], "points": points})
    dense = summary.aggregate([row | {"method": ""} for row in rows if row["round"] == 0 and row["run"] in whole])
    references: dict[str, dict[str, float]] = {}
    for row in dense:
        references.setdefault(row["experiment"], {})[row["metric"]] = row["mean"]
    fractions = [name for name in metrics if report.is_fraction([{name: row.get(name)} for row in rows], name)]
    spoken = dict(zip(("accuracy", "loss", "stop"), _chosen(rows, metrics), strict=True))
    return {
        "lines": lines,
        "dense": references,
        "metrics": metrics,
        "fractions": fractions,
        "chosen": spoken,
        "finding": _finding(lines, references, spoken["accuracy"], fractions),
    }


def _chosen(rows: Sequence[Record], metrics: Sequence[str]) -> tuple[str | None, str | None, str | None]:
    """The accuracy, the loss and the early stop to begin with; None where there is none."""
    losses = [name for name in ("test/loss", "val/loss", *metrics) if name in metrics and name.endswith("loss")]
    stop = "early_stop_step" if "early_stop_step" in metrics else None
    first = report.metric(rows)
    return first, next((name for name in losses if name != first), None), stop


def _finding(
    lines: Sequence[Value], dense: Mapping[str, Mapping[str, float]], metric: str | None, fractions: Sequence[str]
) -> str | None:
    """The sparsest ticket of all that is no worse than the dense network, in words; None where that cannot be said."""
    if metric not in fractions or len(dense) != 1:
        return None
    level = next(iter(dense.values())).get(metric or "", math.nan)
    tickets = [
        (density, mean, count, line["label"])
        for line in lines
        if line["arm"] == _TICKET
        for density, mean, _, _, count in line["points"][metric]
        if density < 1 and mean >= level
    ]
    of_how_many = f"{metric} of the dense network: {100 * level:.2f}%."
    if not tickets:
        return f"{of_how_many} No ticket reaches it."
    density, mean, count, label = min(tickets)
    seeds = "one seed" if count == 1 else f"mean of {count} seeds"
    return (
        f"{of_how_many} The sparsest ticket that reaches it keeps {100 * density:.3g}% of the weights: "
        f"{100 * mean:.2f}% ({label}, {seeds})."
    )


# Curves


def _curves(page: _Page, told: Sequence[runs.Run], labels: Mapping[str, str], untrained: Container[str]) -> Value:
    """The curves of every fit, thinned to what the page can hold, but for the round 0 of a run that does not train it.

    Returns:
        metrics; steps: lists that lines refer to; lines: [run, round, arm, metric, which steps, values].
    """
    fits = [(run, *fit) for run in told for fit in run.done if fit[0] or run.path not in untrained]
    files = {fit: Path(runs.marker(fit[0].path, *fit[1:])).with_name("metrics.csv") for fit in fits}
    metrics = list(dict.fromkeys(name for path in files.values() for name in _header(path)))
    if len(metrics) > _MOST_METRICS:
        page.notes.append(f"Curves of {', '.join(metrics[_MOST_METRICS:])} are left out.")
        metrics = metrics[:_MOST_METRICS]
    room = MOST_NUMBERS // max(1, len(metrics))
    most = min(_MOST_POINTS, room // max(1, len(fits)))
    shown = fits
    if most < _LEAST_POINTS:
        most = _LEAST_POINTS
        shown = fits[: room // most]
        page.notes.append(
            f"Curves of {len(fits) - len(shown)} of {len(fits)} fits are left out, those of the last runs."
        )
    steps: dict[tuple[int, ...], int] = {}
    lines, thinned = [], 0
    for fit in shown:
        for metric, (where, values) in read_curves(files[fit], metrics).items():
            kept = thin(len(values), most)
            thinned += len(kept) < len(values)
            place = steps.setdefault(tuple(where[at] for at in kept), len(steps))
            lines.append([labels[fit[0].path], fit[1], fit[2], metric, place, [_short(values[at]) for at in kept]])
    if thinned:
        page.notes.append(
            f"{thinned} of {len(lines)} curves are thinned: of each, {most} evenly spaced points of those that were "
            "logged are shown, the first and the last among them. metrics.csv in the run's directory holds all."
        )
    return {"metrics": metrics, "steps": [list(each) for each in steps], "lines": lines}


def _header(path: Path) -> list[str]:
    try:
        with told_if_damaged(path), open(path, encoding="utf-8", newline="") as file:
            return [name for name in next(csv.reader(file), []) if name not in ("step", "epoch")]
    except OSError:
        return []


def read_curves(path: Path, metrics: Sequence[str]) -> dict[str, tuple[list[int], list[float]]]:
    """Metric → steps and values of a `metrics.csv`; those that hold nothing are left out.

    Raises:
        ValueError: if it is damaged.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    if not path.exists():
        return found
    with told_if_damaged(path), open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = next(reader, [])
        places = [(header.index(name), found.setdefault(name, ([], []))) for name in metrics if name in header]
        for row in reader:
            for place, (steps, values) in places:
                if row[place]:
                    steps.append(int(row[0]))
                    values.append(float(row[place]))
    return {name: curve for name, curve in found.items() if curve[0]}


def thin(count: int, most: int) -> list[int]:
    """Up to `most` places of `count`, evenly spaced, the first and the last among them.

    >>> thin(5, 5), thin(9, 3)
    ([0, 1, 2, 3, 4], [0, 4, 8])
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


# Masks and weights


def _look_inside(
    page: _Page,
    told: Sequence[runs.Run],
    labels: Mapping[str, str],
    groups: Mapping[str, str],
    configs: Mapping[str, Mapping[str, Any]],
    most_bytes: float,
) -> None:
    """Add layers, pixels, movement and overlap."""
    page.value |= {"layers": {}, "pixels": {}, "movement": {}, "overlap": []}
    chosen = told[:_MOST_RUNS]
    if len(chosen) < len(told):
        page.notes.append(f"Masks and weights are shown of the first {len(chosen)} of {len(told)} runs.")
    size = sum(map(_size, chosen))
    if size > most_bytes:
        page.notes.append(
            f"Masks and weights are left out, since their files hold {size / 1e6:.0f} MB: "
            "`python -m lt_lightning report DIR` looks at them."
        )
        return
    pairs: list[Value] = []
    for run in chosen:
        label, group = labels[run.path], groups[run.path]
        with _left_out(page, f"{label}: layers and what masks have in common"):
            pairs += _masks(page, run, label, group, configs[run.path])
        with _left_out(page, f"{label}: the movement of weights"):
            if moved := _movement(run):
                page.value["movement"][label] = moved
    with _left_out(page, "what masks of several runs have in common"):
        pairs += _between_runs(chosen, groups)
    page.value["overlap"] = _spread(pairs)


@contextmanager
def _left_out(page: _Page, what: str) -> Iterator[None]:
    """Say that a part is missing, and why, if it cannot be read: a file was removed or damaged, or models differ."""
    try:
        yield
    except Exception as error:  # whatever a reader makes of a damaged file: a run must not fail by its report
        page.notes.append(f"Left out: {what}. {type(error).__name__}: {error}")


def _size(run: runs.Run) -> int:
    """How many bytes there are to read."""
    folders = [Path(runs.marker(run.path, *fit)).parent for fit in run.done]
    files = [folder / name for folder in folders for name in ("ticket.safetensors", "final.ckpt")]
    return sum(
        each.stat().st_size
        for file in files
        if file.exists()
        for each in (file.rglob("*") if file.is_dir() else [file])
    )


def _masks(page: _Page, run: runs.Run, label: str, group: str, config: Mapping[str, Any]) -> list[Value]:
    """Add densities of layers and pixels still seen; what masks have in common with those before and beside them."""
    from lt_lightning.analysis import fits, layers, overlap

    found: Value = {"names": [], "rounds": [], "densities": [], "dead": []}
    maps: list[list[list[int]]] = []
    pairs: list[Value] = []
    ticket: Masks = {}
    for fit in fits.of(run):
        masks = fit.masks()
        if fit.arm != _TICKET:
            if overlap.differ(masks, ticket):
                pairs.append(_pair(f"{fit.arm}, same round", group, fit.round, ticket, masks))
            continue
        told = layers.describe(masks)
        found["names"] = [*report.short_names([row["layer"] for row in told[:-1]]), "all layers"]
        found["rounds"].append(fit.round)
        found["densities"].append([_short(row["density"]) for row in told])
        found["dead"].append([told[-1]["dead_outputs"], told[-1]["dead_inputs"]])
        if shape := layers.image_shape(masks, config):
            maps.append(layers.pixels(next(iter(masks.values())), shape).tolist())
        if ticket:
            pairs.append(_pair("the round before", group, fit.round, masks, ticket))
        ticket = masks
    if found["rounds"]:
        page.value["layers"][label] = found
    if len(maps) > 1:
        page.value["pixels"][label] = {"rounds": found["rounds"], "maps": maps}
    return pairs


def _pair(kind: str, group: str, round: int, one: "Masks", other: "Masks") -> Value:
    from lt_lightning.analysis import overlap

    row = overlap.compare(one, other)[-1]
    about = {"kind": kind, "group": group, "round": round, "density": row["density_a"]}
    return about | {"jaccard": row["jaccard"], "chance": row["chance"]}


def _between_runs(chosen: Sequence[runs.Run], groups: Mapping[str, str]) -> Iterator[Value]:
    """What tickets of the replicates of one method have in common, round by round."""
    from lt_lightning.analysis import fits

    for group in dict.fromkeys(groups[run.path] for run in chosen):
        own = [run for run in chosen if groups[run.path] == group]
        tickets = [{fit.round: fit for fit in fits.of(run, controls=False) if fit.round} for run in own]
        for round in sorted(set().union(*tickets)):
            held = [each[round].masks() for each in tickets if round in each]
            yield from (_pair("other seeds, same round", group, round, *pair) for pair in combinations(held, 2))


def _spread(pairs: Sequence[Value]) -> list[Value]:
    """Lines of the overlap: by group and kind, the mean, least and most over runs of the same round."""
    found: dict[tuple[str, str], dict[int, list[Value]]] = {}
    for pair in pairs:
        found.setdefault((pair["group"], pair["kind"]), {}).setdefault(pair["round"], []).append(pair)
    lines = []
    for (group, kind), by_round in found.items():
        points = []
        for round, own in sorted(by_round.items()):
            values = [pair["jaccard"] for pair in own]
            mean = [math.fsum(pair[key] for pair in own) / len(own) for key in ("density", "jaccard", "chance")]
            points.append([round, mean[0], mean[1], min(values), max(values), mean[2], len(own)])
        lines.append({"group": group, "kind": kind, "points": points})
    return lines


def _movement(run: runs.Run) -> dict[str, list[list[float]]]:
    """How far weights moved in each fit: those that are kept next and those that are pruned; of controls, all.

    Returns:
        Name of a line → points: round, density, mean |w_T - w_0|, the same over mean |w_0|, share of changed signs.
    """
    import torch

    from lt_lightning.analysis import fits, movement

    lines: dict[str, list[list[float]]] = {}
    for fit in fits.of(run):
        masks, start = fit.begin()
        after = fit.next_masks() if fit.arm == _TICKET else None
        if start is None or (fit.arm == _TICKET and after is None):
            continue
        groups = movement.split(masks, after) if after is not None else {"all": masks}
        end = fit.end(masks)
        one, other, kept = (torch.cat([each[name].flatten() for name in masks]) for each in (start, end, masks))
        for group, chosen in groups.items():
            where = torch.cat([chosen[name].flatten() for name in masks])
            moved = movement.move(one[where], other[where])
            name = f"{fit.arm}, {group}" + (" next" if fit.arm == _TICKET else "")
            values = [float(kept.float().mean()), *(moved[key] for key in ("moved", "relative", "sign_changes"))]
            lines.setdefault(name, []).append([fit.round, *map(_short, values)])
    return lines
