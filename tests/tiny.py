"""A network and data small enough that a round takes a tenth of a second, with everything that makes resuming hard:
dropout, batch norm, a shuffled loader, Adam and a schedule."""

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning import lottery

STEPS_PER_EPOCH = 5


class Tiny(L.LightningModule):
    """8 → 12 → 3; `seen` lists (epoch, batch index, fingerprint of the batch) of every training step."""

    def __init__(self, optimizer=torch.optim.Adam, schedule=True, lr=0.01):
        super().__init__()
        self.hidden = nn.Linear(8, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.3)
        self.output = nn.Linear(12, 3)
        self.make_optimizer, self.schedule, self.lr = optimizer, schedule, lr
        self.seen = []

    def forward(self, x):
        return self.output(self.drop(torch.relu(self.norm(self.hidden(x)))))

    def training_step(self, batch, index):
        x, y = batch
        self.seen.append((self.current_epoch, index, round(float(x.sum()), 4)))
        logits = self(x)
        loss = nn.functional.cross_entropy(logits, y)
        self.log("train/loss", loss)
        self.log("train/acc", (logits.argmax(1) == y).float().mean(), on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, index):
        x, y = batch
        self.log("val/loss", nn.functional.cross_entropy(self(x), y))

    def test_step(self, batch, index):
        x, y = batch
        self.log("test/acc", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters(), lr=self.lr)
        if not self.schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def data():
    """100 examples whose class is the largest of their first three features."""
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))


def loaders(shuffle=True, workers=0):
    """A shuffled training loader of `STEPS_PER_EPOCH` batches, and a validation loader."""
    train = DataLoader(data(), 20, shuffle=shuffle, num_workers=workers, persistent_workers=False)
    return train, DataLoader(data(), 50)


def trainer(ticket, callbacks=(), **options):
    """A quiet Trainer with the ticket."""
    defaults = {"max_epochs": 3, "accelerator": "cpu", "devices": 1, "logger": False, "log_every_n_steps": 2}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    directory = {"default_root_dir": ticket.directory}
    return L.Trainer(callbacks=[*callbacks, ticket], **(directory | quiet | defaults | options))


def play(
    directory, *, model=Tiny, make_callbacks=lambda: (), test=True, options=None, workers=0, rounds=1, **arguments
):
    """Run a whole lottery on the tiny network; returns the models of the fits that ran, by name."""
    models = {}
    arguments = {"every": "1 epoch"} | arguments  # whatever it costs
    for ticket in lottery(model, rounds=rounds, directory=directory, **arguments):
        train, validation = loaders(workers=workers)
        fit = trainer(ticket, make_callbacks(), **(options or {}))
        fit.fit(ticket.model, train, validation, ckpt_path=ticket.ckpt_path)
        if test:
            fit.test(ticket.model, validation, verbose=False)
            fit.test(ticket.model, validation, ckpt_path=ticket.early_stop_path, verbose=False)
        models[ticket.name] = ticket.model
    return models
