"""What masks and weights of runs tell: the arithmetic by hand, the tables on a small run, the command."""

import csv
import json
import math
import shutil
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import Tiny, play

from lt_lightning import load_ticket, redraw
from lt_lightning.__main__ import main
from lt_lightning.analysis import fits, layers, movement, overlap, report
from lt_lightning.disk import parts, runs
from lt_lightning.disk.rundir import Checkpoint, RunDirectory

A = {"one.weight": torch.tensor([[1, 1, 0, 0]]).bool(), "two.weight": torch.tensor([1, 0]).bool()}
B = {"one.weight": torch.tensor([[1, 0, 1, 1]]).bool(), "two.weight": torch.tensor([1, 1]).bool()}


@pytest.fixture(scope="session")
def seeds(tmp_path_factory):
    """Two seeds of one experiment, with two pruned rounds; nothing writes to them."""
    base = tmp_path_factory.mktemp("tiny")
    for seed in (0, 1):
        play(base / f"seed={seed}", rounds=2, seed=seed, test=False, controls=["reinit", "random_mask"])
    return base


@pytest.fixture
def study(seeds, tmp_path):
    return shutil.copytree(seeds, tmp_path / "tiny", symlinks=True)


@pytest.fixture
def run(study):
    (found,) = fits.find([study / "seed=0"])
    return found


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Overlap


def test_the_overlap_of_known_masks():
    one, two, both = overlap.compare(A, B)
    assert (one["layer"], one["total"], one["density_a"], one["density_b"]) == ("one.weight", 4, 0.5, 0.75)
    assert one["jaccard"] == 1 / 4  # the first weight, of all four
    assert one["chance"] == pytest.approx(0.375 / (0.5 + 0.75 - 0.375))
    assert (two["jaccard"], two["chance"]) == (1 / 2, 1 / 2)  # one of them keeps all: it cannot be otherwise
    assert (both["layer"], both["total"], both["density_a"], both["density_b"]) == ("all", 6, 3 / 6, 5 / 6)
    assert both["jaccard"] == 2 / 6
    assert both["chance"] == pytest.approx((4 * 0.375 + 2 * 0.5) / (3 + 5 - (4 * 0.375 + 2 * 0.5)))


@given(st.integers(1, 6), st.data())
def test_chance_is_the_expected_intersection_over_the_expected_union(total, data):
    a, b = (data.draw(st.integers(0 if total > 1 else 1, total)) for _ in range(2))
    subsets = {count: [set(each) for each in combinations(range(total), count)] for count in (a, b)}
    pairs = [(x, y) for x in subsets[a] for y in subsets[b]]
    both, either = (sum(map(len, each)) for each in zip(*((x & y, x | y) for x, y in pairs), strict=True))
    found = overlap.chance(a / total, b / total)
    assert math.isnan(found) if not either else found == pytest.approx(both / either)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_the_jaccard_index_is_symmetric_and_1_of_a_mask_with_itself(pairs):
    one, other = (torch.tensor(each) for each in zip(*pairs, strict=True))
    found = overlap.jaccard(one, other)
    assert found == overlap.jaccard(other, one) or not (one | other).any()
    assert overlap.jaccard(one, one) == 1 or not one.any()
    assert math.isnan(found) or 0 <= found <= 1


def test_masks_of_other_models_are_refused():
    with pytest.raises(ValueError, match=r"no layer in common: one\.weight, two\.weight and w\.$"):
        overlap.compare(A, {"w": torch.ones(1).bool()})
    with pytest.raises(ValueError, match=r"two\.weight has shape \(2,\) in one run and \(3,\) in the other: compare"):
        overlap.compare(A, {"two.weight": torch.ones(3).bool()})


