"""What is wrong is said before anything is trained, with what was seen and what to change."""

from functools import partial

import lightning as L
import pytest
import torch
from tiny import Tiny, loaders, play, trainer
from torch import nn

from lt_lightning import geometric, lottery, one_shot, redraw, reinit, to_point
from lt_lightning.disk.rundir import MARK, Checkpoint

STEPS = []


class Watched(Tiny):
    """Leaves a mark in STEPS with every training step."""

    def training_step(self, batch, index):
        STEPS.append(index)
        return super().training_step(batch, index)


class Wide(Watched):
    """The network of the next day."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(8, 13)
        self.norm = nn.BatchNorm1d(13)
        self.output = nn.Linear(13, 3)


class Bare(Watched):
    """Nothing here is prunable."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.BatchNorm1d(8)
        self.norm, self.output = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.hidden(x)[:, :3]


@pytest.fixture(autouse=True)
def _nothing_trained_yet():
    STEPS.clear()


def refused(act, error, *messages, steps=0):
    """Assert that this raises an error which holds all these texts, before any training step."""
    STEPS.clear()
    with pytest.raises(error) as raised:
        act()
    for message in messages:
        assert message in str(raised.value)
    assert len(STEPS) == steps


def fit(ticket, fitter=None, model=None, **arguments):
    train, validation = loaders()
    (fitter or trainer(ticket)).fit(model or ticket.model, train, validation, **arguments)


def at_round_1(directory, **arguments):
    """The ticket of round 1, after an ordinary round 0."""
    tickets = lottery(Watched, rounds=1, directory=directory, **arguments)
    fit(next(tickets))
    return next(tickets)


# The loop body


def test_a_trainer_without_the_ticket(tmp_path):
    ticket = next(lottery(Watched, rounds=1, directory=tmp_path))
    other = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    refused(
        lambda: fit(ticket, other),
        RuntimeError,
        "this Trainer does not have the ticket of round-00 among its callbacks, so nothing would be pruned.",
        "trainer = L.Trainer(..., callbacks=[ticket])",
    )


def test_a_trainer_with_the_ticket_of_the_round_before(tmp_path):
    tickets = lottery(Watched, rounds=1, directory=tmp_path)
    first = next(tickets)
    once = trainer(first)
    fit(first, once)
    second = next(tickets)
    refused(
        lambda: fit(second, once, ckpt_path=second.ckpt_path),
        RuntimeError,
        "this Trainer has been used for a round already, and used twice it would train 0 steps",
        "Make a new one inside the loop: trainer = L.Trainer(..., callbacks=[ticket]).",
    )


def test_a_trainer_that_was_given_the_next_ticket(tmp_path):
    tickets = lottery(Watched, rounds=1, directory=tmp_path)
    first = next(tickets)
    once = trainer(first)
    fit(first, once)
    second = next(tickets)
    once.callbacks = [second]
    refused(
        lambda: fit(second, once, ckpt_path=second.ckpt_path),
        RuntimeError,
        "this Trainer has been used for a round already, and used twice it would train 0 steps (round-01).",
    )


def test_another_module(tmp_path):
    ticket = next(lottery(Watched, rounds=1, directory=tmp_path))
    refused(
        lambda: fit(ticket, model=Watched()),
        RuntimeError,
        "the Trainer fits another module than that of round-00: write trainer.fit(ticket.model, ...).",
    )


@pytest.mark.parametrize("rewind_step", [0, 7])
def test_a_forgotten_checkpoint_path(tmp_path, rewind_step):
    second = at_round_1(tmp_path, rewind_step=rewind_step)
    refused(
        lambda: fit(second),
        RuntimeError,
        f"round-01 starts from {tmp_path / 'rewind.ckpt'}, but the Trainer was given None: "
        "write trainer.fit(ticket.model, ..., ckpt_path=ticket.ckpt_path).",
    )


