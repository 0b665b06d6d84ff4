"""A GAN with manual optimization: two networks, two optimizers, one ticket over both.

    python examples/gan.py

The generator learns points on a circle. Both networks are pruned, each layer for itself, so that neither eats the
other's weights, and both optimizers are rewound. It prints how far the generated points are from the circle on average;
masks are applied after each of the two optimizers' steps, whichever the `training_step` takes.
"""

import csv
import math
import sys
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import layerwise, lottery


class Gan(L.LightningModule):
    """A generator from 4 numbers to 2, and a discriminator from 2 to 1."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))

    def fake(self, count):
        """Generated points (count, 2)."""
        return self.generator(torch.randn(count, 4, device=self.device))

    def loss(self, points, real):
        """How badly the discriminator takes points (count, 2) for real (1) or generated (0) ones."""
        logits = self.discriminator(points)
        return binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))

    def training_step(self, batch):
        """One step of the discriminator, one of the generator."""
        (points,) = batch
        of_generator, of_discriminator = self.optimizers()

        self.toggle_optimizer(of_discriminator)
        loss = self.loss(points, 1.0) + self.loss(self.fake(len(points)).detach(), 0.0)
        of_discriminator.zero_grad()
        self.manual_backward(loss)
        of_discriminator.step()
        self.untoggle_optimizer(of_discriminator)

        self.toggle_optimizer(of_generator)
        loss = self.loss(self.fake(len(points)), 1.0)
        of_generator.zero_grad()
        self.manual_backward(loss)
        of_generator.step()
        self.untoggle_optimizer(of_generator)

    def validation_step(self, batch):
        """`val/distance`: of generated points from the circle, on average."""
        points = self.fake(len(batch[0]))
        self.log("val/distance", (points.norm(dim=1) - 1).abs().mean())

    def configure_optimizers(self):
        """An Adam for each network."""
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), lr=2e-3, betas=(0.5, 0.999)) for part in parts]


def loader(count, shuffle=False):
    """Batches of points on the circle."""
    angles = torch.linspace(0, 2 * math.pi, count + 1)[:-1]
    return DataLoader(TensorDataset(torch.stack([angles.cos(), angles.sin()], 1)), 64, shuffle=shuffle)


def main(directory="runs/gan", rounds=2, epochs=30):
    """Train the rounds that are not done yet, and print the records."""
    training, validation = loader(1024, shuffle=True), loader(512)
    for ticket in lottery(Gan, rounds=int(rounds), directory=directory, scope=layerwise, monitor="val/distance"):
        trainer = L.Trainer(
            max_epochs=int(epochs),
            default_root_dir=ticket.directory,
            callbacks=[ticket],
            accelerator="cpu",
            logger=False,
        )
        trainer.fit(ticket.model, training, validation, ckpt_path=ticket.ckpt_path)

    with open(Path(directory, "records.csv")) as file:
        for row in csv.DictReader(file):
            best = float(row["early_stop_val_distance"])
            print(f"round {row['round']} density {float(row['density']):.3f} distance at the early stop {best:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
