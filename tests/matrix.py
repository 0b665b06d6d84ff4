"""Every way that Lightning trains, one row each, and how a row is checked.

A row is trained for two rounds by the ticket, and again by a reference that knows nothing of tickets: a dense fit from
the same weights, a selection of its own, and a fit of a module that masks its gradients by tensor hooks and its weights
in `optimizer_step`.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hands_on
import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from trained import (
    SCHEDULES,
    Backboned,
    BuiltInSetup,
    BuiltWhenConfigured,
    ByHand,
    Drawing,
    Frozen,
    FrozenAtTheEnd,
    FrozenOnTheWay,
    Gan,
    HalfBuiltInSetup,
    Lookahead,
    LookaheadOfTorch,
    LookaheadWithHooks,
    O,
    Pair,
    Plain,
    Thaw,
    ThawedByItself,
    TwoOptimizers,
    WithoutOptimizer,
    commanded_module,
    commanded_trainer,
    compiled_layer,
    evaluate,
    groups,
    in_order,
    listed,
    lookahead,
    muon,
    named,
    optimizer,
    schedule,
    streamed,
    trainer,
)

import lt_lightning
from lt_lightning import lottery, one_shot
from lt_lightning.disk.rundir import Checkpoint, model_state
from lt_lightning.records import read_records
from lt_lightning.seeding import derive, random_state, seed_all, set_random_state

DENSITY = 0.4


# The table


@dataclass(frozen=True)
class Row:
    """One way to train.

    Args:
        make_module: makes the module.
        options: of the Trainer.
        make_callbacks: makes the callbacks beside the ticket.
        make_loaders: makes the loaders for training and validation.
        make_trainer: makes a Trainer from a directory, callbacks and options.
        around: is called with Trainer, module and validation loader, before and after the fit.
        rewind_step: of the lottery.
        build: makes layers that the module lacks until a Trainer sets it up, for the reference.
        seeds: makes the callbacks that give the reference the random numbers of the ticket.
        folder: of the run directory in which the files are.
        stop: (epoch, batch) at which a fit is interrupted; None: it cannot go on.
        arguments: of the lottery.
        kept: how many weights are kept, where a method keeps whole groups; 0: as many as the density says.
        stop_rounds: the rounds that are killed.
        telling: whether it is interrupted by default too, not only among the slow tests.
        seldom: whether it is trained among the slow tests alone.
        needs: a device that the row cannot do without.
    """

    make_module: Callable[[], L.LightningModule] = Plain
    options: dict[str, Any] = field(default_factory=dict)
    make_callbacks: Callable[[], list[L.Callback]] = list
    make_loaders: Callable[[], tuple[Any, Any]] = in_order
    make_trainer: Callable[..., L.Trainer] = trainer
    around: Callable[..., None] = lambda *_: None
    rewind_step: int = 0
    build: Callable[[Any], None] = lambda _: None
    seeds: Callable[[], list[L.Callback]] = list
    folder: str = ""
    stop: tuple[int, int] | None = (1, 1)
    arguments: dict[str, Any] = field(default_factory=dict)
    kept: int = 0
    stop_rounds: tuple[int, ...] = (0, 1)
    telling: bool = False
    seldom: bool = False
    needs: str = ""


OFTEN = {"max_epochs": 4, "val_check_interval": 2}

ROWS = {
    "adam": Row(),
    "accumulation": Row(options={"accumulate_grad_batches": 2}, telling=True),
    "accumulation with a rest": Row(options={"accumulate_grad_batches": 3}),
    "clipping by norm": Row(options={"gradient_clip_val": 0.05}, telling=True),
    "clipping by value": Row(options={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "bf16-mixed": Row(options={"precision": "bf16-mixed"}),
    "16-mixed": Row(options={"precision": "16-mixed", "accelerator": "gpu", "devices": 1}, needs="cuda"),
    "float64": Row(options={"precision": "64-true"}),
    "two optimizers by hand": Row(TwoOptimizers),
    "gan": Row(Gan, telling=True),
    "parameter groups": Row(lambda: Plain(groups), {"gradient_clip_val": 0.1}),
    "frozen parameters": Row(Frozen),
    "frozen at the end": Row(FrozenAtTheEnd),
    "frozen in epoch 1": Row(FrozenOnTheWay, stop=(2, 1), telling=True, seldom=True),
    "frozen in epoch 1, rewound after it": Row(FrozenOnTheWay, rewind_step=7, stop=(2, 1), seldom=True),
    "thawed by itself": Row(ThawedByItself, seldom=True),
    "thawed by itself, rewound after it": Row(ThawedByItself, rewind_step=7, stop=(2, 1), seldom=True),
    "discriminator frozen by hand": Row(ByHand),
    "built in setup": Row(BuiltInSetup, build=lambda module: module.setup("fit")),
    "half built in setup": Row(HalfBuiltInSetup, build=lambda module: module.setup("fit"), seldom=True),
    "built when configured": Row(BuiltWhenConfigured, build=lambda module: module.configure_model(), seldom=True),
    "finetuning": Row(Backboned, make_callbacks=lambda: [Thaw()], seldom=True),
    "finetuning, rewound after the thaw": Row(
        Backboned, make_callbacks=lambda: [Thaw()], rewind_step=7, stop=(2, 1), telling=True
    ),
    "backbone finetuning": Row(
        Backboned, OFTEN, make_callbacks=lambda: [BackboneFinetuning(1)], rewind_step=7, stop=(2, 1), seldom=True
    ),
    "backbone finetuning from step 0": Row(
        Backboned, {"max_epochs": 4}, make_callbacks=lambda: [BackboneFinetuning(2)], stop=(3, 1), seldom=True
    ),
    "no optimizer": Row(WithoutOptimizer),
    "lookahead": Row(lookahead(Lookahead), seldom=True),
    "lookahead of torch": Row(lookahead(LookaheadOfTorch, scheduled=True), seldom=True),
    "lookahead with hooks": Row(lookahead(LookaheadWithHooks, scheduled=True), rewind_step=7, stop=(2, 1)),
    "sgd": Row(optimizer(O.SGD, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)),
    "adamw": Row(optimizer(O.AdamW, lr=0.02, foreach=False)),
    "adamw fused": Row(optimizer(O.AdamW, lr=0.02, fused=True)),
    "adamw foreach": Row(optimizer(O.AdamW, lr=0.02, foreach=True)),
    "rmsprop": Row(optimizer(O.RMSprop, lr=0.01, momentum=0.5)),
    "muon": Row(lambda: Plain(muon)),
    "lbfgs": Row(optimizer(O.LBFGS, lr=0.1, max_iter=3)),
    "schedule by step": Row(schedule(SCHEDULES.StepLR, step_size=3, gamma=0.5)),
    "schedule by epoch": Row(schedule(SCHEDULES.ExponentialLR, "epoch", gamma=0.3), telling=True),
    "schedule by plateau": Row(
        schedule(SCHEDULES.ReduceLROnPlateau, "epoch", "val/loss", patience=0, factor=0.1, threshold=0.5),
        {"max_epochs": 5},
        telling=True,
    ),
    "compiled layer": Row(compiled_layer),
    "clipping by hand": Row(hands_on.ByHand, telling=True),
    "gradients by hand": Row(hands_on.RawOptimizer),
    "clipping after backward": Row(hands_on.AfterBackward),
    "clipping in backward": Row(hands_on.InBackward),
    "clipping in a closure": Row(hands_on.InClosure),
    "clipping by a callback": Row(hands_on.Plain, make_callbacks=lambda: [hands_on.Clipper()]),
    "gradients read in the next step": Row(hands_on.Remembers),
    "sam by hand": Row(hands_on.SamByHand, telling=True),
    "sam in optimizer_step": Row(hands_on.SamStep),
    "optimizers made anew": Row(hands_on.MadeAnew, telling=True),
    "optimizers replaced": Row(hands_on.Replaced, stop=(0, 1)),
    "target network": Row(hands_on.Target, telling=True),
    "target network, uncounted writes": Row(hands_on.DataTarget),
    "weights drawn at the start": Row(hands_on.AtStart, telling=True),
    "validation within epochs": Row(options={"val_check_interval": 2}, telling=True),
    "validation by fraction": Row(options={"val_check_interval": 0.5}),
    "limited batches": Row(options={"limit_train_batches": 3, "limit_val_batches": 1}),
    "limited by fraction": Row(options={"limit_train_batches": 0.5}, stop=(1, 0)),
    "max_steps": Row(options={"max_steps": 8, "max_epochs": -1}, telling=True),
    "max_time": Row(options={"max_time": "00:00:05:00"}),
    "fast_dev_run": Row(options={"fast_dev_run": 2}, folder="fast_dev_run", stop=None),
    "overfitting": Row(options={"overfit_batches": 2}, stop=(1, 0)),
    "no sanity check": Row(options={"num_sanity_val_steps": 0}),
    "evaluation in the loop": Row(around=evaluate, telling=True),
    "workers": Row(make_loaders=partial(in_order, workers=2)),
    "iterable": Row(make_loaders=streamed, telling=True),
    "list of loaders": Row(Pair, make_loaders=listed),
    "combined loaders": Row(Pair, make_loaders=named),
    "command line": Row(commanded_module, make_trainer=commanded_trainer, telling=True),
    "late rewinding": Row(rewind_step=7, stop=(2, 1)),
    "late rewinding with random numbers": Row(
        Drawing, {"val_check_interval": 1}, rewind_step=7, seeds=lambda: [Seeds()], stop=(2, 1), telling=True
    ),
    "early stopping": Row(
        options={"max_epochs": 4}, make_callbacks=lambda: [EarlyStopping("val/loss", patience=0, min_delta=0.2)]
    ),
    "checkpoints": Row(
        options=OFTEN, make_callbacks=lambda: [ModelCheckpoint(monitor="val/loss", save_top_k=2, save_last=True)]
    ),
    "averaging": Row(options=OFTEN, make_callbacks=lambda: [EMAWeightAveraging(decay=0.8)], telling=True),
    "stochastic averaging": Row(
        options=OFTEN, make_callbacks=lambda: [StochasticWeightAveraging(0.05, swa_epoch_start=1)], stop=(2, 1)
    ),
    "several": Row(
        options=OFTEN,
        make_callbacks=lambda: [
            ModelCheckpoint(monitor="val/loss"),
            EMAWeightAveraging(decay=0.5),
            EarlyStopping("val/loss"),
        ],
    ),
}


METHODS = {
    "learning-rate rewinding": Row(arguments={"rewind": lt_lightning.keep_weights}),
    "fine-tuning": Row(
        schedule(SCHEDULES.StepLR, step_size=3, gamma=0.5), arguments={"rewind": lt_lightning.fine_tune}
    ),
    "fresh weights": Row(arguments={"rewind": lt_lightning.redraw}),
    "signed constants": Row(arguments={"rewind": lt_lightning.rewinds.signed_constant}),
    "a fresh optimizer": Row(
        arguments={"rewind": partial(lt_lightning.to_point, rewind_optimizer=False)}, rewind_step=7, stop=(2, 1)
    ),
    "movement": Row(arguments={"criterion": lt_lightning.movement}),
    "layer by layer": Row(arguments={"scope": lt_lightning.layerwise}, kept=38 + 14),
    "by channels": Row(arguments={"scope": lt_lightning.channels}, kept=52),
    "gradual": Row(arguments={"gradual": lt_lightning.cubically(end=0.7)}, telling=True),
    "gradual by steps": Row(arguments={"gradual": lt_lightning.linearly(end=0.9), "gradual_every": "2 steps"}),
    "early bird": Row(arguments={"early_bird": lt_lightning.settled(1e-9, epochs=9)}),
    "snip": Row(arguments={"criterion": lt_lightning.snip, "dense": False}, stop_rounds=(1,)),
    "grasp": Row(arguments={"criterion": lt_lightning.grasp, "dense": False}, stop_rounds=(1,)),
    "synflow": Row(
        arguments={"criterion": partial(lt_lightning.synflow, iterations=5), "dense": False}, stop_rounds=(1,)
    ),
    "late rewinding without a dense round": Row(
        arguments={"dense": False}, rewind_step=7, stop=(2, 1), stop_rounds=(1,)
    ),
    "sparse kernels": Row(optimizer(O.SGD, lr=0.1), arguments={"sparse": 1.0}),
    "several steps at once": Row(arguments={"steps_per_batch": 3}, telling=True),
    "a control": Row(arguments={"controls": ["reinit", "random_mask"]}),
}
"""Ways to prune and to rewind, killed and resumed as the rows above are."""


# The ticket's two rounds


class Ending(L.Callback):
    """Kills its own process at a batch of an epoch."""

    def __init__(self, stop):
        self.stop = stop

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (trainer.current_epoch, index) == self.stop:
            os.kill(os.getpid(), signal.SIGKILL)


class Watch(L.Callback):
    """Looks under the masks at every step and validation, and keeps the trajectory."""

    def __init__(self, masks, since=0):
        self.masks, self.since, self.looks, self.losses = masks, since, 0, []

    def look(self, module):
        if module.trainer.global_step <= self.since > 0:
            return
        for name, mask in self.masks.items():
            weight = parameter(module, name).detach().cpu()
            assert weight.dim() < mask.dim() or not weight[~mask].any(), name  # less: a list of kept weights
        self.looks += 1

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.look(module)
        self.losses.append(float(trainer.callback_metrics["train/loss"]))

    def on_validation_start(self, trainer, module):
        if trainer.state.fn == "fit" or trainer.global_step > 0:  # before the fit a fresh model is dense
            self.look(module)

    on_validation_end = on_test_end = on_predict_end = on_validation_start


def parameter(module, name):
    return next(p for n, p in module.named_parameters() if n.replace("_orig_mod.", "") == name)


def fit(row, made, module, **options):
    train, validation = row.make_loaders()
    row.around(made, module, validation)
    made.fit(module, train, validation, **options)
    row.around(made, module, validation)


def play(directory, row, after=False, stop_round=None):
    """Two rounds: each round's watch and ticket, by round."""
    played = []
    arguments = {"schedule": one_shot(DENSITY), "monitor": None, "keep_last": True, "rewind_step": row.rewind_step}
    arguments |= {"every": "1 epoch"} | row.arguments
    for ticket in lottery(row.make_module, rounds=1, directory=directory, **arguments):
        watch, others = Watch(ticket.masks if ticket.round else {}), row.make_callbacks()
        if ticket.round == stop_round:
            others = [Ending(row.stop), *others]
        callbacks = [watch, ticket, *others] if after else [*others, watch, ticket]
        made = row.make_trainer(ticket.directory, callbacks, row.options)
        fit(row, made, ticket.model, ckpt_path=ticket.ckpt_path)
        played.append((watch, ticket))
    return played


