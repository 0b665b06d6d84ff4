"""The contract of every schedule, and what each does beyond it."""

from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.plan import describe
from lt_lightning.schedules import cubic, explicit, geometric, one_shot, rounds_to

SCHEDULES = [geometric(0.2), one_shot(0.1), explicit([0.5, 0.2]), geometric({"*output*": 0.1, "*": 0.2}), cubic(0.1, 8)]


def flat(density):
    return list(density.values()) if isinstance(density, dict) else [density]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: str(describe(s)))
def test_round_0_is_dense_and_densities_fall_within_bounds(schedule):
    densities = [flat(schedule(n)) for n in range(30)]
    assert set(densities[0]) == {1.0}
    for earlier, later in pairwise(densities):
        assert all(0 < b <= a for a, b in zip(earlier, later, strict=True))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: str(describe(s)))
def test_schedules_are_partials_of_module_functions_so_that_they_can_be_compared(schedule):
    assert isinstance(schedule, partial)
    assert describe(schedule)["function"].startswith("lt_lightning.schedules.")


@given(st.integers(0, 40))
def test_geometric_is_the_papers_density(n):
    assert geometric(0.2)(n) == 0.8**n


@given(st.floats(0.001, 0.999), st.floats(0.01, 0.9))
def test_rounds_to_is_the_first_round_that_is_sparse_enough(density, fraction):
    n = rounds_to(density, fraction)
    assert (1 - fraction) ** n <= density * (1 + 1e-8)
    assert n == 1 or (1 - fraction) ** (n - 1) > density


def test_rounds_to_known_values():
    assert [rounds_to(d) for d in (0.8, 0.64, 0.21, 0.0119)] == [1, 2, 7, 20]


def test_explicit_stays_at_its_last_density():
    assert [explicit([0.5, 0.2])(n) for n in range(5)] == [1.0, 0.5, 0.2, 0.2, 0.2]


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
@pytest.mark.parametrize(
    "make",
    [
        geometric,
        one_shot,
        lambda v: explicit([v]),
        lambda v: geometric({"*": v}),
        rounds_to,
        lambda v: cubic(v, 3),
    ],
)
def test_values_outside_0_to_1_are_refused(make, value):
    with pytest.raises(ValueError, match=r"must lie inside \(0, 1\), got"):
        make(value)


def test_an_explicit_list_must_fall_and_not_be_empty():
    with pytest.raises(ValueError, match="must not rise"):
        explicit([0.2, 0.5])
    with pytest.raises(ValueError, match="at least one density"):
        explicit([])


@given(st.integers(1, 30), st.floats(0.001, 0.999))
def test_cubic_begins_dense_reaches_its_density_and_prunes_less_and_less(rounds, density):
    densities = [cubic(density, rounds)(n) for n in range(rounds + 3)]
    assert densities[0] == 1.0
    assert densities[rounds:] == [density] * 3
    steps = [a - b for a, b in pairwise(densities[: rounds + 1])]
    assert all(a >= b - 1e-12 for a, b in pairwise(steps))


def test_cubic_is_the_papers_formula():
    assert cubic(0.2, 4)(1) == pytest.approx(0.2 + 0.8 * 0.75**3)


@pytest.mark.parametrize("rounds", [0, -1, 2.5, True, "3"])
def test_cubic_needs_rounds(rounds):
    with pytest.raises(ValueError, match=r"must be a whole number, 1 or more: in which the density is reached\."):
        cubic(0.1, rounds)
