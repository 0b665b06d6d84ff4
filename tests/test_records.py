"""Records and curves as CSV: every value comes back as it was."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lt_lightning.disk.atomic import write_text
from lt_lightning.records import (
    BEST_CHECKPOINT,
    COLUMNS,
    EARLY_STOP,
    Curves,
    are_curves_whole,
    beside,
    column,
    columns_at,
    early_stop_name,
    numbers,
    objective,
    read_records,
    to_csv,
    write_records,
)


def is_text(value):
    """Whether a text looks like nothing else once it is in a CSV."""
    try:
        float(value)
    except ValueError:
        return value != ""
    return False


letters = st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs"])
texts = st.text(letters, max_size=10).filter(is_text)
names = st.text(letters, min_size=1, max_size=10)
cells = st.one_of(st.none(), st.integers(), st.floats(), texts)


@given(st.lists(st.dictionaries(names, cells, min_size=1, max_size=5), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_every_value_comes_back_as_it_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("records") / "records.csv"
    write_text(path, to_csv(rows))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    found = read_records(path)
    assert [list(row) for row in found] == [columns] * len(rows)
    for row, back in zip(rows, found, strict=True):
        for name in columns:
            value = row.get(name)
            assert type(back[name]) is type(value)
            assert repr(back[name]) == repr(value)


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-300, 5e-324, 1.0, -0.0, 123456789.123456789, math.inf, -math.inf])
def test_floats_are_written_by_their_repr(value):
    assert to_csv([{"x": value}]) == f"x\n{value!r}\n"


def test_columns_come_in_the_given_order_and_then_as_they_appear():
    rows = [{"b": 1, "z": 2}, {"y": 3, "a": 4, "z": 5}]
    assert to_csv(rows, ("a", "b")) == "a,b,z,y\n,1,2,\n4,,5,3\n"


def test_records_always_have_the_fixed_columns(tmp_path):
    write_records(tmp_path / "records.csv", [{"val/loss": 0.5, "arm": "ticket", "round": 0}])
    expected = "round,arm,seed,density,steps,seconds,early_stop_step,val/loss\n0,ticket,,,,,,0.5\n"
    assert (tmp_path / "records.csv").read_text() == expected
    assert ",".join([*COLUMNS, "val/loss"]) == expected.split("\n")[0]
    write_records(tmp_path / "empty.csv", [])
    assert (tmp_path / "empty.csv").read_text() == "round,arm,seed,density,steps,seconds,early_stop_step\n"
    assert read_records(tmp_path / "empty.csv") == []


def test_records_that_do_not_exist_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "records.csv")


def test_a_metric_at_the_early_stop_has_a_name_without_slashes():
    assert early_stop_name("a/b/c_d") == "early_stop_a_b_c_d"


parts = st.sampled_from([*COLUMNS, "epoch", "run", "logged", "test", "early_stop_", "best_checkpoint_", "val", "acc"])
metric_names = st.lists(parts, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from(["/", "_", ""]).map(lambda between: between.join(words))
)


@given(st.lists(metric_names, unique=True, max_size=8), st.lists(metric_names, unique=True, max_size=8))
@settings(deadline=None, max_examples=200)
def test_every_metric_has_a_column_of_its_own(logged, tested):
    at_end = [column(name) for name in logged]
    stop, best = columns_at(EARLY_STOP, logged), columns_at(BEST_CHECKPOINT, logged)
    columns = [*COLUMNS, "epoch", "step", "run", *at_end, *stop.values(), *best.values()]
    assert len(set(columns)) == len(columns)
    assert list(stop) == list(best) == logged
    both = beside({name: n for n, name in enumerate(tested)}, logged)
    assert sorted(both.values()) == list(range(len(tested)))
    assert not set(both) & set(logged)


@pytest.mark.parametrize("name", ["step", "epoch", "round", "density", "seed", "arm", "steps", "seconds", "run"])
def test_the_name_of_a_column_of_ours_is_no_metrics(name):
    assert column(name) == f"logged/{name}"
    assert early_stop_name(name) == f"early_stop_logged_{name}"
    assert column(f"val/{name}") == f"val/{name}"


def test_metrics_become_plain_floats():
    found = numbers({"a": torch.tensor(0.25), "b": 3, "c": torch.tensor(True)})
    assert found == {"a": 0.25, "b": 3.0, "c": 1.0}
    assert {type(value) for value in found.values()} == {float}


# Curves


def curves_of(path, *steps):
    curves = Curves(path)
    for step in steps:
        curves.add(step, step // 4, {"train/loss": torch.tensor(1 / step)})
    curves.write()
    return curves


def steps_in(path):
    return [row["step"] for row in read_records(path)]


def test_curves_have_a_row_per_moment_with_step_and_epoch_first(tmp_path):
    curves = Curves(tmp_path / "metrics.csv")
    curves.add(2, 0, {"train/loss": torch.tensor(0.5)})
    curves.add(4, 0, {})
    curves.add(4, 1, {"val/loss": torch.tensor(0.25), "train/loss": 1})
    assert not (tmp_path / "metrics.csv").exists()
    curves.write()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch,train/loss,val/loss\n2,0,0.5,\n4,1,1.0,0.25\n"


def test_a_fit_that_continues_cuts_its_curves_back_to_the_rows_that_its_checkpoint_knows(tmp_path):
    path = tmp_path / "metrics.csv"
    curves_of(path, 2, 4, 6, 8)
    resumed = Curves(path, count=2)
    assert steps_in(path) == [2, 4, 6, 8]
    resumed.add(5, 1, {"train/loss": 0.0})
    resumed.write()
    assert steps_in(path) == [2, 4, 5]


def test_curves_that_go_on_are_those_of_a_fit_that_was_never_interrupted(tmp_path):
    curves_of(tmp_path / "whole.csv", 2, 4, 6, 8)
    curves_of(tmp_path / "resumed.csv", 2, 4, 6)
    resumed = Curves(tmp_path / "resumed.csv", count=2)
    for step in (6, 8):
        resumed.add(step, step // 4, {"train/loss": torch.tensor(1 / step)})
    resumed.write()
    assert (tmp_path / "resumed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_fit_that_begins_starts_its_curves_anew(tmp_path):
    curves_of(tmp_path / "metrics.csv", 2, 4)
    curves_of(tmp_path / "metrics.csv", 1)
    assert steps_in(tmp_path / "metrics.csv") == [1]


def test_a_fit_that_continues_at_step_0_begins_its_curves_anew(tmp_path):
    curves_of(tmp_path / "metrics.csv", 2, 4)
    Curves(tmp_path / "metrics.csv", count=0).write()
    assert (tmp_path / "metrics.csv").read_text() == "step,epoch\n"
    assert Curves(tmp_path / "missing.csv", count=3).rows == []


def test_processes_that_do_not_write_keep_no_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert curves_of(None, 2, 4).rows == []
    assert list(tmp_path.iterdir()) == []


def test_curves_are_whole_if_the_rows_that_a_checkpoint_knows_are(tmp_path):
    path = tmp_path / "metrics.csv"
    count, checksum = curves_of(path, 2, 4).written
    curves_of(path, 2, 4, 6)
    assert are_curves_whole(path, count, checksum)
    path.write_text(path.read_text().replace("0.25", "0.26"))
    assert not are_curves_whole(path, count, checksum)
    path.write_bytes(b"\xff")
    assert not are_curves_whole(path, count, checksum)


def test_what_stands_beside_the_metrics_is_not_replaced(tmp_path):
    curves = Curves(tmp_path / "metrics.csv")
    curves.add(2, 0, {"density": 7, "step": 8, "epoch": 9}, {"density": 0.5})
    curves.write()
    expected = {"step": 2, "epoch": 0, "logged/density": 7.0, "logged/step": 8.0, "logged/epoch": 9.0, "density": 0.5}
    assert read_records(tmp_path / "metrics.csv") == [expected]


def test_a_search_finds_a_monitor_whose_name_needs_its_slashes(tmp_path):
    path = tmp_path / "records.csv"
    names = columns_at(EARLY_STOP, ["val/acc", "val_acc", "step"])
    write_records(path, [{"arm": "ticket", **{names[name]: n for n, name in enumerate(names)}}])
    assert [objective(path, name) for name in names] == [0, 1, 2]


def test_a_search_compares_the_last_ticket_at_its_early_stop(tmp_path):
    path = tmp_path / "records.csv"
    assert objective(path, "val/loss") is None
    rows = [("ticket", 0.5), ("ticket", 0.25), ("reinit", 0.1)]
    write_records(path, [{"arm": arm, "early_stop_val_loss": loss} for arm, loss in rows])
    assert objective(path, "val/loss") == 0.25
    assert objective(path, "val/acc") is None
    assert objective(path, None) is None
