import csv
import json
import math

import pytest
import yaml
from PIL import Image
from pyarrow import parquet

from lt_lightning.__main__ import main
from lt_lightning.analysis import comparison, summary
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.records import write_records


def make_run(path, seed, accuracies, rounds=1, controls=("reinit",)):
    """A run whose fits, in order, have the given accuracies."""
    run = RunDirectory(path)
    fits = [(0, "ticket"), *((n, arm) for n in range(1, rounds + 1) for arm in ("ticket", *controls))]
    rows = [
        {"round": n, "arm": arm, "seed": seed, "density": 0.8**n, "steps": 100, "seconds": 1.5}
        | {"early_stop_step": 60 + n, "val/loss": 1 - accuracy, "test/acc": accuracy}
        for (n, arm), accuracy in zip(fits, accuracies, strict=False)
    ]
    for row in rows:
        run.arm(row["round"], row["arm"]).path.mkdir(parents=True, exist_ok=True)
        run.arm(row["round"], row["arm"]).mark_done(row)
    run.config.write_text(yaml.safe_dump({"lottery": {"rounds": rounds, "controls": list(controls)}}))
    write_records(run.records, rows)


@pytest.fixture
def study(tmp_path):
    """Two methods; the first with three seeds, one of them unfinished."""
    base = tmp_path / "lenet"
    make_run(base / "prune=iterative" / "seed=0", 0, [0.9, 0.8, 0.5])
    make_run(base / "prune=iterative" / "seed=1", 1, [0.7, 0.6, 0.4])
    make_run(base / "prune=iterative" / "seed=2", 2, [0.8])
    make_run(base / "prune=one_shot" / "seed=0", 0, [0.9, 0.3, 0.2])
    return tmp_path


def aggregated(study):
    rows, _ = summary.collect(study)
    keys = ("method", "arm", "density", "metric")
    return {tuple(row[key] for key in keys): tuple(row[k] for k in ("mean", "min", "max", "n")) for row in
            summary.aggregate(rows)}  # fmt: skip


def test_one_row_per_run_round_and_arm(study):
    rows, _ = summary.collect(study)
    assert len(rows) == 3 + 3 + 1 + 3
    assert rows[1] == {
        "experiment": "lenet", "method": "prune=iterative", "run": "lenet/prune=iterative/seed=0",
        "round": 1, "arm": "ticket", "seed": 0, "density": 0.8, "steps": 100, "seconds": 1.5, "early_stop_step": 61,
        "val/loss": pytest.approx(0.2), "test/acc": 0.8,
    }  # fmt: skip


def test_mean_min_max_and_n_over_seeds(study):
    found = aggregated(study)
    assert found["prune=iterative", "ticket", 1.0, "test/acc"] == (pytest.approx(0.8), 0.7, 0.9, 3)
    assert found["prune=iterative", "ticket", 0.8, "test/acc"] == (pytest.approx(0.7), 0.6, 0.8, 2)
    assert found["prune=iterative", "reinit", 0.8, "test/acc"] == (pytest.approx(0.45), 0.4, 0.5, 2)
    assert found["prune=one_shot", "reinit", 0.8, "test/acc"] == (0.2, 0.2, 0.2, 1)
    assert found["prune=iterative", "ticket", 0.8, "early_stop_step"] == (61.0, 61, 61, 2)
    assert len(found) == 2 * 3 * 5  # metrics: steps, early_stop_step, seconds, val/loss, test/acc


def test_runs_that_differ_by_density_alone_are_one_method_and_share_their_dense_round(tmp_path):
    for density, accuracy in ((0.5, 0.8), (0.1, 0.6)):
        path = tmp_path / "e" / f"prune=one_shot,prune.schedule.density={density}" / "seed=0"
        make_run(path, 0, [0.9, accuracy], controls=())
        rows = [row | {"density": density} if row["round"] else row for row in summary.collect(path)[0]]
        write_records(path / "records.csv", [{k: row[k] for k in row if k not in summary.GROUP[:2]} for row in rows])
    found = {key[2]: value for key, value in aggregated(tmp_path).items() if key[3] == "test/acc"}
    assert found == {1.0: (0.9, 0.9, 0.9, 1), 0.5: (0.8, 0.8, 0.8, 1), 0.1: (0.6, 0.6, 0.6, 1)}


def test_what_was_not_measured_does_not_count_and_a_nan_stays_one():
    about = {"experiment": "e", "method": "m", "arm": "ticket", "density": 1.0, "round": 0}
    values = {0: {"a": 1.0, "b": math.nan}, 1: {"a": None, "b": 1.0}}
    a, b = summary.aggregate([about | {"seed": seed} | each for seed, each in values.items()])
    assert (a["metric"], a["mean"], a["n"]) == ("a", 1.0, 1)
    assert (b["metric"], b["n"], math.isnan(b["mean"]), math.isnan(b["max"])) == ("b", 2, True, True)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/r/e/prune=one_shot,prune.schedule.density=0.1,lr=1/seed=3", ("e", "prune=one_shot,lr=1")),
        ("/r/e/prune.density=0.5,prune=one_shot/seed=3", ("e", "prune=one_shot")),
        ("/r/e/method/seed_3", ("e", "method")),
        ("/r/e/method/3", ("e", "method")),
        ("/r/mine", ("r", "mine")),
        ("/seed=3", ("/", "seed=3")),
    ],
)
def test_experiment_and_method_are_told_by_the_folders(path, names):
    assert summary.names(path) == names


