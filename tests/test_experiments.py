"""The papers' experiments, shortened: what they train, and where their rounds start."""

import lightning as L
import pytest
import torch
from app import run

from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.exchange.ticketfile import read
from lt_lightning.records import read_records


class Spy(L.Callback):
    """What each fit looked like at its first training step, and which batches it saw."""

    fits: list["Spy"] = []  # noqa: RUF012

    def __init__(self):
        self.batches, self.started = [], None
        Spy.fits.append(self)

    def on_train_batch_start(self, trainer, module, batch, index):
        if self.started is None:
            optimizer = trainer.optimizers[0]
            names = {parameter: name for name, parameter in module.named_parameters()}
            self.started = {
                "step": trainer.global_step,
                "lr": optimizer.param_groups[0]["lr"],
                "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
                "weights": {name: p.detach().clone() for p, name in names.items()},
                "momentum": {names[p]: s["momentum_buffer"].clone() for p, s in optimizer.state.items()},
            }
        self.batches.append((index, float(batch[0].double().sum())))


def assert_round_1_starts_at_step_30(tmp_path, folder, *overrides):
    Spy.fits.clear()
    options = ["trainer.max_steps=60", "prune.rounds=1", "prune.rewind_step=30 steps"]
    options += [f"data.path={folder}", "+callbacks.spy._target_=test_experiments.Spy"]
    run(tmp_path, "experiment=late_rewinding_resnet20", *options, *overrides)
    dense, ticket = Spy.fits
    point = Checkpoint(tmp_path / "rewind.ckpt")
    masks = read(tmp_path / "round-01" / "ticket.safetensors").masks
    assert (point["global_step"], ticket.started["step"]) == (30, 30)
    assert ticket.started["schedule"] == point["lr_schedulers"][0]
    assert ticket.started["schedule"]["last_epoch"] == 30
    assert ticket.started["lr"] == point["optimizer_states"][0]["param_groups"][0]["lr"]
    for index, (name, weight) in enumerate(ticket.started["weights"].items()):
        mask = masks.get(name, torch.ones(weight.shape))
        assert torch.equal(weight, point["state_dict"][name] * mask)
        momentum = point["optimizer_states"][0]["state"][index]["momentum_buffer"]
        assert torch.equal(ticket.started["momentum"][name], momentum * mask)
    assert len(dense.batches) == 60
    assert ticket.batches == dense.batches[30:]


def test_late_rewinding_starts_from_the_whole_state_of_its_step(tmp_path, images):
    small = ["data.val_size=100", "data.batch_size=4", "trainer.val_check_interval=25", "+trainer.limit_val_batches=1"]
    assert_round_1_starts_at_step_30(tmp_path, images / "cifar10", *small)


@pytest.mark.slow
def test_late_rewinding_of_resnet20_on_cifar10(tmp_path, real_images):
    assert_round_1_starts_at_step_30(tmp_path, real_images / "cifar10")


@pytest.mark.slow
def test_lenet_on_mnist_finds_tickets_at_the_papers_rates(tmp_path, real_images):
    options = [
        f"data.path={real_images / 'mnist'}",
        "trainer.max_steps=1000",
        "prune.rounds=3",
        "prune.controls=[reinit]",
    ]
    run(tmp_path, "experiment=lth_lenet_mnist", *options)
    rows = read_records(tmp_path / "records.csv")
    tickets = [row for row in rows if row["arm"] == "ticket"]
    assert [row["round"] for row in tickets] == [0, 1, 2, 3]
    assert len(rows) == 7
    assert min(row["test/acc"] for row in tickets) > 0.95
    for n in range(4):
        masks = read(tmp_path / f"round-{n:02d}" / "ticket.safetensors").masks
        counts = {name: int(mask.sum()) for name, mask in masks.items()}
        assert counts == {
            "network.hidden1.weight": round(235_200 * 0.8**n),
            "network.hidden2.weight": round(30_000 * 0.8**n),
            "network.output.weight": round(1_000 * 0.9**n),
        }
