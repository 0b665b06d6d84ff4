"""A Slurm of two nodes on this machine, started by `slurm/start.sh`, and what its jobs are watched with."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep

import lightning as L

from lt_lightning.records import read_records

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(__file__).parent / "slurm"
MISSING = [name for name in ("munged", "slurmctld", "slurmd") if shutil.which(name) is None]


class Watch(L.Callback):
    """Writes down each epoch that is trained, and lingers in it in the first start of a job, so that it can be hit."""

    def on_train_epoch_start(self, trainer, *_):
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(exist_ok=True)
            with open(folder / "epochs.txt", "a") as file:
                file.write(f"{trainer.current_epoch}\n")
        if "SLURM_RESTART_COUNT" not in os.environ:
            sleep(float(os.environ.get("LINGER", "0")))


WATCHED = "+callbacks.watch._target_=cluster.Watch"


def trained(run):
    """Fit → how many epochs were begun in it."""
    files = sorted(run.rglob("epochs.txt"))
    return Counter({file.parent.relative_to(run).as_posix(): len(file.read_text().split()) for file in files})


def rows(root):
    """Name of a run → its records, less the time they took."""
    found = sorted(root.rglob("records.csv"))
    return {
        file.parent.relative_to(root).as_posix(): [{**row, "seconds": None} for row in read_records(file)]
        for file in found
    }


@contextmanager
def slurm(folder, nodes=2, cpus=4):
    """The environment of a shell that speaks to a new Slurm; its state lies in a folder."""
    settings = {"LT_SLURM_RUN": folder, "LT_SLURM_NODES": nodes, "LT_SLURM_CPUS": cpus, "LT_SLURM_PORT": ports(nodes)}
    own = os.environ | {key: str(value) for key, value in settings.items()}
    try:
        told = subprocess.run([SCRIPTS / "start.sh"], env=own, capture_output=True, text=True)
        assert told.returncode == 0, told.stderr
        exports = dict(re.findall(r"(\w+)=(\S+)", told.stdout))
        path = {"PATH": f"{SCRIPTS / 'bin'}:{own['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        yield own | exports | path
    finally:
        subprocess.run([SCRIPTS / "stop.sh"], env=own, check=True, timeout=120)


def ports(nodes):
    """A port such that it and one for each node after it are free."""
    for first in range(20000 + os.getpid() % 9000, 32000, nodes + 1):
        with socket.socket() as one:
            if all(one.connect_ex(("127.0.0.1", first + n)) for n in range(nodes + 1)):
                return first
    raise AssertionError("no free ports")


def train(*overrides, env=None, out=subprocess.PIPE, **more):
    """Start `train.py` as a user does; one sweep."""
    command = [sys.executable, "train.py", "--multirun", "logger=csv", WATCHED, *overrides]
    env = (env or os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}) | more
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=out, stderr=subprocess.STDOUT)


def finished(process, code=0, seconds=300):
    """What a sweep printed."""
    printed, _ = process.communicate(timeout=seconds)
    assert process.returncode == code, printed[-5000:]
    return printed


def wait_for(condition, seconds=120):
    """The first value of a function that is true."""
    deadline = monotonic() + seconds
    while not (value := condition()):
        assert monotonic() < deadline, "waited in vain"
        sleep(0.1)
    return value


def process_of(run):
    """The process that trains in a run directory and has saved an epoch, or None."""
    lock = next(iter(run.glob("*lock*")), None)
    found = re.match(r"process (\d+) ", lock.read_text()) if lock else None
    return int(found[1]) if found and any(run.rglob("last.ckpt")) else None


def variable(process, name):
    """An environment variable of a process."""
    found = Path(f"/proc/{process}/environ").read_text().split("\0")
    return next(each.partition("=")[2] for each in found if each.startswith(f"{name}="))