def test_which_masks_are_compared(study):
    rows = overlap.tabulate(fits.find([study]))
    pairs = [
        (row["kind"], *(row[f"{key}_{x}"] for x in "ab" for key in ("run", "round", "arm")))
        for row in rows if row["layer"] == "all"
    ]  # fmt: skip
    within = [("rounds", f"seed={s}", 1, "ticket", f"seed={s}", 2, "ticket") for s in (0, 1)]
    drawn = [("controls", f"seed={s}", n, "ticket", f"seed={s}", n, "random_mask") for s in (0, 1) for n in (1, 2)]
    across = [("runs", "seed=0", n, "ticket", "seed=1", n, "ticket") for n in (1, 2)]
    assert sorted(pairs) == sorted([*within, *drawn, *across])  # reinit has the masks of its ticket
    nested = next(row for row in rows if row["kind"] == "rounds" and row["layer"] == "all")
    assert nested["jaccard"] == pytest.approx(nested["density_b"] / nested["density_a"])


# Movement


def test_how_far_known_weights_moved():
    found = movement.move(torch.tensor([1.0, -2.0, 0.0, 1.0]), torch.tensor([-1.0, -3.0, 4.0, 1.0]))
    assert found == {
        "count": 4, "start_abs": 1.0, "end_abs": 2.25, "moved": 7 / 4, "moved_median": 1.0, "relative": 7 / 4,
        "sign_changes": 1 / 4,
    }  # fmt: skip
    assert movement.move(torch.empty(0), torch.empty(0))["count"] == 0
    assert math.isnan(movement.move(torch.zeros(2), torch.ones(2))["relative"])


def test_weights_are_divided_by_the_next_masks(run):
    rows = movement.tabulate(run)
    files = RunDirectory(run.path)
    start, end = load_ticket(files.arm(1).ticket).state, Checkpoint(files.arm(1).final)["state_dict"]
    before, after = (load_ticket(files.arm(n).ticket).masks for n in (1, 2))
    name = "hidden.weight"
    for group, mask in (("kept", after[name]), ("pruned", before[name] & ~after[name])):
        wanted = {"round": 1, "arm": "ticket", "mask_round": 2, "layer": name, "group": group}
        (row,) = [row for row in rows if wanted.items() <= row.items()]
        assert row["count"] == int(mask.sum()) > 0
        assert row["moved"] == pytest.approx(float((end[name] - start[name])[mask].abs().mean()))
        assert row["start_abs"] == pytest.approx(float(start[name][mask].abs().mean()))


def test_which_fits_and_masks_the_movement_is_told_of(run):
    seen = {(row["round"], row["arm"], row["mask_round"], row["group"]) for row in movement.tabulate(run)}
    own = {(0, "ticket"), *((n, arm) for n in (1, 2) for arm in ("ticket", "reinit", "random_mask"))}
    divided = {(0, "ticket", 1), (0, "ticket", 2), (1, "ticket", 2), (2, "ticket", 3)}  # the last from `next`
    groups = {(*key, group) for key in divided for group in ("kept", "pruned")}
    assert seen == {(*fit, fit[0], "kept") for fit in own} | groups


def test_a_fit_whose_start_is_not_stored_is_left_out(tmp_path):
    play(tmp_path / "run", rounds=1, test=False, rewind=redraw, options={"max_epochs": 1})
    (found,) = fits.find([tmp_path])
    assert {row["round"] for row in movement.tabulate(found)} == {0}


def test_checkpoints_in_parts_are_read_as_well(run):
    before = movement.tabulate(run)
    for final in RunDirectory(run.path).path.glob("round-*/final.ckpt"):
        content = dict(Checkpoint(final))
        final.unlink()
        parts.write(content, final)
    assert movement.tabulate(run) == before


def test_the_distributions_add_up():
    weights = {"w": torch.linspace(-1, 1, 2001)}
    masks = {"w": weights["w"] > 0}
    rows = movement.distributions(weights, {"w": weights["w"] * 2}, masks)
    for when in ("start", "end"):
        for group, sign in (("kept", 1), ("pruned", -1)):
            own = [row for row in rows if (row["when"], row["group"]) == (when, group)]
            assert sum(row["share"] for row in own) == pytest.approx(1)
            mean = sum(row["share"] * (row["low"] + row["high"]) / 2 for row in own)
            assert mean == pytest.approx(sign * (0.5 if when == "start" else 1.0), abs=0.02)


