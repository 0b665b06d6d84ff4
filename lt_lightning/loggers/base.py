"""What the loggers have in common: the calls of `train.py`, and how a round's record is shown."""

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from lightning.pytorch.loggers import Logger

from lt_lightning.disk.atomic import write_text
from lt_lightning.processes import is_writer
from lt_lightning.records import Record

if TYPE_CHECKING:
    from lt_lightning.ticket import Ticket

ABOUT = ("round", "arm", "seed", "density")


class RoundLoggers(Protocol):
    """What `train.py` asks of a logger; used as a context manager around all rounds of a run."""

    def start(self, ticket: "Ticket") -> Logger | Literal[False]:
        """Return a new logger for this round's Trainer, or False; None would mean Lightning's default logger."""

    def finish(self, ticket: "Ticket") -> None:
        """Close the round's logger and add `ticket.record` to the summary."""

    def show(self, page: Path, picture: Path) -> None:
        """Add what there is once every round is done: all records as a table, and the report.

        Args:
            page: `report.html`.
            picture: `report.png`.
        """

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None: ...


class Nothing:
    """Log nothing beyond the CSV files of the run directory.

    >>> with Nothing("runs/mine") as loggers:
    ...     loggers.start(None)
    False
    """

    def __init__(self, directory: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> None:
        pass

    def start(self, ticket: "Ticket") -> Literal[False]:
        """Give the Trainer no logger."""
        return False

    def finish(self, ticket: "Ticket") -> None:
        """Do nothing."""

    def show(self, page: Path, picture: Path) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        pass


def log_curves(logger: Logger | Literal[False], ticket: "Ticket") -> Logger | Literal[False]:
    """Give a round's logger what it has not seen, as the round was trained for several runs; returns the logger."""
    if logger and is_writer():
        for row in ticket.curves_from_elsewhere:
            logger.log_metrics({name: value for name, value in row.items() if name != "step"}, step=row["step"] - 1)
    return logger


def measured(record: Record) -> Record:
    """Leave out what was not measured.

    >>> measured({"val/acc": 0.5, "test/acc": None})
    {'val/acc': 0.5}
    """
    return {name: value for name, value in record.items() if value is not None}


def points(record: Record) -> dict[str, float]:
    """Name a round's numbers as the summary shows them.

    >>> points({"round": 3, "arm": "reinit", "seed": 0, "density": 0.5, "val/acc": 0.9, "test/acc": None})
    {'round': 3, 'density': 0.5, 'reinit/val/acc': 0.9}
    """
    shared = {name: record[name] for name in ("round", "density")}
    own = {f"{record['arm']}/{name}": value for name, value in measured(record).items() if name not in ABOUT}
    return shared | own


def token(folder: Path) -> str:
    """Draw a token once for a folder, so that its runs are found again even when it was moved.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> len(token(folder)), token(folder) == token(folder)
    (8, True)
    """
    path = folder / "token"
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return path.read_text()


def table(records: Sequence[Record]) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of all records; a value that some do not have is None there.

    >>> table([{"round": 0, "val/acc": 0.5}, {"round": 1, "test/acc": 0.4}])
    (['round', 'val/acc', 'test/acc'], [[0, 0.5, None], [1, None, 0.4]])
    """
    columns = list(dict.fromkeys(name for record in records for name in record))
    return columns, [[record.get(name) for name in columns] for record in records]
