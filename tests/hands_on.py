"""Modules that look at gradients or write weights themselves, in ways that people do.

Rows of `matrix.py`, and what `test_zeros.py` and `test_mutations.py` watch.
"""

import copy

import lightning as L
import torch
from tiny import Tiny, loaders, trainer
from torch import nn
from torch.nn.utils import clip_grad_norm_

from lt_lightning import lottery, one_shot

NORM = 0.05


class Plain(Tiny):
    """Tiny without what draws random numbers, and with SGD."""

    def __init__(self, automatic=True):
        super().__init__(schedule=False)
        self.drop = nn.Identity()
        self.automatic_optimization = automatic

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=0.01)

    def loss(self, batch):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss


class ByHand(Plain):
    """Manual optimization that clips with Lightning's function, and notes the norm that the step sees."""

    def __init__(self):
        super().__init__(automatic=False)
        self.norms = []

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.clip(optimizer)
        optimizer.step()

    def clip(self, optimizer):
        self.clip_gradients(optimizer, NORM, "norm")


class RawOptimizer(ByHand):
    """Manual optimization with the optimizer itself, past all hooks of Lightning."""

    def training_step(self, batch, index):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        gradients = torch.autograd.grad(self.loss(batch), list(self.parameters()))
        for parameter, gradient in zip(self.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()


class AfterBackward(Plain):
    def on_after_backward(self):
        clip_grad_norm_(self.parameters(), NORM)


class InBackward(Plain):
    def backward(self, loss, *arguments, **options):
        super().backward(loss, *arguments, **options)
        clip_grad_norm_(self.parameters(), NORM)


class InClosure(Plain):
    def optimizer_step(self, epoch, index, optimizer, closure):
        def clipped():
            loss = closure()
            clip_grad_norm_(self.parameters(), NORM)
            return loss

        optimizer.step(clipped)


class Clipper(L.Callback):
    """A callback that clips."""

    def on_after_backward(self, trainer, module):
        clip_grad_norm_(module.parameters(), NORM)


class Remembers(Plain):
    """Scales the loss by the norm of the last step's gradients, which it reads in `training_step`."""

    def training_step(self, batch, index):
        loss = self.loss(batch)
        last = [each.grad.norm() for each in self.parameters() if each.grad is not None]
        return loss * (1 + torch.stack(last).norm()) if last else loss


class Sam(torch.optim.Optimizer):
    """Sharpness-aware minimization: to the worst point nearby, and from there back and down.

    Source: Foret et al. 2021 (arXiv 2010.01412), algorithm 1.
    """

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})
        self.base = torch.optim.SGD(self.param_groups, lr)

    @torch.no_grad()
    def first_step(self):
        held = [each for group in self.param_groups for each in group["params"]]
        norm = torch.stack([each.grad.norm() for each in held]).norm()
        for each in held:
            self.state[each]["away"] = 0.05 * each.grad / (norm + 1e-12)
            each.add_(self.state[each]["away"])

    @torch.no_grad()
    def second_step(self):
        for each in (each for group in self.param_groups for each in group["params"]):
            each.sub_(self.state[each]["away"])
        self.base.step()


class SamByHand(Plain):
    def __init__(self):
        super().__init__(automatic=False)

    def configure_optimizers(self):
        return Sam(self.parameters(), 0.1)

    def training_step(self, batch, index):
        optimizer = self.optimizers(use_pl_optimizer=False)
        for step in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.manual_backward(loss)
            step()
        self.log("train/loss", loss)


class SamStep(Plain):
    def configure_optimizers(self):
        return Sam(self.parameters(), 0.1)

    def optimizer_step(self, epoch, index, optimizer, closure):
        for step in (optimizer.first_step, optimizer.second_step):
            closure()
            step()


class HandMade:
    """An optimizer that is none of torch's: it has the methods, and no hooks."""

    def __init__(self, parameters, lr):
        self.param_groups = [{"params": list(parameters), "lr": lr}]
        self.state, self.defaults = {}, {}

    def zero_grad(self, set_to_none=True):
        for each in self.param_groups[0]["params"]:
            each.grad = None

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for each in self.param_groups[0]["params"]:
            each.sub_(each.grad + 0.01 * torch.sign(each.grad.mean()), alpha=self.param_groups[0]["lr"])
        return loss

    def state_dict(self):
        return {"state": {}, "param_groups": [{"lr": self.param_groups[0]["lr"], "params": []}]}

    def load_state_dict(self, state):
        self.param_groups[0]["lr"] = state["param_groups"][0]["lr"]