# The reference


def masked(module, masks, since=0):
    """The module, holding itself to the masks by hooks of its own, from a step on.

    Late rewinding comes back to the dense network of that step, so its reference is dense until then.
    """
    held = {name: parameter(module, name) for name in masks}
    on = {name: mask.clone().fill_(True) for name, mask in masks.items()} if since else dict(masks)

    def hold():
        for name, weight in held.items():
            weight.data.mul_(on[name].to(weight.device))

    hold()
    for name, weight in held.items():
        trains = weight.requires_grad
        weight.requires_grad_().register_hook(lambda gradient, name=name: gradient * on[name].to(gradient.device))
        weight.requires_grad_(trains)

    class Masked(type(module)):
        def optimizer_step(self, *arguments, **options):
            super().optimizer_step(*arguments, **options)
            hold()

        def on_train_start(self):
            super().on_train_start()
            hold()

        def on_train_batch_end(self, *arguments):
            super().on_train_batch_end(*arguments)
            hold()  # what no optimizer_step of the module has written
            if self.trainer.global_step == since:
                on.update(masks)
                hold()
                for name, weight in held.items():
                    for optimizer in self.trainer.optimizers:
                        for value in optimizer.state.get(weight, {}).values():
                            value.mul_(on[name]) if value.shape == weight.shape else None

    module.__class__ = Masked
    return module


