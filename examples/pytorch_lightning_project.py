"""A project that imports `pytorch_lightning`, the older name of Lightning: nothing changes but the import.

    python examples/pytorch_lightning_project.py

The module, the Trainer and the EarlyStopping are those of `pytorch_lightning`, and the ticket stands among the
callbacks. It prints how long each round trained: EarlyStopping is made anew in every round, and ends each for itself.
"""

import csv
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import lottery


class Regression(pl.LightningModule):
    """A small network that learns the sine of the sum of its inputs."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def training_step(self, batch):
        """The squared error of a batch (batch, 4), (batch, 1)."""
        inputs, targets = batch
        return mse_loss(self.layers(inputs), targets)

    def validation_step(self, batch):
        """`val/loss`, for EarlyStopping and for the ticket's own early stop."""
        self.log("val/loss", self.training_step(batch))

    def configure_optimizers(self):
        """Adam with a rate that falls by epochs; both are rewound."""
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.95)]


def loader(count, seed, shuffle=False):
    """Batches of random inputs and what is to be learnt of them."""
    inputs = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    return DataLoader(TensorDataset(inputs, torch.sin(inputs.sum(1, keepdim=True))), 64, shuffle=shuffle)


def main(directory="runs/pytorch_lightning_project", rounds=3, epochs=30):
    """Train the rounds that are not done yet, and print the records."""
    training, validation = loader(1024, 0, shuffle=True), loader(256, 1)
    for ticket in lottery(Regression, rounds=int(rounds), directory=directory):
        trainer = pl.Trainer(
            max_epochs=int(epochs),
            default_root_dir=ticket.directory,
            callbacks=[EarlyStopping("val/loss", patience=2, min_delta=1e-4), ticket],
            accelerator="cpu",
            logger=False,
        )
        trainer.fit(ticket.model, training, validation, ckpt_path=ticket.ckpt_path)

    with open(Path(directory, "records.csv")) as file:
        for row in csv.DictReader(file):
            loss = float(row["val/loss"])
            print(f"round {row['round']} density {float(row['density']):.3f} steps {row['steps']} val/loss {loss:.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