def test_another_checkpoint_path(tmp_path):
    second = at_round_1(tmp_path, rewind_step=7)
    other = str(tmp_path / "points" / "step-0.ckpt")
    refused(
        lambda: fit(second, ckpt_path=other),
        RuntimeError,
        f"round-01 starts from {tmp_path / 'rewind.ckpt'}, but the Trainer was given {other}",
    )


def test_a_loop_body_that_does_not_train(tmp_path):
    tickets = lottery(Watched, rounds=1, directory=tmp_path)
    next(tickets)
    refused(
        lambda: next(tickets),
        RuntimeError,
        "round-00 was not trained: the loop body must make a Trainer with callbacks=[ticket] and call "
        "trainer.fit(ticket.model, ..., ckpt_path=ticket.ckpt_path).",
    )
    assert not (tmp_path / "round-00" / "done").exists()


@pytest.mark.parametrize("options", [{"limit_train_batches": 0}, {"max_steps": 0}, {"max_epochs": 0}])
def test_a_trainer_that_trains_nothing(tmp_path, options):
    refused(
        lambda: play(tmp_path, model=Watched, options=options),
        RuntimeError,
        "round-00 trained 0 steps: the Trainer stopped at step 0, where it started. "
        "Look at its max_steps, max_epochs and limit_train_batches.",
    )


# The arguments and the model


@pytest.mark.parametrize(
    ("rewind_step", "options", "message"),
    [
        (15, {}, "rewind_step=15 steps lies at or beyond the end of the fit, which has 15 steps"),
        ("400 steps", {}, "rewind_step=400 steps lies at or beyond the end of the fit, which has 15 steps"),
        ("3 epochs", {}, "rewind_step=3 epochs lies at or beyond the end of the fit, which has 3 epochs"),
        (
            13,
            {"max_steps": 13, "max_epochs": -1},
            "rewind_step=13 steps lies at or beyond the end of the fit, which has 13",
        ),
        (
            9,
            {"accumulate_grad_batches": 2},
            "rewind_step=9 steps lies at or beyond the end of the fit, which has 9 steps",
        ),
        (
            "3 epochs",
            {"accumulate_grad_batches": 2},
            "rewind_step=3 epochs lies at or beyond the end of the fit, which has 3",
        ),
        ("2 epochs", {"max_steps": 9, "max_epochs": -1}, "the end of the fit, which has 1.8 epochs"),
    ],
)
def test_a_rewind_point_at_or_beyond_the_end_of_the_fit(tmp_path, rewind_step, options, message):
    refused(
        lambda: play(tmp_path, model=Watched, rewind_step=rewind_step, options=options),
        ValueError,
        message,
        "choose a smaller rewind_step, or train longer (max_epochs, max_steps).",
    )


@pytest.mark.parametrize(
    ("rewind_step", "options", "step"),
    [
        (14, {}, 14),
        ("2 epochs", {}, 10),
        (8, {"accumulate_grad_batches": 2}, 8),
        ("1 epoch", {"max_steps": 9, "max_epochs": -1}, 5),
    ],
)
def test_the_last_rewind_points_that_are_possible(tmp_path, rewind_step, options, step):
    play(tmp_path, rounds=0, rewind_step=rewind_step, options=options, test=False)
    assert Checkpoint(tmp_path / "rewind.ckpt")["global_step"] == step


def test_nothing_is_prunable(tmp_path):
    refused(
        lambda: play(tmp_path, model=Bare),
        ValueError,
        "nothing is prunable: of the 2 parameters of Bare (hidden.weight, hidden.bias) none was chosen",
        "Pass lottery(..., prunable=[name patterns]) or a predicate that accepts at least one; "
        "dry_run=True says why each was not.",
    )


@pytest.mark.parametrize("pattern", ["hiden*", "!hiden*"])
def test_a_pattern_of_prunable_names_that_matches_nothing(tmp_path, pattern):
    refused(
        lambda: play(tmp_path, model=Watched, prunable=[pattern]),
        ValueError,
        "the pattern 'hiden*' matches nothing; the parameters are hidden.weight, hidden.bias, norm.weight",
    )


NO_MATCH = "the pattern 'hiden*' matches nothing; the parameters are hidden.weight, output.weight."


