"""`steps_per_batch` changes no bit of a result: against Lightning's own loop, whatever trains, wherever it stops."""

import lightning as L
import pytest
import torch
from killing import assert_same_directories
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ProgressBar
from lightning.pytorch.profilers import SimpleProfiler
from matrix import ROWS, fit
from test_exact_restart import MODELS, same
from test_lottery import Stop, StopAt
from tiny import STEPS_PER_EPOCH, Tiny, data, loaders, play, trainer
from torch import nn
from torch.utils.data import DataLoader
from trained import Plain, TwoOptimizers

from lt_lightning import cubically, lottery, settled
from lt_lightning.fit.chunks import checked
from lt_lightning.fit.hooks import END, START, WITHIN

REFUSED = {
    "accumulation": "accumulate_grad_batches",
    "accumulation with a rest": "accumulate_grad_batches",
    "two optimizers by hand": "manual optimization",
    "gan": "manual optimization",
    "discriminator frozen by hand": "manual optimization",
    "clipping by hand": "manual optimization",
    "gradients by hand": "manual optimization",
    "sam by hand": "manual optimization",
}
TELLING = ("adam", "muon", "lbfgs", "bf16-mixed", "schedule by step", "iterable", "combined loaders", "several")


def rows():
    for name, row in ROWS.items():
        marks = [] if name in TELLING or name in REFUSED else [pytest.mark.slow]
        if row.needs == "cuda" and not torch.cuda.is_available():
            marks.append(pytest.mark.skip(reason=f"{name} needs a GPU"))
        yield pytest.param(name, marks=marks)


def train(directory, row, **arguments):
    """Two rounds of a row, without anybody who watches its batches."""
    arguments = {"monitor": None, "keep_last": True, "rewind_step": row.rewind_step} | arguments
    for ticket in lottery(row.make_module, rounds=1, directory=directory, **arguments):
        made = row.make_trainer(ticket.directory, [*row.make_callbacks(), ticket], row.options)
        fit(row, made, ticket.model, ckpt_path=ticket.ckpt_path)


@pytest.mark.filterwarnings("ignore:LightningCLI's args", "ignore:.*deprecated in v4:DeprecationWarning")
@pytest.mark.parametrize("name", list(rows()))
def test_every_way_that_lightning_trains_ends_with_the_same_bits_or_is_refused(tmp_path, name):
    row = ROWS[name]
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"not possible with {REFUSED[name]}"):
            train(tmp_path, row, steps_per_batch=3)
        return
    train(tmp_path / "singly", row, every="2 steps")
    train(tmp_path / "several", row, every="2 steps", steps_per_batch=3)
    train(tmp_path / "many", row, every="1 epoch", steps_per_batch=50)
    assert_same_directories(tmp_path / "singly", tmp_path / "several")
    train(tmp_path / "singly by epochs", row, every="1 epoch")
    assert_same_directories(tmp_path / "singly by epochs", tmp_path / "many")


WAYS = {
    "epochs": {"options": {"max_epochs": 3}},
    "steps": {"options": {"max_steps": 13, "max_epochs": -1}, "points": [4, "1 epoch"]},
    "validating often": {"options": {"max_epochs": 3, "val_check_interval": 2}},
    "validating by batches": {"options": {"max_epochs": 3, "val_check_interval": 4, "check_val_every_n_epoch": None}},
    "logging seldom": {"options": {"max_epochs": 3, "log_every_n_steps": 7}},
    "logging never": {"options": {"max_epochs": 3, "log_every_n_steps": 0}},
    "clipped": {"options": {"max_epochs": 3, "gradient_clip_val": 0.1}},
    "profiled": {"options": {"max_epochs": 3, "profiler": SimpleProfiler()}},
    "double": {"options": {"max_epochs": 3, "precision": "64-true"}},
    "tightening by steps": {"gradual": cubically(end=0.7), "gradual_every": "3 steps"},
    "tightening by epochs": {"gradual": cubically(), "gradual_every": "1 epoch"},
    "settling": {"early_bird": settled(0.9, epochs=1)},
    "no dense round": {"dense": False, "rewind_step": 3},
    "workers": {"workers": 1},
}


@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_steps_gives_the_same_files(tmp_path, way):
    arguments = {"rewind_step": 2, "every": "3 steps"} | WAYS[way]
    play(tmp_path / "1", **arguments)
    for steps in (2, 100):
        play(tmp_path / str(steps), steps_per_batch=steps, **arguments)
        assert_same_directories(tmp_path / "1", tmp_path / str(steps))


def test_sparse_layers_give_the_same_bits(tmp_path):
    for steps in (1, 4):
        play(tmp_path / str(steps), sparse=1.0, steps_per_batch=steps)
    same(tmp_path / "1", tmp_path / "4", "round-01")


