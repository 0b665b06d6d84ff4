"""Selection over real processes gives the masks of one process, bit for bit, whatever the sharding."""

import builtins
import inspect
from functools import partial
from math import prod

import gloo
import pytest
import sharding
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling import few

from lt_lightning import criteria, masks, sharded
from lt_lightning.scopes import balanced, channels, erk, globally, keep_best, layerwise, n_m, select

SCOPES = [globally, layerwise, erk, balanced, n_m, channels]
MESHES = {1: [(1,), (1, 1)], 2: [(2,), (1, 2)], 4: [(4,), (2, 2)]}
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]
CRITERIA = [value for value in vars(criteria).values() if getattr(value, "__module__", "") == criteria.__name__]
CRITERIA = [value for value in CRITERIA if inspect.isfunction(value) and not value.__name__.startswith("_")]
quiet = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def teams():
    teams = gloo.Teams()
    yield teams
    teams.close()


@st.composite
def problems(draw):
    """Scores, masks so far and how both lie over a mesh of one, two or four processes."""
    size = draw(st.sampled_from([1, 2, 4]))
    mesh = draw(st.sampled_from(MESHES[size]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    same = draw(st.sampled_from([*DTYPES, None]))
    share = draw(st.sampled_from([0.0, 0.3, 0.9, 1.0]))
    scores, before, layouts = {}, {}, {}
    for n in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 5, 8]), min_size=0, max_size=3)))
        letters = "r01"[: 1 + min(2, len(shape))]
        plain = draw(st.integers(0, 4)) == 0
        layouts[f"w{n}"] = "" if plain else "".join(draw(st.sampled_from(letters)) for _ in mesh)
        dtype = same or draw(st.sampled_from(DTYPES))
        scores[f"w{n}"] = few_values(draw(st.sampled_from(["levels", "near", "normal"])), shape, generator).to(dtype)
        before[f"w{n}"] = torch.rand(shape, generator=generator) < share
    scope, density = draw(st.sampled_from(SCOPES)), draw(st.sampled_from([0.02, 0.2, 0.5, 0.9]))
    piece, turn = draw(st.sampled_from([2, 7, 1 << 17])), draw(st.booleans())
    return size, (scores, before, layouts, mesh, density * max(share, 0.1), scope, piece, turn)


def few_values(kind, shape, generator):
    """Doubles with many ties, with ties as floats, or with none."""
    if kind == "normal":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "near":
        return 1 + torch.randint(-3, 4, shape, generator=generator) * 2.0**-40
    levels = torch.tensor([-torch.inf, -2, -1e-40, -0.0, 0.0, 1, 1, torch.inf], dtype=torch.float64)
    return levels[torch.randint(0, 8, shape, generator=generator)]


def alone(scores, before, density, scope):
    """What one process selects: masks, or the error."""
    try:
        return select(dict(scores), before, density, scope)
    except ValueError as error:
        return str(error)


def same_as_alone(teams, problem):
    size, arguments = problem
    scores, before, _, _, density, scope, *_ = arguments
    expected = alone(scores, before, density, scope)
    for outcome in teams.run(size, sharding.solve, *arguments):
        if isinstance(expected, str):
            assert outcome == expected
            continue
        assert not isinstance(outcome, str | Exception), outcome
        chosen, kept, density, laid_alike = outcome
        assert list(chosen) == list(expected)
        assert all(torch.equal(chosen[name], expected[name]) for name in expected)
        assert (kept, density) == (masks.kept(expected), masks.density(expected))
        assert laid_alike


@pytest.mark.slow
@given(problem=problems())
@settings(quiet, max_examples=50)
def test_masks_are_those_of_one_process(teams, problem):
    same_as_alone(teams, problem)


@pytest.mark.slow
@given(problem=problems())
@settings(quiet, max_examples=3000)
def test_masks_are_those_of_one_process_many_times(teams, problem):
    same_as_alone(teams, problem)


