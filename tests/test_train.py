"""`train.py` as a command."""

import os
import signal
import subprocess
import sys

import pytest
from app import ROOT

from lt_lightning.records import read_records

COMMAND = [
    sys.executable,
    ROOT / "train.py",
    "logger=csv",
    "prune.rounds=2",
    "trainer.max_epochs=3",
    "hydra.run.dir=run",
]
INTERRUPTED = "interrupted; the same command goes on from here"


def start(folder):
    return subprocess.Popen(COMMAND, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_an_interrupted_command_says_how_to_go_on_and_goes_on(tmp_path, number, code):
    process = start(tmp_path)
    said = []
    for line in process.stdout:
        said.append(line)
        if line.split()[:2] == ["1", "ticket"]:
            process.send_signal(number)
    assert process.wait() == code, "".join(said)
    assert said[-1].strip() == INTERRUPTED
    again = start(tmp_path)
    said = again.communicate()[0]
    assert again.returncode == 0, said
    assert said.count("done before") >= 1
    rows = read_records(tmp_path / "run" / "records.csv")
    assert [row["density"] for row in rows] == [round(50_200 * 0.8 ** row["round"]) / 50_200 for row in rows]
    assert len(rows) == 5
    assert all((tmp_path / "run" / name).exists() for name in ("report.html", "report.png", "environment.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def said(folder, *overrides, **environment):
    """The exit code of a command, and what it said on standard error."""
    command = [sys.executable, ROOT / "train.py", "logger=csv", *overrides]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)
    return done.returncode, done.stderr


def test_a_refusal_is_one_line(tmp_path):
    code, told = said(tmp_path, "prune.controls=[reinits]")
    assert code == 1
    assert told.splitlines()[-2].startswith("error: there is no control 'reinits': choose from ['reinit', ")
    assert told.splitlines()[-1] == "(HYDRA_FULL_ERROR=1 tells where it was raised)"
    assert "Traceback" not in told


@pytest.mark.slow
def test_other_errors_and_those_asked_for_in_full_show_where_they_were_raised(tmp_path):
    code, told = said(tmp_path, "prune.rounds=-1", HYDRA_FULL_ERROR="1")
    assert code == 1
    assert "Traceback" in told
    assert "ValueError: rounds=-1 must be a whole number" in told
    lines = [
        "import lightning",
        "class Broken(lightning.Callback):",
        "    def on_fit_start(self, *_): assert not 'ready'",
    ]
    lines = [
        "import lightning",
        "class Broken(lightning.Callback):",
        "    def on_fit_start(self, *_): assert not 'ready'",
    ]
    (tmp_path / "broken.py").write_text("\n".join(lines))
    code, told = said(tmp_path, "+callbacks.mine._target_=broken.Broken", PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "Traceback" in told
    assert "AssertionError" in told
