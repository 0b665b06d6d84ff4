"""The contract of every control: exactly one ingredient of the ticket is another one."""

import inspect
import sys
from dataclasses import fields, replace
from functools import partial
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning import controls
from lt_lightning.controls import (
    Ingredients,
    at_step,
    kept_signs,
    named,
    noise,
    random_mask,
    random_mask_globally,
    reinit,
    shuffled_weights,
    signed_constant,
)
from lt_lightning.plan import control_name

WEIGHTS = [signed_constant, kept_signs, shuffled_weights, noise(0.5)]
CONTROLS = [reinit, random_mask, random_mask_globally, *WEIGHTS]
CHANGES = {
    reinit: {"start", "init_seed"},
    random_mask: {"masks"},
    random_mask_globally: {"masks"},
    **{control: {"change"} for control in WEIGHTS},
}
"""What a control changes; where to start from and the seed of a fresh model are one ingredient, the weights."""


def ingredients(round=1, seed=0, start="rewind.ckpt"):
    draws = torch.Generator().manual_seed(4)
    masks = {"hidden": torch.rand(6, 7, generator=draws) < 0.3, "output": torch.rand(40, generator=draws) < 0.7}
    return Ingredients(round=round, masks=masks, start=start, init_seed=11, seed=seed)


def plain(value):
    """Ingredients, or one of them, as values that compare."""
    if isinstance(value, partial):
        return value.func, value.keywords
    if isinstance(value, Ingredients):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return {name: mask.tolist() for name, mask in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("start", ["rewind.ckpt", None])
@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_changes_one_ingredient_and_no_other(control, start):
    before = plain(ingredients(start=start))
    after = plain(control(ingredients(start=start)))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == CHANGES[control] - ({"start"} if start is None else set())


@pytest.mark.parametrize("control", CONTROLS)
def test_the_tickets_own_ingredients_are_not_modified(control):
    ticket = ingredients()
    changed = control(ticket)
    for mask in changed.masks.values() if changed.masks is not ticket.masks else ():
        mask.fill_(True)
    assert plain(ticket) == plain(ingredients())


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_is_a_function_of_seed_and_round(control):
    first = plain(control(ingredients(round=2, seed=3)))
    torch.rand(5)
    assert plain(control(ingredients(round=2, seed=3))) == first


@pytest.mark.parametrize("control", [reinit, random_mask, random_mask_globally])  # changes draw when they are made
@pytest.mark.parametrize("other", [{"round": 2}, {"seed": 1}])
def test_a_control_differs_by_round_and_by_seed(control, other):
    first, second = plain(control(ingredients())), plain(control(ingredients(**other)))
    assert all(first[name] != second[name] for name in CHANGES[control] - {"start"})


@pytest.mark.parametrize("control", CONTROLS)
def test_a_control_leaves_the_global_random_state_alone(control):
    before = torch.get_rng_state()
    control(ingredients())
    assert torch.equal(torch.get_rng_state(), before)


def test_reinit_starts_a_fresh_model_at_step_0():
    assert reinit(ingredients()).start is None


@given(
    st.lists(st.tuples(st.lists(st.integers(1, 5), max_size=3), st.floats(0, 1)), min_size=1, max_size=4),
    st.integers(1, 30),
    st.integers(0, 2**31),
)
def test_random_mask_keeps_as_many_weights_in_every_layer(layers, round, seed):
    draws = torch.Generator().manual_seed(seed)
    masks = {f"w{n}": torch.rand(shape, generator=draws) < share for n, (shape, share) in enumerate(layers)}
    shuffled = random_mask(Ingredients(round, masks, None, 0, seed)).masks
    assert list(shuffled) == list(masks)
    for name, mask in masks.items():
        assert (shuffled[name].shape, shuffled[name].dtype) == (mask.shape, torch.bool)
        assert shuffled[name].sum() == mask.sum()


def test_random_mask_puts_weights_anywhere():
    masks = {"w": torch.arange(50) < 5}
    places = torch.zeros(50)
    for round in range(1, 201):
        places += random_mask(Ingredients(round, masks, None, 0, seed=0)).masks["w"]
    assert places.sum() == 1000
    assert 5 <= places.min() <= places.max() <= 40


def test_layers_of_one_shape_are_shuffled_apart():
    masks = {name: torch.arange(64) < 32 for name in ("a", "b")}
    shuffled = random_mask(Ingredients(1, masks, None, 0, seed=0)).masks
    assert not torch.equal(shuffled["a"], shuffled["b"])


def test_random_mask_globally_moves_weights_between_layers():
    masks = {"a": torch.ones(40).bool(), "b": torch.zeros(60).bool()}
    shuffled = random_mask_globally(Ingredients(1, masks, None, 0, seed=0)).masks
    assert {name: mask.shape for name, mask in shuffled.items()} == {"a": (40,), "b": (60,)}
    assert sum(int(mask.sum()) for mask in shuffled.values()) == 40
    assert 5 < int(shuffled["b"].sum()) < 40


def test_every_control_of_ours_has_its_name_and_is_in_the_contract():
    functions = {name for name, value in vars(controls).items() if inspect.isfunction(value) and name[0] != "_"}
    own = {name for name in functions if getattr(controls, name).__module__ == controls.__name__}
    written = own - {"named", "step_of"}
    assert written == set(controls._OURS)
    assert written - {"at_step"} == {control_name(control).removesuffix("_0.5") for control in CONTROLS}
    for name in written - {"noise", "at_step"}:
        assert named(name) is getattr(controls, name)


@pytest.mark.parametrize(
    ("text", "control", "arm"),
    [
        ("noise(0.5)", noise(0.5), "noise_0.5"),
        ("noise(sigma=2)", noise(2), "noise_2"),
        ("lt_lightning.controls.noise(1e-3)", noise(0.001), "noise_0.001"),
        ("at_step(100)", at_step(100), "at_step_100"),
    ],
)
def test_a_control_with_a_value_is_made_from_its_text_and_the_arm_tells_it(text, control, arm):
    assert plain(named(text)) == plain(control)
    assert control_name(named(text)) == arm


def test_an_arm_is_a_file_name_whatever_a_control_was_given():
    def scaled(ticket, by, how=""):
        return ticket

    assert control_name(partial(scaled, by=3, how="a/b c")) == "scaled_3_a_b_c"
    assert control_name(partial(scaled, by=[1, 2])) == "scaled"


@pytest.mark.parametrize("text", ["noise(", "noise(x)", "noise(0.5)()", "reinit(0.5", "nothing(1)", "(1)"])
def test_a_text_that_is_no_call_is_refused(text):
    with pytest.raises(ValueError, match="there is no control"):
        named(text)


@pytest.mark.parametrize("sigma", [0, -1, True, "1", float("inf"), float("nan"), None])
def test_a_sigma_that_is_no_positive_number_is_refused(sigma):
    with pytest.raises(ValueError, match=r"of noise must be a positive number, in standard deviations of a layer's"):
        noise(sigma)


@pytest.mark.parametrize("step", [-1, 0.5, True, "soon", None])
def test_a_step_that_is_none_is_refused(step):
    with pytest.raises(ValueError, match=r"of at_step must be a number of steps, 0 or more: at_step\(100\)"):
        at_step(step)


def test_at_step_starts_from_the_point_that_round_0_saved_and_changes_nothing_else(tmp_path):
    for step in (0, 7):
        (tmp_path / f"step-{step}.ckpt").touch()
    ticket = replace(ingredients(), points=str(tmp_path))
    before, after = plain(ticket), plain(at_step(7)(ticket))
    assert after["start"] == str(tmp_path / "step-7.ckpt")
    assert {name for name in before if before[name] != after[name]} == {"start"}
    with pytest.raises(FileNotFoundError) as error:
        at_step(100)(ticket)
    assert str(error.value) == (
        f"the control at_step(100) starts from {tmp_path / 'step-100.ckpt'}, which is not there: round 0 has saved "
        "steps [0, 7], as it was trained before this control was asked for. Choose one of them, or another directory."
    )


def test_a_control_of_ones_own_is_found_by_its_dotted_path(monkeypatch):
    mine = ModuleType("somebodys_controls")
    mine.inverted = lambda ticket: replace(ticket, masks={name: ~mask for name, mask in ticket.masks.items()})
    monkeypatch.setitem(sys.modules, "somebodys_controls", mine)
    assert named("somebodys_controls.inverted") is mine.inverted
    assert named("lt_lightning.controls.reinit") is reinit


@pytest.mark.parametrize("name", ["reinitt", "no_such_module.control", "lt_lightning.controls.nothing", ""])
def test_a_name_without_a_control_is_refused_with_the_choices(name):
    with pytest.raises(ValueError, match="there is no control") as error:
        named(name)
    assert str(error.value) == (
        f"there is no control {name!r}: choose from ['reinit', 'random_mask', 'random_mask_globally', "
        "'signed_constant', 'kept_signs', 'shuffled_weights', 'noise(0.5)', 'at_step(100)'], or give the dotted path "
        "of a function."
    )
