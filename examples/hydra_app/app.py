"""A Hydra application of your own that composes our groups `prune/...` with its own configuration.

    cd examples/hydra_app
    python app.py
    python app.py prune=late_rewinding 'prune.rewind_step=2 epochs' prune/criterion=movement
    python app.py --multirun seed=0,1 prune.rounds=2

`conf/config.yaml` names the configurations of lt_lightning in its search path, `cfg.prune` is a lottery that waits for
its model and its directory, and `job` lets Lightning start the processes of one job of a sweep, not the whole sweep.
It prints what every round reached.
"""

import csv
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lt_lightning.cli.jobs import job

sys.path.append(str(Path(__file__).parents[1]))  # for the network and the data of the smallest project
from smallest import Net, loaders


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg):
    """Train the rounds that are not done yet, and print the records."""
    directory = HydraConfig.get().runtime.output_dir
    training, test = loaders()
    with job(__file__):
        tickets = instantiate(cfg.prune)(Net, directory=directory, seed=cfg.seed, config=OmegaConf.to_container(cfg))
        for ticket in tickets:
            trainer = instantiate(cfg.trainer)(default_root_dir=ticket.directory, callbacks=[ticket])
            trainer.fit(ticket.model, training, test, ckpt_path=ticket.ckpt_path)
            trainer.test(ticket.model, test, verbose=False)

    with open(Path(directory, "records.csv")) as file:
        for row in csv.DictReader(file):
            said = f"seed {cfg.seed} round {row['round']} {row['arm']} density {float(row['density']):.3f}"
            print(f"{said} test accuracy {float(row['test/acc']):.4f}")


if __name__ == "__main__":
    main()
