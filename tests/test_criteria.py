"""The contract of every criterion, and what each computes."""

import inspect
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning import criteria
from lt_lightning.criteria import Evidence, large_final, magnitude, magnitude_increase, movement, random

CRITERIA = [
    function
    for name, function in vars(criteria).items()
    if inspect.isfunction(function) and function.__module__ == criteria.__name__ and not name.startswith("_")
]

INITIAL = {"hidden": torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]]), "output": torch.tensor([0.25, -4.0])}
TRAINED = {"hidden": torch.tensor([[-3.0, -2.5, 0.5], [0.5, -1.0, 0.0]]), "output": torch.tensor([0.0, 5.0])}
MASKS = {"hidden": torch.tensor([[True, True, False], [True, True, True]]), "output": torch.tensor([True, False])}


def unasked(*_):
    raise AssertionError("nobody asked for this evidence")


def evidence(round=0, seed=0, initial=INITIAL, trained=TRAINED, **readers):
    """Fresh evidence of a finished round; what no criterion of ours needs raises."""
    defaults = {
        "read_initial": lambda: {name: weight.clone() for name, weight in initial.items()},
        "read_point": unasked,
        "read_trained": lambda: {name: weight.clone() for name, weight in trained.items()},
        "model": unasked,
        "batches": unasked,
        "make_module": unasked,
        "density": 0.5,
        "scope": unasked,
    }
    masks = {name: mask.clone() for name, mask in MASKS.items()}
    return Evidence(round=round, masks=masks, seed=seed, **(defaults | readers))


def listed(scores):
    return {name: score.tolist() for name, score in scores.items()}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_mask_gets_scores_of_its_name_and_shape(criterion):
    scores = criterion(evidence())
    assert {name: score.shape for name, score in scores.items()} == {"hidden": (2, 3), "output": (2,)}
    assert all(score.is_floating_point() for score in scores.values())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_finite_evidence_gives_finite_scores(criterion):
    large = {name: torch.full(mask.shape, -1e38) for name, mask in MASKS.items()}
    nothing = {name: torch.zeros(mask.shape) for name, mask in MASKS.items()}
    for initial, trained in ((large, nothing), (nothing, large), (nothing, nothing)):
        scores = criterion(evidence(initial=initial, trained=trained))
        assert all(score.isfinite().all() for score in scores.values())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_equal_evidence_gives_equal_scores_whatever_was_drawn_before(criterion):
    first = criterion(evidence(round=3, seed=7))
    torch.rand(5)
    assert listed(criterion(evidence(round=3, seed=7))) == listed(first)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_evidence_is_not_modified(criterion):
    given = evidence()
    criterion(given)
    assert listed(given.initial) == listed(INITIAL)
    assert listed(given.trained) == listed(TRAINED)
    assert listed(given.masks) == listed(MASKS)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_do_not_share_memory_with_the_weights(criterion):
    given = evidence(trained={name: weight.abs() for name, weight in TRAINED.items()})
    for score in criterion(given).values():
        score.fill_(-7.0)
    assert all((weight >= 0).all() for weight in given.trained.values())


def test_the_contract_covers_every_criterion():
    assert {function.__name__ for function in CRITERIA} == {
        "magnitude", "small_final", "large_init", "small_init", "large_init_large_final", "small_init_small_final",
        "magnitude_increase", "movement", "random", "large_final_same_sign", "large_final_diff_sign",
        "magnitude_increase_same_sign", "magnitude_increase_diff_sign",
    }  # fmt: skip
    assert large_final is magnitude


