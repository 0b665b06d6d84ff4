"""The contract of every scope, and what each does beyond it."""

import builtins
import inspect
import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning import scopes
from lt_lightning.masks import density, kept, total
from lt_lightning.schedules import geometric
from lt_lightning.scopes import (
    apportion,
    balanced,
    channels,
    emptied,
    erk,
    globally,
    group_by_pattern,
    keep_best,
    layerwise,
    n_m,
    select,
)

SCOPES = [globally, layerwise, erk, balanced, n_m, partial(n_m, m=3), channels, partial(channels, norm=1)]
WEIGHTWISE = [globally, layerwise, erk, balanced]
"""Scopes that may keep any number of weights."""

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


def named(scope):
    return getattr(scope, "__name__", str(getattr(scope, "keywords", "")))


def test_the_contract_covers_every_scope():
    written = {
        name
        for name, value in vars(scopes).items()
        if inspect.isfunction(value) and value.__module__ == scopes.__name__
    }
    helpers = {"keep_best", "select", "group_by_pattern", "apportion", "require_pruned", "emptied"}
    covered = {getattr(scope, "func", scope).__name__ for scope in SCOPES}
    assert {name for name in written - helpers if name[0] != "_"} == covered


@st.composite
def layers(draw):
    """Scores of some tensors of any shape, with many ties, and falling densities that leave something of each."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    drawn = draw(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=4))
    scores = {f"w{n}": torch.randint(-3, 4, shape, generator=generator).float() for n, shape in enumerate(drawn)}
    densities = sorted(draw(st.lists(st.floats(0.26, 1.0), min_size=2, max_size=4)), reverse=True)
    return scores, densities


def expected(scope, shapes, density):
    """How many weights of all tensors together, and of each where that is known."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    function, options = getattr(scope, "func", scope), getattr(scope, "keywords", {})
    if function in (globally, erk, balanced):
        return round(density * sum(sizes)), None
    if function is layerwise:
        each = [round(density * size) for size in sizes]
    elif function is channels:
        each = [max(1, round(density * shape[0])) * size // shape[0] for shape, size in zip(shapes, sizes, strict=True)]
    else:
        m, length = options.get("m", 4), [shape[min(1, len(shape) - 1)] for shape in shapes]
        n = round(density * m)
        rows = [n * (d // m) + min(n, d % m) for d in length]
        each = [row * size // d for row, d, size in zip(rows, length, sizes, strict=True)]
    return sum(each), each


@pytest.mark.parametrize("scope", SCOPES, ids=named)
@given(problem=layers())
def test_of_every_scope_counts_are_exact_masks_nested_and_ties_decided(scope, problem):
    scores, densities = problem
    before = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    for share in densities:
        after = scope(scores, before, share)
        assert list(after) == list(before)
        assert all((after[name].shape, after[name].dtype) == (m.shape, torch.bool) for name, m in before.items())
        assert not any((after[name] & ~before[name]).any() for name in before)
        count, each = expected(scope, [tuple(score.shape) for score in scores.values()], share)
        assert kept(after) == count
        assert each is None or [int(mask.sum()) for mask in after.values()] == each
        again = scope(scores, before, share)
        assert all(torch.equal(after[name], again[name]) for name in after)
        before = after


@given(problem=layers(), least=st.floats(0.001, 0.5))
def test_globally_each_layer_keeps_a_least_density_and_all_together_exactly_the_count(problem, least):
    scores, densities = problem
    before = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    sizes = {name: score.numel() for name, score in scores.items()}
    floors = {name: math.ceil(least * size) for name, size in sizes.items()}
    for share in densities:
        count = round(share * sum(sizes.values()))
        if sum(floors.values()) > count:
            with pytest.raises(ValueError, match=f"and the density of the round allows {count:,}: ask for less"):
                globally(scores, before, share, least=least)
            return
        after = globally(scores, before, share, least=least)
        assert kept(after) == count
        assert all(floors[name] <= int(mask.sum()) <= sizes[name] for name, mask in after.items())
        assert not any((after[name] & ~before[name]).any() for name in before)
        # What is kept beyond the floors is no worse than anything that is pruned elsewhere.
        spare = [s[after[n]].min() for n, s in scores.items() if int(after[n].sum()) > floors[n]]
        gone = [s[before[n] & ~after[n]].max() for n, s in scores.items() if (before[n] & ~after[n]).any()]
        assert not spare or not gone or min(spare) >= max(gone)
        before = after


def test_without_a_least_density_a_layer_may_lose_every_weight():
    scores = {"low": torch.arange(4.0), "high": torch.arange(4.0, 12.0)}
    masks = {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}
    chosen = globally(scores, masks, 0.5)
    assert emptied(chosen, masks) == {"low": 4}
    assert emptied(chosen, chosen) == {}
    chosen = globally(scores, masks, 0.5, least=0.3)
    assert {name: mask.tolist() for name, mask in chosen.items()} == {
        "low": [False, False, True, True],
        "high": [False] * 4 + [True] * 4,
    }


@pytest.mark.parametrize("least", [-0.1, 1, float("nan"), "0.1", None, True])
def test_a_least_density_is_a_number(least):
    with pytest.raises(ValueError, match=r"least=.* must be a density in \[0, 1\) that each layer keeps"):
        globally({"w": torch.ones(2)}, {"w": torch.ones(2).bool()}, 0.5, least=least)


@pytest.mark.parametrize("scope", [erk, balanced])
@given(problem=layers())
def test_of_each_tensor_the_best_are_kept_whatever_it_has_been_given(scope, problem):
    scores, (share, *_) = problem
    chosen = scope(scores, {name: torch.ones(score.shape, dtype=torch.bool) for name, score in scores.items()}, share)
    for name, mask in chosen.items():
        flat = mask.flatten()
        assert torch.equal(keep_best(scores[name].flatten(), torch.ones_like(flat), int(flat.sum())), flat)


def test_erk_is_the_papers_density_where_nothing_is_clamped():
    shapes = {"conv": (64, 32, 3, 3), "wide": (128, 64, 3, 3), "head": (500, 300)}
    masks = {name: torch.ones(shape).bool() for name, shape in shapes.items()}
    chosen = erk({name: torch.rand(shape) for name, shape in shapes.items()}, masks, 0.01)
    scale = round(0.01 * total(masks)) / sum(sum(shape) for shape in shapes.values())
    for name, shape in shapes.items():
        assert int(chosen[name].sum()) == pytest.approx(scale * sum(shape), abs=0.5)


def test_erk_keeps_a_small_layer_whole_and_gives_its_share_to_the_others():
    masks = {"small": torch.ones(2, 3).bool(), "a": torch.ones(40, 40).bool(), "b": torch.ones(20, 80).bool()}
    chosen = erk({name: torch.rand(mask.shape) for name, mask in masks.items()}, masks, 0.25)
    assert {name: int(mask.sum()) for name, mask in chosen.items()} == {"small": 6, "a": 354, "b": 442}
    assert kept(chosen) == round(0.25 * 3206)


def test_balanced_keeps_as_many_of_each_and_all_of_what_has_fewer():
    masks = {"small": torch.ones(3).bool(), "a": torch.ones(100).bool(), "b": torch.ones(10, 20).bool()}
    chosen = balanced({name: torch.rand(mask.shape) for name, mask in masks.items()}, masks, 0.2)
    assert {name: int(mask.sum()) for name, mask in chosen.items()} == {"small": 3, "a": 29, "b": 29}


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30)), min_size=1, max_size=6))
def test_what_is_apportioned_is_all_there_is_within_limits_and_never_more_if_there_is_less(parties):
    shares = {str(n): share for n, (share, _) in enumerate(parties)}
    limits = {str(n): limit for n, (_, limit) in enumerate(parties)}
    most = sum(limits.values())
    before = None
    for count in range(most, -1, -max(1, most // 12)):
        counts = apportion(count, shares, limits)
        assert sum(counts.values()) == count
        assert all(0 <= counts[name] <= limits[name] for name in shares)
        assert before is None or all(counts[name] <= before[name] for name in shares)
        before = counts


def test_2_4_is_two_of_every_four_along_the_input():
    scores = {"w": torch.tensor([[1.0, 2.0, 3.0, 4.0, 4.0, 4.0, 4.0, 4.0], [9, 1, 8, 2, -1, -2, -3, -4]])}
    chosen = n_m(scores, {"w": torch.ones(2, 8).bool()}, 0.5)["w"]
    assert chosen.int().tolist() == [[0, 0, 1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]]


def test_of_a_convolution_the_input_channels_are_grouped_and_a_shorter_group_keeps_at_most_n():
    scores = {"w": torch.arange(2 * 6 * 2.0).view(2, 6, 2, 1)}
    chosen = n_m(scores, {"w": torch.ones(2, 6, 2, 1).bool()}, 0.5)["w"]
    assert chosen[:, :, 0, 0].int().tolist() == chosen[:, :, 1, 0].int().tolist() == [[0, 0, 1, 1, 1, 1]] * 2


def test_channels_are_kept_by_the_norm_of_their_scores():
    scores = {"w": torch.tensor([[3.0, 0.0, 0.0], [2.0, 2.0, 0.0], [-1.0, -1.0, -1.5]])}
    masks = {"w": torch.ones(3, 3).bool()}
    assert channels(scores, masks, 1 / 3)["w"].any(1).tolist() == [True, False, False]  # 3 > 2.83 > 2.06
    assert channels(scores, masks, 1 / 3, norm=1)["w"].any(1).tolist() == [False, True, False]  # 4 > 3.5 > 3
    assert channels(scores, {"w": torch.tensor([[True, True, False]] * 3)}, 2 / 3)["w"].int().tolist() == [
        [1, 1, 0], [1, 1, 0], [0, 0, 0],
    ]  # fmt: skip


def test_a_layer_is_never_pruned_away_channel_by_channel():
    chosen = channels({"w": torch.rand(8, 5)}, {"w": torch.ones(8, 5).bool()}, 0.01)["w"]
    assert chosen.sum() == 5


@pytest.mark.parametrize(
    ("scope", "share", "message"),
    [
        (n_m, 0.1, "a density of 0.1 is nearest to 0 of 4 weights, and nothing would be kept: ask for a density of at "
         "least 0.25, or for longer groups (prune.scope.m=8)."),
        (n_m, 0.75, "asked to keep 3 weights of every 4 of w, where only 1 are still kept: a pruned weight never comes "
         "back, so a schedule must not rise, and all rounds need the same scope."),
        (channels, 1.0, "asked to keep 2 of 2 channels of w, where only 1 are still kept: a pruned weight never comes "
         "back, so a schedule must not rise, and all rounds need the same scope."),
    ],
)  # fmt: skip
def test_groups_that_cannot_be_are_refused(scope, share, message):
    masks = {"w": torch.tensor([[True, False, False, False], [False, False, False, False]])}
    with pytest.raises(ValueError, match="w") as error:
        scope({"w": torch.zeros(2, 4)}, masks, share)
    assert str(error.value) == message


@pytest.mark.parametrize("scope", [globally, layerwise])
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


@pytest.mark.parametrize("scope", WEIGHTWISE)
def test_ties_are_decided_by_position(scope):
    chosen = scope({"w": torch.zeros(2, 3)}, {"w": torch.ones(2, 3).bool()}, 0.5)
    assert chosen["w"].tolist() == [[True, True, True], [False, False, False]]


@pytest.mark.parametrize("scope", WEIGHTWISE)
def test_selection_is_deterministic(scope):
    scores = {"w": torch.randn(1000, generator=torch.Generator().manual_seed(0)).round(decimals=1)}
    masks = {"w": torch.ones(1000).bool()}
    assert torch.equal(scope(scores, masks, 0.3)["w"], scope(scores, masks, 0.3)["w"])


@pytest.mark.parametrize("scope", WEIGHTWISE)
def test_a_rising_density_is_refused(scope):
    with pytest.raises(ValueError, match="asked to keep 4 weights where only 1 of 4 are still kept"):
        scope({"w": torch.zeros(4)}, {"w": torch.tensor([True, False, False, False])}, 1.0)


@pytest.mark.parametrize("scope", WEIGHTWISE)
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
