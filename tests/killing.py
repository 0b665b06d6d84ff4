"""Runs that are killed: forked from this warmed process, with all their workers, by SIGKILL.

A run can be killed at any instant from outside, or kill itself at a file-system boundary: before, within and after each
write, before and after each fsync, rename, link and removal.
"""

import builtins
import ctypes
import multiprocessing
import os
import random
import signal
import sys
import traceback
from collections import Counter
from contextlib import contextmanager, suppress
from time import sleep

import lightning as L
import torch
from tiny import Tiny, data, trainer
from torch.utils.data import DataLoader, Dataset

from lt_lightning import lottery, ticket
from lt_lightning.disk import atomic, checkpoints
from lt_lightning.disk.rundir import ArmDirectory, Checkpoint
from lt_lightning.records import read_records

PHASES = ("starting", "training", "validation", "saving", "pruning", "testing", "finishing")


class Augmented(Dataset):
    """The tiny data with noise that each process draws for itself."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        x, y = data()[index]
        return x + 0.1 * torch.randn(8) + 0.1 * random.random(), y


def campaign(directory, workers=0, watch=lambda: (), **arguments):
    """A run with dropout, augmentation, a rewind point within an epoch, and a control."""
    settings = {"rounds": 1, "controls": ["reinit"], "rewind_step": 7, "every": "1 epoch"} | arguments
    for drawn in lottery(Tiny, directory=directory, **settings):
        train = DataLoader(Augmented(), 20, shuffle=True, num_workers=workers)
        validation = DataLoader(data(), 50)
        fit = trainer(drawn, watch(), val_check_interval=2)
        fit.fit(drawn.model, train, validation, ckpt_path=drawn.ckpt_path)
        fit.test(drawn.model, validation, verbose=False)
        fit.test(drawn.model, validation, ckpt_path=drawn.early_stop_path, verbose=False)


class Killed:
    """What a run that was killed was doing.

    Args:
        phase: one of `PHASES`.
        boundary: the file-system boundary at which it killed itself; "" if it was killed from outside.
    """

    def __init__(self, phase, boundary):
        self.phase, self.boundary = phase, boundary


def run_until_killed(directory, delay=None, done=frozenset(), **arguments):
    """Run the campaign in a process of its own; how it was killed, or None if it came to its end.

    Args:
        delay: seconds after which it is killed; None: never.
        done: boundaries that it passes; it kills itself at the first other one. None: it passes all.
    """
    shared = multiprocessing.RawArray(ctypes.c_char, 400)
    phase = multiprocessing.RawValue("i", 0)
    child = os.fork()
    if child == 0:
        os.setsid()  # so that its workers can be killed with it
        _child(directory, phase, shared, done, arguments)
    if delay is not None:
        sleep(delay)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # workers that it left behind
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return Killed(PHASES[phase.value], shared.value.decode())
    assert status == 0, directory.with_name(f"{directory.name}.log").read_text()
    return None


def _child(directory, phase, shared, done, arguments):
    directory.parent.mkdir(exist_ok=True)
    log = os.open(directory.with_name(f"{directory.name}.log"), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        watch = Phases(phase)
        watch.put_into_modules()
        if done is not None:
            Boundaries(directory, done, shared, watch).put_into_modules()
        campaign(directory, watch=lambda: [watch], **arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


class Phases(L.Callback):
    """Keeps in shared memory what the run is doing, and in itself at which step."""

    def __init__(self, value):
        self.value, self.step = value, 0

    def set(self, phase):
        self.value.value = PHASES.index(phase)

    def on_train_batch_start(self, trainer, *_):
        self.set("training")

    def on_train_batch_end(self, trainer, *_):
        self.step = trainer.global_step

    def on_validation_start(self, trainer, *_):
        self.set("validation")

    def on_validation_end(self, trainer, *_):
        self.set("training")

    def on_fit_start(self, trainer, *_):
        self.set("starting")
        self.step = trainer.global_step

    def on_test_start(self, *_):
        self.set("testing")

    def on_test_end(self, *_):
        self.set("finishing")

    @contextmanager
    def during(self, phase):
        before, self.value.value = self.value.value, PHASES.index(phase)
        yield
        self.value.value = before

    def put_into_modules(self):
        save, draw = checkpoints.save, ticket.draw_next

        def during_save(*arguments):
            with self.during("saving"):
                save(*arguments)

        def drawing(*arguments):
            with self.during("pruning"):
                draw(*arguments)

        checkpoints.save, ticket.draw_next = during_save, drawing


class Boundaries:
    """Kills its process group at the first boundary that is not among those done."""

    def __init__(self, directory, done, shared, watch):
        self.directory, self.done, self.shared, self.watch = directory, done, shared, watch

    def at(self, operation, path):
        name = os.path.relpath(path, self.directory)
        label = f"{operation} {name} at step {self.watch.step}"
        if label not in self.done:
            self.shared.value = label.encode()
            os.killpg(0, signal.SIGKILL)
            sleep(60)

    def around(self, function, operation, which=0):
        def wrapped(*arguments, **options):
            path = arguments[which]
            path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
            if not str(path).startswith(str(self.directory)):
                return function(*arguments, **options)
            self.at(f"before {operation}", path)
            result = function(*arguments, **options)
            self.at(f"after {operation}", path)
            return result

        return wrapped

    def open(self, path, mode="r", *arguments, **options):
        file = builtins.open(path, mode, *arguments, **options)  # noqa: SIM115
        return Writing(file, self, path) if "w" in mode else file

    def put_into_modules(self):
        for name, which in {"fsync": 0, "replace": 1, "unlink": 0, "symlink": 1}.items():
            setattr(os, name, self.around(getattr(os, name), name, which))
        atomic.open = self.open


class Writing:
    """A file, with a boundary before it is written, in the middle and when all is written."""

    def __init__(self, file, boundaries, path):
        self.file, self.boundaries, self.path, self.writes = file, boundaries, path, 0

    def write(self, content):
        self.writes += 1
        if self.writes == 1:
            self.boundaries.at("before write", self.path)
            half = len(content) // 2
            self.file.write(content[:half])
            self.file.flush()
            self.boundaries.at("within write", self.path)
            return half + self.file.write(content[half:])
        if self.writes == 5:
            self.file.flush()
            self.boundaries.at("between writes", self.path)
        return self.file.write(content)

    def flush(self):
        self.file.flush()
        self.boundaries.at("after write", self.path)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


# What must not differ


def assert_same_directories(whole, killed):
    """All that the runs have left on disk is equal, time apart."""
    names = [{p.relative_to(d).as_posix() for p in d.rglob("*") if p.is_file()} for d in (whole, killed)]
    assert names[0] == names[1]
    for name in names[0]:
        content = CONTENT[name.rpartition(".")[2].rpartition("/")[2]]
        assert differences(content(whole / name), content(killed / name), name) == []


def checkpoint(path):
    """A checkpoint less the seconds, and less Lightning's count of validation batches, which no fit looks at."""
    content = {key: value for key, value in Checkpoint(path).items() if key != "callbacks"}
    if "loops" in content:
        counters = content["loops"]["fit_loop"]
        content["loops"]["fit_loop"] = {key: value for key, value in counters.items() if "val_loop" not in key}
    return content


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


CONTENT = {
    "csv": lambda path: without_time(read_records(path)),
    "ckpt": lambda path: checkpoint(path),
    "done": lambda path: without_time([ArmDirectory(path.parent).read_done()["record"]]),
    "yaml": lambda path: path.read_text(),
    "json": lambda path: path.read_text(),
    "safetensors": lambda path: path.read_bytes(),
}


def differences(a, b, where=""):
    """Where two contents differ."""
    if type(a) is not type(b):
        return [where]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and a.keys() == b.keys():
        return [each for key in a for each in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, (list, tuple)) and len(a) == len(b):
        return [each for n, (x, y) in enumerate(zip(a, b, strict=True)) for each in differences(x, y, f"{where}/{n}")]
    return [] if a == b else [where]


def counted(kills):
    phases = Counter(killed.phase for killed in kills)
    return ", ".join(f"{phases[phase]} {phase}" for phase in PHASES if phases[phase])
