"""What the rows of `matrix.py` train: modules, data, and the Trainers that fit them."""

from collections import OrderedDict, defaultdict
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelCheckpoint,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.utilities import CombinedLoader
from tiny import Tiny, data, loaders
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as adversarial
from torch.utils.data import DataLoader, IterableDataset

from lt_lightning.seeding import random_state, set_random_state

O = torch.optim  # noqa: E741
SCHEDULES = torch.optim.lr_scheduler


class Plain(Tiny):
    """Tiny without what draws random numbers, so that a reference sees the same."""

    def __init__(self, make_optimizer=None, make_schedule=None, interval="step", monitor=None):
        super().__init__()
        self.drop = nn.Identity()
        self.make_optimizer = make_optimizer or (lambda module: O.Adam(module.parameters(), 0.02))
        self.make_schedule, self.interval, self.monitor = make_schedule, interval, monitor

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self)
        if self.make_schedule is None:
            return optimizer
        plan = {"scheduler": self.make_schedule(optimizer), "interval": self.interval}
        return {"optimizer": optimizer, "lr_scheduler": plan | ({"monitor": self.monitor} if self.monitor else {})}

    def predict_step(self, batch, index):
        return self(batch[0])


class TwoOptimizers(Plain):
    """Manual optimization, one optimizer a layer, the second stepping twice as often."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first = O.Adam([*self.hidden.parameters(), *self.norm.parameters()], 0.02)
        return first, O.SGD(self.output.parameters(), 0.1, momentum=0.9)

    def training_step(self, batch, index):
        first, second = self.optimizers()
        for optimizer, repeats in ((first, 1), (second, 2)):
            for _ in range(repeats):
                loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
        self.log("train/loss", loss)


class Gan(L.LightningModule):
    """A generator from 4 to 8 numbers and a discriminator, each with its Adam; the noise is a function of the batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 8))
        self.discriminator = nn.Sequential(nn.Linear(8, 10), nn.LeakyReLU(0.2), nn.Linear(10, 1))

    def configure_optimizers(self):
        parts = (self.generator, self.discriminator)
        return [O.Adam(part.parameters(), 0.01, betas=(0.5, 0.999)) for part in parts], []

    def fake(self, batch):
        return self.generator(torch.sin(9 * batch[0][:, :4]))

    def says(self, examples, real):
        logits = self.discriminator(examples)
        return adversarial(logits, torch.full_like(logits, real))

    def training_step(self, batch, index):
        for optimizer, loss_of in zip(self.optimizers(), (self.generating, self.discriminating), strict=True):
            self.toggle_optimizer(optimizer)
            loss = loss_of(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log("train/loss", loss)

    def generating(self, batch):
        return self.says(self.fake(batch), 1.0)

    def discriminating(self, batch):
        return (self.says(batch[0], 1.0) + self.says(self.fake(batch).detach(), 0.0)) / 2

    def validation_step(self, batch, index):
        self.log("val/loss", self.generating(batch))


class Frozen(Plain):
    def __init__(self):
        super().__init__()
        self.hidden.weight.requires_grad_(False)


class FrozenAtTheEnd(Plain):
    def on_train_end(self):
        self.freeze()


class FrozenOnTheWay(Plain):
    """Whose first layer is frozen from epoch 1 on."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.hidden.requires_grad_(False)


class ThawedByItself(Plain):
    """Whose first layer joins the optimizer in epoch 1."""

    def configure_optimizers(self):
        return O.Adam([*self.norm.parameters(), *self.output.parameters()], 0.02)

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.optimizers().add_param_group({"params": list(self.hidden.parameters()), "lr": 0.01})


class BuiltInSetup(Plain):
    """Without a layer until the Trainer sets it up."""

    def __init__(self):
        super().__init__()
        del self.hidden, self.norm, self.output

    def setup(self, stage):
        if not hasattr(self, "hidden"):
            self.hidden, self.norm, self.output = nn.Linear(8, 12), nn.BatchNorm1d(12), nn.Linear(12, 3)


class HalfBuiltInSetup(Plain):
    """With a frozen layer that the Trainer's call adds to the others."""

    def setup(self, stage):
        if not isinstance(self.drop, nn.Linear):
            self.drop = nn.Linear(12, 12)
            self.hidden.requires_grad_(False)


class BuiltWhenConfigured(BuiltInSetup):
    def setup(self, stage):
        pass

    def configure_model(self):
        super().setup("fit")


class ByHand(Gan):
    """Whose discriminator is frozen while the generator trains, which comes last."""

    def training_step(self, batch, index):
        generator, discriminator = self.optimizers()
        for optimizer, loss_of in ((discriminator, self.discriminating), (generator, self.generating)):
            self.discriminator.requires_grad_(optimizer is discriminator)
            loss = loss_of(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss)


class WithoutOptimizer(Plain):
    """That takes its steps itself, as gradients come in."""

    def configure_optimizers(self):
        return None

    @torch.no_grad()
    def on_after_backward(self):
        for parameter in self.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None


class Backboned(Plain):
    """A backbone and a head, of which the optimizer has the head to begin with."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(self.hidden, self.norm)
        del self.hidden, self.norm

    def forward(self, x):
        return self.output(torch.relu(self.backbone(x)))

    def configure_optimizers(self):
        return O.Adam([each for each in self.parameters() if each.requires_grad], 0.02)


class Thaw(BaseFinetuning):
    """Thaws the backbone, and its statistics, in epoch 1."""

    def freeze_before_training(self, module):
        self.freeze(module.backbone, train_bn=False)

    def finetune_function(self, module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(module.backbone, optimizer, lr=0.01)


class Lookahead:
    """Slow weights every three steps (Zhang et al. 2019); torch's optimizers know nothing of it."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.defaults = inner, inner.param_groups, inner.defaults
        self.state = defaultdict(dict)

    def zero_grad(self, *arguments, **options):
        self.inner.zero_grad(*arguments, **options)

    @torch.no_grad()
    def step(self, closure=None):
        held = [each for group in self.param_groups for each in group["params"]]
        for each in held:
            self.state[each].setdefault("slow", each.clone())
        loss = self.inner.step(closure)
        self.taken = getattr(self, "taken", 0) + 1
        for each in held if self.taken % 3 == 0 else ():
            each.copy_(self.state[each]["slow"].lerp_(each, 0.5))
        return loss

    def state_dict(self):
        held = [each for group in self.param_groups for each in group["params"]]
        slow = {n: dict(self.state[each]) for n, each in enumerate(held) if each in self.state}
        return {"inner": self.inner.state_dict(), "slow": slow, "taken": getattr(self, "taken", 0)}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])
        self.param_groups, self.taken = self.inner.param_groups, state["taken"]
        held = [each for group in self.param_groups for each in group["params"]]
        self.state.update({held[n]: {"slow": each["slow"].clone()} for n, each in state["slow"].items()})


