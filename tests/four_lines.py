"""A project of its own with a lottery in it, which two processes may run: `python four_lines.py DIRECTORY STRATEGY`."""

import sys

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import lottery


class Mine(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.ReLU(), torch.nn.Linear(12, 3))

    def training_step(self, batch):
        return torch.nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def validation_step(self, batch):
        self.log("val/loss", self.training_step(batch), sync_dist=True)

    def test_step(self, batch):
        self.log("test/loss", self.training_step(batch), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


def main(directory, strategy):
    torch.set_num_threads(1)
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(1))
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), 12, shuffle=True)
    hardware = {"accelerator": "cpu", "strategy": strategy, "devices": 2 if "ddp" in strategy else 1}
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}

    for ticket in lottery(Mine, rounds=2, directory=directory, controls=["reinit"], rewind_step="6 steps"):
        trainer = L.Trainer(max_epochs=3, default_root_dir=ticket.directory, callbacks=[ticket], **hardware, **quiet)
        trainer.fit(ticket.model, loader, loader, ckpt_path=ticket.ckpt_path)
        trainer.test(ticket.model, loader, verbose=False)
        kept = int(sum(mask.sum() for mask in ticket.masks.values()))
        weights = [f"{float(parameter.detach().double().sum()):.12f}" for parameter in ticket.model.parameters()]
        with open(f"rank-{trainer.global_rank}.txt", "a") as said:
            said.write(f"{ticket.name} kept {kept} sums {' '.join(weights)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