class Seeds(L.Callback):
    """An epoch draws by (seed, epoch), and validation draws apart from training: what the README promises."""

    def on_train_epoch_start(self, trainer, module):
        seed_all(derive(0, "epoch", trainer.current_epoch, 0))
        if trainer.current_epoch == 0:
            iter(trainer.train_dataloader)  # draws; in later epochs Lightning makes the iterator after this hook

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.state = random_state()

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            set_random_state(self.state)


def linear_weights(module):
    """The weights of all linear layers."""
    layers = {n.replace("._orig_mod", ""): m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    return {f"{name}.weight": layer.weight for name, layer in layers.items()}


def select(module, trained):
    """The largest weights of these layers, together; of equals the first."""
    weights = {name: each.detach().cpu() for name, each in linear_weights(module).items() if name in trained}
    flat = torch.cat([weight.flatten().abs() for weight in weights.values()])
    order = torch.sort(flat, descending=True, stable=True).indices[: round(DENSITY * len(flat))]
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order] = True
    pieces = kept.split([weight.numel() for weight in weights.values()])
    return {name: piece.view(weight.shape) for (name, weight), piece in zip(weights.items(), pieces, strict=True)}


def reference(directory, row, state, masks=None):
    """A fit without a ticket: its watch, its module, and the names of the weights that it was made to train."""
    module = row.make_module()
    row.build(module)
    trained = [name for name, weight in linear_weights(module).items() if weight.requires_grad]
    module.load_state_dict(state)
    module = masked(module, masks, row.rewind_step) if masks else module
    watch = Watch(masks or {}, row.rewind_step)
    made = row.make_trainer(directory, [*row.seeds(), *row.make_callbacks(), watch], row.options)
    fit(row, made, module)
    return watch, module, trained


