"""Hydra jobs of several processes: each job runs alone, and leaves nothing behind for the next one of the sweep.

Lightning starts the other processes of a `ddp` job with the command of its first process. Under Hydra that would be the
whole sweep again, or the worker of a launcher; here it is the one job, in the directory of the first process. After a
job, a sweep's next one finds the environment and the settings of torch as this one has found them.
"""

import multiprocessing
import os
import random
import shlex
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies.launchers import subprocess_script as launching
from lightning.pytorch.utilities import rank_zero_only as _rank_zero_only
from omegaconf import OmegaConf

from lt_lightning import processes
from lt_lightning.disk.redact import redacted_arguments

rank_zero_only: Any = _rank_zero_only  # it has an attribute, the rank

_GRACE = 20.0
"""Seconds that a process is given to end by itself."""

_LAST_WORDS = 10.0
"""Seconds that the other processes of a job that failed are given to say why: it may be the error of one of them."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that Lightning or a ticket listens to while it trains."""

_OF_THE_SWEEP = ("hydra.mode", "hydra.sweep", "hydra.launcher", "hydra/launcher", "hydra/sweep")
_NOT_FOR_CHILDREN = (*_OF_THE_SWEEP, "hydra.run")
"""Beginnings of overrides that are about the sweep or the directory, not the job."""


@contextmanager
def job(script: str | os.PathLike[str]) -> Iterator[None]:
    """Run one Hydra job in a block: the body of the function under `@hydra.main`.

    Args:
        script: the file of the application, `__file__` there.

    Example:
        ```python
        @hydra.main(version_base="1.3", config_path="conf", config_name="train")
        def main(cfg):
            with job(__file__):
                ...
        ```
    """
    children: list[subprocess.Popen[Any]] = []
    with ExitStack() as stack:
        stack.enter_context(_told())
        stack.enter_context(_as_before())
        stack.enter_context(_ended(children))
        # Lightning asks for none of these; the names are private, and held by tests/test_jobs.py.
        replacements = {
            "_hydra_subprocess_cmd": lambda local_rank: _command_of_child(script),
            "_launch_process_observer": children.extend,
        }
        for module in _launching():
            for name, replacement in replacements.items():
                stack.enter_context(patch.object(module, name, replacement))
            launcher = module._SubprocessScriptLauncher
            starts = _deaf_to_ctrl_c(launcher._call_children_scripts)
            stack.enter_context(patch.object(launcher, "_call_children_scripts", starts))
        _take_rank_from_submitit()
        _allow_workers()
        yield


def _launching() -> list[Any]:
    """The modules that start processes: of `lightning`, and of `pytorch_lightning` if the project imported that."""
    other = sys.modules.get(launching.__name__.replace("lightning.pytorch", "pytorch_lightning"))
    return [launching, *([other] if other else [])]


