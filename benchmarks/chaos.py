"""A sweep on a Slurm of this machine whose jobs are killed at random: it ends complete, and how fast.

    python benchmarks/chaos.py                              100 jobs, a kill every 4 seconds on average
    python benchmarks/chaos.py --jobs 20 --seconds 2        fewer jobs, more kills

Four jobs of each seed share their dense round. A job is killed by SIGKILL, by `scontrol requeue`, or by a job of a
higher partition that wants a core of its node. The sweep's command is typed again until no job of it failed. Needs
Debian's slurm-wlm and munge.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import cluster

EPOCHS, FITS, SHARE = 3, 3, 4
SHORT = [f"trainer.max_epochs={EPOCHS}", "prune.rounds=1", "prune.controls=[reinit]", "prune.every=1 epoch"]


def kill(run, way, env):
    """Kill the job that trains in a run directory; whether there was one."""
    process = cluster.process_of(run)
    if process is None:
        return False
    with suppress(OSError, StopIteration, subprocess.CalledProcessError):
        if way == "SIGKILL":
            os.kill(process, signal.SIGKILL)
            return True
        job = cluster.variable(process, "SLURM_JOB_ID")
        if way == "requeue":
            subprocess.run(["scontrol", "requeue", job], env=env, check=True, capture_output=True)
            return True
        node = cluster.variable(process, "SLURMD_NODENAME")
        urgent = ["sbatch", "-p", "main", "-w", node, "--time=1", "-o", "/dev/null", "--wrap", "true"]
        subprocess.run(urgent, env=env, check=True, capture_output=True)
        return True
    return False


def sweep(root, command, env, draws, seconds, kills):
    """Run the sweep's command once while its jobs are killed; its exit code, and what it printed."""
    log = root / "sweep.log"
    with open(log, "w") as file:
        process = cluster.train(*command, env=env, out=file, LINGER="0.3")
        while True:
            try:
                return process.wait(draws.expovariate(1 / seconds)), log.read_text()
            except KeyboardInterrupt:
                process.kill()
                raise
            except subprocess.TimeoutExpired:  # time for a kill
                runs = [*root.glob("default/*/seed=*"), *root.glob("default/dense/*/seed=*")]
                draws.shuffle(runs)
                way = draws.choice(["SIGKILL", "SIGKILL", "requeue", "preemption"])
                kills[way] += any(kill(run, way, env) for run in runs)


def main(jobs, seconds, seed=0):
    with tempfile.TemporaryDirectory() as folder, cluster.slurm(Path(folder) / "slurm", cpus=2) as env:
        root = Path(folder) / "runs"
        root.mkdir()
        launcher = ["launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.partition=low"]
        seeds, fractions = jobs // SHARE, "prune.schedule.fraction=0.1,0.2,0.4,0.6"
        command = [*SHORT, f"seed=range({seeds})", fractions, f"hydra.sweep.dir={root}", *launcher]
        kills, commands, start, code = Counter(), 0, monotonic(), 1
        while code and commands < 20:
            code, printed = sweep(root, command, env, random.Random(seed + commands), seconds, kills)
            commands += 1
            assert code in (0, 1), printed
        took = monotonic() - start
        runs = sorted(root.glob("default/*/seed=*"))
        complete = [run for run in runs if len(list(run.rglob("done"))) == FITS]
        shared = sorted(root.glob("default/dense/*/seed=*"))
        fits = {f"{run}/{fit}": count for run in (*runs, *shared) for fit, count in cluster.trained(run).items()}
    begun, wanted = sum(fits.values()), (seeds + jobs * (FITS - 1)) * EPOCHS
    assert len(fits) == seeds + jobs * (FITS - 1), "a dense round was trained by more than one run"
    print(f"{len(complete)} of {jobs} runs complete, with {len(shared)} dense rounds that they share")
    print(f"the command was typed {commands} times, exit code {code} at last")
    print(f"kills: {', '.join(f'{count} {way}' for way, count in kills.items())}, {sum(kills.values())} in all")
    print(f"epochs begun: {begun}, needed: {wanted}: {begun - wanted} twice, in flight when their job was killed")
    print(f"{took:.0f} s, {60 * jobs / took:.1f} jobs a minute on {os.cpu_count()} cores")
    assert len(complete) == jobs
    assert all(count >= EPOCHS for count in fits.values()), "an epoch is missing"
    assert begun - wanted <= sum(kills.values()), "more was trained twice than the epochs in flight"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help=f"a multiple of {SHARE}")
    parser.add_argument("--seconds", type=float, default=4.0, help="between two kills, on average")
    arguments = parser.parse_args()
    main(arguments.jobs, arguments.seconds)
