"""TensorBoard: one run per round and a summary."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from lt_lightning.disk.redact import redacted
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.loggers.base import points, table
from lt_lightning.processes import is_writer
from lt_lightning.records import Record

if TYPE_CHECKING:
    from lt_lightning.ticket import Ticket


class TensorBoard:
    """Write event files to ``<directory>/tensorboard``: one run per round and one called ``summary``.

    ``tensorboard --logdir <directory>`` shows them.

    Args:
        directory: the run directory.
        config: the configuration, as a text of the summary.

    Raises:
        ModuleNotFoundError: the tensorboard package is missing.
    """

    def __init__(self, directory: str | os.PathLike[str], config: Mapping[str, Any] | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                "logger=tensorboard needs the tensorboard package: pip install lt-lightning[tensorboard]"
            ) from error
        self.run = RunDirectory(directory)
        self.folder = self.run.path / "tensorboard"
        self.config: dict[str, Any] = redacted(config or {})
        self._writer = SummaryWriter
        self._round: TensorBoardLogger | None = None

    def start(self, ticket: "Ticket") -> TensorBoardLogger:
        """Return a logger that writes to ``tensorboard/<ticket.name>``."""
        self._round = TensorBoardLogger(self.folder, name=ticket.name, version="", default_hp_metric=False)
        return self._round

    def finish(self, ticket: "Ticket") -> None:
        """Close the round's event file and add its record to the summary."""
        if self._round is not None:
            self._round.finalize("success")
            self._round = None
        if is_writer():
            self._add(ticket.record)

    def show(self, page: Path, picture: Path) -> None:
        """Add the table as text, and the picture of the report."""
        if not is_writer():
            return
        columns, rows = table(self.run.finished())
        lines = [columns, ["---"] * len(columns), *rows]
        self._summary.add_text("records", "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))
        from matplotlib.image import imread

        self._summary.add_image("report", imread(picture), dataformats="HWC")
        self._summary.flush()

    def __enter__(self) -> Self:
        if is_writer():
            # The summary starts over from the records, so a restarted run shows every round once.
            shutil.rmtree(self.folder / "summary", ignore_errors=True)
            self._summary = self._writer(str(self.folder / "summary"))
            if self.config:
                told = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
                self._summary.add_text("config", f"```yaml\n{told}```")
            for record in self.run.finished():
                self._add(record)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if self._round is not None:
            self._round.finalize("aborted")
        if is_writer():
            self._summary.close()

    def _add(self, record: Record) -> None:
        for name, value in points(record).items():
            if name != "round":
                self._summary.add_scalar(name, value, record["round"])
        self._summary.flush()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