# What is compared


def check_row(directory, name):
    """Two rounds of the ticket against two of the reference; what was played."""
    row = ROWS[name]
    played = play(directory / "ours", row)
    files = directory / "ours" / row.folder
    state = model_state(Checkpoint(files / "points" / "step-0.ckpt"))
    masks = None
    for round, (watch, ticket) in enumerate(played):
        seen, module, trained = reference(directory / f"theirs-{round}", row, state, masks)
        assert watch.losses == approximately(seen.losses[row.rewind_step if masks else 0 :]), round
        assert_close(module.state_dict(), ticket.model.state_dict())
        if masks:
            assert_same(ticket.masks, masks)
            assert watch.looks == seen.looks or row.rewind_step  # which validations are looked at differs at the point
        masks = select(module, trained)
    assert_zeros_everywhere(files, ticket.masks)
    return played


def check_order(directory, name):
    """The callbacks of a row may stand before the ticket or after it."""
    results = []
    for after in (False, True):
        play(directory / str(after), ROWS[name], after)
        results.append(Checkpoint(directory / str(after) / "round-01" / "final.ckpt")["state_dict"])
    assert_same(*results)


def check_method(directory, name):
    """Two rounds of a method: the density that was asked for, and zeros under the masks everywhere; what was played."""
    played = play(directory, METHODS[name])
    ticket = next(ticket for _, ticket in played if ticket.round == 1)  # ahead of its controls
    total = sum(mask.numel() for mask in ticket.masks.values())
    kept = sum(int(mask.sum()) for mask in ticket.masks.values())
    assert kept == METHODS[name].kept or kept == round(DENSITY * total)
    assert_zeros_everywhere(directory, ticket.masks)
    return played


