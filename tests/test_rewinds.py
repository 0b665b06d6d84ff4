"""The contract of every rewind, on checkpoints small enough to read."""

from copy import deepcopy
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning import changes
from lt_lightning.rewinds import (
    Changed,
    RewindStep,
    fine_tune,
    keep_signs,
    keep_weights,
    noise,
    parse_step,
    redraw,
    shuffle_weights,
    signed_constant,
    to_point,
)

fresh_optimizer = partial(to_point, rewind_optimizer=False)
CHANGING = {
    signed_constant: changes.signed_constant,
    keep_signs: changes.kept_signs,
    shuffle_weights: changes.shuffled,
}
REWINDS = [to_point, fresh_optimizer, keep_weights, fine_tune, redraw, *CHANGING, noise(0.5)]

POINT = {
    "state_dict": {"w": 1.0, "running_mean": 0.1},
    "optimizer_states": [{"state": {0: {"exp_avg": 0.5}}, "param_groups": [{"lr": 0.1}]}],
    "lr_schedulers": [{"last_epoch": 7}],
    "loops": {"fit_loop": 7},
    "callbacks": {"Ticket": {"random_states": 7}},
    "epoch": 1,
    "global_step": 7,
}
TRAINED = {
    "state_dict": {"w": 2.0, "running_mean": 0.9},
    "optimizer_states": [{"state": {0: {"exp_avg": 0.8}}, "param_groups": [{"lr": 0.001}]}],
    "lr_schedulers": [{"last_epoch": 99}],
    "loops": {"fit_loop": 99},
    "callbacks": {"Ticket": {"random_states": 99}},
    "epoch": 9,
    "global_step": 99,
}
AVERAGED_POINT = {**POINT, "averaging_state": {"n_averaged": 7}, "current_model_state": {"w": 1.5}}
AVERAGED_TRAINED = {**TRAINED, "averaging_state": {"n_averaged": 99}, "current_model_state": {"w": 2.5}}


def sources(start, point=POINT, trained=TRAINED):
    """Key → which of the two checkpoints its value is from; "new" if from neither."""
    return {
        key: "point" if value == point.get(key) else "trained" if value == trained.get(key) else "new"
        for key, value in start.items()
    }


@pytest.mark.parametrize("rewind", REWINDS)
@pytest.mark.parametrize(("point", "trained"), [(POINT, TRAINED), (AVERAGED_POINT, AVERAGED_TRAINED)])
def test_the_checkpoints_are_not_modified(rewind, point, trained):
    given = deepcopy(point), deepcopy(trained)
    rewind(*given)
    assert given == (point, trained)


@pytest.mark.parametrize("rewind", [to_point, fresh_optimizer, keep_weights, fine_tune])
@pytest.mark.parametrize(("point", "trained"), [(POINT, TRAINED), (AVERAGED_POINT, AVERAGED_TRAINED)])
def test_the_start_has_the_keys_of_the_point_and_its_counters(rewind, point, trained):
    start = rewind(point, trained)
    assert start.keys() == point.keys()
    for key in ("loops", "callbacks", "epoch", "global_step"):
        assert start[key] == point[key]


def test_to_point_answers_with_the_point_itself():
    assert to_point(POINT, TRAINED) is POINT


def test_a_fresh_optimizer_loses_its_state_and_nothing_else():
    start = fresh_optimizer(POINT, TRAINED)
    assert start["optimizer_states"] == [{"state": {}, "param_groups": [{"lr": 0.1}]}]
    assert sources(start) == dict.fromkeys(POINT, "point") | {"optimizer_states": "new"}


def test_a_fresh_optimizer_is_one_for_every_optimizer():
    two = {**POINT, "optimizer_states": [{"state": {0: 1}, "name": "a"}, {"state": {0: 2}, "name": "b"}]}
    fresh = fresh_optimizer(two, TRAINED)["optimizer_states"]
    assert fresh == [{"state": {}, "name": "a"}, {"state": {}, "name": "b"}]


def test_keep_weights_takes_weights_and_buffers_from_training_and_the_rest_from_the_point():
    assert sources(keep_weights(POINT, TRAINED)) == dict.fromkeys(POINT, "point") | {"state_dict": "trained"}


def test_fine_tune_takes_weights_and_optimizer_from_training_and_drops_the_schedules():
    start = fine_tune(POINT, TRAINED)
    changed = {"state_dict": "trained", "optimizer_states": "trained", "lr_schedulers": "new"}
    assert sources(start) == dict.fromkeys(POINT, "point") | changed
    assert start["lr_schedulers"] == []


@pytest.mark.parametrize("rewind", [keep_weights, fine_tune])
def test_under_weight_averaging_the_averaged_weights_are_where_training_goes_on(rewind):
    start = rewind(AVERAGED_POINT, AVERAGED_TRAINED)
    assert start["state_dict"] == start["current_model_state"] == AVERAGED_TRAINED["state_dict"]
    assert start["averaging_state"] == AVERAGED_POINT["averaging_state"]


def test_under_weight_averaging_the_point_keeps_both_kinds_of_weights():
    start = fresh_optimizer(AVERAGED_POINT, AVERAGED_TRAINED)
    assert start["state_dict"] == AVERAGED_POINT["state_dict"]
    assert start["current_model_state"] == AVERAGED_POINT["current_model_state"]


@pytest.mark.parametrize("rewind", [keep_weights, fine_tune])
def test_without_weight_averaging_there_is_one_kind_of_weights(rewind):
    assert "current_model_state" not in rewind(POINT, TRAINED)


def test_redraw_starts_from_nothing():
    assert redraw(POINT, TRAINED) is None


@pytest.mark.parametrize("rewind", CHANGING)
def test_a_rewind_that_changes_weights_says_how(rewind):
    assert rewind(POINT, TRAINED) == Changed(CHANGING[rewind])


def test_noise_has_its_sigma():
    change = noise(0.5)(POINT, TRAINED).change
    assert (change.func, change.keywords) == (changes.noisy, {"sigma": 0.5})
    with pytest.raises(ValueError, match="sigma=0 of noise must be a positive number"):
        noise(0)


counts = st.integers(0, 10**9)
spaces = st.sampled_from(["", " ", "  ", "\t"])


@given(counts, st.sampled_from(["step", "epoch"]), st.booleans(), spaces, spaces, spaces)
def test_a_number_and_a_unit_are_understood(count, unit, plural, before, between, after):
    text = f"{before}{count}{between}{unit}{'s' if plural else ''}{after}"
    assert parse_step(text) == RewindStep(count, f"{unit}s")


@given(counts)
def test_a_number_alone_means_steps(count):
    assert parse_step(count) == parse_step(str(count)) == RewindStep(count, "steps")


@given(counts, st.sampled_from(["steps", "epochs"]))
def test_a_rewind_step_is_read_back_from_its_text(count, unit):
    assert parse_step(str(RewindStep(count, unit))) == RewindStep(count, unit)


@pytest.mark.parametrize(
    "value",
    [-1, 0.5, 500.0, True, False, None, "", "steps", "-1 steps", "1.5 epochs", "2 batches", "500it", "5 Epochs",
     "1 steps 2 epochs", "1 2 steps", "1 stepss", [5]],
)  # fmt: skip
def test_anything_else_is_refused_with_what_to_write(value):
    with pytest.raises(ValueError, match="is not understood") as error:
        parse_step(value)
    assert str(error.value) == (f'rewind_step={value!r} is not understood: write 0, 500, "500 steps" or "2 epochs".')