@pytest.mark.slow
@pytest.mark.parametrize(("least", "density"), [(0.3, 0.5), (0.01, 0.02), (0.4, 0.3)])
def test_a_least_density_of_each_layer_is_that_of_one_process(teams, least, density):
    generator = torch.Generator().manual_seed(1)
    shapes = {"a": (5, 3), "b": (8, 2), "c": (3,), "d": (7, 5)}
    scores = {name: torch.randint(-3, 4, shape, generator=generator).double() for name, shape in shapes.items()}
    scores["b"] -= 10  # it would lose every weight
    before = {name: torch.rand(score.shape, generator=generator) < 0.9 for name, score in scores.items()}
    layouts = {"a": "0", "b": "1", "c": "", "d": "r"}
    same_as_alone(teams, (2, (scores, before, layouts, (2,), density, partial(globally, least=least), 7, False)))


@pytest.mark.slow
@pytest.mark.parametrize("scope", [globally, layerwise])
@pytest.mark.parametrize("letters", ["0", "1"])
def test_many_pieces_that_no_process_divides(teams, scope, letters):
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.randn(shape, generator=generator) for n, shape in {"a": (701, 517), "b": (3, 90001)}.items()}
    scores = {name: score.mul(40).round() for name, score in scores.items()}
    before = {name: torch.rand(score.shape, generator=generator) < 0.8 for name, score in scores.items()}
    layouts = dict.fromkeys(scores, letters)
    for density in (0.79, 0.01):
        same_as_alone(teams, (4, (scores, before, layouts, (4,), density, scope)))


@pytest.mark.parametrize("width", few([8, 7], 1))
@pytest.mark.parametrize("kind", ["fsdp", "tp", "fsdp+tp", "hsdp+"])
def test_real_sharded_modules(teams, kind, width):
    tried = [(each, globally) for each in (criteria.magnitude, criteria.magnitude_increase, criteria.random)]
    for criterion, scope in [*tried, (criteria.movement, layerwise)]:
        placements = teams.run(4, sharding.train_and_select, kind, width, criterion, scope, 0.4)
        assert not any(isinstance(each, Exception) for each in placements), placements
    expected = {
        "fsdp": "(Shard(dim=0),)",
        "tp": "(Shard(dim=0),)",
        "fsdp+tp": "(_StridedShard(dim=0, sf=2), Shard(dim=0))",
        "hsdp+": "(Replicate(), Shard(dim=0))",
    }
    assert placements[0]["hidden.weight"] == expected[kind]


@pytest.mark.parametrize(("kind", "width"), [("fsdp", 7), ("tp", 8), ("fsdp+tp", 8), ("hsdp+", 7)])
def test_a_ticket_is_applied_to_sharded_modules(teams, kind, width):
    network = sharding.Network(width)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    kept = {name: torch.rand(value.shape) < 0.5 for name, value in state.items() if name.endswith("weight")}
    for weights, applied, alike in teams.run(4, sharding.apply_ticket, kind, width, kept, state):
        assert alike
        assert all(torch.equal(applied[name], mask) for name, mask in kept.items())
        assert all(torch.equal(weights[name], value * kept.get(name, True)) for name, value in state.items())


@pytest.mark.parametrize("criterion", CRITERIA, ids=lambda function: function.__name__)
def test_scores_do_not_depend_on_the_sharding(teams, criterion):
    full = {"a": torch.arange(15.0).view(5, 3), "b": torch.arange(4.0), "c": torch.arange(6.0).view(2, 3)}
    layouts = [{"a": "", "b": "", "c": ""}, {"a": "0", "b": "0", "c": "1"}, {"a": "1", "b": "r", "c": "0"}]
    seen = [teams.run(size, sharding.scores_of, criterion, each, (size,), full) for size in (2, 4) for each in layouts]
    first = seen[0][0]
    assert all(torch.equal(first[name], scores[name]) for team in seen for scores in team for name in full)


SCORES = {"v": torch.zeros(4), "w": torch.arange(6.0).view(3, 2)}
BEFORE = {"v": torch.ones(4).bool(), "w": torch.tensor([[True, False], [True, False], [False, False]])}


