"""Find winning tickets: `python train.py prune=iterative`. `python train.py --help` tells the rest."""

import os
import sys
import warnings
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lt_lightning import environment, liveness, naming
from lt_lightning.analysis import page, report
from lt_lightning.interruption import Interrupted
from lt_lightning.jobs import cluster, command, job
from lt_lightning.loggers import log_curves
from lt_lightning.processes import is_writer
from lt_lightning.progress import Progress
from lt_lightning.records import objective
from lt_lightning.rundir import RunDirectory, remove_empty
from lt_lightning.sweeps import every_job

naming.register()
warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 under torch 2.13
warnings.filterwarnings("ignore", message="The `srun` command is available")  # on a cluster's login node


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train the dense network, then every round's ticket and controls; what is done already is skipped.

    Returns:
        The best `prune.monitor` of the last round's ticket, for a search; None if nothing was measured.
    """
    hydra_config = HydraConfig.get()
    directory = hydra_config.runtime.output_dir
    with job(__file__):
        try:
            state = None if cfg.prune.dry_run or not is_writer() else RunDirectory(directory).state
            with liveness.reported(state, command(__file__), even_if_empty=hydra_config.mode == RunMode.MULTIRUN):
                train(cfg, directory)
            return objective(RunDirectory(directory).records, cfg.prune.monitor)
        finally:
            if is_writer():
                remove_empty(directory, hydra_config.sweep.dir)  # Hydra has made it, and a dry run leaves it empty


def train(cfg: DictConfig, directory: str) -> None:
    """One run in its directory; with `prune.dry_run` only the table of what would be pruned."""
    config = OmegaConf.to_container(cfg, resolve=True)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
        os.environ["OMP_NUM_THREADS"] = str(cfg.threads)  # else Lightning gives each of several processes its share
    data = None if cfg.prune.dry_run else instantiate(cfg.data)
    make_model = partial(instantiate, cfg.model)
    seeds = {name: cfg[name] for name in ("seed", "seed_init", "seed_data")}
    places = {"directory": directory, "dense_directory": dense_directory(cfg, directory)}
    tickets = instantiate(cfg.prune)(make_model, **places, **seeds, config=config)
    if cfg.prune.dry_run:
        return
    fits = 1 + cfg.prune.rounds * (1 + len(cfg.prune.controls))
    with instantiate(cfg.logger)(directory, config=config) as loggers, Progress(directory, fits) as progress:
        for ticket in tickets:
            trainer = instantiate(cfg.trainer)(
                default_root_dir=ticket.directory,
                logger=False if ticket.shared else log_curves(loggers.start(ticket), ticket),
                callbacks=[ticket, progress.bar(ticket), *map(instantiate, cfg.callbacks.values())],
                plugins=[*cluster(), *map(instantiate, cfg.trainer.get("plugins") or ())],
            )
            trainer.fit(ticket.model, data, ckpt_path=ticket.ckpt_path)
            if ticket.shared:
                continue  # this run's own round 0 goes on from its end
            trainer.test(ticket.model, data, verbose=False)
            trainer.test(ticket.model, data, ckpt_path=ticket.early_stop_path, verbose=False)
            loggers.finish(ticket)
            progress.row(ticket)
            if is_writer() and not ticket.plan.directory.is_scratch:
                environment.note(directory, command(__file__))
        if is_writer() and (records := RunDirectory(directory).records).exists():
            written = page.write(directory, most_bytes=page.QUICK), report.draw(directory)
            loggers.show(*written)
            progress.done(records, *written)


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
