import io
import logging
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning.cli import progress
from lt_lightning.cli.progress import HEADER, Progress
from lt_lightning.disk.rundir import RunDirectory


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val/acc", torch.tensor(0.5))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_ticket(round: int, arm: str = "ticket", **metrics: float | None) -> Any:
    record = {"round": round, "arm": arm, "seed": 0, "density": 0.8**round, "steps": 8, "seconds": 1.25}
    record |= {"early_stop_step": None} | metrics
    return SimpleNamespace(round=round, arm=arm, density=0.8**round, record=record)


def fit(bar: ProgressBar, **limit: int) -> L.Trainer:
    loader = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)
    trainer = L.Trainer(
        **limit,  # type: ignore[arg-type]
        callbacks=[bar],
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Tiny(), loader, loader)
    return trainer


def on_paper() -> Console:
    return Console(file=io.StringIO(), width=60)


def printed(console: Console) -> list[str]:
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setenv("TERM", "xterm-256color")
    return Console(file=Terminal(), width=110, force_terminal=True)


def test_table_grows_by_a_row_per_round(tmp_path: Path) -> None:
    console = on_paper()
    with Progress(tmp_path, 3, console) as shown:
        shown.row(make_ticket(0, **{"test/acc": 0.98125, "val/acc": 0.9, "early_stop_step": 700}))
        shown.row(make_ticket(1, **{"test/acc": None, "val/acc": 0.9}))
        shown.row(make_ticket(1, "reinit"))
        shown.done(tmp_path / "records.csv", tmp_path / "report.html", tmp_path / "report.png")

    assert printed(console) == [
        HEADER,
        "    0  ticket             100%    98.12%         700       1.2",
        "    1  ticket              80%    90.00%           -       1.2",
        "    1  reinit              80%         -           -       1.2",
        "",
        f"records  {tmp_path}/records.csv",
        f"report   {tmp_path}/report.html",
        f"report   {tmp_path}/report.png",
    ]


def test_rounds_of_an_earlier_start_come_first(tmp_path: Path) -> None:
    RunDirectory(tmp_path).arm(0).mark_done(make_ticket(0, **{"val/acc": 0.9}).record)
    console = on_paper()
    with Progress(tmp_path, 2, console) as shown:
        shown.row(make_ticket(1, **{"val/acc": 0.8}))

    assert printed(console) == [
        HEADER,
        "    0  ticket             100%    90.00%           -       1.2  done before",
        "    1  ticket              80%    80.00%           -       1.2",
    ]


def test_the_monitor_that_was_found_is_named_at_the_end(tmp_path: Path) -> None:
    RunDirectory(tmp_path).arm(0).mark_done(make_ticket(0).record, monitor="val_loss")
    console = on_paper()
    with Progress(tmp_path, 1, console) as shown:
        shown.done(tmp_path / "records.csv")

    expected = ["", "monitor  val_loss, which decides the early stop", f"records  {tmp_path}/records.csv"]
    assert printed(console)[-3:] == expected


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_steps": 6}])
def test_without_a_terminal_only_rows_are_printed(
    tmp_path: Path, limit: dict[str, int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = on_paper()
    with Progress(tmp_path, 1, console) as shown:
        trainer = fit(shown.bar(make_ticket(0)), **limit)
    assert len(printed(console)) == 1
    assert "━" not in capsys.readouterr().out
    assert [type(each).__name__ for each in trainer.callbacks if isinstance(each, ProgressBar)] == ["_RoundBar"]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [({"max_epochs": 2}, ("epoch 2/2 8/8", 8)), ({"max_steps": 6}, ("6/6", 6)), ({"max_epochs": -1}, None)],
)
def test_bar_ends_at_the_last_step(
    tmp_path: Path, terminal: Console, limit: dict[str, int], expected: tuple[str, int] | None
) -> None:
    with Progress(tmp_path, 4, terminal) as shown:
        bar = shown.bar(make_ticket(3))
        if expected is None:
            assert progress.steps(L.Trainer(**limit, logger=False, enable_checkpointing=False)) is None  # type: ignore[arg-type]
            return
        fit(bar, **limit)
        task = shown._task(shown._fit)
        assert (progress.count(task), task.total) == expected
        assert task.description == "round 3 · ticket · 51.2%"
        assert shown._task(shown._rounds).completed == 1.0
        shown.row(make_ticket(3))
        assert not shown._task(shown._fit).visible
        assert progress.count(shown._task(shown._rounds)) == "1/4"


def test_bars_and_rows_share_a_terminal(tmp_path: Path, terminal: Console) -> None:
    with Progress(tmp_path, 2, terminal) as shown:
        fit(shown.bar(make_ticket(0)), max_epochs=1)
        shown._bars.refresh()
        shown.row(make_ticket(0))
        print("from a print")

    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.file.getvalue())  # type: ignore[attr-defined]
    assert re.search(r"rounds +━+ +0/2 0:00:0\d", text)
    assert re.search(r"round 0 · ticket · 100% +━+ epoch 1/1 4/4 +\d+/s 0:00:00 left", text)
    assert "\n    0  ticket             100%" in text.replace("\r", "\n")
    assert "from a print" in text
    assert terminal.file.getvalue().count(HEADER) == 1  # type: ignore[attr-defined]


def test_log_lines_go_above_the_bars_and_handlers_are_restored(tmp_path: Path, terminal: Console) -> None:
    handler = logging.StreamHandler(sys.__stderr__)
    logging.getLogger("lightning.pytorch").addHandler(handler)
    try:
        with Progress(tmp_path, 1, terminal):
            assert handler.stream is sys.stderr is not sys.__stderr__
        assert handler.stream is sys.__stderr__
    finally:
        logging.getLogger("lightning.pytorch").removeHandler(handler)


def test_time_left_is_at_the_pace_of_this_start() -> None:
    task: Any = SimpleNamespace(total=11, completed=5, elapsed=90.0, fields={"first": 2})
    assert progress.left(task) == "0:03:00 left"
    task.completed = 2
    assert progress.left(task) == ""


def test_other_ranks_print_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with Progress(tmp_path, 1) as shown:
        assert isinstance(shown.bar(make_ticket(0)), ProgressBar)
        shown.row(make_ticket(0))
        shown.done("records.csv", "report.png")
    assert capsys.readouterr().out == ""


INTERRUPTED = """
import sys
from types import SimpleNamespace
from lt_lightning.cli.progress import Progress
with Progress(sys.argv[1], 2) as shown:
    bar = shown.bar(SimpleNamespace(round=0, arm="ticket", density=1.0))
    shown._begin("round 0", 3, 10)
    raise KeyboardInterrupt
"""


@pytest.mark.slow
def test_interrupt_gives_the_terminal_back(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(Path(progress.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    text = ""
    try:
        while chunk := os.read(ours, 4096):
            text += chunk.decode()
    except OSError:  # Linux's way to say that the other end was closed
        pass
    assert process.wait() != 0
    assert "━" in text
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "KeyboardInterrupt" in text


def test_a_round_0_that_is_not_trained_is_marked(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lottery: {dense: false}")
    console = on_paper()
    with Progress(tmp_path, 2, console) as progress:
        for round in range(2):
            progress.row(make_ticket(round))
    assert [line.endswith("untrained") for line in printed(console)[1:]] == [True, False]
