"""What a study found: one table over its runs, one over its seeds, and a picture that compares."""

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lt_lightning.disk import runs
from lt_lightning.disk.atomic import staged, write_text
from lt_lightning.records import Record, read_records, to_csv
from lt_lightning.wording import percent, table

FIRST = ("experiment", "method", "run", "seed", "round", "arm", "density", "steps", "early_stop_step", "seconds")
"""The first columns of the table over runs; metrics follow."""

GROUP = ("experiment", "method", "arm", "density")
"""What seeds are replicates of."""

_NAMES = ("experiment", "method", "run", "seed", "round", "arm", "density")

_SEED = re.compile(r"seed[=_-]?\d+|\d+")
_DENSITY = re.compile(r"(?:^|,)[^,=\[]*density=[^,\[]*(?=,|$)")
_OVERRIDE = re.compile(r",(?![^\[]*\])")
_DENSE = re.compile(r"dense/[0-9a-f]{16}/seed=-?\d+")
"""Where the rounds 0 lie that the runs of an experiment share, and each hold themselves."""


@dataclass(frozen=True)
class Unfinished:
    """A run that lacks rows.

    Args:
        run: its path from the study's.
        rows: how many it has.
        expected: how many it will have; None if that is unknown.
        next: round and arm of the first that is missing.
    """

    run: str
    rows: int
    expected: int | None
    next: runs.Fit | None

    def __str__(self) -> str:
        missing = f", from round {self.next[0]} ({self.next[1]}) on" if self.next else ""
        return f"{self.run}: {self.rows} of {'?' if self.expected is None else self.expected} rows{missing}"


def collect(directory: str | os.PathLike[str]) -> tuple[list[Record], list[Unfinished]]:
    """One row per finished fit of every run at or below a directory, and the runs that lack some.

    Raises:
        NotADirectoryError: if there is no such directory.
    """
    rows: list[Record] = []
    unfinished = []
    for run in runs.find(directory):
        experiment, method = names(run.path)
        is_dense = _DENSE.fullmatch("/".join(Path(run.path).resolve().parts[-3:]))
        if is_dense and run.path != os.fspath(directory):
            continue
        about = {"experiment": experiment, "method": method, "run": os.path.relpath(run.path, directory)}
        own = _records(run)
        rows += [about | row for row in own]
        there = {(row["round"], row["arm"]) for row in own}
        missing = [fit for fit in run.planned or [] if fit not in there]
        if missing or run.planned is None:
            expected = None if run.planned is None else len(run.planned)
            unfinished.append(Unfinished(about["run"], len(own), expected, next(iter(missing), None)))
    return _without_common_overrides(rows), unfinished


def _without_common_overrides(rows: Sequence[Record]) -> list[Record]:
    """Rows whose methods leave out, after the first, the overrides that all methods of their experiment have.

    >>> methods = ["prune=iterative,lr=1,rounds=3", "prune=one_shot,lr=1"]
    >>> [row["method"] for row in _without_common_overrides([{"experiment": "e", "method": m} for m in methods])]
    ['prune=iterative,rounds=3', 'prune=one_shot']
    """
    methods: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        methods.setdefault(row["experiment"], {})[row["method"]] = _OVERRIDE.split(row["method"])
    common = {
        experiment: set.intersection(*(set(parts[1:]) for parts in found.values())) if len(found) > 1 else set()
        for experiment, found in methods.items()
    }

    def short(experiment: str, method: str) -> str:
        first, *rest = methods[experiment][method]
        return ",".join([first, *(part for part in rest if part not in common[experiment])])

    return [row | {"method": short(row["experiment"], row["method"])} for row in rows]


def _records(run: runs.Run) -> list[Record]:
    path = Path(run.path, "records.csv")
    return read_records(path) if path.exists() else []


def names(path: str | os.PathLike[str]) -> tuple[str, str]:
    """Experiment and method of a run, from its directory: those above its seed's, less what `density` tells anyway.

    >>> names("/home/me/runs/lenet/prune=one_shot,prune.schedule.density=0.1/seed=0")
    ('lenet', 'prune=one_shot')
    >>> names("/home/me/runs/mine")
    ('runs', 'mine')
    """
    parts = ["", *Path(path).resolve().parts]
    *_, experiment, method = parts[:-1] if _SEED.fullmatch(parts[-1]) and len(parts) > 3 else parts
    return experiment, _DENSITY.sub("", method).strip(",") or method


