"""W&B: one run per round in a group, and a summary run; offline where going online would need a prompt or hang."""

import netrc
import os
import shutil
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lt_lightning.analysis.report import title
from lt_lightning.disk.redact import redacted
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.loggers.base import measured, points, table, token
from lt_lightning.processes import is_writer
from lt_lightning.records import Record

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

    from lt_lightning.ticket import Ticket

PROBE_SECONDS = 10.0
INIT_SECONDS = 20.0
FINISH_SECONDS = 60.0

_TELLS_ITS_MAKER = "WANDB_ERROR_REPORTING"
"""Unless this is false, W&B tells a host of its maker about its own errors and speed, offline too."""


class Wandb:
    """Log to W&B: one run per round, in one group, and a summary run whose x-axis is the round.

    Each round's run has job type ``round`` and the ticket's name. The summary run has job type ``summary`` and
    ``<arm>/<metric>`` for every finished round, those of an earlier start included, and in the end the table of all
    records and the report. Run ids come from a token in the run directory, so an interrupted round continues its
    run, even after the directory was moved.

    Without an API key, or when the server does not answer, runs are kept offline under ``<directory>/wandb``; then
    nothing is sent to anybody. There is never a prompt. What fails after the start is a warning. W&B's own reports
    about its errors and speed are off, unless ``WANDB_ERROR_REPORTING`` says otherwise.

    Args:
        directory: the run directory.
        config: the configuration that each run stores.
        project: the W&B project.
        group: the W&B group; the run directory's name by default.
        mode: ``online``, ``offline`` or ``disabled``; by default as ``WANDB_MODE`` or ``wandb offline`` say,
            else online.
        tickets: whether each round's ``ticket.safetensors`` is kept as an artifact of its run.
        init: passed to `wandb.init`, such as ``entity``, ``tags`` and ``settings`` (a mapping).
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        config: Mapping[str, Any] | None = None,
        project: str = "lt_lightning",
        group: str | None = None,
        mode: str | None = None,
        tickets: bool = False,
        **init: Any,
    ) -> None:
        os.environ.setdefault(_TELLS_ITS_MAKER, "false")  # W&B looks at it when its own process starts
        self.run = RunDirectory(directory)
        self.folder = self.run.path / "wandb"
        self.config: dict[str, Any] = redacted(config or {})
        self.mode = mode
        self.tickets = tickets
        self._settings = speed() | dict(init.pop("settings", {}))
        self._tags = list(init.pop("tags", ()))
        # W&B refuses group names of more than 128 characters; the end tells seeds apart.
        self._init = {"project": project, "group": group or title(directory)[-128:], **init}
        self._records: list[Record] = []
        self._summary: Run | None = None
        self._round: Run | None = None

    def start(self, ticket: "Ticket") -> Logger | Literal[False]:
        """Open the round's run and return a logger for it; False if W&B cannot even write offline."""
        if not is_writer():
            # Opens no run; Lightning asks every rank for its loggers.
            return WandbLogger(save_dir=ticket.directory)
        try:
            self._round = self._open_round(ticket)
        except Exception as error:
            rank_zero_warn(f"W&B does not log {ticket.name}, its CSV files are written as always: {error}")
            return False
        self._round.define_metric("trainer/global_step")
        self._round.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return WandbLogger(experiment=self._round, save_dir=ticket.directory)

    def finish(self, ticket: "Ticket") -> None:
        """Put the record into the round's run, close that run, and add a point to the summary."""
        if not is_writer():
            return
        record = dict(ticket.record)
        self._records.append(record)
        try:
            if self._round is not None:
                self._round.summary.update(measured(record))
                if self.tickets:
                    self._keep_ticket(self._round, ticket, record)
            self._add(record)
        except Exception as error:
            self._warn(error)
        self._close_round(0)

    def show(self, page: Path, picture: Path) -> None:
        """Add the table of all records and the report to the summary."""
        import wandb

        if self._summary is None:
            return
        try:
            columns, rows = table(self.run.finished())
            records = wandb.Table(columns=[*columns], data=rows, allow_mixed_types=True)
            self._summary.log(
                {
                    "records": records,
                    "report": wandb.Html(str(page), inject=False),
                    "picture": wandb.Image(str(picture)),
                }
            )
        except Exception as error:
            self._warn(error)

    def _keep_ticket(self, run: "Run", ticket: "Ticket", record: Record) -> None:
        """Keep a ticket as an artifact; the file stays where it is until it is sent, and never changes."""
        import wandb

        artifact = wandb.Artifact(self._id(ticket.name), type="ticket", metadata=measured(record))
        artifact.add_file(str(Path(ticket.directory, "ticket.safetensors")), policy="immutable")
        run.log_artifact(artifact)

    def __enter__(self) -> Self:
        if is_writer():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._mode = self._choose_mode()
            self._records = self.run.finished()
            self._open_summary()
            if self._summary is not None and self._mode == "online":
                rank_zero_info(f"W&B: {self._summary.url}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        code = int(kind is not None)
        self._close_round(code)
        summary, self._summary = self._summary, None
        self._close(summary, code)

    def _open_round(self, ticket: "Ticket") -> "Run":
        about = {"round": ticket.round, "arm": ticket.arm, "density": ticket.density}
        return self._open(
            ticket.name,
            job_type="round",
            resume="allow",
            config={**self.config, **about},
            tags=[*self._tags, ticket.arm],
        )

    def _open_summary(self) -> None:
        """Start the summary over, with every record so far."""
        if self._mode == "offline":
            # W&B appends a number to the name where two folders were made in one second.
            for old in self.folder.glob(f"offline-run-*-{self._id('summary')}*"):
                shutil.rmtree(old)
        self._summary = self._open("summary", job_type="summary", config=self.config, tags=self._tags)
        for record in self._records:
            self._add(record)

    def _open(self, name: str, **about: Any) -> "Run":
        """Open a run; when the server does not answer, go on offline for the rest of the job."""
        import wandb

        try:
            return self._init_run(name, **about)
        except (wandb.errors.CommError, TimeoutError) as error:
            if self._mode != "online":
                raise
            self._go_offline(error)
        return self._init_run(name, **about)

    def _init_run(self, name: str, **about: Any) -> "Run":
        import wandb

        return wandb.init(
            name=name,
            id=self._id(name),
            dir=self.run.path,
            mode=self._mode,  # type: ignore[arg-type]
            # Keeps the summary open beside the rounds, and never returns a run that is open already.
            reinit="create_new",
            settings=wandb.Settings(**self._settings),
            **self._init,
            **about,
        )

    def _go_offline(self, error: Exception) -> None:
        """Leave the server alone for the rest of the job; the summary starts over offline."""
        import wandb

        reason = str(error).splitlines()[0]
        rank_zero_warn(f"W&B could not open a run ({reason}); W&B goes on offline. To send the runs: {self._sync}")
        # A run that failed to open keeps its id in use until W&B's process is ended.
        wandb.teardown()
        self._mode = "offline"
        if self._summary is not None:
            self._open_summary()

    def _choose_mode(self) -> str:
        """Go online only where that needs no prompt."""
        import wandb

        settings = wandb.setup().settings
        mode = self.mode or os.environ.get("WANDB_MODE") or settings.mode
        if mode != "online":
            return mode
        if not has_key(settings):
            rank_zero_info(f"W&B found no API key, so the runs are kept offline. To send them: {self._sync}")
            return "offline"
        if not answers(settings.base_url):
            rank_zero_warn(f"{settings.base_url} does not answer; W&B goes on offline. To send the runs: {self._sync}")
            return "offline"
        return mode

    @property
    def _sync(self) -> str:
        return f"wandb sync {self.folder}/offline-run-*"

    def _id(self, name: str) -> str:
        """Name a run by a token that is drawn once for the run directory, and the round."""
        return f"{token(self.folder)}-{name.replace('/', '-')}"

    def _add(self, record: Record) -> None:
        """Add a point per metric to the summary; exact names, since the first matching pattern wins."""
        if self._summary is not None:
            for name in points(record):
                self._summary.define_metric(name, step_metric=None if name == "round" else "round")
            self._summary.log(points(record))

    def _close_round(self, code: int) -> None:
        run, self._round = self._round, None
        self._close(run, code)

    def _close(self, run: "Run | None", code: int) -> None:
        """Finish a run within a minute; what was not sent by then stays on disk."""
        try:
            if run is not None:
                run.finish(exit_code=code)
        except Exception as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        rank_zero_warn(f"W&B failed ({error}); the CSV files are complete. To send what is missing: {self._sync}")


def speed() -> dict[str, Any]:
    """Return settings that make opening a run take 0.01 s instead of 0.1 s, and keep the terminal quiet.

    >>> speed()["console"]
    'off'
    """
    import wandb

    bounded = {"finish_timeout": FINISH_SECONDS, "finish_timeout_raises": True}
    return {
        "console": "off",
        "disable_git": True,
        "init_timeout": INIT_SECONDS,
        "silent": True,
        "x_disable_machine_info": True,
        "x_disable_stats": True,
        # Releases that do not know these wait for the network as long as it takes.
        **{name: value for name, value in bounded.items() if name in wandb.Settings.model_fields},
    }


def has_key(settings: Any) -> bool:
    """Tell whether W&B would find credentials where it looks, without asking for them."""
    if os.environ.get("WANDB_API_KEY") or settings.api_key or settings.identity_token_file:
        return True
    path = os.environ.get("NETRC") or Path.home() / ".netrc"
    host = urlsplit(settings.base_url).netloc
    # The cloud's new name since 0.31; W&B goes on reading the key that was stored under the old one.
    hosts = [host, "api.wandb.ai"] if host.endswith("forge.coreweave.com") else [host]
    try:
        return any(netrc.netrc(path).authenticators(each) for each in hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def answers(url: str) -> bool:
    """Tell whether a server answers within `PROBE_SECONDS`, whatever it says; proxies are respected.

    W&B itself waits longer, and before 0.31 its process stays stuck after that wait.
    """
    try:
        urlopen(url, timeout=PROBE_SECONDS).close()
    except HTTPError:
        return True
    except OSError as error:
        # W&B has certificates of its own, so this is for W&B to say.
        return isinstance(getattr(error, "reason", error), ssl.SSLError)
    return True