def test_the_shared_dense_rounds_of_an_experiment_are_no_method(tmp_path):
    make_run(tmp_path / "e" / "dense" / "0123456789abcdef" / "seed=0", 0, [0.9], rounds=0)
    make_run(tmp_path / "e" / "prune=iterative" / "seed=0", 0, [0.9, 0.8, 0.7])
    assert {row["method"] for row in summary.collect(tmp_path)[0]} == {"prune=iterative"}


def test_an_experiment_may_be_called_dense(tmp_path):
    make_run(tmp_path / "dense" / "prune=iterative" / "seed=0", 0, [0.9, 0.8, 0.7])
    assert {row["experiment"] for row in summary.collect(tmp_path)[0]} == {"dense"}


def test_the_files(study, capsys):
    assert main(["summary", str(study)]) == 0
    with open(study / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*summary.FIRST, "val/loss", "test/acc"]
    table = parquet.read_table(study / "summary.parquet").to_pylist()
    assert len(rows) == len(table) == 10
    assert table[1] == {
        key: type(table[1][key])(value) if table[1][key] is not None else None for key, value in rows[1].items()
    }
    assert (table[1]["arm"], table[1]["round"], table[1]["test/acc"]) == ("ticket", 1, 0.8)
    with open(study / "aggregated.csv", newline="") as file:
        assert list(next(csv.DictReader(file))) == [*summary.GROUP, "metric", "mean", "min", "max", "n"]
    with Image.open(study / "summary.png") as image:
        assert image.size[0] == 1400


def test_a_nan_stays_one_in_every_file(tmp_path, capsys):
    make_run(tmp_path / "e" / "m" / "seed=0", 0, [0.9, math.nan, 0.5])
    assert main(["summary", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["mean"] for row in told["aggregated"] if row["metric"] == "test/acc"] == [0.9, None, 0.5]
    assert math.isnan(parquet.read_table(tmp_path / "summary.parquet").to_pylist()[1]["test/acc"])


def test_the_table_for_people_says_what_is_missing(study, capsys):
    assert main(["summary", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "experiment",
        "method",
        "arm",
        "density",
        "mean",
        "test/acc",
        "min",
        "max",
        "n",
        "early",
        "stop",
    ]
    assert lines[1].split() == ["lenet", "prune=iterative", "ticket", "100%", "0.8", "0.7", "0.9", "3", "60"]
    assert lines[2].split()[3:] == ["80%", "0.7", "0.6", "0.8", "2", "of", "3", "61"]
    assert "unfinished  lenet/prune=iterative/seed=2: 1 of 3 rows, from round 1 (ticket) on" in lines
    assert f"written     {study}/summary.png" in lines


def test_json_metric_and_output(study, tmp_path, capsys):
    output = tmp_path / "elsewhere" / "here"
    assert main(["summary", str(study), "--metric", "val/loss", "--output", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["metric"] == "val/loss"
    assert told["unfinished"] == [
        {"run": "lenet/prune=iterative/seed=2", "rows": 1, "expected": 3, "next": [1, "ticket"]}
    ]
    assert {"experiment", "method", "arm", "density", "metric", "mean", "min", "max", "n"} == set(told["aggregated"][0])
    assert sorted(path.name for path in output.iterdir()) == [
        "aggregated.csv", "summary.csv", "summary.parquet", "summary.png",
    ]  # fmt: skip
    assert not (study / "summary.csv").exists()


def test_what_cannot_be_summed_up_is_said(study, tmp_path, capsys):
    assert main(["summary", str(study), "--metric", "test/f1"]) == 2
    message = "no run has measured test/f1; there is: steps, seconds, early_stop_step, val/loss, test/acc."
    assert message in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["summary", str(tmp_path / "none")]) == 2
    assert f"no run below {tmp_path / 'none'} has finished a round yet." in capsys.readouterr().err


def test_the_same_rows_give_the_same_picture(study):
    rows = summary.aggregate(summary.collect(study)[0])
    first = comparison.draw(study / "a.png", rows, "test/acc").read_bytes()
    assert comparison.draw(study / "b.png", rows, "test/acc").read_bytes() == first


def test_the_picture_has_a_line_per_method_and_arm_and_bands_over_seeds(study):
    rows = [row for row in summary.aggregate(summary.collect(study)[0]) if row["metric"] == "test/acc"]
    (axes,) = comparison._figure(rows, "test/acc").axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    names = ["prune=iterative ticket", "prune=iterative reinit", "prune=one_shot ticket", "prune=one_shot reinit"]
    assert list(lines) == names
    assert list(lines[names[0]].get_xdata()) == [1.0, 0.8]
    assert list(lines[names[0]].get_ydata()) == pytest.approx([80, 70])
    assert len(axes.collections) == 2  # one seed alone has no band
    assert axes.get_xscale() == "log"
    assert axes.get_ylabel() == "test/acc (%)"
    looks = [(line.get_color(), line.get_marker()) for line in lines.values()]
    assert len(set(looks)) == 4
    assert looks[0][0] == looks[1][0] != looks[2][0]
    assert looks[0][1] == looks[2][1] != looks[1][1]


def test_of_many_lines_those_without_a_look_of_their_own_are_grey():
    about = {"experiment": "e", "arm": "ticket", "density": 1.0, "metric": "m", "n": 1, "mean": 1, "min": 1, "max": 1}
    (axes,) = comparison._figure([about | {"method": f"lr={n}"} for n in range(30)], "m").axes
    lines = axes.get_lines()
    assert len(lines) == 30
    assert len({(line.get_color(), line.get_marker()) for line in lines[:24]}) == 24
    assert {line.get_color() for line in lines[24:]} == {"0.75"}
    assert [line.get_label() for line in lines[23:25]] == ["lr=23 ticket", "6 others"]
