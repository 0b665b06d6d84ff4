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
import yaml
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import lt_lightning
from lt_lightning.disk.rundir import ArmDirectory
from lt_lightning.loggers import MLflow, Nothing, TensorBoard, Wandb
from lt_lightning.loggers.wandb import has_key
from lt_lightning.records import read_curves, read_records

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


def make_reports(run: Path) -> tuple[Path, Path]:
    """A page and a picture, as `train.py` has written them."""
    page, picture = run / "report.html", run / "report.png"
    page.write_text("<!doctype html><title>all rounds</title>")
    Image.new("RGB", (4, 3)).save(picture)
    return page, picture


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


def test_wandb_summary_ends_with_the_table_and_the_report(run: Path) -> None:
    with Wandb(run, mode="offline") as log:
        run_fits(log, run, FITS)
        log.show(*make_reports(run))
    (folder,) = (run / "wandb").glob("offline-run-*-summary")
    last = summary(inspect(folder))
    assert {name: last[f"{name}._type"] for name in ("records", "report", "picture")} == {
        "records": "table-file",
        "report": "html-file",
        "picture": "image-file",
    }
    saved = folder / "files"
    table = json.loads((saved / last["records.path"]).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert rows == [make_ticket(run, *each).record for each in FITS]
    assert (saved / last["report.path"]).read_text() == (run / "report.html").read_text()
    assert (saved / last["picture.path"]).read_bytes() == (run / "report.png").read_bytes()


def test_wandb_keeps_tickets_as_artifacts_if_asked_to(run: Path) -> None:
    with Wandb(run, mode="offline", tickets=True) as log:
        for round, arm in FITS:
            ticket = make_ticket(run, round, arm)
            Path(ticket.directory, "ticket.safetensors").write_text(ticket.name)
            log.start(ticket)
            log.finish(ticket)
    logged = read_back(run)
    for name in ("round-00", "round-01", "round-01-reinit"):
        (artifact,) = [each for each in of_kind(logged[name], "artifact") if each["type"] == "ticket"]
        assert artifact["name"].endswith(f"-{name}")
        (entry,) = artifact["manifest"]["contents"]
        assert entry["path"] == "ticket.safetensors"
        assert Path(entry["local_path"]).parent == run / name.replace("-reinit", "/reinit")


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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_tensorboard_summary_ends_with_the_table_and_the_picture(run: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    with TensorBoard(run) as log:
        run_fits(log, run, FITS)
        log.show(*make_reports(run))
    events = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    (text,) = events.Tensors("tensorboard/summary", "records/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "| round | arm | seed | density | steps | seconds | early_stop_step | val/acc | test/acc |"
    assert lines[2:] == [
        "| 0 | ticket | 0 | 1 | 4 | 1.5 |  | 0.9 |  |",
        "| 1 | ticket | 0 | 0.8 | 4 | 1.5 |  | 0.9 |  |",
        "| 1 | reinit | 0 | 0.8 | 4 | 1.5 |  | 0.8 |  |",
    ]
    (image,) = events.Images("tensorboard/summary", "report")
    assert (image.width, image.height) == (4, 3)


def test_tensorboard_summary_has_the_configuration_once(run: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    config = {"name": "lenet", "model": {"width": 3}, "prune": {"controls": ["reinit"], "monitor": None}}
    for fits in (FITS[:1], FITS[1:]):
        with TensorBoard(run, config=config) as log:
            run_fits(log, run, fits)
    events = EventMultiplexer().AddRunsFromDirectory(str(run)).Reload()
    (text,) = events.Tensors("tensorboard/summary", "config/text_summary")
    fence, *lines, end = text.tensor_proto.string_val[0].decode().split("\n")
    assert (fence, end) == ("```yaml", "```")
    assert lines[:2] == ["name: lenet", "model:"]
    assert yaml.safe_load("\n".join(lines)) == config


def mlflow_runs(run: Path, uri: str | None = None) -> dict[str, Any]:
    """Every MLflow run by its name; never two of one name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or (run / "mlflow").as_uri())
    (experiment,) = [each for each in client.search_experiments() if each.name != "Default"]
    assert experiment.name == "lenet/seed=0"
    found = client.search_runs([experiment.experiment_id])
    runs = {each.info.run_name: each for each in found}
    assert len(runs) == len(found)
    for each in runs.values():
        each.artifacts = sorted(item.path for item in client.list_artifacts(each.info.run_id))
        each.points = {
            name: [(point.step, point.value) for point in client.get_metric_history(each.info.run_id, name)]
            for name in each.data.metrics
        }
    return runs


def test_mlflow_has_a_run_per_round_below_the_summary(run: Path) -> None:
    with MLflow(run, config={"model": {"width": 3}}, tickets=True) as log:
        for each in FITS:
            ticket = make_ticket(run, *each)
            Path(ticket.directory, "ticket.safetensors").write_text(ticket.name)
            fit(ticket, log.start(ticket))
            log.finish(ticket)
        log.show(*make_reports_and_records(run))
    runs = mlflow_runs(run)
    assert sorted(runs) == ["round-00", "round-01", "round-01/reinit", "summary"]
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    assert runs["summary"].data.params == {"model.width": "3"}
    assert runs["summary"].points["ticket/val/acc"] == [(0, 0.9), (1, 0.9)]
    assert runs["summary"].points["reinit/val/acc"] == [(1, 0.8)]
    assert runs["summary"].points["density"] == [(0, 1.0), (1, 0.8), (1, 0.8)]
    assert runs["summary"].artifacts == ["records.csv", "report.html", "report.png"]
    round = runs["round-01/reinit"]
    assert round.data.tags["mlflow.parentRunId"] == runs["summary"].info.run_id
    assert (round.data.tags["round"], round.data.tags["arm"], round.data.tags["density"]) == ("1", "reinit", "0.8")
    assert round.points["train/loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert round.points["val/acc"] == [(4, 0.8)]
    assert round.artifacts == ["ticket.safetensors"]


def make_reports_and_records(run: Path) -> tuple[Path, Path]:
    (run / "records.csv").write_text("round,arm\n")
    return make_reports(run)


def test_mlflow_continues_the_runs_of_an_earlier_start(run: Path) -> None:
    def stop() -> None:
        with MLflow(run, config={"a": 1}) as log:
            run_fits(log, run, FITS[:1])
            log.start(make_ticket(run, 1, "ticket"))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    first = mlflow_runs(run)
    assert {name: each.info.status for name, each in first.items()} == {
        "round-00": "FINISHED",
        "round-01": "FAILED",
        "summary": "FAILED",
    }
    with MLflow(run, config={"a": 1}) as log:
        run_fits(log, run, FITS[1:])
    again = mlflow_runs(run)
    assert {each.info.status for each in again.values()} == {"FINISHED"}
    assert again["round-01"].info.run_id == first["round-01"].info.run_id
    assert again["summary"].points["ticket/val/acc"] == [(0, 0.9), (1, 0.9)]


def test_mlflow_failures_are_warnings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow.MlflowClient.search_runs", lambda *_, **__: 1 / 0)

    def log_all() -> None:
        with MLflow(run) as log:
            run_fits(log, run, FITS[:1])
            log.show(*make_reports_and_records(run))

    with pytest.warns(UserWarning, match=r"MLflow failed \(division by zero\); the CSV files are complete"):
        log_all()


def test_mlflow_leaves_the_place_of_runs_as_it_was(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory in (run, tmp_path / "other" / "lenet" / "seed=0"):
        with MLflow(directory) as log:
            run_fits(log, directory, FITS[:1])
        assert sorted(mlflow_runs(directory)) == ["round-00", "summary"]
        assert "MLFLOW_TRACKING_URI" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mine").as_uri())
    with MLflow(run) as log:
        run_fits(log, run, FITS[:2])
    assert sorted(mlflow_runs(run, os.environ["MLFLOW_TRACKING_URI"])) == ["round-00", "round-01", "summary"]
    assert os.environ["MLFLOW_TRACKING_URI"] == (tmp_path / "mine").as_uri()


def test_mlflow_opens_nothing_on_other_ranks(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with MLflow(run) as log:
        ticket = make_ticket(run, 0, "ticket")
        logger = log.start(ticket)
        assert isinstance(logger, MLFlowLogger)  # as on the first rank: Lightning asks all for their loggers
        logger.log_metrics({"a": 1.0})
        log.finish(ticket)
        log.show(run / "report.html", run / "report.png")
    made = [path for path in (run / "mlflow").rglob("*") if path.is_dir() and "metrics" in path.parts]
    assert made == []
    assert not (run / "mlflow" / "token").exists()


def test_mlflow_says_how_to_install_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lt-lightning\[mlflow\]"):
        MLflow(run)


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


@pytest.mark.slow
def test_a_real_run_is_read_back_from_wandb_as_its_records_say(tmp_path: Path) -> None:
    root = Path(lt_lightning.__file__).parents[1]
    command = [
        sys.executable,
        root / "train.py",
        "prune=iterative",
        "prune.rounds=2",
        "prune.controls=[]",
        "logger=wandb",
    ]
    options = [
        "trainer.max_epochs=1",
        "logger.mode=offline",
        "logger.tickets=true",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=tmp_path / "cwd")
    records = {f"round-{row['round']:02d}": row for row in read_records(tmp_path / "run" / "records.csv")}
    logged = read_back(tmp_path / "run")
    assert sorted(logged) == ["round-00", "round-01", "round-02", "summary"]
    assert len({of_kind(run, "run")[0]["run_group"] for run in logged.values()}) == 1
    for name, record in records.items():
        told = summary(logged[name])
        about = {key: value for key, value in record.items() if value is not None}
        assert {key: told[key] for key in about} == about
        curves = read_curves(tmp_path / "run" / name / "metrics.csv")
        losses = [item["val/loss"] for item in history(logged[name]) if "val/loss" in item]
        assert losses == pytest.approx([row["val/loss"] for row in curves if row.get("val/loss") is not None])
    points = [item for item in history(logged["summary"]) if "round" in item]
    assert [(item["round"], item["ticket/test/acc"]) for item in points] == [
        (row["round"], pytest.approx(row["test/acc"])) for row in records.values()
    ]
