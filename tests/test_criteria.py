"""The contract of every criterion, and what each computes."""

from dataclasses import replace

import pytest
import torch

from lt_lightning.criteria import Evidence, magnitude, magnitude_increase, movement, random

CRITERIA = [magnitude, random, magnitude_increase, movement]

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