@pytest.mark.parametrize("layouts", [{"v": "", "w": "0"}, {"v": "0", "w": "1"}], ids=["plain", "sharded"])
@pytest.mark.parametrize(
    ("density", "scope", "spoil", "message"),
    [
        (0.9, globally, None, "asked to keep 9 weights where only 6 of 10 are still kept: a pruned weight never"),
        (0.9, layerwise, None, "asked to keep 5 weights where only 2 of 6 are still kept: a pruned weight never"),
        (0.01, globally, None, "nothing would be kept of 10 weights"),
        (0.2, sharding.keep_nothing, None, "nothing would be kept of 10 weights"),
        (0.2, globally, sharding.nan_on_the_last, "1 of the 6 scores of w are NaN"),
        (0.2, globally, sharding.plain_on_the_last, "sharded as its mask (lt_lightning.sharded.spread); missing or "),
        (0.2, sharding.bring_back_on_the_last, None, "pruned ones are back in ['w']"),
        (0.2, sharding.misshape_on_the_last, None, "of the same shape, sharded as that one is."),
    ],
)
def test_all_processes_raise_the_same_or_none(teams, layouts, density, scope, spoil, message):
    said = teams.run(2, sharding.refused, SCORES, BEFORE, layouts, (2,), density, scope, spoil)
    assert len(set(said)) == 1
    assert message in said[0]


def test_a_scope_of_the_users_own_composes_ours(teams):
    before = {name: torch.ones(score.shape).bool() for name, score in SCORES.items()}
    problem = (SCORES, before, {"v": "0", "w": "1"}, (2,), 0.4, sharding.both_ways)
    same_as_alone(teams, (2, problem))


def test_densities_per_pattern(teams):
    before = {name: torch.ones(score.shape).bool() for name, score in SCORES.items()}
    same_as_alone(teams, (2, (SCORES, before, {"v": "", "w": "0"}, (2,), {"w": 0.5}, globally)))
    same_as_alone(teams, (2, (SCORES, before, {"v": "0", "w": "0"}, (2,), {"v": 0.5, "*": 0.2}, layerwise)))


@pytest.mark.parametrize("scope", [globally, layerwise])
def test_only_select_consumes_scores(teams, scope):
    assert teams.run(2, sharding.consumed, scope) == [(["a", "b"], [])] * 2


def test_parts_that_are_not_those_of_the_placements_are_refused(teams):
    assert teams.run(2, sharding.parts_of_other_sizes, False) == [None, None]
    (message, other) = teams.run(2, sharding.parts_of_other_sizes, True)
    assert message == other
    assert message.startswith("the parts of w (4, 3) that the processes hold are not the blocks of its placements")
    assert message.endswith("shard a dimension that the number of processes divides.")


@pytest.mark.slow
def test_what_fsdp_lays_over_short_tensor_parallel_parts_is_refused():
    teams = gloo.Teams([8])
    assert teams.run(8, sharding.check_module, "fsdp+tp", 8) == [None] * 8
    said = teams.run(8, sharding.check_module, "fsdp+tp", 9)
    teams.close()
    assert len(set(said)) == 1
    assert said[0].startswith("the parts of hidden.weight (9, 5) that the processes hold")


def test_processes_outside_of_the_mesh_hold_nothing(teams):
    assert teams.run(4, sharding.outside_of_the_mesh) == [
        (2, [True, False, True]),
        (2, [False, False]),
        (2, []),
        (2, []),
    ]


@given(
    st.lists(st.tuples(st.sampled_from([-torch.inf, -1.0, -0.0, 0.0, 2.5]), st.booleans()), min_size=1, max_size=30),
    st.floats(0, 1),
    st.sampled_from(DTYPES),
)
def test_without_processes_it_is_the_selection_of_scopes(items, share, dtype):
    scores, mask = torch.tensor([score for score, _ in items], dtype=dtype), torch.tensor([kept for _, kept in items])
    count = builtins.round(share * int(mask.sum()))
    chosen = sharded.keep_best({"w": scores}, {"w": mask}, count)["w"]
    assert torch.equal(chosen, keep_best(scores, mask, count))


@pytest.mark.parametrize("shape", [(), (0,), (5,), (4, 0), (300, 3), (3, 2, 50)])
@pytest.mark.parametrize("turn", [False, True])
def test_pieces_are_all_of_a_tensor_in_order(monkeypatch, shape, turn):
    monkeypatch.setattr(sharded, "PIECE", 64)
    tensor = torch.arange(prod(shape)).view(shape)
    tensor = sharding.turned(tensor) if turn else tensor
    pieces = list(sharded._pieces(tensor, tensor.contiguous()))
    assert all(one.shape == other.shape and one.numel() <= 64 for one, other in pieces)
    for column in zip(*pieces, strict=True):
        assert torch.cat(column).tolist() == list(range(prod(shape)))