@pytest.mark.parametrize("model", [*MODELS])
def test_a_fit_goes_on_with_another_number_wherever_it_was_stopped(tmp_path, model):
    arguments = {"model": MODELS[model], "options": {"max_epochs": 4, "val_check_interval": 2}}
    arguments |= {"every": "1 step", "rewind_step": 2}
    play(tmp_path / "whole", **arguments)
    for count, steps in ((5, 4), (3, 1), (8, 100)):
        stop = StopAt("on_before_zero_grad", count)
        with pytest.raises(Stop):
            play(tmp_path / "stopped", make_callbacks=lambda: [stop], steps_per_batch=steps, **arguments)  # noqa: B023
    play(tmp_path / "stopped", steps_per_batch=3, **arguments)
    assert_same_directories(tmp_path / "whole", tmp_path / "stopped")


def test_a_fit_stopped_between_saves_goes_on_with_another_number(tmp_path):
    arguments = {"options": {"max_epochs": 4}, "every": "4 steps"}
    play(tmp_path / "whole", **arguments)
    for seen, steps in ((3, 3), (9, 1), (14, 6)):

        class Stopping(Tiny):
            def training_step(self, batch, index):
                if self.trainer.global_step == seen:  # noqa: B023
                    raise Stop
                return super().training_step(batch, index)

        with pytest.raises(Stop):
            play(tmp_path / "stopped", model=Stopping, steps_per_batch=steps, **arguments)
    play(tmp_path / "stopped", steps_per_batch=5, **arguments)
    assert_same_directories(tmp_path / "whole", tmp_path / "stopped")


# Who is told what


class Told(ProgressBar):
    """A bar that keeps the steps after which it was told of a batch."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append(trainer.global_step)

    def disable(self):
        pass


class Looking(L.Callback):
    """Keeps what it sees at the end of each batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        loss = float(outputs["loss"]), float(trainer.callback_metrics["train/loss"])
        self.seen.append((trainer.global_step, index, trainer.is_last_batch, loss, module.global_step))


class Reporting(Tiny):
    """Keeps every counter that a training step can look at."""

    def training_step(self, batch, index):
        loop = self.trainer.fit_loop
        progress = loop.epoch_loop.batch_progress.state_dict()
        optimization = loop.epoch_loop.automatic_optimization.optim_progress.state_dict()
        schedules = loop.epoch_loop.scheduler_progress.state_dict()
        counted = (self.global_step, self.current_epoch, loop.batch_idx, loop.total_batch_idx, index)
        self.seen.append(
            (counted, progress, optimization, schedules, loop.epoch_loop._batches_that_stepped, self._current_fx_name)
        )
        return super().training_step(batch, index)


def dense(directory, model=Tiny, callbacks=(), options=None, **arguments):
    """Round 0 alone; its ticket."""
    arguments = {"monitor": None, "every": None} | arguments
    for ticket in lottery(model, rounds=0, directory=directory, **arguments):
        made = trainer(ticket, callbacks, **({"max_epochs": 2, "log_every_n_steps": 100} | (options or {})))
        made.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
    return ticket


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ({}, {}, [3, 5, 8, 10]),  # ends of epochs
        ({"rewind_step": 4}, {}, [3, 4, 5, 8, 10]),
        ({"points": [1, 7]}, {}, [1, 4, 5, 7, 10]),
        ({"every": "4 steps"}, {}, [3, 4, 5, 8, 10]),
        ({}, {"max_steps": 7, "max_epochs": -1}, [3, 5, 7]),
        ({}, {"val_check_interval": 4}, [3, 4, 5, 8, 9, 10]),
        ({}, {"val_check_interval": 4, "check_val_every_n_epoch": 2}, [3, 5, 8, 9, 10]),
        ({}, {"val_check_interval": 4, "check_val_every_n_epoch": None}, [3, 4, 5, 8, 10]),
        ({}, {"log_every_n_steps": 2}, [2, 4, 5, 6, 8, 10]),
        ({"steps_per_batch": 1}, {}, list(range(1, 11))),
    ],
)
def test_a_chunk_ends_where_something_is_due(tmp_path, arguments, options, expected):
    told = Told()
    dense(
        tmp_path,
        callbacks=[told],
        options=options | {"enable_progress_bar": True},
        **{"steps_per_batch": 3} | arguments,
    )
    assert told.steps == expected


def test_a_callback_of_the_project_sees_every_batch(tmp_path):
    seen = []
    for steps in (1, 4):
        looking = Looking()
        dense(tmp_path / str(steps), callbacks=[looking], steps_per_batch=steps)
        seen.append(looking.seen)
    assert len(seen[0]) == 2 * STEPS_PER_EPOCH
    assert seen[0] == seen[1]


def test_a_training_step_sees_every_counter_as_ever(tmp_path):
    singly, several = (
        dense(tmp_path / str(steps), model=Reporting, steps_per_batch=steps).model.seen for steps in (1, 4)
    )
    assert len(singly) == 4 * STEPS_PER_EPOCH  # two entries a step
    assert singly == several