def check_interrupted(directory, name):
    """Each round killed once, against the same without a kill."""
    row = (ROWS | METHODS)[name]
    play(directory / "whole", row)
    killed = [round for round in row.stop_rounds if is_killed(directory / "stopped", row, round)]
    assert killed == list(row.stop_rounds), f"{name} was killed in rounds {killed}"
    play(directory / "stopped", row)
    assert_same_run(directory / "whole", directory / "stopped")


def is_killed(directory, row, round):
    """Play in a process of its own, which kills itself, and all that it started, in a round; whether it did."""
    child = os.fork()
    if child == 0:
        os.setsid()
        try:
            play(directory, row, stop_round=round)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def assert_same_run(a, b):
    for round in ("round-00", "round-01"):
        assert_same(*(Checkpoint(directory / round / "final.ckpt")["state_dict"] for directory in (a, b)))
        assert (a / round / "ticket.safetensors").read_bytes() == (b / round / "ticket.safetensors").read_bytes()
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_records(d / "records.csv")] for d in (a, b)
    ]
    assert rows[0] == rows[1]


def approximately(losses):
    return pytest.approx(losses, rel=1e-5, abs=1e-7)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-4, atol=1e-6), name


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_zeros_everywhere(directory, masks):
    found = [*directory.glob("round-01/*.ckpt"), *directory.glob("round-01/checkpoints/*.ckpt")]
    checkpoints = [path for path in found if path.name != "start.ckpt"]  # which is masked when it is loaded
    assert len(checkpoints) >= 2
    for path in checkpoints:
        content = torch.load(path, weights_only=False)
        for key in ("state_dict", "current_model_state"):
            state = {n.replace("_orig_mod.", ""): v for n, v in content.get(key, {}).items()}
            for name in masks.keys() & state.keys():
                assert not state[name][~masks[name].to(state[name].device)].any(), (path, key, name)
