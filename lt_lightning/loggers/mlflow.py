"""MLflow: one run per round below a summary run, in an experiment of the run directory's name."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lt_lightning.analysis.report import title
from lt_lightning.disk.configuration import flatten
from lt_lightning.disk.redact import redacted
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.loggers.base import measured, points, token
from lt_lightning.processes import is_writer
from lt_lightning.records import Record

if TYPE_CHECKING:
    from lt_lightning.ticket import Ticket

_PLACE = "MLFLOW_TRACKING_URI"
_NAME, _TOKEN, _PARENT = "mlflow.runName", "lt_lightning.run", "mlflow.parentRunId"


class MLflow:
    """Log to MLflow: each round is a run below the summary run, whose steps are the rounds.

    Runs are found again by tags, so an interrupted round continues its run. What fails after the start is a warning.
    MLflow's reports about how it is used are off, unless ``MLFLOW_DISABLE_TELEMETRY`` says otherwise.

    Args:
        directory: the run directory.
        config: the configuration, as parameters of the summary run.
        tracking_uri: where MLflow keeps runs: a server, or a folder; ``MLFLOW_TRACKING_URI`` if None, and without that
            ``<directory>/mlflow``.
        experiment: the MLflow experiment; the run directory's name by default.
        tickets: whether each round's ``ticket.safetensors`` is kept as an artifact.

    Raises:
        ModuleNotFoundError: the mlflow-skinny package is missing.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        tracking_uri: str | None = None,
        experiment: str | None = None,
        tickets: bool = False,
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow looks at it when it is imported
        try:
            from mlflow import MlflowClient, set_tracking_uri
        except ImportError as error:
            raise ModuleNotFoundError(
                "logger=mlflow needs the mlflow-skinny package: pip install lt-lightning[mlflow]"
            ) from error
        self.run = RunDirectory(directory)
        self.folder = self.run.path / "mlflow"
        self.config: dict[str, Any] = redacted(config or {})
        self.tickets = tickets
        self._uri = tracking_uri or os.environ.get(_PLACE) or self.folder.absolute().as_uri()
        if self._uri.startswith("file:"):  # MLflow wants to hear that files are meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._experiment = experiment or title(directory)
        self._make_client: Any = MlflowClient
        self._set_place: Any = set_tracking_uri
        self._client: Any = None
        self._summary: str | None = None
        self._round: str | None = None

    def start(self, ticket: "Ticket") -> MLFlowLogger | bool:
        """Return a logger for the round's run; False where MLflow fails."""
        if not is_writer():
            # Opens no run; Lightning asks every rank for its loggers.
            return MLFlowLogger(self._experiment, tracking_uri=self._uri)
        if self._summary is None:
            return False
        tags = {"round": str(ticket.round), "arm": ticket.arm, "density": str(ticket.density)}
        try:
            self._round = self._open(ticket.name, tags | {_PARENT: self._summary})
            return MLFlowLogger(self._experiment, tracking_uri=self._uri, run_id=self._round)
        except Exception as error:
            self._warn(error)
            return False

    def finish(self, ticket: "Ticket") -> None:
        """Put the record into the round's run, and add a point to the summary."""
        if self._summary is None:
            return
        record = dict(ticket.record)
        try:
            if self._round is not None:
                about = measured(record)
                for name in ("round", "arm", "seed"):
                    about.pop(name, None)
                for name, value in about.items():
                    self._client.log_metric(self._round, name, value, step=record["steps"])
                if self.tickets:
                    self._client.log_artifact(self._round, str(Path(ticket.directory, "ticket.safetensors")))
                self._end("FINISHED")
            self._add(record)
        except Exception as error:
            self._warn(error)

    def show(self, page: Path, picture: Path) -> None:
        """Keep the table and the report with the summary run."""
        if self._summary is None:
            return
        try:
            for path in (self.run.records, page, picture):
                self._client.log_artifact(self._summary, str(path))
        except Exception as error:
            self._warn(error)

    def __enter__(self) -> Self:
        self._uri_before = os.environ.get(_PLACE)
        if is_writer():
            try:
                self._client = self._make_client(tracking_uri=self._uri)
                self._summary = self._open("summary", {})
                done = self._client.get_run(self._summary).data.params
                for name, value in _flat(self.config).items():
                    if name not in done:  # a parameter may be said once
                        self._client.log_param(self._summary, name, value)
                for record in self.run.finished():
                    self._add(record)
            except Exception as error:
                self._warn(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        status = "FINISHED" if kind is None else "FAILED"
        self._end(status)
        self._round, self._summary = self._summary, None
        self._end(status)
        self._set_place(self._uri_before)  # Lightning's logger has set it for the whole process

    def _open(self, name: str, tags: Mapping[str, str]) -> str:
        """The id of a run of that name, which is made if there is none yet."""
        found = self._client.get_experiment_by_name(self._experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._experiment)
        own = token(self.folder)
        ours = f"tags.`{_TOKEN}` = '{own}' and tags.`{_NAME}` = '{name}'"
        runs = self._client.search_runs([experiment], ours, max_results=1)
        if not runs:
            made = self._client.create_run(experiment, run_name=name, tags={_TOKEN: own, **tags})
            return str(made.info.run_id)
        self._client.set_terminated(runs[0].info.run_id, "RUNNING")
        return str(runs[0].info.run_id)

    def _add(self, record: Record) -> None:
        """Add a point per metric to the summary, unless an earlier start has."""
        arm = f"{record['arm']}/steps"
        if any(point.step == record["round"] for point in self._client.get_metric_history(self._summary, arm)):
            return
        for name, value in points(record).items():
            self._client.log_metric(self._summary, name, value, step=record["round"])

    def _end(self, status: str) -> None:
        run, self._round = self._round, None
        try:
            if run is not None:
                self._client.set_terminated(run, status)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        rank_zero_warn(f"MLflow failed ({error}); the CSV files are complete.")


def _flat(config: Mapping[str, Any]) -> dict[str, str]:
    """Values by dotted name, as far as MLflow takes them; without mappings that are empty.

    >>> _flat({"model": {"lr": 0.1, "sizes": [3, 4]}, "callbacks": {}})
    {'model.lr': '0.1', 'model.sizes': '[3, 4]'}
    """
    leaves = flatten(config).items()
    return {name[:250]: str(value)[:500] for name, value in leaves if not isinstance(value, Mapping)}