def metrics(rows: Iterable[Record]) -> list[str]:
    """The columns that measure something, in the order of their first appearance."""
    return [column for column in dict.fromkeys(key for row in rows for key in row) if column not in _NAMES]


def aggregate(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """Mean, min, max and n over seeds, of every metric for every experiment, method, arm and density.

    A fit that several runs of one seed hold, such as a dense round, counts once: as their mean. A NaN stays one.

    Returns:
        Rows with the columns of `GROUP`, `metric`, `mean`, `min`, `max` and `n`; the ticket before the controls, dense
        first.

    >>> row = {"experiment": "e", "method": "m", "round": 0, "arm": "ticket", "density": 1.0}
    >>> aggregate([row | {"seed": 0, "test/acc": 0.5}, row | {"seed": 1, "test/acc": 1.0}])[0]["mean"]
    0.75
    """
    columns = metrics(rows)
    ordered = sorted(rows, key=_order)
    found = []
    for key, group in groupby(ordered, key=_order):
        members = list(group)
        about = dict(zip(GROUP, (*key[:2], members[0]["arm"], members[0]["density"]), strict=True))
        by_metric = {column: _by_seed(members, column) for column in columns}
        found += [about | {"metric": name} | _spread(values) for name, values in by_metric.items() if values]
    return found


def _order(row: Record) -> tuple[Any, ...]:
    density = float(f"{row['density']:.6g}")
    return row["experiment"], row["method"], row["arm"] != "ticket", row["arm"], -density


def _by_seed(rows: Iterable[Record], column: str) -> list[float]:
    seeds: dict[Any, list[float]] = {}
    for row in rows:
        value = row.get(column)
        if isinstance(value, int | float):
            seeds.setdefault(row.get("seed"), []).append(value)
    return [values[0] if len(set(values)) == 1 else sum(values) / len(values) for values in seeds.values()]


def _spread(values: Sequence[float]) -> dict[str, float]:
    if any(map(math.isnan, values)):
        return {"mean": math.nan, "min": math.nan, "max": math.nan, "n": len(values)}
    return {"mean": math.fsum(values) / len(values), "min": min(values), "max": max(values), "n": len(values)}


def write(directory: str | os.PathLike[str], rows: Sequence[Record], aggregated: Sequence[Mapping[str, Any]]) -> None:
    """Write `summary.csv`, `summary.parquet` and `aggregated.csv`, each atomically."""
    folder = Path(directory)
    tidy = to_csv(rows, FIRST)
    write_text(folder / "summary.csv", tidy)
    write_text(folder / "aggregated.csv", to_csv(aggregated, (*GROUP, "metric", "mean", "min", "max", "n")))
    _write_parquet(folder / "summary.parquet", tidy)


def _write_parquet(path: Path, text: str) -> None:
    """Write what a CSV holds. Read by pyarrow, which from lists would make it only after importing pandas."""
    import pyarrow
    from pyarrow import csv, parquet

    texts = dict.fromkeys(("experiment", "method", "run", "arm"), pyarrow.string())
    # Empty is not measured, but a NaN was: it stays one.
    options = csv.ConvertOptions(column_types=texts, null_values=[""])
    content = csv.read_csv(pyarrow.py_buffer(text.encode()), convert_options=options)
    with staged(path) as file:
        parquet.write_table(content, file)


def text(aggregated: Sequence[Mapping[str, Any]], rows: Sequence[Record], metric: str) -> str:
    """The table for people: one metric over seeds, and at which step the early stop came."""
    seeds = {key: {row.get("seed") for row in rows if _method(row) == key} for key in {_method(row) for row in rows}}
    stops = {_key(row): row["mean"] for row in aggregated if row["metric"] == "early_stop_step"}
    header = ["experiment", "method", "arm", "density", f"mean {metric}", "min", "max", "n", "early stop"]
    cells = [
        [
            *(str(row[name]) for name in GROUP[:3]),
            percent(row["density"]),
            *(f"{row[name]:.4g}" for name in ("mean", "min", "max")),
            _of(row["n"], len(seeds[_method(row)])),
            f"{stops[_key(row)]:.0f}" if math.isfinite(stops.get(_key(row), math.nan)) else "-",
        ]
        for row in aggregated
        if row["metric"] == metric
    ]
    return "\n".join(table(header, cells, header[3:]))


def _method(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["experiment"], row["method"]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in GROUP)


def _of(count: int, seeds: int) -> str:
    return str(count) if count == seeds else f"{count} of {seeds}"