def test_a_pattern_of_the_schedule_that_matches_nothing(tmp_path):
    schedule = geometric({"hiden*": 0.1, "*": 0.2})
    with pytest.raises(ValueError, match="matches nothing") as error:
        play(tmp_path, model=Watched, schedule=schedule)
    assert NO_MATCH in str(error.value)


def test_a_pattern_of_the_schedule_that_matches_nothing_is_refused_before_training(tmp_path):
    refused(lambda: play(tmp_path, model=Watched, schedule=geometric({"hiden*": 0.1, "*": 0.2})), ValueError, NO_MATCH)


def test_a_schedule_that_rises_is_refused_before_training(tmp_path):
    def rising(round):
        return [1.0, 0.5, 0.8, 0.8][round]

    refused(lambda: play(tmp_path, model=Watched, schedule=rising, rounds=2), ValueError, "must not rise")


@pytest.mark.parametrize("schedule", [lambda n: [1.0, 0.5][n], lambda n: 1 - 0.6 * n], ids=["a-list", "a-line"])
def test_a_schedule_may_end_with_the_last_round(tmp_path, schedule):
    assert list(play(tmp_path, schedule=schedule, rounds=1, test=False)) == ["round-00", "round-01"]


def test_a_monitor_that_validation_does_not_log(tmp_path):
    refused(
        lambda: play(tmp_path, model=Watched, monitor="val/acc"),
        ValueError,
        "validation did not log the monitor 'val/acc'; it logged ['val/loss'].",
        "Pass lottery(..., monitor=one of them), or monitor=None to go without an early stop; "
        "prune.monitor=... on the command line.",
    )


def test_a_monitor_that_validation_does_not_log_where_there_is_no_sanity_check(tmp_path):
    refused(
        lambda: play(tmp_path, model=Watched, monitor="val/acc", options={"num_sanity_val_steps": 0}),
        ValueError,
        "validation did not log the monitor 'val/acc'; it logged ['val/loss'].",
        steps=5,
    )


@pytest.mark.parametrize("arguments", [{"controls": ["random_mask", reinit]}, {"rewind": redraw}])
def test_new_weights_for_a_module_instance(tmp_path, arguments):
    name = "redraw" if "rewind" in arguments else "reinit"
    refused(
        lambda: lottery(Watched(), rounds=1, directory=tmp_path / "run", **arguments),
        ValueError,
        f"{name} draws new weights, which needs a function that makes a fresh model: "
        "pass lottery(make_model, ...), not an instance.",
    )
    assert not (tmp_path / "run").exists()


# What lies in the directory


def test_a_directory_of_another_configuration(tmp_path):
    play(tmp_path, rounds=0, config={"model": {"width": 12}})
    refused(
        lambda: lottery(Watched, rounds=2, directory=tmp_path, config={"model": {"width": 13}}, seed=1),
        ValueError,
        f"{tmp_path} holds results of another configuration:\n  model.width: 12 there, 13 now\n"
        "  lottery.seed: 0 there, 1 now\n"
        "Choose another directory, or remove this one if its results are not needed.",
    )


DOES_NOT_FIT = (
    "the ticket does not fit the model:\n  hidden.weight: the mask is (12, 8), the weight is (13, 8)\n"
    "  output.weight: the mask is (3, 12), the weight is (3, 13)\n"
    "Use the ticket with the model that it was found in, or start in another directory."
)


def test_a_ticket_that_does_not_fit_a_fresh_model(tmp_path):
    play(tmp_path, rounds=0, rewind=redraw)
    refused(lambda: play(tmp_path, model=Wide, rounds=1, rewind=redraw), ValueError, DOES_NOT_FIT)


def test_a_ticket_that_does_not_fit_the_model_is_refused_before_its_checkpoint_is_loaded(tmp_path):
    play(tmp_path, rounds=0)
    refused(lambda: play(tmp_path, model=Wide, rounds=1), ValueError, DOES_NOT_FIT)


# What only training shows