def _deaf_to_ctrl_c(start: Callable[[Any], None]) -> Callable[[Any], None]:
    """Start processes that Ctrl-C does not reach, though the terminal sends it to all: the first process ends them.

    One that ended while it still imports would leave the first waiting for it.
    """

    def starts(launcher: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            return start(launcher)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            start(launcher)
        finally:
            signal.signal(signal.SIGINT, before)

    return starts


def command(script: str | os.PathLike[str]) -> str:
    """What to type, in the same directory, to run the job at hand again, alone: with it an interrupted run goes on.

    Keys and passwords are left out.

    Args:
        script: the file of the application, `__file__` there.
    """
    overrides = _as_written(HydraConfig.get().overrides)
    own = [each for each in overrides["hydra"] if not each.lstrip("+~").startswith(_OF_THE_SWEEP)]
    return shlex.join(["python", os.path.relpath(script), *redacted_arguments([*overrides["task"], *own])])


def output_directory(hydra: Any) -> str:
    """The run directory of the job at hand, as it is called on the disk: `runs/${x}` is a name like others there.

    Args:
        hydra: `HydraConfig.get()`, which would take such a name for an interpolation.
    """
    return _as_written(hydra.runtime)["output_dir"]


def _as_written(node: Any) -> Any:
    """A part of Hydra's configuration as plain values, in which texts with `${x}` are left as they are."""
    return OmegaConf.to_container(node, resolve=False)


def cluster() -> list[SLURMEnvironment]:
    """Plugins for the Trainer of a job: on Slurm, Lightning leaves it to submitit and Slurm to requeue the job."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def _command_of_child(script: str | os.PathLike[str]) -> tuple[list[str], str]:
    """The command of another process of this job, and where it runs."""
    hydra: Any = HydraConfig.get()
    main = sys.modules["__main__"]
    spec = main.__spec__
    is_main = Path(getattr(main, "__file__", None) or "").resolve() == Path(script).resolve()
    program = ["-m", spec.name] if is_main and spec is not None else [str(Path(script).resolve())]
    overrides, runtime = _as_written(hydra.overrides), _as_written(hydra.runtime)
    settings = [each for each in overrides["hydra"] if not each.lstrip("+~").startswith(_NOT_FOR_CHILDREN)]
    own = ["hydra.mode=RUN", f"hydra.run.dir={_quoted(output_directory(hydra))}", "hydra.output_subdir=null"]
    known = [key for key in ("id", "num") if not OmegaConf.is_missing(hydra.job, key)]  # in a sweep
    own += [f"hydra.job.{key}={_quoted(hydra.job[key])}" for key in known]
    command = [sys.executable, *program, *_config_flags(hydra), *overrides["task"], *settings, *own]
    return command, runtime["cwd"]


def _quoted(value: str | int) -> str:
    """A value as Hydra reads it back, whatever characters are in it.

    >>> print(_quoted(3), _quoted("runs/a=[1],b's"), _quoted("${x}"))
    3 'runs/a=[1],b\\'s' '\\${x}'
    """
    if isinstance(value, int):
        return str(value)
    return QuotedString(value.replace("${", r"\${"), Quote.single).with_quotes()


def _config_flags(hydra: Any) -> Iterator[str]:
    """Where the job's configuration lies: the first process may have been told on its command line."""
    if hydra.job.config_name is not None:
        yield from ("--config-name", hydra.job.config_name)
    for source in _as_written(hydra.runtime)["config_sources"]:
        path = source["path"] if source["schema"] == "file" else f"{source['schema']}://{source['path']}"
        if source["provider"] == "main" and source["path"]:
            yield from ("--config-path", path)
        elif source["provider"] == "command-line":
            yield from ("--config-dir", path)


def _take_rank_from_submitit() -> None:
    """Let Lightning know the tasks of a job that submitit runs on this machine; Slurm's tasks it knows itself."""
    if int(os.environ.get("SUBMITIT_LOCAL_NTASKS", "1")) > 1 and "SLURM_PROCID" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        os.environ.pop("MASTER_PORT", None)  # whatever the user's shell says: jobs side by side need one each
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        rank_zero_only.rank = int(os.environ["RANK"])  # found when Lightning was imported


def _allow_workers() -> None:
    """Let the data loaders of a job that a worker of joblib runs start workers of their own.

    Its processes are spawned, so that a loader's worker would import a main module that is not the application's.
    """
    if type(multiprocessing.current_process()).__module__.startswith("joblib."):
        multiprocessing.set_start_method("fork", force=True)


@contextmanager
def _told() -> Iterator[None]:
    """Print the error of a sweep's job when and where it happens: no launcher does, and some lose the trace."""
    try:
        yield
    except Exception:
        if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            traceback.print_exc()
        raise


@contextmanager
def _ended(children: list[subprocess.Popen[Any]]) -> Iterator[None]:
    """Let the other processes end with the block, and the block with them.

    Lightning kills this process, and with it the sweep, five seconds after another one failed. Here it is given the
    time to fail by itself, as it does when it hears no more from that one.
    """
    over = threading.Event()
    threading.Thread(target=_watch, args=(children, over), daemon=True).start()
    try:
        yield
    except BaseException as error:
        over.set()
        if isinstance(error, Exception):  # rather than Ctrl-C
            _await(children, _LAST_WORDS)
        for child in children:
            child.terminate()
        raise
    finally:
        over.set()
        processes.end()
        _await(children, _GRACE)
        for child in children:
            child.kill()
            child.wait()


def _await(children: list[subprocess.Popen[Any]], seconds: float) -> None:
    """Wait until all processes have ended, but not longer than that."""
    deadline = monotonic() + seconds
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline - monotonic()))


def _watch(children: list[subprocess.Popen[Any]], over: threading.Event) -> None:
    """Kill this process if another one of its job has failed and it does not notice."""
    while not over.wait(1.0):
        if any(child.poll() for child in children):
            if over.wait(_GRACE):
                return
            codes = [child.poll() for child in children]
            for child in children:
                child.kill()
            if {-signal.SIGTERM, 128 + signal.SIGTERM} & set(codes):  # one was asked to end before it could say so
                os._exit(128 + signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def _as_before() -> Iterator[None]:
    """Undo what a job changes of its process."""
    environment, rank = dict(os.environ), rank_zero_only.rank
    threads, dtype, precision = torch.get_num_threads(), torch.get_default_dtype(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    anomaly, start_method = torch.is_anomaly_enabled(), multiprocessing.get_start_method(allow_none=True)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        rank_zero_only.rank = rank
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        torch.autograd.set_detect_anomaly(anomaly)
        multiprocessing.set_start_method(start_method, force=True)
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        _finish_wandb()


def _finish_wandb() -> None:
    """A run of W&B that is still open would go on in the next job."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish()
