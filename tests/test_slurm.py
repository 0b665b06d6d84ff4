"""Sweeps on a cluster: a real Slurm on this machine, joblib and Ray. Whatever happens on the way, the same records."""

import importlib.util
import os
import re
import signal
import subprocess

import cluster
import pytest
from cluster import finished, rows, train, trained, variable, wait_for

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(cluster.MISSING), reason=f"not installed: {cluster.MISSING}; see system_packages in .ci/run"
    ),
]

EPOCHS = 3
SHORT = [f"trainer.max_epochs={EPOCHS}", "prune.rounds=1", "prune.controls=[reinit]", "prune.every=1 epoch"]
JOBS = ["seed=0,1,2,3", "prune.schedule.fraction=0.2,0.5"]
"""Eight; the two of a seed share their round 0."""

SLURM = ["launcher=slurm", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    with cluster.slurm(tmp_path_factory.mktemp("slurm")) as env:
        yield env


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """What the sweep leaves on one machine, job after job."""
    root = tmp_path_factory.mktemp("local")
    finished(train(*SHORT, *JOBS, f"hydra.sweep.dir={root}"))
    return rows(root)


DENSE = "dense/*"
"""Where the rounds 0 lie that runs share."""


def begun_again(root):
    """Fits, and how many epochs were begun beyond those that they have, of all runs and shared rounds below."""
    return {
        f"{run.relative_to(root / 'default')}/{fit}": count - EPOCHS
        for run in (*root.glob("default/*/seed=*"), *root.glob(f"default/{DENSE}/seed=*"))
        for fit, count in trained(run).items()
        if count != EPOCHS
    }


def dense_rounds(root):
    """Shared rounds 0, and how many epochs were begun in each; no run has begun one of its own."""
    assert not list(root.glob("default/*/seed=*/round-00/epochs.txt"))
    return {run.name: trained(run)["round-00"] for run in root.glob(f"default/{DENSE}/seed=*")}


def started(root, seed, of="*"):
    """A process that trains for a seed and has saved an epoch: of a run, or the shared round."""

    def look():
        processes = (cluster.process_of(run) for run in root.glob(f"default/{of}/seed={seed}"))
        return next((process for process in processes if process), None)

    return look


def test_a_sweep_is_killed_requeued_preempted_and_cancelled_and_has_the_records_of_a_quiet_one(tmp_path, env, local):
    command = [*SHORT, *JOBS, f"hydra.sweep.dir={tmp_path}", *SLURM, "hydra.launcher.partition=low"]
    sweep = train(*command, env=env, LINGER="1.5")
    killed = variable(process := wait_for(started(tmp_path, 0, of=DENSE)), "SLURM_JOB_ID")
    os.kill(process, signal.SIGKILL)
    requeued = variable(wait_for(started(tmp_path, 1, of=DENSE)), "SLURM_JOB_ID")
    subprocess.run(["scontrol", "requeue", requeued], env=env, check=True)
    process = wait_for(started(tmp_path, 3))
    task = "_".join(variable(process, f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    other = {"n1": "n2", "n2": "n1"}[variable(process, "SLURMD_NODENAME")]
    subprocess.run(["scancel", task], env=env, check=True)
    preempted = wait_for(lambda: running_on(env, other))[0]
    urgent = ["sbatch", "-p", "main", "-w", other, "--exclusive", "--time=1", "-o", "/dev/null", "--wrap", "sleep 1"]
    subprocess.run(urgent, env=env, check=True)
    printed = finished(sweep, code=1)
    assert "1 job of this sweep failed" in printed
    assert re.search(r"seed=3\n    UncompletedJobError: .+\n    python train.py --multirun .*seed=3", printed)
    assert all("Restarts=0" not in shown(env, job) for job in (killed, requeued, preempted))
    assert set(rows(tmp_path)) >= {name for name in local if "seed=3" not in name}
    finished(train(*command, env=env))
    assert rows(tmp_path) == local
    again = begun_again(tmp_path)
    assert all(count == 1 for count in again.values()), again
    assert set(dense_rounds(tmp_path)) == {f"seed={seed}" for seed in range(4)}
    assert dense_rounds(tmp_path)["seed=0"] == EPOCHS + 1, "once, and the epoch in which it was killed"


def running_on(env, node):
    """The ids of the jobs that run on a node."""
    command = ["squeue", "-h", "-t", "R", "-w", node, "-o", "%A"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.split()


def shown(env, job):
    """What Slurm tells of a job."""
    return subprocess.run(["scontrol", "-o", "show", "job", job], env=env, capture_output=True, text=True).stdout


def test_a_job_that_meets_its_time_limit_goes_on_in_the_next_start(tmp_path, env, local):
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=15"]
    sweep = train(
        *SHORT, "seed=3", JOBS[1].partition(",")[0], f"hydra.sweep.dir={tmp_path}", *SLURM, *limit, env=env, LINGER="7"
    )
    job = variable(wait_for(started(tmp_path, 3)), "SLURM_JOB_ID")
    finished(sweep)
    assert "Restarts=1" in shown(env, job)
    assert "this job is timed-out" in "".join(file.read_text() for file in tmp_path.glob(".submitit/*/*.err"))
    assert rows(tmp_path) == {name: found for name, found in local.items() if re.search("(0.2|dense).*seed=3", name)}
    assert begun_again(tmp_path) == {}, "the step at hand was saved"


def test_a_job_of_two_nodes_has_the_records_of_two_processes(tmp_path, env):
    ddp = [*SHORT, "seed=0", "trainer=ddp_cpu2"]
    finished(train(*ddp, f"hydra.sweep.dir={tmp_path / 'here'}"))
    nodes = ["trainer.devices=1", "trainer.num_nodes=2"]
    finished(train(*ddp, *nodes, f"hydra.sweep.dir={tmp_path / 'there'}", *SLURM, env=env))
    assert rows(tmp_path / "there") == rows(tmp_path / "here")


def test_jobs_of_joblib_have_the_records_of_one_process(tmp_path, local):
    finished(train(*SHORT, *JOBS, f"hydra.sweep.dir={tmp_path}", "launcher=joblib", "hydra.launcher.n_jobs=2"))
    assert rows(tmp_path) == local
    assert dense_rounds(tmp_path) == {f"seed={seed}": EPOCHS for seed in range(4)}


def test_jobs_of_ray_have_the_records_of_one_process(tmp_path, local):
    if importlib.util.find_spec("hydra_plugins.hydra_ray_launcher") is None:
        pytest.skip('not installed: pip install "lt-lightning[ray]"')
    finished(train(*SHORT, *JOBS, f"hydra.sweep.dir={tmp_path}", "launcher=ray"))
    assert rows(tmp_path) == local
