"""The early stop: the first best validation."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.fit.early_stop import EarlyStop
from lt_lightning.fit.monitor import validation_loss


def after(values, mode="min"):
    """The early stop after validations at step 10, 20, ..., and which of them were the best so far."""
    stop = EarlyStop("val/x", mode)
    better = [stop.improve(10 * n, {"val/x": torch.tensor(value)}) for n, value in enumerate(values, 1)]
    return stop, better


@pytest.mark.parametrize(
    ("mode", "values", "step", "better"),
    [
        ("min", [0.9, 0.5, 0.5, 0.6, 0.5], 20, [True, True, False, False, False]),
        ("max", [0.1, 0.7, 0.7, 0.6, 0.8], 50, [True, True, False, False, True]),
        ("min", [float("inf"), 3.0], 20, [True, True]),
        ("max", [float("-inf"), -3.0], 20, [True, True]),
        ("min", [float("nan"), 0.5, float("nan"), 0.4], 40, [False, True, False, True]),
        ("max", [float("nan"), 0.5, float("nan"), 0.6], 40, [False, True, False, True]),
        ("min", [float("nan")] * 2, None, [False, False]),
    ],
)
def test_the_first_of_equals_counts_and_nan_never(mode, values, step, better):
    stop, found = after(values, mode)
    assert (found, stop.step) == (better, step)
    assert stop.value is None if step is None else stop.value == pytest.approx(values[step // 10 - 1])


@given(st.lists(st.integers(-3, 3), min_size=1), st.sampled_from(["min", "max"]))
def test_the_early_stop_is_the_first_place_of_the_best_value(values, mode):
    stop, _ = after([float(value) for value in values], mode)
    best = min(values) if mode == "min" else max(values)
    assert (stop.value, stop.step) == (best, 10 * (values.index(best) + 1))


def test_everything_that_was_logged_by_then_is_kept():
    stop = EarlyStop("val/loss")
    stop.improve(3, {"val/loss": torch.tensor(0.5), "val/acc": torch.tensor(0.25), "train/loss": 2})
    stop.improve(6, {"val/loss": torch.tensor(0.75), "val/acc": torch.tensor(1.0)})
    assert stop.metrics == {"val/loss": 0.5, "val/acc": 0.25, "train/loss": 2.0}
    assert {type(value) for value in stop.metrics.values()} == {float}


def test_without_a_monitor_there_is_no_early_stop():
    stop = EarlyStop(None)
    assert [stop.improve(1, {"val/loss": 0.1}), stop.improve(2, {})] == [False, False]
    assert (stop.value, stop.step, stop.metrics) == (None, None, {})
    stop.require({})


def test_a_fit_that_continues_goes_on_from_the_best_so_far():
    stop, _ = after([0.9, 0.5])
    state = json.loads(json.dumps(stop.state_dict()))
    resumed = EarlyStop("val/x")
    resumed.load_state_dict(state)
    assert resumed == stop
    assert not resumed.improve(30, {"val/x": 0.5})
    assert resumed.improve(40, {"val/x": 0.4})
    assert (stop.value, stop.step, stop.metrics) == (0.5, 20, {"val/x": 0.5})


@pytest.mark.parametrize("ask", [EarlyStop.require, lambda stop, logged: stop.improve(1, logged)])
def test_a_monitor_that_was_not_logged_is_refused_with_what_was(ask):
    with pytest.raises(ValueError, match="did not log") as error:
        ask(EarlyStop("val/acc"), {"val/loss": 1.0, "train/loss": 2.0})
    assert str(error.value) == (
        "validation did not log the monitor 'val/acc'; it logged ['train/loss', 'val/loss']. "
        "Pass lottery(..., monitor=one of them), or monitor=None to go without an early stop; "
        "prune.monitor=... on the command line."
    )


# The default monitor


@pytest.mark.parametrize(
    ("found", "others"),
    [
        ("val/loss", ["val_loss", "loss", "val/acc"]),
        ("val_loss", ["valid_loss", "val_loss_epoch", "val_kl_loss"]),
        ("valid_loss", ["ptl/val_loss", "train/loss"]),
        ("validation_loss", ["elbo_validation", "kl_local_validation"]),
        ("ValLoss", ["ValAcc", "losses"]),
        ("Loss/val", ["Loss/train"]),
        ("loss/eval", ["glossary/val"]),
        ("val_loss_epoch", ["loss", "val_mse"]),
        ("loss", ["val_box_loss", "acc", "train_loss"]),
        ("model/val/loss", ["test_loss", "val_loss_step"]),
        ("val_loss/dataloader_idx_0", ["val_loss/dataloader_idx_1", "val_loss/dataloader_idx_10"]),
        ("val_kl_loss/dataloader_idx_2", ["val_kl_loss/dataloader_idx_10"]),
        (None, ["val_box_loss", "val_class_loss"]),
        (None, ["val_acc", "train/loss", "test_loss", "closs", "valloss"]),
        (None, []),
    ],
)
def test_the_validation_loss_is_found_by_its_name_in_any_order(found, others):
    names = [*others, *([found] if found else [])]
    assert validation_loss(names) == validation_loss(names[::-1]) == validation_loss(set(names)) == found


def test_a_default_monitor_is_found_once_and_then_watched_where_it_is_logged():
    stop = EarlyStop("auto")
    logged = [{"val_acc": 0.1}, {"val_loss": 2.0}, {"val/loss": 0.5}, {}, {"val_loss": 1.0, "val/loss": 3.0}]
    assert [stop.improve(step, metrics) for step, metrics in enumerate(logged)] == [False, True, False, False, True]
    assert (stop.found, stop.step, stop.value) == ("val_loss", 4, 1.0)
    resumed = EarlyStop("auto")
    resumed.load_state_dict(json.loads(json.dumps(stop.state_dict())))
    assert resumed == stop
    assert not resumed.improve(5, {"val_loss": 1.5, "val/loss": 0.0})
    stop.require({})
