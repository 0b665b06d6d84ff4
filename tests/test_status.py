import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import Tiny, loaders, play, trainer

from lt_lightning import lottery
from lt_lightning.__main__ import main
from lt_lightning.cli import status
from lt_lightning.disk import liveness, runs
from lt_lightning.disk.liveness import NAME, tell
from lt_lightning.disk.rundir import RunDirectory

HERE = {"host": socket.gethostname(), "pid": os.getpid()}


def make_run(path, done, rounds=2, controls=("reinit",), **state):
    """A run directory with the markers of its first fits, and a `state.json` if there is anything to say."""
    run = RunDirectory(path)
    fits = [(0, "ticket"), *((n, arm) for n in range(1, rounds + 1) for arm in ("ticket", *controls))]
    for round, arm in fits[:done]:
        run.arm(round, arm).path.mkdir(parents=True, exist_ok=True)
        run.arm(round, arm).mark_done({"round": round, "arm": arm, "density": 0.8**round, "steps": 90})
    (path / "round-00").mkdir(parents=True, exist_ok=True)
    config = {"name": "x", "lottery": {"layout": 2, "rounds": rounds, "controls": list(controls)}}
    run.config.write_text(yaml.safe_dump(config, sort_keys=False))
    if state:
        tell(run.state, **state)


def states(directory):
    return {row["run"]: row["state"] for row in status.look(directory)}


@pytest.fixture
def study(tmp_path):
    """A run in each state."""
    fit = {"round": 1, "arm": "ticket", "density": 0.8, "step": 30, "steps": 90, "fits": 5, "seconds_per_step": 0.5}
    make_run(tmp_path / "done", 5)
    make_run(tmp_path / "partial", 2)
    make_run(tmp_path / "running", 1, **fit, **HERE, state="running", job="12_3")
    make_run(tmp_path / "waiting", 0, state="waiting", host="elsewhere", pid=7)
    make_run(tmp_path / "interrupted", 3, state="interrupted", error="Interrupted: 143", command="python a.py", **HERE)
    make_run(tmp_path / "died", 3, state="running", host=socket.gethostname(), pid=2**22 + 1, command="python b.py")
    make_run(tmp_path / "failed", 1, state="failed", error="ValueError: NaN", command="python c.py", **HERE)
    return tmp_path


def test_every_state_is_told(study):
    assert states(study) == {name: name for name in status.STATES}


def test_what_is_known_of_a_run(study):
    rows = {row["run"]: row for row in status.look(study)}
    running, done = rows["running"], rows["done"]
    assert (running["round"], running["arm"], running["density"]) == (1, "ticket", 0.8)
    assert (running["step"], running["steps"], running["fits_done"], running["fits"]) == (30, 90, 1, 5)
    assert (running["host"], running["pid"], running["job"]) == (*HERE.values(), "12_3")
    # 60 steps of this fit and three fits of 90 to come, half a second each
    assert running["left"] == 0.5 * (60 + 3 * 90)
    assert 0 <= running["age"] < 60
    assert (done["round"], done["arm"], done["density"], done["steps"]) == (2, "reinit", 0.8**2, 90)
    assert (done["fits_done"], done["fits"], done["left"], done["error"]) == (5, 5, None, None)
    assert 0 <= done["age"] < 60


