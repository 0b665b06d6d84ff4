"""The four lines in a project of one's own, on one process and on two."""

import subprocess
import sys
from pathlib import Path

import pytest

from lt_lightning.records import read_records

SCRIPT = Path(__file__).with_name("four_lines.py")
NAMES = ["round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"]


def run(directory, strategy):
    """Run the script; (rank, name of the fit) → what the process said of it."""
    said = {}
    command = [sys.executable, SCRIPT, directory, strategy]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=directory.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    for path in directory.parent.glob("rank-*.txt"):
        for line in path.read_text().splitlines():
            name, *rest = line.split()
            said[int(path.stem[5:]), name] = rest
        path.unlink()
    return said


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "ranks"), [("auto", 1), ("ddp", 2)])
def test_the_four_lines_run_every_round_once(tmp_path, strategy, ranks):
    said = run(tmp_path / "run", strategy)
    assert sorted(said) == sorted((rank, name) for rank in range(ranks) for name in NAMES)
    for name in NAMES:
        assert len({tuple(said[rank, name]) for rank in range(ranks)}) == 1, "the processes agree on masks and weights"
    rows = read_records(tmp_path / "run" / "records.csv")
    assert [row["density"] for row in rows] == [round(132 * 0.8 ** row["round"]) / 132 for row in rows]
    assert [row["steps"] for row in rows] == [24 // ranks] * 5
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(tmp_path / "run", strategy) == {}, "what is done is not trained again"
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
