"""Find winning tickets: `python train.py prune=iterative`. `python train.py --help` tells the rest."""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf

from lt_lightning import Ticket
from lt_lightning.analysis import page, report
from lt_lightning.cli import naming, preflight
from lt_lightning.cli.jobs import cluster, command, job, output_directory
from lt_lightning.cli.progress import Progress
from lt_lightning.cli.refusals import in_one_line
from lt_lightning.cli.sweeps import every_job
from lt_lightning.disk import liveness
from lt_lightning.disk.rundir import RunDirectory, remove_empty
from lt_lightning.fit.interruption import Interrupted
from lt_lightning.loggers import log_curves
from lt_lightning.processes import is_writer
from lt_lightning.records import objective
from lt_lightning.replicates import Replicate, configured, fit, same_data, side_by_side
from lt_lightning.schedules import planned

naming.register()
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 under torch 2.13
warnings.filterwarnings("ignore", message="The `srun` command is available")  # on a cluster's login node


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train the dense network, then every round's ticket and controls; what is done already is skipped.

    Returns:
        The best `prune.monitor` of the last round's ticket, for a search; of replicates the mean, and None if nothing
        was measured.
    """
    hydra_config = HydraConfig.get()
    directory = output_directory(hydra_config)
    with in_one_line(hydra_config.mode == RunMode.RUN), job(__file__), ExitStack() as stack:
        if is_writer():  # Hydra has made it, and a dry run leaves it empty
            stack.callback(remove_empty, directory, hydra_config.sweep.dir)
        runs = configured(cfg, directory)
        for run in runs:
            state = None if cfg.prune.dry_run or not is_writer() else RunDirectory(run.directory).state
            told = liveness.reported(state, command(__file__), even_if_empty=hydra_config.mode == RunMode.MULTIRUN)
            stack.enter_context(told)
        if hydra_config.mode != RunMode.RUN:  # else Hydra has done so before it made the directory
            preflight.check(cfg)
        train(runs)
        found = (objective(RunDirectory(run.directory).records, monitor(run)) for run in runs)
        measured = [value for value in found if value is not None]
        return fmean(measured) if len(measured) == len(runs) else None


def train(runs: Sequence[Replicate]) -> None:
    """One run in its directory, or several seeds together; with `prune.dry_run` only what would be pruned."""
    cfg = runs[0].cfg
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # else Lightning gives each of several processes its share
    if cfg.prune.dry_run:
        list(tickets(runs[0]))
        return
    data = same_data(runs)
    lotteries = [tickets(run) for run in runs]
    fits = 1 + rounds_of(cfg.prune) * (1 + len(cfg.prune.controls))
    with ExitStack() as stack:
        loggers = [stack.enter_context(instantiate(cfg.logger)(run.directory, config=run.config)) for run in runs]
        first, *beside = (run.directory for run in runs)
        progress = stack.enter_context(Progress(first, fits * len(runs), beside=beside))
        trainers: dict[int, Trainer] = {}
        for group in side_by_side(lotteries):
            trainers = {}
            for n, ticket in group.items():
                logger = False if ticket.shared else log_curves(loggers[n].start(ticket), ticket)
                callbacks = [ticket, progress.bar(ticket), *map(instantiate, cfg.callbacks.values())]
                trainers[n] = make_trainer(cfg, default_root_dir=ticket.directory, logger=logger, callbacks=callbacks)
            fit(partial(make_trainer, cfg), list(trainers.values()), list(group.values()), [data[n] for n in group])
            for n, ticket in group.items():
                if ticket.shared:
                    continue  # this run's own round 0 goes on from its end
                model: Any = ticket.model
                trainers[n].test(model, data[n], verbose=False)
                trainers[n].test(model, data[n], ckpt_path=ticket.early_stop_path, verbose=False)
                loggers[n].finish(ticket)
                progress.row(ticket)
        if cfg.trainer.get("fast_dev_run") and not trainers and is_writer():
            print(f"\nnothing was tried: all is done in {first}; try it under another name, such as name=try")
        for run, each in zip(runs, loggers, strict=True):
            if is_writer() and (records := RunDirectory(run.directory).records).exists():
                written = page.write(run.directory, most_bytes=page.QUICK), report.draw(run.directory)
                each.show(*written)
                progress.done(records, *written)


def tickets(run: Replicate) -> Iterator[Ticket]:
    """The lottery of one run."""
    seeds = {name: run.cfg[name] for name in ("seed", "seed_init", "seed_data")}
    places = {"directory": run.directory, "dense_directory": dense_directory(run.cfg, run.directory)}
    return instantiate(run.cfg.prune)(partial(instantiate, run.cfg.model), **places, **seeds, config=run.config)


def monitor(run: Replicate) -> str | None:
    """The metric that decides the early stop of a run; None without one."""
    given = run.cfg.prune.monitor
    return RunDirectory(run.directory).monitor_found() if given == "auto" else given


def rounds_of(prune: DictConfig) -> int:
    """How many pruned rounds the lottery of a configuration has."""
    if prune.rounds is not None:
        return prune.rounds
    schedule = instantiate(prune.schedule) if prune.get("schedule") else None
    density = prune.get("density")
    return planned(schedule, OmegaConf.to_object(density) if OmegaConf.is_config(density) else density, None)[1]


def make_trainer(cfg: DictConfig, **options: Any) -> Trainer:
    """A new Trainer, as the configuration has it but for these options."""
    plugins = [*cluster(), *map(instantiate, cfg.trainer.get("plugins") or ())]
    return instantiate(cfg.trainer)(**options, plugins=plugins)


def dense_directory(cfg: DictConfig, directory: str) -> Path | None:
    """Where runs of one experiment share round 0; None for trials, and outside the folders `runs/NAME/METHOD/SEED`."""
    experiment = Path(directory).resolve().parents[1]
    sharing = cfg.share_dense and not cfg.trainer.get("fast_dev_run") and experiment.name == naming.study(cfg.name)
    return experiment / "dense" if sharing else None


if __name__ == "__main__":
    try:
        with every_job():
            main()
    except (KeyboardInterrupt, Interrupted) as stop:
        print("\ninterrupted; the same command goes on from here")
        sys.exit(stop.code if isinstance(stop, Interrupted) else 130)
