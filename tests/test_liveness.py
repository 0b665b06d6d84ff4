import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
from app import run
from killing import assert_same_directories
from tiny import STEPS_PER_EPOCH, Tiny, loaders, play, trainer

from lt_lightning import lottery
from lt_lightning.disk import liveness
from lt_lightning.disk.liveness import NAME, judge, read
from lt_lightning.fit import pulse
from lt_lightning.fit.interruption import Interrupted


class Watch(L.Callback):
    """Reads `state.json` at the end of every training step, or raises there."""

    def __init__(self, directory, error=None, at=3):
        self.directory, self.error, self.at, self.seen = directory, error, at, []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(read(self.directory / NAME))
        if self.error is not None and trainer.global_step == self.at:
            raise self.error


def test_a_fit_tells_where_it_is_and_leaves_nothing_when_all_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "EVERY", 0.0)
    watches = []

    def watch():
        watches.append(Watch(tmp_path / "run"))
        return [watches[-1]]

    play(tmp_path / "run", make_callbacks=watch, rounds=1, controls=["reinit"])
    assert not (tmp_path / "run" / NAME).exists()
    for n, (round, arm, density) in enumerate([(0, "ticket", 1.0), (1, "ticket", 106 / 132), (1, "reinit", 106 / 132)]):
        last = watches[n].seen[-1]
        assert (last["round"], last["arm"], last["density"]) == (round, arm, density)
        assert (last["fits_done"], last["fits"], last["state"]) == (n, 3, "running")
        # it is told after the callbacks that were given, so they see the step before
        assert (last["step"], last["steps"]) == (3 * STEPS_PER_EPOCH - 1, 3 * STEPS_PER_EPOCH)
        assert (last["pid"], last["job"], last["error"]) == (os.getpid(), None, None)
        assert 0 < last["seconds_per_step"] < 10
        assert 0 <= time.time() - last["beat"] < 60
        assert last["started"] <= last["beat"]