class LookaheadOfTorch(Lookahead, O.Optimizer):
    """An optimizer of torch by name; it never calls `Optimizer.__init__`."""


class LookaheadWithHooks(LookaheadOfTorch):
    """That has the hooks of a step, and never calls them, as timm's."""

    def __init__(self, inner):
        super().__init__(inner)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = OrderedDict(), OrderedDict()


class Drawing(Plain):
    """With dropout, and a validation that draws."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        torch.rand(3)


class Pair(Plain):
    """Of two batches at once, in a list or under names."""

    def training_step(self, batch, index):
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(super(Pair, self).training_step(part, index) for part in parts)


class Commanded(Plain):
    """Whose optimizer comes from a command line."""

    def __init__(self, width: int = 12):
        super().__init__()


def groups(module):
    decayed = [p for n, p in module.named_parameters() if n.endswith("weight")]
    others = [p for n, p in module.named_parameters() if not n.endswith("weight")]
    return O.SGD([{"params": decayed, "weight_decay": 0.1}, {"params": others, "lr": 0.01}], 0.1, momentum=0.9)


def muon(module):
    return O.Muon([module.hidden.weight, module.output.weight], 0.02)


def lookahead(kind, scheduled=False):
    make = partial(SCHEDULES.ExponentialLR, gamma=0.9) if scheduled else None
    return lambda: Plain(lambda module: kind(O.SGD(module.parameters(), 0.1, momentum=0.9)), make)


def optimizer(make, **options):
    return lambda: Plain(lambda module: make(module.parameters(), **options))


def schedule(make, interval="step", monitor=None, **options):
    return lambda: Plain(make_schedule=lambda o: make(o, **options), interval=interval, monitor=monitor)


def compiled_layer():
    module = Plain()
    module.hidden = torch.compile(module.hidden, backend="eager")
    return module


# The data


class Stream(IterableDataset):
    """The examples in their order, without a length."""

    def __iter__(self):
        return iter(data())


def in_order(**options):
    return loaders(shuffle=False, **options)


def streamed():
    return DataLoader(Stream(), 20), loaders()[1]


def listed():
    return [DataLoader(data(), 20), DataLoader(data(), 10)], loaders()[1]


def named():
    parts = {"a": DataLoader(data(), 20), "b": DataLoader(data(), 25)}
    return CombinedLoader(parts, "max_size_cycle"), loaders()[1]


# Who trains


def trainer(directory, callbacks, options):
    defaults = {"max_epochs": 3, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    checkpointing = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    settings = defaults | {"enable_model_summary": False, "enable_checkpointing": checkpointing} | options
    return L.Trainer(callbacks=callbacks, default_root_dir=directory, **settings)


def command_line():
    arguments = ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.logger=false", "--optimizer=SGD"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    momentum = ["--optimizer.lr=0.1", "--optimizer.momentum=0.9", "--lr_scheduler=StepLR", "--lr_scheduler.step_size=2"]
    saving = ["--trainer.enable_checkpointing=false", "--trainer.callbacks+=EMAWeightAveraging"]
    return LightningCLI(
        Commanded,
        run=False,
        args=[*arguments, *quiet, *momentum, *saving, "--trainer.callbacks.decay=0.8"],
        seed_everything_default=False,
        save_config_kwargs={"overwrite": True},
    )


cli: Any = None


def commanded_module():
    """Module, callbacks and optimizer of the command line, all new."""
    global cli
    if cli is None:
        before = random_state()
        cli = command_line()
        set_random_state(before)  # it makes a module of its own, and ours is to be the first of its seed
    cli.instantiate_classes()
    return cli.model


def commanded_trainer(directory, callbacks, options):
    made = cli.instantiate_trainer(default_root_dir=directory)
    made.callbacks.extend(callbacks)
    return made


def evaluate(fit, module, loader):
    fit.validate(module, loader, verbose=False)
    fit.test(module, loader, verbose=False)
    fit.predict(module, loader)
