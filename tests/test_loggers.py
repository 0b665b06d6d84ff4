import json
import os
import pty
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning.loggers import Nothing, TensorBoard, Wandb
from lt_lightning.loggers.wandb import has_key
from lt_lightning.rundir import ArmDirectory

FITS = [(0, "ticket"), (1, "ticket"), (1, "reinit")]


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.log("train/loss", float(self.global_step))
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_ticket(run: Path, round: int, arm: str) -> Any:
    name = f"round-{round:02d}" if arm == "ticket" else f"round-{round:02d}/{arm}"
    record = {"round": round, "arm": arm, "seed": 0, "density": 0.8**round, "steps": 4, "seconds": 1.5}
    record |= {"early_stop_step": None, "val/acc": 0.9 - 0.1 * (arm != "ticket"), "test/acc": None}
    directory = run / name
    directory.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(round=round, arm=arm, name=name, density=0.8**round, directory=str(directory), record=record)


def fit(ticket: Any, logger: Any) -> None:
    trainer = L.Trainer(
        max_steps=4,
        logger=logger,
        accelerator="cpu",
        log_every_n_steps=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Tiny(), DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2))
    ArmDirectory(Path(ticket.directory)).mark_done(ticket.record)


def run_fits(log: Any, run: Path, fits: list[tuple[int, str]]) -> None:
    for round, arm in fits:
        ticket = make_ticket(run, round, arm)
        fit(ticket, log.start(ticket))
        log.finish(ticket)


def without_token(folder: Path) -> str:
    (file,) = folder.glob("*.wandb")
    return file.stem.split("-", 2)[-1]


def ids(run: Path) -> set[str]:
    return {without_token(folder) for folder in (run / "wandb").glob("offline-run-*")}