# Layers

HANDMADE = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]]).bool()


def test_dead_units_of_a_handmade_mask():
    row, whole = layers.describe({"w": HANDMADE})
    assert layers.incoming(HANDMADE).tolist() == [2, 0, 1, 1]
    assert layers.outgoing(HANDMADE).tolist() == [2, 2, 0]
    assert row == {
        "layer": "w", "total": 12, "kept": 4, "density": 4 / 12, "outputs": 4, "dead_outputs": 1, "inputs": 3,
        "dead_inputs": 1, "fan_in_min": 0, "fan_in_mean": 1.0, "fan_in_max": 2, "fan_out_min": 0,
        "fan_out_mean": 4 / 3, "fan_out_max": 2,
    }  # fmt: skip
    assert (whole["layer"], whole["dead_outputs"], whole["density"]) == ("all", 1, 4 / 12)


def test_a_channel_of_a_convolution_is_a_unit():
    mask = torch.zeros(2, 3, 2, 2).bool()
    mask[0, 1, 0, 1] = mask[0, 1, 1, 1] = True
    assert (layers.incoming(mask).tolist(), layers.outgoing(mask).tolist()) == ([2, 0], [0, 2, 0])


def test_pixels_count_the_connections_of_all_channels():
    mask = torch.zeros(2, 8).bool()
    mask[0, 0] = mask[1, 0] = mask[1, 4] = mask[0, 7] = True  # channel 0: pixel 0 twice; channel 1: pixels 0 and 3
    assert layers.pixels(mask, (2, 2, 2)).tolist() == [[3, 0], [0, 1]]


@pytest.mark.parametrize(
    ("shape", "config", "found"),
    [
        ((300, 784), {}, (1, 28, 28)),
        ((300, 3072), {}, (3, 32, 32)),
        ((300, 784), {"data": {"shape": [1, 14, 56]}}, (1, 14, 56)),
        ((300, 784), {"data": {"shape": [3, 32, 32]}}, (1, 28, 28)),
        ((300, 50), {}, None),
        ((12, 8), {}, None),
        ((64, 3, 3, 3), {"data": {"shape": [3, 32, 32]}}, None),
    ],
)
def test_images_are_recognized(shape, config, found):
    assert layers.image_shape({"w": torch.ones(shape).bool()}, config) == found


# The command


def test_all_writes_tables_and_pictures_into_the_run(study, capsys):
    assert main(["analyse", "all", str(study / "seed=0")]) == 0
    said = capsys.readouterr().out
    folder = study / "seed=0" / "analysis"
    pictures = {f"{name}.png" for name in ("layers", "movement", "movement_distributions", "overlap")}
    tables = {f"{name}.csv" for name in ("layers", "units", "movement", "movement_distributions", "overlap")}
    assert {path.name for path in folder.iterdir()} == pictures | tables
    assert all(f"written     {folder / name}" in said for name in pictures | tables)
    assert "pixels, which need a linear first layer on images" in said
    for name in pictures:
        with Image.open(folder / name) as image:
            assert image.width > 500
    assert {row["layer"] for row in rows_of(folder / "layers.csv")} == {"hidden.weight", "output.weight", "all"}
    assert len(rows_of(folder / "units.csv")) == (12 + 8 + 3 + 12) * 5  # three tickets, two random masks
    assert [run.path for run in runs.find(study)] == [str(study / "seed=0"), str(study / "seed=1")]


