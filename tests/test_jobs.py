"""Hydra jobs of several processes: one job, a sweep in one process, workers of a launcher."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import joblib
import lightning as L
import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch.utils.data import DataLoader

from lt_lightning.cli import jobs
from lt_lightning.records import read_records

ROOT = Path(__file__).parents[1]
SHORT = ["trainer.max_epochs=1", "prune.rounds=1", "logger=csv"]
slow = pytest.mark.slow


def train(*overrides, multirun=False, code=0):
    """Run train.py as a user does; what it printed."""
    command = [sys.executable, "train.py", *(["--multirun"] if multirun else []), *SHORT, *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


def records(root):
    """The tables of all runs below, less those of rounds 0 that runs share."""
    return [path for path in sorted(root.rglob("records.csv")) if "dense" not in path.parts]


def rows(path):
    """The records below a directory, by seed."""
    found = {}
    for file in records(path):
        table = read_records(file)
        found[table[0]["seed"]] = [{k: v for k, v in row.items() if k != "seconds"} for row in table]
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process computes, by seed."""
    root = tmp_path_factory.mktemp("alone")
    train("seed=0,1,2", f"hydra.sweep.dir={root}", multirun=True)
    return rows(root)


def assert_alike(found, wanted):
    assert found.keys() == wanted.keys()
    for seed, records in found.items():
        for row, other in zip(records, wanted[seed], strict=True):
            assert row["arm"] == other["arm"]
            # What is logged while training is of the first process's share of a batch.
            left_out = ("arm", "train/loss", "train/acc")
            numbers = [{key: value for key, value in each.items() if key not in left_out} for each in (row, other)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.02)


@slow
def test_a_sweep_of_jobs_of_two_processes_each_gives_every_job_its_results(tmp_path, alone):
    printed = train("trainer=ddp_cpu2", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}", multirun=True)
    assert printed.count("records  ") == 3, "each job says once where its results lie"
    assert len(records(tmp_path)) == 3
    assert_alike(rows(tmp_path), alone)


@slow
@pytest.mark.parametrize("trainer", ["ddp_cpu2", "fsdp2_cpu2"])
def test_one_job_of_two_processes_runs_in_the_directory_of_the_first(tmp_path, alone, trainer):
    directory = tmp_path / "a=[1],'b' c"
    quoted = str(directory).replace("'", "\\'")
    printed = train(f"trainer={trainer}", f"hydra.run.dir='{quoted}'")
    assert printed.count("ticket") == 2, "one process prints the table"
    assert_alike(rows(directory), {0: alone[0]})
    assert [path.name for path in tmp_path.iterdir()] == [directory.name]


@slow
def test_a_sweep_under_fsdp2_gives_every_job_its_results(tmp_path, alone):
    train("trainer=fsdp2_cpu2", "seed=0,1,2", f"hydra.sweep.dir={tmp_path}", multirun=True)
    assert_alike(rows(tmp_path), alone)


@slow
@pytest.mark.parametrize("tasks", [1, 2])
def test_a_worker_of_submitit_runs_jobs_of_two_processes(tmp_path, alone, tasks):
    """With one task Lightning starts the second process, with two it is there already."""
    launcher = ["hydra/launcher=submitit_local", f"hydra.launcher.tasks_per_node={tasks}"]
    train("trainer=ddp_cpu2", "seed=0,1", f"hydra.sweep.dir={tmp_path}", *launcher, multirun=True)
    assert_alike(rows(tmp_path), {seed: alone[seed] for seed in (0, 1)})


@slow
def test_a_job_that_fails_leaves_the_others_of_its_sweep_alone(tmp_path):
    rates = "model.optimizer.lr=1e-3,-1,2e-3"
    printed = train("trainer=ddp_cpu2", rates, f"hydra.sweep.dir={tmp_path}", multirun=True, code=1)
    assert "Invalid learning rate: -1" in printed
    found = [re.search(r"lr=([^,/]+)", str(path))[1] for path in records(tmp_path)]
    assert sorted(found) == ["0.001", "0.002"]


@slow
def test_w_and_b_has_one_run_for_each_fit_and_the_summary(tmp_path):
    train("trainer=ddp_cpu2", "logger=wandb", "logger.mode=offline", f"hydra.run.dir={tmp_path / 'run'}")
    names = sorted(path.name.split("-", 4)[-1] for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert names == ["round-00", "round-01", "round-01-reinit", "summary"]


@slow
def test_ctrl_c_ends_both_processes_and_the_same_command_goes_on(tmp_path):
    run = [f"hydra.run.dir={tmp_path / 'run'}", "trainer=ddp_cpu2"]
    command = [sys.executable, "train.py", *SHORT, *run, "trainer.max_epochs=60"]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, text=True)
    deadline = monotonic() + 120
    while not (tmp_path / "run" / "round-00" / "last.ckpt").exists():
        assert monotonic() < deadline
        sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from here" in printed
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=200)
    assert len(rows(tmp_path / "run")[0]) == 3


def summed_by_workers():
    """A sum over what two workers of a data loader bring, in a job."""
    with jobs.job(__file__):
        return sum(int(batch.sum()) for batch in DataLoader(torch.arange(100), 10, num_workers=2))


