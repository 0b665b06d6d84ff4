"""One row per round and arm, and the curves within a round, as CSV."""

import csv
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.checksum import digest

COLUMNS = ("round", "arm", "seed", "density", "steps", "seconds", "early_stop_step")
"""The columns that every record has, in order; metrics follow under their own names."""

EARLY_STOP, BEST_CHECKPOINT = "early_stop_", "best_checkpoint_"
"""How columns of metrics begin that were measured elsewhere than at the end of the fit."""

_RESERVED = frozenset((*COLUMNS, "epoch", "step", "experiment", "method", "run"))
"""Columns of `records.csv`, `metrics.csv` and the summaries of several runs that are no metrics."""

_OWN_NAME = "logged/"
"""How the column of a metric begins that has the name of another column."""

Record = dict[str, Any]
"""Column → value; None where not measured."""


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write `records.csv` atomically: the fixed columns, then every metric in the order of its first appearance."""
    write_text(path, to_csv(records, COLUMNS))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a CSV that this module wrote: numbers as int or float, empty cells as None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged.
    """
    with told_if_damaged(path), open(path, newline="", encoding="utf-8") as file:
        header, *rows = list(csv.reader(file, strict=True)) or [[]]
        named = [zip(header, row, strict=True) for row in rows]
        return [{key: value if key == "arm" else _parse(value) for key, value in row} for row in named]


@contextmanager
def told_if_damaged(path: Path) -> Iterator[None]:
    """Let an error about the content of a file that a run has written name the file, and say what to do."""
    try:
        yield
    except (ValueError, IndexError, csv.Error) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Run the command again that made it: the round that wrote it is trained again."
        ) from error


def to_csv(rows: Iterable[Mapping[str, Any]], first: Iterable[str] = ()) -> str:
    """Rows → CSV text with the union of their columns.

    >>> to_csv([{"a": 1}, {"b": None, "a": 0.5}])
    'a,b\\n1,\\n0.5,\\n'
    """
    rows = list(rows)
    columns = list(dict.fromkeys([*first, *(key for row in rows for key in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def column(metric: str) -> str:
    """Name the column of a metric: its own name, unless that is the name of another column.

    No two metrics have one column.

    >>> column("val/acc"), column("step"), column("early_stop_step"), column("logged/step")
    ('val/acc', 'logged/step', 'logged/early_stop_step', 'logged/logged/step')
    """
    bare = metric
    while bare.startswith(_OWN_NAME):
        bare = bare.removeprefix(_OWN_NAME)
    return _OWN_NAME + metric if bare in _RESERVED or bare.startswith((EARLY_STOP, BEST_CHECKPOINT)) else metric


def columns_at(moment: str, metrics: Iterable[str]) -> dict[str, str]:
    """Name the columns of metrics that were measured elsewhere than at the end, each a column of its own.

    Args:
        moment: EARLY_STOP or BEST_CHECKPOINT.
        metrics: names of all metrics that were measured there.

    Returns:
        Metric → column: with underscores for slashes, where that tells the metrics apart.

    >>> columns_at(EARLY_STOP, ["val/acc", "step"])
    {'val/acc': 'early_stop_val_acc', 'step': 'early_stop_logged_step'}
    >>> columns_at(EARLY_STOP, ["val/acc", "val_acc"])
    {'val/acc': 'early_stop_val/acc', 'val_acc': 'early_stop_val_acc'}
    """
    names = {metric: moment + column(metric) for metric in metrics}
    counts = Counter(_without_slashes(name) for name in names.values())
    return {
        metric: _without_slashes(name) if counts[_without_slashes(name)] == 1 else name
        for metric, name in names.items()
    }


def early_stop_name(metric: str) -> str:
    """The column of a metric at the early stop, where no other has the same name but for slashes.

    >>> early_stop_name("val/acc")
    'early_stop_val_acc'
    """
    return columns_at(EARLY_STOP, [metric])[metric]


def _without_slashes(name: str) -> str:
    return name.replace("/", "_")


def beside(metrics: Mapping[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """Metrics of a test, with "test/" before the names that the fit logged too: they are other numbers.

    >>> beside({"loss": 0.4, "test/acc": 0.9}, ["loss", "val/acc"])
    {'test/acc': 0.9, 'test/loss': 0.4}
    """
    taken = {*others}
    found: dict[str, Any] = {}
    for name in sorted(metrics, key=lambda name: name in taken):
        place = name
        while place in taken or place in found:
            place = f"test/{place}"
        found[place] = metrics[name]
    return found


def objective(path: Path, monitor: str | None) -> float | None:
    """What a search compares: the last ticket's monitored metric at the early stop; None if it was not measured."""
    tickets = [row for row in read_records(path) if row["arm"] == "ticket"] if monitor and path.exists() else []
    if not tickets or not monitor:
        return None
    apart = tickets[-1].get(EARLY_STOP + column(monitor))
    return tickets[-1].get(early_stop_name(monitor)) if apart is None else apart


class Curves:
    """The curves of one fit, `metrics.csv`: one row per logging step, validation and epoch end.

    Args:
        path: of the CSV; None on processes that do not write.
        count: how many rows to go on from, when a fit continues; later ones are cut off.
    """

    def __init__(self, path: Path | None, count: int = 0) -> None:
        self.path = path
        self.rows = read_curves(path, count) if path is not None and count else []
        self.written: tuple[int, str] = (0, "")
        """How many rows the file holds, and their checksum."""

    def add(self, step: int, epoch: int, metrics: Mapping[str, Any], beside: Mapping[str, float] | None = None) -> None:
        """Add a row; `step` is the number of optimizer steps done, `epoch` the index of the running epoch.

        What stands `beside` the metrics has columns of its own, which no metric has.
        """
        if self.path is not None and metrics:
            measured = {column(name): value for name, value in numbers(metrics).items()}
            self.rows.append({"step": step, "epoch": epoch, **measured, **(beside or {})})

    def write(self) -> None:
        """Bring the file up to date."""
        if self.path is not None:
            text = _csv_of(self.rows)
            write_text(self.path, text)
            self.written = len(self.rows), digest(text.encode())


def read_curves(path: Path, count: int | None = None) -> list[Mapping[str, Any]]:
    """The rows of a `metrics.csv`, or its first ones; empty cells are left out."""
    rows = read_records(path)[:count] if path.exists() else []
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def are_curves_whole(path: Path, count: int, checksum: str) -> bool:
    """Whether the first rows of a `metrics.csv` are those of the checksum."""
    try:
        return digest(_csv_of(read_curves(path, count)).encode()) == checksum
    except (ValueError, TypeError, AttributeError, csv.Error):
        return False


def _csv_of(rows: Iterable[Mapping[str, Any]]) -> str:
    return to_csv(rows, ("step", "epoch"))


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as plain floats.

    >>> import torch
    >>> numbers({"val/acc": torch.tensor(0.5)})
    {'val/acc': 0.5}
    """
    return {name: float(value) for name, value in metrics.items()}


def finite(value: Any) -> Any:
    """A value without NaN and infinities, which JSON does not know.

    >>> finite({"mean": float("nan"), "all": [1.0, float("inf")]})
    {'mean': None, 'all': [1.0, None]}
    """
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(text: str) -> Any:
    if text == "":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