# grew, shrank, changed its sign and grew, changed its sign and shrank, died
W_I, W_F = torch.tensor([1.0, 2.0, -1.0, 4.0, 0.5]), torch.tensor([3.0, 1.0, 2.0, -0.5, 0.0])
FORMULAS = {
    "magnitude": [3, 1, 2, 0.5, 0],
    "small_final": [-3, -1, -2, -0.5, 0],
    "large_init": [1, 2, 1, 4, 0.5],
    "small_init": [-1, -2, -1, -4, -0.5],
    "large_init_large_final": [0.2, 0.4, 0.2, 0.2, 0],  # shares below: w_i .2 .6 .2 .8 0, w_f .8 .4 .6 .2 0
    "small_init_small_final": [0, 0.2, 0.2, 0, 0.8],  # -w_i .4 .2 .4 0 .8, -w_f 0 .4 .2 .6 .8
    "magnitude_increase": [2, -1, 1, -3.5, -0.5],
    "movement": [2, 1, 3, 4.5, 0.5],
    "large_final_same_sign": [3, 1, 0, 0, 0],
    "large_final_diff_sign": [0, 0, 2, 0.5, 0],
    "magnitude_increase_same_sign": [2, -1, 0, 0, 0],
    "magnitude_increase_diff_sign": [0, 0, 1, -3.5, -0.5],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_scores_are_those_of_the_papers_formula(name):
    given = replace(evidence(initial={"w": W_I}, trained={"w": W_F}), masks={"w": torch.ones(5).bool()})
    assert getattr(criteria, name)(given)["w"].tolist() == pytest.approx(FORMULAS[name])


def test_percentiles_are_those_among_the_weights_still_kept():
    given = replace(
        evidence(initial={"w": torch.tensor([1.0, 2.0, 9.0, 3.0])}, trained={"w": torch.tensor([4.0, 5.0, 9.0, 1.0])}),
        masks={"w": torch.tensor([True, True, False, True])},
    )
    scores = criteria.large_init_large_final(given)["w"]
    assert scores[[0, 1, 3]].tolist() == pytest.approx([0, 1 / 3, 0])


@given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=1, max_size=30), st.floats(0.1, 10))
def test_criteria_of_both_ends_do_not_depend_on_how_large_either_is(pairs, scale):
    """The paper's factor: what is kept is what both ends put among their best."""
    initial, trained = (torch.tensor(values, dtype=torch.float64) for values in zip(*pairs, strict=True))
    masks = {"w": torch.ones(len(pairs)).bool()}
    one = replace(evidence(initial={"w": initial}, trained={"w": trained}), masks=masks)
    other = replace(evidence(initial={"w": initial}, trained={"w": trained * 2.0 ** round(scale)}), masks=masks)
    for criterion in (criteria.large_init_large_final, criteria.small_init_small_final):
        assert torch.equal(criterion(one)["w"], criterion(other)["w"])


def test_magnitude_is_the_trained_weights_without_their_sign():
    assert listed(magnitude(evidence())) == {"hidden": [[3.0, 2.5, 0.5], [0.5, 1.0, 0.0]], "output": [0.0, 5.0]}


def test_magnitude_increase_is_how_much_further_from_zero_a_weight_is():
    expected = {"hidden": [[2.0, 0.5, 0.0], [0.5, -2.0, -1.0]], "output": [-0.25, 1.0]}
    assert listed(magnitude_increase(evidence())) == expected


def test_movement_is_how_far_a_weight_went():
    assert listed(movement(evidence())) == {"hidden": [[4.0, 0.5, 0.0], [0.5, 4.0, 1.0]], "output": [0.25, 9.0]}


def test_random_scores_are_uniform_and_differ_between_tensors():
    wide = {name: torch.ones(4000, dtype=torch.bool) for name in ("a", "b")}
    scores = random(replace(evidence(), masks=wide))
    for score in scores.values():
        assert 0 <= score.min() < 0.01
        assert 0.99 < score.max() < 1
        assert score.mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(scores["a"], scores["b"])


@pytest.mark.parametrize("other", [{"round": 2}, {"seed": 1}, {"round": 2, "seed": 1}])
def test_random_scores_differ_by_round_and_by_seed(other):
    assert listed(random(evidence(round=1, seed=0))) != listed(random(evidence(**({"round": 1, "seed": 0} | other))))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_leaves_the_global_random_state_alone(criterion):
    before = torch.get_rng_state()
    criterion(evidence())
    assert torch.equal(torch.get_rng_state(), before)


def test_magnitude_reads_the_trained_weights_alone():
    assert listed(magnitude(evidence(read_initial=unasked)))["output"] == [0.0, 5.0]


def test_random_reads_no_weights():
    assert set(random(evidence(read_initial=unasked, read_trained=unasked))) == set(MASKS)


@pytest.mark.parametrize("part", ["initial", "point", "trained"])
def test_evidence_is_read_when_first_asked_for_and_once(part):
    reads = []

    def read():
        reads.append(part)
        return INITIAL

    given = evidence(**{f"read_{part}": read})
    assert reads == []
    assert getattr(given, part) is INITIAL
    assert getattr(given, part) is INITIAL
    assert reads == [part]
