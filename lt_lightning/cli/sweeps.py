"""Sweeps that come to their end: a job that fails leaves the others alone, and is named at the end, with its error.

Launchers and sweepers of Hydra give up at the first job that failed: submitit's while others still run, without their
results. Here each job's failure is noted where the launcher hands the results back, whichever launcher that is.
"""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf, open_dict

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.redact import redacted_arguments, redacted_text

_OF_THE_SWEEP = ("hydra.mode", "hydra.sweeper", "hydra/sweeper", "hparams_search")
"""Beginnings of overrides that are about the sweep as a whole."""


class Failure(NamedTuple):
    """A job that failed: its run directory, why, and the command that runs it alone, with the sweep's launcher."""

    directory: str
    error: str
    command: str


@contextmanager
def every_job() -> Iterator[None]:
    """Let each job of a sweep run, and print which failed: around the call of a function under `@hydra.main`.

    Raises:
        SystemExit: with code 1, if any job failed.

    Example:
        ```python
        if __name__ == "__main__":
            with every_job():
                main()
        ```
    """
    failures: list[Failure] = []
    instantiate = Plugins.instantiate_launcher
    with ExitStack() as stack:

        def watched(*arguments: Any, **options: Any) -> Any:
            launcher = instantiate(*arguments, **options)
            # Of the class, as submitit sends the instance to its jobs.
            stack.enter_context(patch.object(type(launcher), "launch", _noting(type(launcher).launch, failures)))
            return launcher

        stack.enter_context(patch.object(Plugins, "instantiate_launcher", watched))
        try:
            yield
        finally:
            if failures:
                print(table(failures), file=sys.stderr)
    if failures:
        sys.exit(1)


def _noting(launch: Callable[..., Sequence[JobReturn]], failures: list[Failure]) -> Callable[..., Sequence[JobReturn]]:
    """A launcher's `launch` that adds the jobs that failed to a list, and hands back None as their results."""

    def noting(self: Any, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        _redact(Path(self.config.hydra.sweep.dir, "multirun.yaml"))
        with _killed_jobs_fail(self):
            returns = launch(self, job_overrides, initial_job_idx)
        for overrides, job in zip(job_overrides, returns, strict=True):
            if job.status == JobStatus.FAILED:
                failures.append(_failure(self, overrides, job._return_value))
                job.status, job.return_value = JobStatus.COMPLETED, None  # the sweeper would end the sweep at the error
        return returns

    return noting


def _redact(path: Path) -> None:
    """Take keys and passwords out of the command that Hydra has written down."""
    if path.exists():
        write_text(path, redacted_text(path.read_text("utf-8")))


def table(failures: Sequence[Failure]) -> str:
    """What failed, why, and how to try again.

    >>> print(table([Failure("runs/a/seed=0", "ValueError: no", "python train.py --multirun seed=0")]))
    <BLANKLINE>
    1 job of this sweep failed; the sweep's command runs all that is missing, and each alone is
      runs/a/seed=0
        ValueError: no
        python train.py --multirun seed=0
    """
    what = "1 job" if len(failures) == 1 else f"{len(failures)} jobs"
    head = f"\n{what} of this sweep failed; the sweep's command runs all that is missing, and each alone is"
    return "\n".join([head, *(f"  {each.directory}\n    {each.error}\n    {each.command}" for each in failures)])


def _failure(launcher: Any, overrides: Sequence[str], error: BaseException) -> Failure:
    of_hydra: Any = OmegaConf.to_container(launcher.config.hydra.overrides.hydra, resolve=False)  # `${x}` stays a text
    settings = [*overrides, *of_hydra]
    told = [each for each in settings if not each.lstrip("+~").startswith(_OF_THE_SWEEP)]
    return Failure(
        _directory(launcher, overrides),
        _last_line(error),
        shlex.join(["python", sys.argv[0], "--multirun", *redacted_arguments(told)]),
    )


def _directory(launcher: Any, overrides: Sequence[str]) -> str:
    """Where a job runs: its launcher may have heard nothing of it."""
    config = launcher.hydra_context.config_loader.load_sweep_config(launcher.config, list(overrides))
    with open_dict(config):
        config.hydra.job.num = config.hydra.job.id = 0
    hydra = HydraConfig.instance()
    before = hydra.cfg
    try:
        hydra.set_config(config)
        return str(Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir)
    finally:
        hydra.cfg = before


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -\n")]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


@contextmanager
def _killed_jobs_fail(launcher: Any) -> Iterator[None]:
    """Let a job of submitit that left no result, as it was killed, be one that failed."""
    if "submitit" not in type(launcher).__module__:
        yield
        return
    from submitit import Job

    results = Job.results

    def without_raising(job: Any) -> list[Any]:
        try:
            return results(job)
        except Exception as error:
            failed = JobReturn(status=JobStatus.FAILED)
            failed.return_value = error
            return [failed]

    with patch.object(Job, "results", without_raising):
        yield