class Diverging(Watched):
    """Its output layer is NaN from the last step on."""

    def on_train_end(self):
        nn.init.constant_(self.output.weight, torch.nan)


def test_a_fit_that_diverged_is_kept_and_refused_again_without_training(tmp_path):
    final = tmp_path / "round-00" / "final.ckpt"
    messages = (
        "no ticket can be drawn from round 0: 36 of the 36 scores of output.weight are NaN, so no weight is the best. "
        "Training diverged: lower the learning rate or clip the gradients.",
        f"Its weights: {final}",
    )
    refused(lambda: play(tmp_path, model=Diverging), ValueError, *messages, steps=15)
    weights = Checkpoint(final)["state_dict"]
    assert weights["output.weight"].isnan().all()
    assert weights["hidden.weight"].isfinite().all()
    refused(lambda: play(tmp_path, model=Diverging), ValueError, *messages)
    assert not (tmp_path / "round-00" / "done").exists()


def test_a_later_round_that_diverged_says_which(tmp_path):
    made = []

    def second_diverges():
        made.append(1)
        return (Watched, Diverging)[len(made) - 1]()

    refused(
        lambda: play(tmp_path, model=second_diverges),
        ValueError,
        "no ticket can be drawn from round 1: 29 of the 36 scores of output.weight are NaN",
        f"Its weights: {tmp_path / 'round-01' / 'final.ckpt'}",
        steps=30,
    )


def test_a_fit_that_ends_before_its_rewind_point(tmp_path):
    class Stopping(Watched):
        def on_train_batch_end(self, *_):
            self.trainer.should_stop = True

    refused(
        lambda: play(tmp_path, model=Stopping, rewind_step=14),
        RuntimeError,
        "the rewind point at 14 steps was never reached: round 0 ended after 1 steps. Choose a smaller rewind_step.",
        steps=1,
    )


class Foreign(Watched):
    """As modules of other packages are: other names in the sanity check, and an object among the hyperparameters."""

    def __init__(self):
        super().__init__()
        self.save_hyperparameters({"size": 3})

    def validation_step(self, batch, index):
        name = "sanity_check_loss" if self.trainer.sanity_checking else "val/loss"
        self.log(name, nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def on_save_checkpoint(self, checkpoint):
        checkpoint["hyper_parameters"].update(kind="mine")
        checkpoint["more"] = torch.ones(2)


def test_a_module_that_logs_and_saves_in_its_own_way(tmp_path):
    play(tmp_path, model=Foreign, rounds=1, monitor="val/loss", test=False)
    final = torch.load(tmp_path / "round-01" / "final.ckpt", weights_only=True)
    assert set(final) == {"state_dict", "epoch", "global_step", "pytorch-lightning_version", MARK}
    assert "more" in Checkpoint(tmp_path / "points" / "step-0.ckpt")


class Loss:
    pass


class Keeping(Watched):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["kept"] = Loss()


def test_an_object_that_cannot_be_read_back(tmp_path):
    refused(
        lambda: play(tmp_path, model=Keeping, test=False),
        ValueError,
        "step-0.ckpt cannot be read back, so no round could start from it",
        "in a subclass with `def on_save_checkpoint(self, checkpoint): pass`, and on_load_checkpoint alike",
        "import what it is made of and allow it: torch.serialization.add_safe_globals([test_messages.Loss]).",
    )
    assert not (tmp_path / "points" / "step-0.ckpt").exists()
    with torch.serialization.safe_globals([Loss]):
        play(tmp_path, model=Keeping, rounds=1, test=False)
    assert (tmp_path / "round-01" / "done").exists()


@pytest.mark.parametrize("rewind", [to_point, partial(to_point)])
def test_rounds_that_would_repeat_the_one_before(tmp_path, rewind):
    told = "round 2 has the density of the round before, 0.5, and repeats its results: rounds=1 is enough"
    with pytest.warns(UserWarning, match=told):
        lottery(Tiny, rounds=3, schedule=one_shot(0.5), rewind=rewind, directory=tmp_path)
