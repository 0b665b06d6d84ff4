"""`train.py` as a command."""

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
