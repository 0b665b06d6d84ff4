"""Every way that Lightning trains: two rounds under each setting, against a network masked by other means.

The reference is a fit without a ticket, from the same start, of a module that masks its gradients by tensor hooks and
its weights in `optimizer_step`. Steps, validations and checkpoints of the ticket's fits hold zeros under the masks.
"""

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from tiny import Tiny, loaders

from lt_lightning import lottery, one_shot
from lt_lightning.rundir import Checkpoint
from lt_lightning.ticketfile import read

pytestmark = pytest.mark.lightning_matrix


class Plain(Tiny):
    """Tiny without what draws random numbers, so that a reference sees the same."""

    def __init__(self, make_optimizer=None, make_schedule=None, interval="step", monitor=None):
        super().__init__()
        self.drop = torch.nn.Identity()
        self.make_optimizer = make_optimizer or (lambda module: torch.optim.Adam(module.parameters(), 0.02))
        self.make_schedule, self.interval, self.monitor = make_schedule, interval, monitor

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self)
        if self.make_schedule is None:
            return optimizer
        plan = {"scheduler": self.make_schedule(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": plan | ({"monitor": self.monitor} if self.monitor else {})}


class TwoOptimizers(Plain):
    """Manual optimization, one optimizer a layer, the second stepping twice as often."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first = torch.optim.Adam([*self.hidden.parameters(), *self.norm.parameters()], 0.02)
        return first, torch.optim.SGD(self.output.parameters(), 0.1, momentum=0.9)

    def training_step(self, batch, index):
        first, second = self.optimizers()
        for optimizer, repeats in ((first, 1), (second, 2)):
            for _ in range(repeats):
                loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
        self.log("train/loss", loss)


def groups(module):
    decayed = [p for n, p in module.named_parameters() if n.endswith("weight")]
    others = [p for n, p in module.named_parameters() if not n.endswith("weight")]
    return torch.optim.SGD(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.01}], 0.1, momentum=0.9
    )


def muon(module):
    matrices = [module.hidden.weight, module.output.weight]
    return torch.optim.Muon(matrices, 0.02)


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.hidden.weight.requires_grad_(False)


def optimizer(make, **options):
    return lambda: Plain(lambda module: make(module.parameters(), **options))


O = torch.optim  # noqa: E741
SCHEDULES = torch.optim.lr_scheduler
ROWS = {
    "adam": (Plain, {}),
    "accumulation": (Plain, {"accumulate_grad_batches": 2}),
    "accumulation with a rest": (Plain, {"accumulate_grad_batches": 3}),
    "clipping by norm": (Plain, {"gradient_clip_val": 0.05}),
    "clipping by value": (Plain, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": (Plain, {"precision": "bf16-mixed"}),
    "float64": (Plain, {"precision": "64-true"}),
    "two optimizers by hand": (TwoOptimizers, {}),
    "parameter groups": (lambda: Plain(groups), {"gradient_clip_val": 0.1}),
    "frozen parameters": (Frozen, {}),
    "sgd": (optimizer(O.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True), {}),
    "adamw": (optimizer(O.AdamW, lr=0.02, foreach=False), {}),
    "adamw fused": (optimizer(O.AdamW, lr=0.02, fused=True), {}),
    "adamw foreach": (optimizer(O.AdamW, lr=0.02, foreach=True), {}),
    "rmsprop": (optimizer(O.RMSprop, lr=0.01, momentum=0.5), {}),
    "muon": (lambda: Plain(muon), {}),
    "lbfgs": (optimizer(O.LBFGS, lr=0.1, max_iter=3), {}),
    "schedule by step": (lambda: Plain(make_schedule=lambda o: SCHEDULES.StepLR(o, 3, 0.5)), {}),
    "schedule by epoch": (lambda: Plain(make_schedule=lambda o: SCHEDULES.ExponentialLR(o, 0.3), interval="epoch"), {}),
    "schedule by plateau": (
        lambda: Plain(
            make_schedule=lambda o: SCHEDULES.ReduceLROnPlateau(o, patience=0, factor=0.1, threshold=0.5),
            interval="epoch",
            monitor="val/loss",
        ),
        {"max_epochs": 5},
    ),
    "compiled layer": (lambda: compiled_layer(), {}),
    "validation within epochs": (Plain, {"val_check_interval": 2}),
    "validation by fraction": (Plain, {"val_check_interval": 0.5}),
    "limited batches": (Plain, {"limit_train_batches": 3, "limit_val_batches": 1}),
    "limited by fraction": (Plain, {"limit_train_batches": 0.5}),
    "steps": (Plain, {"max_steps": 7, "max_epochs": -1}),
    "time": (Plain, {"max_time": "00:00:05:00"}),
    "overfitting": (Plain, {"overfit_batches": 2}),
    "no sanity check": (Plain, {"num_sanity_val_steps": 0}),
}
CALLBACKS = {
    "early stopping": lambda: [EarlyStopping("val/loss", patience=0, min_delta=0.2)],
    "checkpoints": lambda: [ModelCheckpoint(monitor="val/loss", save_top_k=2, save_last=True)],
    "averaging": lambda: [EMAWeightAveraging(decay=0.8)],
    "stochastic averaging": lambda: [StochasticWeightAveraging(0.05, swa_epoch_start=1)],
    "several": lambda: [ModelCheckpoint(monitor="val/loss"), EMAWeightAveraging(decay=0.5), EarlyStopping("val/loss")],
}


def compiled_layer():
    module = Plain()
    module.hidden = torch.compile(module.hidden, backend="eager")
    return module


class Watch(L.Callback):
    """Looks under the masks at every step and validation, and keeps the trajectory."""

    def __init__(self, masks):
        self.masks, self.looks, self.losses = masks, 0, []

    def look(self, module):
        for name, mask in self.masks.items():
            assert not parameter(module, name).detach()[~mask].any(), name
        self.looks += 1

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.look(module)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_start(self, trainer, module):
        self.look(module)

    def on_validation_end(self, trainer, module):
        self.look(module)


def parameter(module, name):
    return next(p for n, p in module.named_parameters() if n.replace("_orig_mod.", "") == name)


def masked(module, masks):
    """The module, holding itself to the masks by hooks of its own."""
    held = {name: parameter(module, name) for name in masks}
    for name, weight in held.items():
        weight.data.mul_(masks[name])
        if weight.requires_grad:
            weight.register_hook(lambda gradient, mask=masks[name]: gradient * mask)

    class Masked(type(module)):
        def optimizer_step(self, *arguments, **options):
            super().optimizer_step(*arguments, **options)
            for name, weight in held.items():
                weight.data.mul_(masks[name])

    module.__class__ = Masked
    return module


def trainer(directory, callbacks, options):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = defaults | {"enable_model_summary": False, "enable_checkpointing": checkpointing} | options
    return L.Trainer(callbacks=callbacks, default_root_dir=directory, **settings)


def play(directory, make_module, options, make_callbacks=lambda: [], after=False):
    """Two rounds; what the ticket's fit looked like from within, and its masks."""
    for ticket in lottery(
        make_module, rounds=1, directory=directory, schedule=one_shot(0.4), monitor=None, keep_last=True
    ):
        watch = Watch(ticket.masks)
        others = make_callbacks()
        callbacks = [watch, ticket, *others] if after else [*others, watch, ticket]
        fit = trainer(ticket.directory, callbacks, options)
        fit.fit(ticket.model, *loaders(shuffle=False), ckpt_path=ticket.ckpt_path)
    return watch, fit, ticket


def assert_zeros_everywhere(directory, masks):
    checkpoints = [*directory.glob("round-01/*.ckpt"), *directory.glob("round-01/checkpoints/*.ckpt")]
    assert len(checkpoints) >= 2
    for path in checkpoints:
        content = torch.load(path, weights_only=False)
        for key in ("state_dict", "current_model_state"):
            state = {n.replace("_orig_mod.", ""): v for n, v in content.get(key, {}).items()}
            for name in masks.keys() & state.keys():
                assert not state[name][~masks[name]].any(), (path, key, name)


@pytest.mark.parametrize("row", ROWS)
def test_a_ticket_trains_as_a_network_masked_by_other_means(tmp_path, row):
    make_module, options = ROWS[row]
    watch, fit, ticket = play(tmp_path / "ours", make_module, options)
    point = Checkpoint(tmp_path / "ours" / "points" / "step-0.ckpt")
    module = make_module()
    module.load_state_dict(point["state_dict"])
    reference, seen = masked(module, ticket.masks), Watch(ticket.masks)
    alone = trainer(tmp_path / "theirs", [seen], options)
    alone.fit(reference, *loaders(shuffle=False))
    assert (fit.global_step, watch.looks) == (alone.global_step, seen.looks)
    assert watch.losses == pytest.approx(seen.losses, rel=1e-5)
    for name, value in ticket.model.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], rtol=1e-4, atol=1e-6), name
    assert_zeros_everywhere(tmp_path / "ours", ticket.masks)