class Hooks(Plain):
    """Notes the calls of its hooks and leaves the rest of an epoch out."""

    def __init__(self):
        super().__init__()
        self.called = []

    def on_train_batch_start(self, batch, index):
        self.called.append((START, index))
        return -1 if index == 3 else None


def noting(name):
    def hook(self, *_):
        self.called.append((name, self.global_step))

    return hook


for each in (END, *WITHIN):
    setattr(Hooks, each, noting(each))


def test_hooks_of_the_module_are_called_at_every_step(tmp_path):
    singly, several = (
        dense(tmp_path / str(steps), model=Hooks, steps_per_batch=steps).model.called for steps in (1, 3)
    )
    assert {name for name, _ in singly} == {START, END, *WITHIN}
    assert singly == several
    assert_same_directories(tmp_path / "1", tmp_path / "3")


class Ending(Tiny):
    """Asks for the end at a step, in its training step."""

    def training_step(self, batch, index):
        self.trainer.should_stop = self.trainer.should_stop or self.trainer.global_step == 6
        return super().training_step(batch, index)


class Returning(Tiny):
    """Returns a dictionary, without its index, and nothing for some batches."""

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        return {"loss": loss, "other": 1} if self.global_step % 3 else None


class Wrong(Tiny):
    def training_step(self, batch, index):
        return {"losses": 1}


@pytest.mark.parametrize("model", [Ending, Returning])
def test_what_a_training_step_asks_for_or_returns_counts(tmp_path, model):
    for steps in (1, 4):
        ticket = dense(tmp_path / str(steps), model=model, steps_per_batch=steps)
    assert ticket.record["steps"] == (7 if model is Ending else 10)
    assert_same_directories(tmp_path / "1", tmp_path / "4")


def test_what_a_training_step_must_not_return_is_said_as_ever(tmp_path):
    with pytest.raises(
        L.pytorch.utilities.exceptions.MisconfigurationException, match="'loss' key needs to be present"
    ):
        dense(tmp_path, model=Wrong, steps_per_batch=4)


class Moving(Tiny):
    """Changes every batch on its way."""

    def on_after_batch_transfer(self, batch, index):
        return batch[0] * 2, batch[1]


def test_batches_are_moved_by_the_module_s_own_hooks(tmp_path):
    for steps in (1, 4):
        dense(tmp_path / str(steps), model=Moving, steps_per_batch=steps)
    assert_same_directories(tmp_path / "1", tmp_path / "4")


class Gaps(DataLoader):
    """Whose third batch is None."""

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            yield None if index == 2 else batch


@pytest.mark.filterwarnings("ignore:train_dataloader yielded None")
def test_batches_that_are_none_are_left_out(tmp_path):
    for steps in (1, 4):
        for ticket in lottery(Tiny, rounds=1, directory=tmp_path / str(steps), monitor=None, steps_per_batch=steps):
            trainer(ticket).fit(ticket.model, Gaps(data(), 20), ckpt_path=ticket.ckpt_path)
        assert ticket.record["steps"] == 12
    assert_same_directories(tmp_path / "1", tmp_path / "4")


# What is refused


@pytest.mark.parametrize("value", [0, -1, 2.0, "2", True, None])
def test_the_number_must_be_a_number(tmp_path, value):
    with pytest.raises(ValueError, match=r"steps_per_batch=.* must be a whole number, 1 or more.*prune\.steps"):
        lottery(Tiny, rounds=1, directory=tmp_path, steps_per_batch=value)
    assert checked(7) == 7


class Fetching(Tiny):
    def training_step(self, dataloader_iter):
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("DDPStrategy: several processes", {"options": {"strategy": "ddp"}}),
        ("manual optimization", {"model": TwoOptimizers}),
        ("accumulate_grad_batches", {"options": {"accumulate_grad_batches": 2}}),
        ("accumulate_grad_batches", {"callbacks": [GradientAccumulationScheduler({1: 2})]}),
        (r"training_step\(dataloader_iter\)", {"model": Fetching}),
    ],
)
def test_what_cannot_be_is_refused_before_it_trains(tmp_path, what, arguments):
    with pytest.raises(ValueError, match=rf"not possible with {what}.*steps_per_batch=1 \(prune.steps_per_batch=1\)"):
        dense(tmp_path, steps_per_batch=2, **arguments)
    assert not list(tmp_path.rglob("last.ckpt"))


def test_lightning_s_loop_is_its_own_again_after_the_fit(tmp_path):
    for ticket in lottery(Tiny, rounds=0, directory=tmp_path, monitor=None, steps_per_batch=2):
        made = trainer(ticket)
        made.fit(ticket.model, *loaders(), ckpt_path=ticket.ckpt_path)
        assert "advance" not in vars(made.fit_loop.epoch_loop)
