"""A project that imports `pytorch_lightning` instead of `lightning`: the same loop, the same bits."""

import importlib

import pytest
import torch
from test_lottery import assert_same_state, final, records_without_time
from tiny import loaders
from torch import nn

from lt_lightning import lottery
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.twins import twins

pytestmark = pytest.mark.lightning_matrix


class Stop(Exception):
    pass


def project(name):
    """A module, a function that makes its Trainer's callbacks, and the Trainer, all of one package."""
    package = importlib.import_module(name)
    callbacks = importlib.import_module(f"{name}.callbacks")

    class Net(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(8, 12), nn.Dropout(0.3), nn.ReLU(), nn.Linear(12, 3))

        def training_step(self, batch, index):
            loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("val/loss", nn.functional.cross_entropy(self.body(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 0.02)

        def configure_callbacks(self):
            return callbacks.LearningRateMonitor()

    class Ending(callbacks.Callback):
        def __init__(self, step):
            self.step = step

        def on_train_batch_end(self, trainer, module, outputs, batch, index):
            if trainer.global_step == self.step:
                raise Stop

    def make_callbacks(step=None):
        averaging = callbacks.EMAWeightAveraging(decay=0.8)
        checkpoints = callbacks.ModelCheckpoint(monitor="val/loss", save_last=True)
        return [Ending(step), checkpoints, averaging, callbacks.EarlyStopping("val/loss", patience=9)]

    return package, Net, make_callbacks


def play(directory, name, stop_at=lambda ticket: None, **arguments):
    package, net, make_callbacks = project(name)
    for ticket in lottery(net, rounds=1, directory=directory, every="1 epoch", **arguments):
        trainer = package.Trainer(
            max_epochs=3,
            default_root_dir=ticket.directory,
            callbacks=[*make_callbacks(stop_at(ticket)), ticket],
            accelerator="cpu",
            logger=[importlib.import_module(f"{name}.loggers").CSVLogger(directory / "logs")],
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=2,
        )
        trainer.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("pytorch_lightning", reason="pytorch_lightning is not installed")
    directory = tmp_path_factory.mktemp("whole")
    play(directory, "lightning.pytorch")
    return directory


def assert_same_run(a, b):
    for round in ("round-00", "round-01"):
        assert_same_state(final(a, round), final(b, round))
        assert (a / round / "ticket.safetensors").read_bytes() == (b / round / "ticket.safetensors").read_bytes()
    assert records_without_time(a) == records_without_time(b)


def test_either_package_ends_with_the_same_bits(tmp_path, whole):
    play(tmp_path, "pytorch_lightning")
    assert_same_run(tmp_path, whole)
    assert "EMAWeightAveraging" in Checkpoint(tmp_path / "points" / "step-0.ckpt")["callbacks"]


@pytest.mark.parametrize("step", [0, 1], ids=["round 0", "round 1"])
def test_an_interrupted_project_of_the_other_package_ends_with_the_same_bits(tmp_path, whole, step):
    with pytest.raises(Stop):
        play(tmp_path, "pytorch_lightning", lambda ticket: 8 if ticket.round == step else None)
    assert not (tmp_path / f"round-0{step}" / "done").exists()
    play(tmp_path, "pytorch_lightning")
    assert_same_run(tmp_path, whole)


def test_a_trainer_of_the_other_package_without_the_ticket_is_refused(tmp_path, whole):
    package, net, _ = project("pytorch_lightning")
    for ticket in lottery(net, rounds=0, directory=tmp_path):
        trainer = package.Trainer(max_epochs=1, logger=False, default_root_dir=ticket.directory)
        with pytest.raises(RuntimeError, match="does not have the ticket of round-00 among its callbacks"):
            trainer.fit(ticket.model, *loaders())
        break


def test_twins_are_the_namesakes_of_the_other_package(whole):
    ours, theirs = (importlib.import_module(f"{name}.callbacks") for name in ("lightning.pytorch", "pytorch_lightning"))
    assert twins(ours.ModelCheckpoint) == (ours.ModelCheckpoint, theirs.ModelCheckpoint)
    assert twins(nn.Module) == (nn.Module,)
