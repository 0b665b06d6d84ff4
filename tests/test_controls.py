"""The contract of every control: exactly one ingredient of the ticket is another one."""

import sys
from dataclasses import fields, replace
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.controls import Ingredients, named, random_mask, reinit

CONTROLS = [reinit, random_mask]
CHANGES = {reinit: {"start", "init_seed"}, random_mask: {"masks"}}
"""What a control changes; where to start from and the seed of a fresh model are one ingredient, the weights."""


def ingredients(round=1, seed=0, start="rewind.ckpt"):
    draws = torch.Generator().manual_seed(4)
    masks = {"hidden": torch.rand(6, 7, generator=draws) < 0.3, "output": torch.rand(40, generator=draws) < 0.7}
    return Ingredients(round=round, masks=masks, start=start, init_seed=11, seed=seed)


def plain(value):
    """Ingredients, or one of them, as values that compare."""
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


@pytest.mark.parametrize("control", CONTROLS)
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


def test_our_controls_have_names():
    assert [named("reinit"), named("random_mask")] == [reinit, random_mask]


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
        f"there is no control {name!r}: choose from ['reinit', 'random_mask'], or give the dotted path of a function."
    )