def test_the_table_for_people(study, capsys):
    assert main(["status", str(study)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["state", "fits", "round", "arm", "density", "step", "seen", "left", "where", "run"]
    running = next(line for line in lines if line.startswith("running"))
    assert running.split()[:6] == ["running", "1/5", "1", "ticket", "80%", "30/90"]
    assert "0:02:45" in running
    assert f"  {socket.gethostname()}, job 12_3  " in running
    assert running.endswith("  running")
    assert lines[lines.index("    ValueError: NaN") + 1] == "    python c.py"
    assert "    python b.py" in lines
    assert lines[-1] == "7 runs: 1 done, 1 running, 1 waiting, 1 partial, 1 interrupted, 1 died, 1 failed"


def test_json_is_the_same_for_programs(study, capsys):
    assert main(["status", str(study), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert {row["run"]: row["state"] for row in rows} == {name: name for name in status.STATES}


def test_the_exit_code_tells_whether_any_has_failed(tmp_path, capsys):
    make_run(tmp_path / "done", 5)
    make_run(tmp_path / "partial", 1)
    assert main(["status", str(tmp_path)]) == 0
    make_run(tmp_path / "failed", 1, state="failed", error="E")
    assert main(["status", str(tmp_path)]) == 1
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a directory" in capsys.readouterr().err


def test_a_directory_without_runs(tmp_path, capsys):
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"


def test_watch_looks_again_until_it_is_interrupted(study, capsys, monkeypatch):
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["status", str(study), "--watch", "3"]) == 130
    assert slept == [3.0, 3.0]
    assert capsys.readouterr().out.count("7 runs:") == 2


def test_a_run_killed_between_its_end_and_the_removal_of_its_state_is_done(tmp_path):
    make_run(tmp_path, 5, state="running", host=socket.gethostname(), pid=2**22 + 1)
    assert states(tmp_path) == {".": "done"}
    make_run(tmp_path, 5, state="failed", error="ValueError: no picture", **HERE)
    assert states(tmp_path) == {".": "failed"}


def test_a_failure_before_there_is_a_configuration(tmp_path):
    tell(tmp_path / "a" / NAME, state="failed", error="FileNotFoundError: data", **HERE)
    (row,) = status.look(tmp_path)
    assert (row["state"], row["fits_done"], row["fits"], row["round"]) == ("failed", 0, None, None)
    assert 0 <= row["age"] < 60
    assert "0/?" in status.text([row])


def test_runs_are_found_at_any_depth_in_the_order_of_numbers(tmp_path):
    for seed in (10, 9, 0):
        make_run(tmp_path / "e" / "m" / f"seed={seed}", 1)
    make_run(tmp_path / "dense" / "k" / "seed=0", 1, rounds=0)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "e" / "config.yaml").touch()
    found = [os.path.relpath(run.path, tmp_path) for run in runs.find(tmp_path)]
    assert found == ["dense/k/seed=0", "e/m/seed=0", "e/m/seed=9", "e/m/seed=10"]
    assert [run.path for run in runs.find(tmp_path / "e" / "m" / "seed=9")] == [str(tmp_path / "e" / "m" / "seed=9")]


def test_markers_lie_where_the_run_directory_puts_them(tmp_path):
    for fit in ((0, "ticket"), (3, "ticket"), (12, "reinit"), (100, "x")):
        assert Path(runs.marker(str(tmp_path), *fit)) == RunDirectory(tmp_path).arm(*fit).done


def test_what_was_asked_for_is_read_from_a_real_configuration(tmp_path):
    play(tmp_path, rounds=2, controls=["reinit", "random_mask"], test=False, config={"a": {"lottery": 1}, "z": [1]})
    (run,) = runs.find(tmp_path)
    arms = ("ticket", "reinit", "random_mask")
    assert run.planned == [(0, "ticket"), *((n, arm) for n in (1, 2) for arm in arms)]
    assert run.is_done
    (tmp_path / "config.yaml").write_text("other: 1\n")
    (run,) = runs.find(tmp_path)
    assert (run.planned, run.is_done) == (None, False)
    assert sorted(run.done) == sorted([(0, "ticket"), *((n, arm) for n in (1, 2) for arm in arms)])
    assert states(tmp_path) == {".": "partial"}


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from tiny import Tiny, loaders, trainer
from lt_lightning import lottery
for ticket in lottery(Tiny, rounds=2, directory=sys.argv[1], may_vary=["max_epochs"]):
    fit = trainer(ticket, max_epochs=3 if ticket.round == 0 else 100_000)
    fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
"""


def test_a_real_run_is_followed_from_its_beginning_to_sigkill_and_to_its_end(tmp_path):
    path = [str(Path(runs.__file__).parents[1]), str(Path(__file__).parent)]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "run"), path[1]]
    process = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": path[0]}, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        row = {"round": None, "step": None}
        while row["round"] != 1 or row["step"] is None:
            assert process.poll() is None
            time.sleep(0.05)
            row = (status.look(tmp_path) or [row])[0]
        assert (row["state"], row["pid"], row["arm"], row["fits_done"]) == ("running", process.pid, "ticket", 1)
        assert row["density"] == 106 / 132
        assert (row["steps"], row["fits"]) == (500_000, 3)
    finally:
        process.kill()
        process.wait()
    (row,) = status.look(tmp_path)
    assert (row["state"], row["round"], row["fits_done"]) == ("died", 1, 1)
    assert row["command"].endswith(f"{tmp_path / 'run'} {path[1]}")
    for ticket in lottery(Tiny, rounds=2, directory=tmp_path / "run", may_vary=["max_epochs"]):
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    assert states(tmp_path) == {"run": "done"}


def test_help_shows_examples(capsys):
    for command in ("status", "summary", "report"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told = capsys.readouterr().out
        assert f"python -m lt_lightning {command} runs" in told
        assert "The exit code is" in told


def test_the_first_help_has_an_example_of_every_command_and_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    told = capsys.readouterr().out
    examples = re.findall(r"^  python -m lt_lightning (\w+) ", told, re.MULTILINE)
    assert examples == ["status", "summary", "report", "analyse", "ticket"]
    assert re.findall(r"^    (\w+) ", told, re.MULTILINE) == examples
    assert re.findall(r"^  (\d+) ", told.partition("exit codes:")[2], re.MULTILINE) == ["0", "1", "2", "130"]


def test_ctrl_c_is_exit_code_130(tmp_path, monkeypatch):
    def stop(directory):
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "look", stop)
    assert main(["status", str(tmp_path), "--watch"]) == 130


def test_a_wrong_argument_leaves_a_run_done_that_is_done(tmp_path):
    state = tmp_path / "state.json"
    (tmp_path / "records.csv").write_text("round\n0\n")
    with pytest.raises(ValueError, match="rounds"), liveness.reported(state, "python train.py prune.rounds=-1"):
        raise ValueError("rounds=-1 must be a whole number")
    assert not state.exists()
    state.write_text('{"state": "interrupted"}')
    with pytest.raises(ValueError, match="rounds"), liveness.reported(state, "python train.py prune.rounds=-1"):
        raise ValueError("rounds=-1 must be a whole number")
    assert liveness.read(state)["state"] == "failed"