@slow
def test_loaders_have_workers_in_a_job_of_joblib():
    assert joblib.Parallel(n_jobs=2)(joblib.delayed(summed_by_workers)() for _ in range(4)) == [4950] * 4


def change_everything():
    with jobs.job(__file__):
        os.environ |= {"LOCAL_RANK": "0", "WORLD_SIZE": "2", "PL_GLOBAL_SEED": "1"}
        os.environ.pop("PATH")
        torch.set_num_threads(2)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        torch.autograd.set_detect_anomaly(True)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        torch.use_deterministic_algorithms(not torch.are_deterministic_algorithms_enabled())
        raise RuntimeError("the job")


def test_a_job_leaves_its_process_as_it_was():
    before = state()
    with pytest.raises(RuntimeError, match="the job"):
        change_everything()
    assert state() == before


APP = """
from pathlib import Path

import hydra
import lightning as L
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.demos.boring_classes import BoringModel
from lt_lightning.cli.jobs import job


class Fails(L.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1:
            raise ValueError("the second process says why")


@hydra.main(version_base="1.3", config_path=None)
def main(cfg):
    with job(__file__):
        options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        callbacks = [Fails()] if cfg.fails else []
        trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=2, callbacks=callbacks, **options)
        trainer.fit(BoringModel())
        number = HydraConfig.get().job.get("num")
        Path(f"rank-{trainer.global_rank}").write_text(f"{cfg.job} of {number}")


if __name__ == "__main__":
    main()
"""


def app(tmp_path, *overrides, code=0):
    """Run an application of somebody's own that has no configuration file; what it printed."""
    (tmp_path / "app.py").write_text(APP)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "app.py", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env=environment)
    assert done.returncode == code, done.stderr[-3000:]
    return done.stdout + done.stderr


@slow
def test_both_processes_of_a_sweeps_job_have_one_configuration(tmp_path):
    app(tmp_path, "--multirun", "+fails=false", "+job=a,b")
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["b of 1", "b of 1"]


@slow
def test_an_error_in_the_other_process_is_told_and_ends_both(tmp_path):
    printed = app(tmp_path, "+fails=true", "+job=a", code=1)
    assert "ValueError: the second process says why" in printed


@slow
def test_a_port_in_the_users_shell_does_not_keep_tasks_of_submitit_from_starting(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29511")
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.tasks_per_node=2"]
    train("trainer=ddp_cpu2", "seed=0,1", f"hydra.sweep.dir={tmp_path}", *launcher, multirun=True)
    assert sorted(rows(tmp_path)) == [0, 1]


class Threads(L.Callback):
    def on_train_start(self, trainer, *_):
        print(f"process {trainer.global_rank} has {torch.get_num_threads()} threads")


@slow
def test_each_of_several_processes_has_the_threads_that_were_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    callback = "+callbacks.threads._target_=test_jobs.Threads"
    printed = train("trainer=ddp_cpu2", "threads=3", callback, f"hydra.run.dir={tmp_path}", "prune.rounds=0")
    assert "process 0 has 3 threads" in printed
    assert "process 1 has 3 threads" in printed


@pytest.mark.parametrize("path", ["a", "a,b=[1]", "it's", "back\\slash", "end\\", "\\'", 'a b"c', "{x}: (y)"])
def test_hydra_reads_a_quoted_path_back_as_it_was(path):
    override = OverridesParser.create().parse_override(f"hydra.run.dir={jobs._quoted(path)}")
    assert override.value() == path


def test_processes_are_started_deaf_to_ctrl_c_and_this_one_hears_again():
    heard, before = [], signal.getsignal(signal.SIGINT)
    jobs._deaf_to_ctrl_c(lambda launcher: heard.append(signal.getsignal(signal.SIGINT)))(None)
    assert heard == [signal.SIG_IGN]
    assert signal.getsignal(signal.SIGINT) == before


def state():
    """What a job may change of its process."""
    draws = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    settings = torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled(), torch.get_num_threads()
    return dict(os.environ), draws, settings, signal.getsignal(signal.SIGUSR2)


@slow
def test_a_sweep_runs_every_job_and_names_those_that_failed(tmp_path):
    rates = "model.optimizer.lr=-1,1e-3,-2"
    command = [rates, f"hydra.sweep.dir={tmp_path}", "hydra.sweeper.max_batch_size=1"]
    printed = train(*command, multirun=True, code=1)
    found = re.findall(r"lr=([^,/]+)", " ".join(map(str, records(tmp_path))))
    assert found == ["0.001"]
    assert "2 jobs of this sweep failed" in printed
    table = printed.rpartition("each alone is\n")[2].splitlines()
    assert [line.strip() for line in table[1::3]] == [
        f"ValueError: model.optimizer: Invalid learning rate: {rate}" for rate in (-1, -2)
    ]
    for line in table[0::3]:
        assert Path(line.strip()).is_dir()
    again = subprocess.run([sys.executable, *shlex.split(table[2])[1:]], cwd=ROOT, capture_output=True, text=True)
    assert "lr=-1" in again.stderr
    assert "1 job of this sweep failed" in again.stderr
    assert "lr=-2" not in again.stderr
