"""The contract of every schedule, and what each does beyond it."""

import re
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.plan import describe
from lt_lightning.schedules import cubic, explicit, geometric, one_shot, planned, rounds_to

SCHEDULES = [
    *(geometric(0.2), one_shot(0.1), explicit([0.5, 0.2]), geometric({"*output*": 0.1, "*": 0.2}), cubic(0.1, 8)),
    *(geometric(density=0.05), geometric(density=0.05, rounds=5), one_shot({"*output*": 0.1, "*": 0.05})),
    *(geometric(density={"*output*": 0.1, "*": 0.05}, rounds=3), geometric({"a": 0.3, "*": 0.2}, density=0.4)),
]


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


# A density and a number of rounds

PATTERNS = {"*output*": 0.1, "*": 0.05}


@given(st.integers(2, 30), st.floats(0.001, 0.999))
def test_a_density_in_rounds_prunes_the_same_fraction_each_time_and_ends_at_exactly_that(rounds, density):
    schedule, given_rounds = planned(None, density, rounds)
    densities = [schedule(n) for n in range(rounds + 3)]
    assert given_rounds == rounds
    assert densities[0] == 1.0
    assert densities[rounds:] == [density] * 3
    kept = [later / earlier for earlier, later in pairwise(densities[: rounds + 1])]
    assert kept == pytest.approx([density ** (1 / rounds)] * rounds)


@given(st.floats(0.001, 0.999), st.floats(0.01, 0.9))
def test_a_density_alone_is_reached_exactly_at_the_fraction_of_every_round(density, fraction):
    schedule = geometric(fraction, density=density)
    rounds = planned(schedule, None, None)[1]
    assert rounds == rounds_to(density, fraction)
    assert [schedule(n) for n in range(rounds)] == pytest.approx([(1 - fraction) ** n for n in range(rounds)])
    assert schedule(rounds) == schedule(rounds + 5) == pytest.approx(density, rel=1e-8)


def test_densities_of_patterns_are_each_reached():
    schedule, rounds = planned(None, PATTERNS, 5)
    assert (rounds, schedule(5), schedule(0)) == (5, PATTERNS, {"*output*": 1.0, "*": 1.0})
    assert schedule(2) == {pattern: density ** (2 / 5) for pattern, density in PATTERNS.items()}
    schedule, rounds = planned(None, PATTERNS, None)
    assert (rounds, schedule(10), schedule(14)) == (14, {"*output*": 0.8**10, "*": 0.8**10}, PATTERNS)
    assert planned(None, PATTERNS, 1)[0](1) == PATTERNS
    mixed = geometric({"*output*": 0.1, "*": 0.2}, density=0.5)
    assert mixed(4) == {"*output*": 0.9**4, "*": 0.5}
    assert planned(mixed, 0.5, None) == (mixed, 7)


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [(None, 12), (geometric(0.1), 12), (explicit([0.5, 0.2]), 2), (cubic(0.1, 8), 8), (lambda n: 0.5**n, 12)],
)
def test_without_a_number_of_rounds_there_are_as_many_as_the_schedule_takes(schedule, rounds):
    assert planned(schedule, None, None)[1] == rounds
    assert planned(schedule, None, 3)[1] == 3


def test_one_round_to_a_density_is_one_shot_pruning():
    assert [describe(planned(None, 0.1, rounds)[0]) for rounds in (0, 1)] == [describe(one_shot(0.1))] * 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: geometric(0.2, density=0.1, rounds=3), "two of them decide how much a round prunes: leave one out"),
        (lambda: geometric({"a": 0.2}, density={"b": 0.1}), "fraction has the patterns ['a'] and density ['b']"),
        (lambda: geometric({}), "a fraction to prune per name pattern needs a pattern at least"),
        (lambda: planned(geometric(0.2), 0.1, 3), "schedule and density=0.1 are both given"),
        (lambda: planned(cubic(0.2, 3), 0.1, 3), "schedule and density=0.1 are both given"),
        (lambda: planned(geometric(0.1, density=0.1), 0.1, 3), "schedule and density=0.1 are both given"),
        (lambda: planned(None, 0.1, 2.5), "rounds=2.5 must be a whole number, 1 or more"),
        (lambda: planned(None, {"*": "much"}, 2), "must lie inside (0, 1), got 'much'"),
        (lambda: explicit(0.5), "densities=0.5 of explicit must be a list"),
        (lambda: explicit("0.5"), "densities='0.5' of explicit must be a list"),
        *((lambda value=value: geometric(value), "must lie inside (0, 1), got") for value in (True, "0.2", [0.2])),
    ],
)
def test_what_decides_a_schedule_is_refused_where_it_cannot_work(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