def test_the_same_run_gives_the_same_bytes(study, tmp_path):
    for name in ("a", "b"):
        main(["analyse", "all", str(study / "seed=0"), "--output", str(tmp_path / name)])
    for path in sorted((tmp_path / "a").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_several_runs_are_compared_where_they_meet(study, capsys):
    assert main(["analyse", "overlap", str(study), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["written"] == [str(study / "analysis" / name) for name in ("overlap.csv", "overlap.png")]
    assert {row["kind"] for row in told["overlap"]} == {"runs", "rounds", "controls"}
    assert main(["analyse", "layers", str(study), "--output", str(study / "out")]) == 0
    assert {path.name for path in (study / "out").iterdir()} == {"seed=0", "seed=1"}


def test_of_a_run_that_is_not_done_the_finished_rounds_are_looked_at(study, capsys):
    run = RunDirectory(study / "seed=0")
    run.arm(1, "random_mask").done.unlink()
    for arm in ("ticket", "reinit", "random_mask"):
        run.arm(2, arm).done.unlink()
    assert main(["analyse", "all", str(run.path)]) == 0
    said = capsys.readouterr().out
    told = "3 of 7 fits are done; the first that is missing is that of round 1 (random_mask)"
    assert f"missing     {run.path}: {told}" in said
    assert "left out    overlap: there are no two masks to compare yet" in said
    assert {row["round"] for row in rows_of(run.path / "analysis" / "layers.csv")} == {"0", "1"}
    run.arm(1).done.unlink()
    assert main(["analyse", "movement", str(run.path)]) == 0  # the ticket of round 1 is there, but its fit is not done
    fits_told = {(row["round"], row["arm"]) for row in rows_of(run.path / "analysis" / "movement.csv")}
    assert fits_told == {("0", "ticket"), ("1", "reinit")}
    run.arm(0).done.unlink()
    run.arm(1, "reinit").done.unlink()
    assert main(["analyse", "all", str(run.path)]) == 2
    assert "no fit is done yet, so there is nothing to look at:" in capsys.readouterr().err


def test_what_is_no_run_is_said_so(tmp_path, capsys):
    assert main(["analyse", "all", str(tmp_path)]) == 2
    assert f"there is no run at or below {tmp_path}: give a run directory" in capsys.readouterr().err
    assert main(["analyse", "all", str(tmp_path / "none")]) == 2
    assert "none is not a directory" in capsys.readouterr().err


def test_models_that_differ_are_told_by_run(study, tmp_path, capsys):
    class Wide(Tiny):
        def __init__(self):
            super().__init__()
            self.output = torch.nn.Linear(12, 4)

    play(study / "seed=2", model=Wide, rounds=1, test=False, options={"max_epochs": 1})
    assert main(["analyse", "overlap", str(study / "seed=0"), str(study / "seed=2")]) == 2
    said = capsys.readouterr().err
    assert f"{study / 'seed=0'} and {study / 'seed=2'} cannot be compared: output.weight has shape (3, 12)" in said


@pytest.mark.parametrize("analysis", ["all", "overlap", "movement", "layers", "instability"])
def test_help_has_an_example_that_names_the_analysis(analysis, capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyse", analysis, "--help"])
    assert end.value.code == 0
    assert f"python -m lt_lightning analyse {analysis} " in capsys.readouterr().out


def test_names_of_parameters_are_shortened_to_what_tells_them_apart():
    names = ["net.0.conv.weight", "net.1.conv.weight", "net.head.weight"]
    assert report.short_names(names) == ["0.conv", "1.conv", "head"]
    assert report.short_names(["a.weight", "a.bias"]) == ["weight", "bias"]


def test_more_than_a_few_runs_are_drawn_as_their_mean(tmp_path):
    about = {"kind": "runs", "arm_a": "ticket", "arm_b": "ticket", "layer": "all", "chance": 0.5}
    layer = {"layer": "w"}
    rows = [
        about | {"run_a": f"{a}", "run_b": f"{b}", "round_a": n, "round_b": n, "density_a": 0.8**n, "density_b": 0.8**n}
        | {"jaccard": 0.5 + 0.01 * a} | extra
        for a, b in combinations(range(5), 2) for n in (1, 2) for extra in ({}, layer)
    ]  # fmt: skip
    assert overlap.draw(tmp_path / "many.png", rows).exists()
