"""The smallest Lightning project with a lottery in it: a network, two loaders, and the loop.

    python examples/smallest.py

It trains a dense network on handwritten digits and three tickets, each with a fifth of the weights less, and prints
what each reached: the ticket at half of the weights is about as accurate as the dense network. Type it again: it has
nothing to do, as every finished round is read from the run directory.
"""

import csv
import sys
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import lottery
from lt_lightning.data import digits


class Net(L.LightningModule):
    """A network of two hidden layers, as any project has one."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch):
        """The loss of a batch of images (batch, 64) and labels (batch,)."""
        images, labels = batch
        return cross_entropy(self.layers(images), labels)

    def validation_step(self, batch):
        """`val/loss`, which decides the early stop."""
        self.log("val/loss", self.training_step(batch))

    def test_step(self, batch):
        """`test/acc`, which joins the round's record."""
        images, labels = batch
        self.log("test/acc", (self.layers(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self):
        """Adam, as in the paper."""
        return torch.optim.Adam(self.parameters(), lr=1.2e-3)


def loaders():
    """Batches of digits for training, and those for validation and test, which are the same here."""
    data = digits()
    training = TensorDataset(data.train_images.flatten(1) / 16, data.train_labels)
    test = TensorDataset(data.test_images.flatten(1) / 16, data.test_labels)
    return DataLoader(training, 32, shuffle=True), DataLoader(test, 360)


def main(directory="runs/smallest", rounds=3, epochs=10):
    """Train the rounds that are not done yet, and print the records."""
    training, test = loaders()
    for ticket in lottery(Net, rounds=int(rounds), directory=directory):
        trainer = L.Trainer(
            max_epochs=int(epochs),
            default_root_dir=ticket.directory,
            callbacks=[ticket],
            accelerator="cpu",
            logger=False,
        )
        trainer.fit(ticket.model, training, test, ckpt_path=ticket.ckpt_path)
        trainer.test(ticket.model, test)

    with open(Path(directory, "records.csv")) as file:
        for row in csv.DictReader(file):
            print(
                f"round {row['round']} density {float(row['density']):.3f} test accuracy {float(row['test/acc']):.4f}"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