def read_back(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of each offline run, by its id without the token."""
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len(folders) == len(ids(run))  # never two folders for one round
    return {without_token(folder): inspect(folder) for folder in folders}


def inspect(folder: Path) -> list[dict[str, Any]]:
    """Every record of one offline run, as W&B itself reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    # Else the reader reports to the server that a test points W&B at, and waits for it.
    environment = os.environ | {"WANDB_ERROR_REPORTING": "false"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def of_kind(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def history(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    items = [entry["item"] for entry in of_kind(records, "history")]
    return [{key: value for key, value in item.items() if key[0] != "_"} for item in items]


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: value for entry in of_kind(records, "summary") for key, value in entry["update"].items()}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No key, no settings and no file of the user is seen, and nothing is left in the working directory."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "cwd").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))
    monkeypatch.chdir(tmp_path / "cwd")
    wandb.teardown()
    yield
    wandb.teardown()
    assert list((tmp_path / "cwd").iterdir()) == []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "lenet" / "seed=0"


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """Two rounds and a control, logged offline and read back."""
    run = tmp_path_factory.mktemp("module") / "runs" / "lenet" / "seed=0"
    with Wandb(run, config={"model": {"width": 3}}, mode="offline", tags=["mine"]) as log:
        run_fits(log, run, FITS)
    assert wandb.run is None
    return read_back(run)


def test_wandb_keeps_one_run_per_fit_and_one_summary(logged: dict[str, list[dict[str, Any]]]) -> None:
    heads = {name: of_kind(records, "run")[0] for name, records in logged.items()}
    assert {name: head["job_type"] for name, head in heads.items()} == {
        "summary": "summary",
        "round-00": "round",
        "round-01": "round",
        "round-01-reinit": "round",
    }
    assert {(head["run_group"], head["project"]) for head in heads.values()} == {("lenet/seed=0", "lt_lightning")}
    assert [of_kind(records, "exit")[0].get("exit_code", 0) for records in logged.values()] == [0, 0, 0, 0]


def test_wandb_round_says_what_it_is(logged: dict[str, list[dict[str, Any]]]) -> None:
    head = of_kind(logged["round-01-reinit"], "run")[0]
    assert head["display_name"] == "round-01/reinit"
    assert head["tags"] == ["mine", "reinit"]
    about = {"round": 1, "arm": "reinit", "density": 0.8, "model": {"width": 3}}
    assert {key: head["config"]["update"][key] for key in about} == about


def test_wandb_round_holds_its_curve_and_its_record(logged: dict[str, list[dict[str, Any]]]) -> None:
    for name in ("round-00", "round-01"):
        records = logged[name]
        curve = [(item["trainer/global_step"], item["train/loss"]) for item in history(records)]
        assert curve == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
        assert summary(records)["val/acc"] == 0.9
        assert "test/acc" not in summary(records)
        everything = [metric for metric in of_kind(records, "metric") if metric.get("glob_name") == "*"]
        assert [metric["step_metric"] for metric in everything] == ["trainer/global_step"]


def test_wandb_summary_is_over_the_rounds(logged: dict[str, list[dict[str, Any]]]) -> None:
    own = {"steps": 4, "seconds": 1.5, "val/acc": 0.9}
    assert history(logged["summary"]) == [
        {"round": 0, "density": 1.0} | {f"ticket/{name}": value for name, value in own.items()},
        {"round": 1, "density": 0.8} | {f"ticket/{name}": value for name, value in own.items()},
        {"round": 1, "density": 0.8, "reinit/steps": 4, "reinit/seconds": 1.5, "reinit/val/acc": 0.8},
    ]
    axes = {metric["name"]: metric.get("step_metric") for metric in of_kind(logged["summary"], "metric")}
    assert axes == {"round": None, "density": "round"} | {
        f"{arm}/{name}": "round" for arm in ("ticket", "reinit") for name in own
    }


def test_wandb_restarted_summary_is_complete_and_ids_stay(run: Path) -> None:
    with Wandb(run, mode="offline") as log:
        run_fits(log, run, FITS[:1])
        first = log.start(make_ticket(run, 1, "ticket")).version
    with Wandb(run, mode="offline") as log:
        ticket = make_ticket(run, 1, "ticket")
        assert log.start(ticket).version == first
        log.finish(ticket)

    assert len(list((run / "wandb").glob("offline-run-*-summary*"))) == 1
    assert ids(run) == {"summary", "round-00", "round-01"}
    assert [item["round"] for item in history(inspect(next((run / "wandb").glob("offline-run-*-summary*"))))] == [0, 1]


def test_wandb_marks_runs_failed_when_a_round_raises(run: Path) -> None:
    def interrupted() -> None:
        with Wandb(run, mode="offline") as log:
            log.start(make_ticket(run, 0, "ticket"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert ids(run) == {"summary", "round-00"}
    assert of_kind(inspect(next((run / "wandb").glob("offline-run-*-round-00"))), "exit") == [{"exit_code": 1}]


def test_wandb_failure_to_finish_is_a_warning(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Wandb(run, mode="offline") as log:
        ticket = make_ticket(run, 0, "ticket")
        log.start(ticket)
        finish = log._round.finish
        monkeypatch.setattr(log._round, "finish", lambda exit_code: 1 / 0)
        with pytest.warns(UserWarning, match=r"W&B failed \(division by zero\); the CSV files are complete"):
            log.finish(ticket)
        finish()


def test_wandb_opens_nothing_on_other_ranks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with Wandb(run, mode="offline") as log:
        ticket = make_ticket(run, 0, "ticket")
        logger = log.start(ticket)
        logger.log_metrics({"a": 1.0})
        log.finish(ticket)
    assert isinstance(logger, WandbLogger)
    assert not (run / "wandb").exists()


def test_wandb_disabled_writes_no_run(run: Path) -> None:
    with Wandb(run, mode="disabled") as log:
        run_fits(log, run, FITS[:1])
    assert [path.name for path in (run / "wandb").iterdir()] == ["token"]


PROMPTLESS = """
import sys
from lt_lightning.loggers import Wandb
with Wandb(sys.argv[1], mode="online") as log:
    print("mode", log._mode, flush=True)
"""


def test_wandb_without_a_key_stays_offline_and_never_prompts_on_a_terminal(run: Path) -> None:
    ours, theirs = pty.openpty()
    result = subprocess.run(
        [sys.executable, "-c", PROMPTLESS, str(run)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    os.close(theirs)
    printed = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert result.returncode == 0, printed
    assert "mode offline" in printed
    assert f"wandb sync {run}/wandb/offline-run-*" in "".join(printed.split("\r\n"))


@pytest.mark.parametrize("place", ["environment", "netrc"])
def test_wandb_finds_a_key_where_wandb_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    assert not has_key(wandb.setup().settings)
    if place == "environment":
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    else:
        (tmp_path / "home" / ".netrc").write_text(f"machine api.wandb.ai login user password {'a' * 40}\n")
    assert has_key(wandb.setup().settings)


def test_wandb_environment_chooses_the_mode(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with Wandb(run) as log:
        assert log._mode == "disabled"


def test_wandb_goes_offline_where_nothing_listens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    wandb.teardown()
    log = Wandb(run)
    with pytest.warns(UserWarning, match="does not answer; W&B goes on offline. To send the runs: wandb sync"), log:
        run_fits(log, run, FITS[:1])
    assert ids(run) == {"summary", "round-00"}


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, *message: Any) -> None:
        pass


def test_wandb_goes_offline_when_opening_fails_between_rounds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    wandb.teardown()
    with Wandb(run, mode="offline", settings={"init_timeout": 1}) as log:
        run_fits(log, run, FITS[:1])
        log._mode = "online"
        with pytest.warns(UserWarning, match="W&B could not open a run .*; W&B goes on offline"):
            run_fits(log, run, FITS[1:])
    server.shutdown()

    assert ids(run) == {"summary", "round-00", "round-01", "round-01-reinit"}
    assert [item["round"] for item in history(inspect(next((run / "wandb").glob("off*-summary*"))))] == [0, 1, 1]


def test_tensorboard_has_readable_runs_and_a_summary_over_the_rounds(run: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    with TensorBoard(run) as log:
        run_fits(log, run, FITS[:2])
    with TensorBoard(run) as log:
        run_fits(log, run, FITS[2:])

    events = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    names = ["round-00", "round-01", "round-01/reinit", "summary"]
    assert sorted(events.Runs()) == [f"tensorboard/{name}" for name in names]
    curve = events.Scalars("tensorboard/round-01", "train/loss")
    assert [(event.step, event.value) for event in curve] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    points = events.Scalars("tensorboard/summary", "ticket/val/acc")
    assert [(event.step, event.value) for event in points] == [(0, pytest.approx(0.9)), (1, pytest.approx(0.9))]
    points = events.Scalars("tensorboard/summary", "reinit/val/acc")
    assert [(event.step, event.value) for event in points] == [(1, pytest.approx(0.8))]


def test_tensorboard_says_how_to_install_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lt-lightning\[tensorboard\]"):
        TensorBoard(run)


def test_nothing_gives_no_logger(run: Path) -> None:
    with Nothing(run, config={}) as log:
        ticket = make_ticket(run, 0, "ticket")
        assert log.start(ticket) is False
        log.finish(ticket)
    assert [path.name for path in run.iterdir()] == ["round-00"]