@pytest.mark.parametrize("after", [False, True], ids=["before the ticket", "after the ticket"])
@pytest.mark.parametrize("row", CALLBACKS)
def test_other_callbacks_leave_the_masks_alone_wherever_they_stand(tmp_path, row, after):
    options = {"max_epochs": 4, "val_check_interval": 2}
    watch, _, ticket = play(tmp_path, Plain, options, CALLBACKS[row], after)
    assert watch.looks > 6
    assert_zeros_everywhere(tmp_path, ticket.masks)
    assert read(tmp_path / "round-01" / "ticket.safetensors").masks.keys() == ticket.masks.keys()


def test_the_order_of_callbacks_does_not_change_the_result(tmp_path):
    results = []
    for after in (False, True):
        play(tmp_path / str(after), Plain, {}, CALLBACKS["averaging"], after)
        results.append(Checkpoint(tmp_path / str(after) / "round-01" / "final.ckpt")["state_dict"])
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name])


def test_a_learning_rate_monitor_and_its_logger_work(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    options = {"logger": CSVLogger(tmp_path / "logs"), "log_every_n_steps": 1}
    for ticket in lottery(Plain, rounds=0, directory=tmp_path / "run", monitor=None):
        fit = trainer(ticket.directory, [LearningRateMonitor(), ticket], options)
        fit.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    assert "lr-Adam" in (tmp_path / "logs" / "lightning_logs" / "version_0" / "metrics.csv").read_text()