class MadeAnew(Plain):
    """Makes its optimizers anew in the second epoch."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.trainer.strategy.setup_optimizers(self.trainer)


class Replaced(Plain):
    """Gives the Trainer another optimizer in the second epoch, one that mixes the weights of a layer."""

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            weights = [self.hidden.weight, self.output.weight]
            self.trainer.optimizers = [torch.optim.Muon(weights, 0.02)]


class Target(Plain):
    """A target network that follows the trained one, written in `training_step`, before it is asked."""

    def __init__(self):
        super().__init__()
        self.target = copy.deepcopy(self.hidden)

    def configure_optimizers(self):
        trained = [*self.hidden.parameters(), *self.norm.parameters(), *self.output.parameters()]
        return torch.optim.SGD(trained, 0.1)

    def training_step(self, batch, index):
        with torch.no_grad():
            for one, other in zip(self.target.parameters(), self.hidden.parameters(), strict=True):
                self.write(one, other)
            wanted = self.target(batch[0])
        loss = self.loss(batch) + (self.hidden(batch[0]) - wanted).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def write(self, one, other):
        one.lerp_(other, 0.3)


class DataTarget(Target):
    """As above, where torch does not count the writes."""

    def write(self, one, other):
        one.data.lerp_(other.data, 0.3)


class AtStart(Plain):
    """Draws its first layer when training starts."""

    def on_train_start(self):
        draws = torch.Generator().manual_seed(4)
        with torch.no_grad():
            self.hidden.weight.copy_(torch.randn(self.hidden.weight.shape, generator=draws))


class RowNorms(Plain):
    """A penalty whose gradient is NaN in rows of zeros: the root has no slope there."""

    def training_step(self, batch, index):
        loss = self.loss(batch) + 1e-3 * self.hidden.weight.pow(2).sum(1).sqrt().sum()
        self.log("train/loss", loss)
        return loss


class Forwards(L.Callback):
    """The largest pruned weight that a forward pass of a linear layer sees, at any time of a round."""

    def __init__(self, masks):
        self.masks, self.largest, self.calls = dict(masks), 0.0, 0

    def on_fit_start(self, trainer, module):
        for name, mask in self.masks.items():
            layer = module.get_submodule(name.rpartition(".")[0])
            layer.register_forward_pre_hook(lambda layer, _, mask=mask: self.look(layer.weight.detach(), mask))

    def look(self, weight, mask):
        self.calls += 1
        pruned = torch.where(mask, 0.0, weight).abs()
        self.largest = max(self.largest, float(pruned.max())) if pruned.isfinite().all() else float("inf")


def watched(directory, model, callbacks=(), density=0.4, **options):
    """A dense and a pruned round; the watch and the ticket of the second."""
    for ticket in lottery(model, rounds=1, schedule=one_shot(density), directory=directory, monitor=None, **options):
        watch = Forwards(ticket.masks)
        fit = trainer(ticket, [watch, *callbacks], max_epochs=2)
        fit.fit(ticket.model, *loaders(shuffle=False), ckpt_path=ticket.ckpt_path)
    return watch, ticket


class RowMeans(Plain):
    """Subtracts each row's mean after a step."""

    def on_train_batch_end(self, *_):
        with torch.no_grad():
            self.hidden.weight -= self.hidden.weight.mean(1, keepdim=True) - 1e-3


class Restored(Plain):
    """Loads other weights at the start of every epoch."""

    def on_train_epoch_start(self):
        draws = torch.Generator().manual_seed(self.current_epoch)
        shape = self.hidden.weight.shape
        self.hidden.load_state_dict({**self.hidden.state_dict(), "weight": torch.randn(shape, generator=draws)})


class OtherTensor(Plain):
    """Puts another tensor under the parameter after every epoch."""

    def on_train_epoch_start(self):
        self.hidden.weight.data = self.hidden.weight.data + 0.1


class WithHandMade(Plain):
    def configure_optimizers(self):
        return HandMade(self.parameters(), 0.1)


class Callbacks(L.Callback):
    def on_train_batch_start(self, trainer, module, *_):
        with torch.no_grad():
            module.output.weight.add_(0.01)


WRITERS = {
    "row means": (RowMeans, []),
    "another layer's weights": (Restored, []),
    "another tensor": (OtherTensor, []),
    "an optimizer that is none of torch's": (WithHandMade, []),
    "another callback": (Plain, [Callbacks()]),
    "a target network": (Target, []),
    "a target network, uncounted": (DataTarget, []),
    "optimizers made anew": (MadeAnew, []),
    "sharpness-aware steps": (SamByHand, []),
    "a start that writes": (AtStart, []),
    "lookahead": (lambda: WithLookahead(), []),
    "gradients that are not numbers": (RowNorms, []),
}


class Uncounted(Plain):
    """Writes where torch does not count, in every step."""

    def on_train_batch_end(self, *_):
        self.hidden.weight.data.add_(0.01)