def test_a_step_costs_one_look_at_the_clock(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(liveness, "tell", lambda path, **news: told.append(news))
    play(tmp_path / "run", rounds=0)
    # the fit begins, training begins, training ends, the fit ends
    assert [news.get("step") for news in told] == [None, 0, 3 * STEPS_PER_EPOCH, None]


@pytest.mark.parametrize(
    ("error", "state", "text"),
    [
        (ValueError("the loss\nis NaN"), "failed", "ValueError: the loss is NaN"),
        (Interrupted(143), "interrupted", "Interrupted: 143"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
    ],
)
def test_what_ends_a_fit_is_told_in_any_project(tmp_path, error, state, text):
    with pytest.raises((ValueError, SystemExit, KeyboardInterrupt)):
        play(tmp_path / "run", make_callbacks=lambda: [Watch(tmp_path / "run", error)], rounds=1)
    left = read(tmp_path / "run" / NAME)
    assert (left["state"], left["error"], left["round"], left["fits"]) == (state, text, 0, 2)
    assert judge(left) == state
    play(tmp_path / "run", rounds=1)
    assert not (tmp_path / "run" / NAME).exists()


def test_a_loop_that_is_left_counts_as_interrupted(tmp_path):
    for ticket in lottery(Tiny, rounds=1, directory=tmp_path):
        trainer(ticket).fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        break
    left = read(tmp_path / NAME)
    assert (left["state"], left["error"]) == ("interrupted", "the loop was left before its end")


def test_an_error_within_the_lottery_is_told(tmp_path):
    play(tmp_path, rounds=1)
    (tmp_path / "round-01" / "ticket.safetensors").unlink()
    (tmp_path / "round-01" / "done").unlink()
    with pytest.raises(FileNotFoundError):
        play(tmp_path, rounds=1)
    assert read(tmp_path / NAME)["error"].startswith("FileNotFoundError: ")


def test_the_state_changes_no_file_of_the_run(tmp_path, monkeypatch):
    play(tmp_path / "whole", rounds=1)
    monkeypatch.setattr(pulse, "EVERY", 0.0)
    with pytest.raises(ValueError, match="stop"):
        play(tmp_path / "told", make_callbacks=lambda: [Watch(tmp_path, ValueError("stop"), at=7)], rounds=1)
    play(tmp_path / "told", rounds=1)
    assert_same_directories(tmp_path / "whole", tmp_path / "told")


def test_a_trial_leaves_no_state(tmp_path):
    play(tmp_path, rounds=1, options={"fast_dev_run": True}, test=False)
    assert list(tmp_path.rglob("*state.json*")) == []


def test_a_full_disk_is_no_reason_to_stop(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no space left on device")

    path = tmp_path / NAME
    liveness.tell(path, step=1)
    monkeypatch.setattr(os, "replace", full)
    liveness.tell(path, step=2)
    assert read(path)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path, content):
    path = tmp_path / NAME
    path.write_bytes(content.encode("latin1"))
    assert read(path) is None
    liveness.tell(path, step=2)
    assert read(path)["step"] == 2


SLEEPER = """
import sys, time
from pathlib import Path
from lt_lightning.disk import liveness
with liveness.of_run(Path(sys.argv[1]), 3):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def sleeper(tmp_path):
    """Another process that is at work in the directory."""
    root = Path(liveness.__file__).parents[1]
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / NAME)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()


def test_a_process_that_was_killed_has_died_at_once(tmp_path, sleeper):
    assert judge(read(tmp_path / NAME)) == "running"
    sleeper.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie
    assert judge(read(tmp_path / NAME)) == "died"
    sleeper.wait()
    assert judge(read(tmp_path / NAME)) == "died"


def test_another_process_under_the_same_number_is_not_it(tmp_path, sleeper):
    state = read(tmp_path / NAME)
    assert judge(state | {"born": state["born"] - 1}) == "died"


def test_on_another_machine_three_minutes_of_silence_count():
    state = {"state": "waiting", "host": "elsewhere", "pid": os.getpid(), "beat": 1000.0}
    assert [judge(state, now=now) for now in (1001.0, 1180.0, 1181.0)] == ["waiting", "waiting", "died"]
    assert judge(state | {"state": "failed"}, now=5000.0) == "failed"


def test_a_second_command_does_not_speak_for_the_first(tmp_path, sleeper):
    before = (tmp_path / NAME).read_text()
    with pytest.raises(RuntimeError), liveness.reported(tmp_path / NAME, "again"):
        raise RuntimeError("in use")
    assert (tmp_path / NAME).read_text() == before
    sleeper.kill()
    sleeper.wait()
    with pytest.raises(RuntimeError), liveness.reported(tmp_path / NAME, "again"):
        raise RuntimeError("out of memory")
    left = read(tmp_path / NAME)
    assert (left["state"], left["error"], left["pid"]) == ("failed", "RuntimeError: out of memory", os.getpid())


def test_a_forked_child_does_not_speak_for_its_parent(tmp_path):
    path = tmp_path / NAME
    with liveness.of_run(path, 1):
        child = os.fork()
        if child == 0:
            os._exit(int(liveness._is_at_work_here(path)))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert liveness._is_at_work_here(path)


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, "7"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"),
    ],
)
def test_the_job_as_slurm_names_it(monkeypatch, environment, job):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert liveness._job() == job


def test_steps_that_lightning_cannot_tell(tmp_path):
    class Strange:
        @property
        def estimated_stepping_batches(self):
            raise RuntimeError("different accumulate_grad_batches at different epochs")

    assert pulse.steps(Strange()) is None


# From the command line


def test_train_py_tells_of_an_error_outside_of_a_fit_and_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "seed-0"
    overrides = ("trainer.max_epochs=1", "prune.rounds=1", "prune.controls=[]")
    with monkeypatch.context() as patched:
        patched.setattr(L.Trainer, "test", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(directory, *overrides)
    left = json.loads((directory / NAME).read_text())
    assert (left["state"], left["error"], left["round"]) == ("failed", "ZeroDivisionError: division by zero", 0)
    assert left["command"].startswith("python ")
    assert "train.py logger=csv trainer.max_epochs=1 prune.rounds=1 'prune.controls=[]'" in left["command"]
    run(directory, *overrides)
    assert not (directory / NAME).exists()


def test_a_job_of_a_sweep_that_fails_at_once_is_told_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "runs" / "seed-0"
    directory.mkdir(parents=True)
    with pytest.raises(ValueError, match="must be a whole number"):
        run(directory, "prune.rounds=-1", "hydra.mode=MULTIRUN")
    left = read(directory / NAME)
    assert left["state"] == "failed"
    assert left["error"].startswith("ValueError: rounds=-1 must be a whole number")
    assert "hydra.mode" not in left["command"]
