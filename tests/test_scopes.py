"""The contract of every scope, and what each does beyond it."""

import builtins

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.masks import density, kept, total
from lt_lightning.schedules import geometric
from lt_lightning.scopes import globally, group_by_pattern, keep_best, layerwise, select

SCOPES = [globally, layerwise]
shapes = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@st.composite
def problems(draw):
    """Scores with many ties, nested masks, and a density that leaves something to choose."""
    sizes = draw(shapes)
    levels = st.integers(-2, 2)
    scores = {
        f"w{i}": torch.tensor(draw(st.lists(levels, min_size=n, max_size=n))).float() for i, n in enumerate(sizes)
    }
    masks = {name: torch.ones(s.shape, dtype=torch.bool) for name, s in scores.items()}
    return scores, masks, draw(st.floats(0.01, 1.0)), draw(st.floats(0.01, 1.0))


@pytest.mark.parametrize("scope", SCOPES)
@given(problem=problems())
def test_counts_are_exact_masks_are_nested_and_the_best_are_kept(scope, problem):
    scores, masks, first, second = problem
    before = scope(scores, masks, max(first, second))
    after = scope(scores, before, min(first, second))
    groups = [list(masks)] if scope is globally else [[name] for name in masks]
    for names in groups:
        part = {name: after[name] for name in names}
        assert kept(part) == round(min(first, second) * total(part))
    for name in masks:
        assert not (after[name] & ~before[name]).any()
    for names in groups:
        flat = torch.cat([scores[name] for name in names])
        chosen = torch.cat([after[name] for name in names])
        rest = torch.cat([before[name] for name in names]) & ~chosen
        if chosen.any() and rest.any():
            assert flat[chosen].min() >= flat[rest].max()


@pytest.mark.parametrize("scope", SCOPES)
def test_ties_are_decided_by_position(scope):
    chosen = scope({"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3).bool()}, 0.5)
    assert chosen["w"].tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize("scope", SCOPES)
def test_selection_is_deterministic(scope):
    scores = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0)).round(decimals=1)}
    masks = {"w": torch.ones(1000).bool()}
    assert torch.equal(scope(scores, masks, 0.3)["w"], scope(scores, masks, 0.3)["w"])


@pytest.mark.parametrize("scope", SCOPES)
def test_a_rising_density_is_refused(scope):
    with pytest.raises(ValueError, match="asked to keep 4 weights where only 1 of 4 are still kept"):
        scope({"w": torch.zeros(4)}, {"w": torch.tensor([True, False, False, False])}, 1.0)


@pytest.mark.parametrize("scope", SCOPES)
def test_infinite_scores_have_an_order(scope):
    scores = {"w": torch.tensor([0.0, -torch.inf, torch.inf, 1.0])}
    assert scope(scores, {"w": torch.ones(4).bool()}, 0.5)["w"].tolist() == [False, False, True, True]


def test_globally_ties_across_tensors_go_to_the_earlier_one():
    chosen = globally(
        {"a": torch.zeros(2), "b": torch.zeros(2)}, {"a": torch.ones(2).bool(), "b": torch.ones(2).bool()}, 0.5
    )
    assert chosen["a"].all()
    assert not chosen["b"].any()


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=40),
    st.floats(0, 1),
)
def test_keep_best_equals_a_stable_sort(items, share):
    scores = torch.tensor([float(s) for s, _ in items])
    mask = torch.tensor([m for _, m in items])
    count = round(share * int(mask.sum()))
    candidates = [i for i, (_, m) in enumerate(items) if m]
    expected = sorted(candidates, key=lambda i: (-items[i][0], i))[:count]
    assert keep_best(scores, mask, count).nonzero().flatten().tolist() == sorted(expected)


def test_the_papers_densities_of_lenet():
    masks = {
        "hidden1.weight": torch.ones(300, 784),
        "hidden2.weight": torch.ones(100, 300),
        "output.weight": torch.ones(10, 100),
    }
    masks = {name: mask.bool() for name, mask in masks.items()}
    scores = {name: torch.randn(mask.shape) for name, mask in masks.items()}
    schedule = geometric({"*output*": 0.1, "*": 0.2})
    measured = []
    for round in range(1, 21):
        masks = select(scores, masks, schedule(round), layerwise)
        measured.append(density(masks))
        assert kept({"o": masks["output.weight"]}) == builtins.round(1000 * 0.9**round)
    expected = {3: 0.5128, 7: 0.2107, 9: 0.1352, 12: 0.0695, 15: 0.0358, 18: 0.0185, 20: 0.0119}
    assert {n: builtins.round(measured[n - 1], 4) for n in expected} == expected


def test_global_groups_have_totals_of_their_own():
    scores = {"conv": torch.arange(10.0), "fc": torch.arange(10.0) + 100, "head": torch.zeros(4)}
    masks = {name: torch.ones(s.shape).bool() for name, s in scores.items()}
    chosen = select(scores, masks, {"conv": 0.5, "fc": 0.2}, globally)
    assert {name: int(mask.sum()) for name, mask in chosen.items()} == {"conv": 5, "fc": 2, "head": 4}


def test_a_name_belongs_to_the_first_pattern_that_matches():
    names = {"a.output": torch.ones(1), "a.hidden": torch.ones(1)}
    assert group_by_pattern({"*output": 0.9, "*": 0.8}, names) == {"*output": ["a.output"], "*": ["a.hidden"]}


def test_a_pattern_without_a_match_is_refused():
    with pytest.raises(ValueError, match="'conv' matches nothing; the parameters are fc"):
        select({"fc": torch.zeros(2)}, {"fc": torch.ones(2).bool()}, {"conv": 0.5}, globally)


def test_nan_scores_are_refused():
    scores = {"w": torch.tensor([0.0, torch.nan, torch.nan])}
    with pytest.raises(ValueError, match="2 of the 3 scores of w are NaN"):
        select(scores, {"w": torch.ones(3).bool()}, 0.5, globally)


def test_missing_and_misshapen_scores_are_refused():
    masks = {"a": torch.ones(2).bool(), "b": torch.ones(2).bool()}
    with pytest.raises(ValueError, match=r"missing or misshapen: \['a', 'b'\]"):
        select({"b": torch.zeros(3)}, masks, 0.5, globally)


def test_a_pattern_that_an_earlier_one_leaves_nothing_is_refused():
    masks = {"hidden": torch.ones(2).bool(), "output": torch.ones(2).bool()}
    with pytest.raises(ValueError, match=r"'\*output\*' owns nothing, because an earlier one of .* put it first"):
        group_by_pattern({"*": 0.8, "*output*": 0.9}, masks)


@pytest.mark.parametrize(
    ("scope", "message"),
    [
        (lambda s, m, d: {name: torch.ones_like(mask) for name, mask in m.items()}, r"pruned ones are back in \['w'\]"),
        (lambda s, m, d: {name: mask[:2] for name, mask in m.items()}, "of the same shape"),
        (lambda s, m, d: {name: mask.float() for name, mask in m.items()}, "must return a bool mask"),
        (
            lambda s, m, d: {name: torch.zeros_like(mask) for name, mask in m.items()},
            "nothing would be kept of 4",
        ),
    ],
    ids=["back", "shape", "type", "nothing"],
)
def test_what_no_scope_may_return_is_refused(scope, message):
    masks = {"w": torch.tensor([True, True, True, False])}
    with pytest.raises(ValueError, match=message):
        select({"w": torch.zeros(4)}, masks, 0.5, scope)
