"""Fine-tuning trains at the learning rate of the last step that was taken, whatever a scheduler set after it."""

from functools import partial

import lightning as L
import pytest
import torch
from sampling import few
from test_measurements import STEPS, Killed, Plain, data, trainer
from torch.optim import lr_scheduler

from lt_lightning import fine_tune, lottery
from lt_lightning.fit.learning_rates import LearningRates

EPOCHS = 3


class Seen(L.Callback):
    """The learning rates with which each optimizer took its steps, by the optimizers' own word."""

    def __init__(self, seen):
        self.seen, self.handles = seen, []

    def on_train_start(self, trainer, module):
        for number, each in enumerate(trainer.optimizers):
            note = partial(self.note, self.seen.setdefault(number, []))
            self.handles.append(each.register_step_pre_hook(note))

    @staticmethod
    def note(rates, optimizer, args, kwargs):
        rates.append([float(group["lr"]) for group in optimizer.param_groups])

    def on_train_end(self, trainer, module):
        for each in self.handles:
            each.remove()


def plateau(optimizer):
    return lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0)  # at every epoch


class Scheduled(Plain):
    def __init__(self, make, interval="step", groups=1, frequency=1):
        super().__init__()
        self.make, self.groups = make, groups
        self.plan = {"interval": interval, "frequency": frequency, "monitor": "val/loss"}

    def configure_optimizers(self):
        parameters = [{"params": [each], "lr": 0.1 * (n + 1)} for n, each in enumerate(self.parameters())]
        optimizer = torch.optim.SGD(parameters if self.groups == 2 else self.parameters(), 0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.make(optimizer), **self.plan}}


class Manual(Plain):
    """Two optimizers, of which the second takes its last step early; their schedulers are stepped by the module."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        first, second = self.optimizers()
        for optimizer in (first, second) if self.current_epoch < EPOCHS - 1 else (first,):
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD([self.layer.weight], 0.1), torch.optim.SGD([self.layer.bias], 0.2)]
        return optimizers, [lr_scheduler.CosineAnnealingLR(each, EPOCHS * STEPS) for each in optimizers]


cosine = lr_scheduler.CosineAnnealingLR

MODELS = [
    partial(Scheduled, partial(cosine, T_max=EPOCHS * STEPS)),
    partial(Scheduled, partial(cosine, T_max=EPOCHS * STEPS), groups=2),
    partial(Scheduled, partial(cosine, T_max=EPOCHS), "epoch"),
    partial(Scheduled, partial(lr_scheduler.StepLR, step_size=1, gamma=0.5), "epoch"),
    partial(Scheduled, plateau, "epoch"),
    partial(Scheduled, plateau, "step", frequency=STEPS),
    Manual,
    partial(Scheduled, partial(lr_scheduler.OneCycleLR, max_lr=0.3, total_steps=EPOCHS * STEPS + 1)),
]


def tune(directory, model, seen, *callbacks, rounds=2, **options):
    """A lottery that is fine-tuned; `seen` gets a dictionary per fit."""
    for ticket in lottery(model, rounds=rounds, directory=directory, rewind=fine_tune, every="1 epoch"):
        made = trainer(ticket, Seen(seen.setdefault(ticket.name, {})), *callbacks, max_epochs=EPOCHS, **options)
        made.fit(ticket.model, data(), data(), ckpt_path=ticket.ckpt_path)


@pytest.mark.parametrize("model", few(MODELS, 0, 6))
def test_the_rate_of_the_last_step_is_held(tmp_path, model):
    seen = {}
    tune(tmp_path, model, seen)
    for number, rates in seen["round-00"].items():
        assert len({str(each) for each in rates}) > 1
        assert min(rates[-1]) > 0
        held = [pytest.approx(rates[-1], rel=1e-6)]
        assert seen["round-01"][number] == held * len(rates)
        assert seen["round-02"][number] == held * len(rates)


class Stop(L.Callback):
    def __init__(self, name, step):
        self.name, self.step = name, step

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.default_root_dir.endswith(self.name) and trainer.global_step == self.step:
            raise Killed

    def on_fit_end(self, trainer, module):
        if trainer.default_root_dir.endswith(self.name) and self.step == "end":
            raise Killed


@pytest.mark.parametrize("step", few([5, 8, 11, "end"], 1))
@pytest.mark.parametrize("name", ["round-00", pytest.param("round-01", marks=pytest.mark.slow)])
def test_a_fit_that_was_interrupted_hands_on_the_same_rate(tmp_path, name, step):
    model, whole, again = MODELS[0], {}, {}
    tune(tmp_path / "whole", model, whole, rounds=1)
    with pytest.raises(Killed):
        tune(tmp_path / "killed", model, again, Stop(name, step), rounds=1)
    tune(tmp_path / "killed", model, again, rounds=1)
    assert again["round-01"][0][-EPOCHS * STEPS :] == whole["round-01"][0]
    last = [torch.load(tmp_path / each / "round-01" / "final.ckpt") for each in ("whole", "killed")]
    assert torch.equal(*(each["state_dict"]["layer.weight"] for each in last))


class Two:
    """A Trainer's optimizers: one that may be wrapped, and one whose learning rate is a tensor."""

    def __init__(self):
        self.optimizers = [torch.optim.SGD([torch.ones(1, requires_grad=True)], lr) for lr in (0.1, torch.tensor(0.25))]


def set_rate(optimizer, rate):
    optimizer.param_groups[0]["lr"] = rate


def test_the_rates_are_those_of_the_last_steps_and_else_of_now():
    made, rates = Two(), LearningRates()
    first, second = made.optimizers
    rates.begin(made)
    assert rates.state(made) == [[0.1], [0.25]]
    first.step()
    second.step()
    set_rate(first, 0.0)
    second.param_groups[0]["lr"].fill_(0.0)  # as schedulers do it
    assert rates.state(made) == [[0.1], [0.25]]
    rates.release()
    set_rate(first, 0.5)
    first.step()
    assert rates.state(made) == [[0.1], [0.25]]


def test_an_optimizer_within_another_counts_as_it():
    made, rates = Two(), LearningRates()
    inner = torch.optim.SGD([torch.ones(1, requires_grad=True)], 1.0)
    stranger = torch.optim.SGD([torch.ones(1, requires_grad=True)], 2.0)
    rates.begin(made)
    inner.param_groups = made.optimizers[0].param_groups
    set_rate(inner, 0.75)
    inner.step()
    stranger.step()
    set_rate(inner, 0.0)
    assert rates.state(made) == [[0.75], [0.25]]
    rates.release()


def test_rates_that_are_given_are_those_of_the_start():
    trained = {"state_dict": {}, "optimizer_states": [{"state": 1, "param_groups": [{"lr": 0.0}, {"lr": 0.0}, {}]}]}
    start = fine_tune({"state_dict": {}}, trained | {"learning_rates": [[0.5, 0.25, None]]})
    assert start["optimizer_states"] == [{"state": 1, "param_groups": [{"lr": 0.5}, {"lr": 0.25}, {}]}]
    tensor = {"state_dict": {}, "optimizer_states": [{"param_groups": [{"lr": torch.tensor(0.0)}]}]}
    rate = fine_tune({}, tensor | {"learning_rates": [[0.5]]})["optimizer_states"][0]["param_groups"][0]["lr"]
    assert torch.equal(rate, torch.tensor(0.5))
    assert fine_tune({}, tensor)["optimizer_states"] is tensor["optimizer_states"]