class InFit(Plain):
    """Writes just before a validation, where torch does not count."""

    def on_train_batch_end(self, outputs, batch, index):
        if self.trainer.is_last_batch:
            self.hidden.weight.data.fill_(0.5)


class Functional(Plain):
    """Reads a weight without a call of its layer, and writes it before."""

    def forward(self, x):
        with torch.no_grad():
            self.hidden.weight.add_(0.01)
        hidden = nn.functional.linear(x, self.hidden.weight, self.hidden.bias)
        return self.output(torch.relu(self.norm(hidden)))


class NowAndThen(Plain):
    """Writes every third step, where torch does not count."""

    def on_train_batch_start(self, batch, index):
        if index % 3 == 2:
            self.hidden.weight.data.add_(0.02)


def go_back(slow, parameters):
    """Move slow weights halfway, and the trained ones to them, where torch does not count."""
    for one, other in zip(slow, parameters, strict=True):
        one.lerp_(other.detach(), 0.5)
        other.data.copy_(one)


class Lookahead(torch.optim.SGD):
    """Goes back to slow weights every fifth step; they were copied before any mask."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr)
        self.slow = [each.detach().clone() for each in self.param_groups[0]["params"]]
        self.taken = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.taken += 1
        if self.taken % 5 == 0:
            go_back(self.slow, self.param_groups[0]["params"])
        return loss


class WithLookahead(Plain):
    def configure_optimizers(self):
        return Lookahead(self.parameters(), 0.1)


class Wrapper(torch.optim.Optimizer):
    """The same as a wrapper that never calls `Optimizer.__init__`, so that nobody hears of its steps."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state
        self.defaults = inner.defaults
        self.slow = [each.detach().clone() for each in inner.param_groups[0]["params"]]
        self.taken = 0

    def step(self, closure=None):
        loss = self.inner.step(closure)
        self.taken += 1
        if self.taken % 5 == 0:
            go_back(self.slow, self.param_groups[0]["params"])
        return loss

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state):
        self.inner.load_state_dict(state)


class WithWrapper(Plain):
    def configure_optimizers(self):
        return Wrapper(torch.optim.SGD(self.parameters(), 0.1))


class Averages(Plain):
    """Validates an average that began before any mask."""

    def setup(self, stage):
        self.averages = [each.detach().clone() for each in self.parameters()]

    def on_validation_epoch_start(self):
        self.kept = [each.detach().clone() for each in self.parameters()]
        for one, other in zip(self.parameters(), self.averages, strict=True):
            one.data.copy_(other)

    def on_validation_epoch_end(self):
        for one, other in zip(self.parameters(), self.kept, strict=True):
            one.data.copy_(other)


class FunctionalInStep(Functional):
    """As above, but written in the training step alone, so that the mask after the step hides it."""

    def training_step(self, batch, index):
        with torch.no_grad():
            self.hidden.weight.add_(0.05)
        return self.loss(batch)

    def forward(self, x):
        hidden = nn.functional.linear(x, self.hidden.weight, self.hidden.bias)
        return self.output(torch.relu(self.norm(hidden)))


class BesideCompiled(Plain):
    """Writes a plain layer beside a compiled one, in the training step."""

    def __init__(self):
        super().__init__()
        self.output = torch.compile(self.output, backend="eager")

    def training_step(self, batch, index):
        with torch.no_grad():
            self.hidden.weight.add_(0.05)
        return self.loss(batch)


class SavesAverages(Plain):
    """Saves other weights than its own."""

    def on_save_checkpoint(self, checkpoint):
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: torch.ones_like(value) for name, value in state.items()}


class AssignsScaled(Plain):
    """Manual optimization with gradients that no parameter accumulates, scaled to a norm."""

    def __init__(self):
        super().__init__(automatic=False)
        self.usable = []

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        parameters = list(self.parameters())
        gradients = torch.autograd.grad(self.loss(batch), parameters)
        norm = torch.stack([each.norm() for each in gradients]).norm()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient * (NORM / norm)
        optimizer.step()
        self.usable.append(float(torch.stack([each.grad.norm() for each in parameters]).norm()))


class LateHook(Plain):
    """Lets a hook scale a gradient to a norm, from the first batch on."""

    def on_train_batch_start(self, batch, index):
        if self.global_step == 0:
            self.hidden.weight.register_hook(lambda gradient: gradient * (NORM / gradient.norm()))

    def on_before_zero_grad(self, optimizer):
        if self.hidden.weight.grad is not None:
            self.usable = [*getattr(self, "usable", []), float(self.hidden.weight.grad.norm())]


def norms_of(module):
    return [float(getattr(each, "grad").norm()) for each in module.parameters()]  # noqa: B009


class Reader(L.Callback):
    """Reads gradients after a step, through a function."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, *_):
        self.seen.append(norms_of(module))
        self.gradient = module.hidden.weight.grad.clone()
