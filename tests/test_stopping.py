"""Rounds that end before their number, by a rule over the records."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_messages import refused
from tiny import play

from lt_lightning import worse_than_dense
from lt_lightning.analysis.summary import collect
from lt_lightning.cli import status
from lt_lightning.disk import runs
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.plan import describe
from lt_lightning.records import read_records


def records(*values, metric="test/acc"):
    rows = [{"round": n, "arm": "ticket", metric: value} for n, value in enumerate(values)]
    controls = [{"round": n, "arm": "reinit", metric: 0.0} for n in range(1, len(values))]
    return sorted([*rows, *controls], key=lambda row: row["round"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 0.3), st.integers(1, 3), st.booleans())
def test_it_ends_when_so_many_tickets_in_a_row_are_worse_than_dense(values, threshold, rounds, less_is_better):
    rule = worse_than_dense(threshold, mode="min" if less_is_better else "max", rounds=rounds)
    sign = -1 if less_is_better else 1
    worse = [sign * value < sign * values[0] - threshold for value in values[1:]]
    assert rule(records(*values)) == (len(worse) >= rounds and all(worse[-rounds:]))


def test_a_nan_is_worse_than_anything():
    assert worse_than_dense(0.5, mode="min", metric="val/loss")(records(1.0, math.nan, metric="val/loss"))


def test_it_is_a_partial_of_a_module_function_so_that_it_can_be_compared():
    assert describe(worse_than_dense(0.01)) == {
        "function": "lt_lightning.stopping._worse_than_dense",
        "threshold": 0.01, "metric": "test/acc", "mode": "max", "rounds": 1,
    }  # fmt: skip


def test_a_metric_that_is_not_in_the_records_is_named():
    with pytest.raises(
        ValueError, match=r"stop_when compares 'acc', which the record of round 0 does not have; it has \["
    ):
        worse_than_dense(0.01, metric="acc")(records(0.9))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": -1}, "threshold=-1 must be 0 or more"),
        ({"threshold": math.nan}, "threshold=nan must be 0 or more"),
        ({"threshold": 0, "mode": "most"}, "mode='most' must be"),
        ({"threshold": 0, "rounds": 0}, "rounds=0 must be a whole number, 1 or more"),
        ({"threshold": 0, "rounds": True}, "rounds=True must be"),
    ],
)
def test_what_cannot_work_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        worse_than_dense(**arguments)


def test_what_is_no_rule_is_refused_before_training(tmp_path):
    refused(lambda: play(tmp_path, stop_when=0.01), ValueError, "stop_when=0.01 is not a function")
    rule = worse_than_dense(0.01)
    refused(lambda: play(tmp_path, stop_when=rule, dense=False), ValueError, "which dense=False does not train")


def after_round(last):
    return lambda records: {row["round"] for row in records} == set(range(last + 1))


def test_a_run_ends_after_the_round_with_all_its_controls(tmp_path):
    trained = play(tmp_path, rounds=5, controls=["reinit"], stop_when=after_round(1))
    assert list(trained) == ["round-00", "round-01", "round-01/reinit"]
    assert [row["round"] for row in read_records(tmp_path / "records.csv")] == [0, 1, 1]
    assert json.loads((tmp_path / "stopped").read_text())["after_round"] == 1
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert play(tmp_path, rounds=5, controls=["reinit"], stop_when=after_round(1)) == {}
    now = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in now if now[path] != before.get(path)} <= {tmp_path / "records.csv"}


def test_it_counts_as_done_for_status_and_summary(tmp_path):
    play(tmp_path / "run", rounds=5, controls=["reinit"], stop_when=after_round(1))
    (row,) = status.look(tmp_path)
    assert (row["state"], row["fits_done"], row["fits"], row["stopped_after"]) == ("done", 3, 3, 1)
    assert "    ended after round 1 by its stop_when" in status.text([row]).splitlines()
    (run,) = runs.find(tmp_path)
    assert run.planned == [(0, "ticket"), (1, "ticket"), (1, "reinit")]
    assert collect(tmp_path)[1] == []


def test_with_another_rule_or_none_it_goes_on_to_the_same_results(tmp_path):
    play(tmp_path / "ended", rounds=3, stop_when=after_round(1))
    assert list(play(tmp_path / "ended", rounds=3, stop_when=after_round(2))) == ["round-02"]
    assert RunDirectory(tmp_path / "ended").stopped_after == 2
    assert list(play(tmp_path / "ended", rounds=3)) == ["round-03"]
    assert not (tmp_path / "ended" / "stopped").exists()
    play(tmp_path / "whole", rounds=3)
    same = [
        [
            {key: value for key, value in row.items() if key != "seconds"}
            for row in read_records(tmp_path / name / "records.csv")
        ]
        for name in ("ended", "whole")
    ]
    assert same[0] == same[1]


def test_a_damaged_result_of_a_run_that_has_ended_is_noticed(tmp_path):
    play(tmp_path, rounds=5, stop_when=after_round(1))
    final = RunDirectory(tmp_path).arm(1).final
    content = bytearray(final.read_bytes())
    content[-1] ^= 1
    final.write_bytes(content)
    with pytest.warns(UserWarning, match=r"final\.ckpt is damaged"):
        assert list(play(tmp_path, rounds=5, stop_when=after_round(1))) == ["round-01"]


def test_worse_than_dense_ends_a_run(tmp_path):
    play(tmp_path, rounds=5, monitor=None, stop_when=lambda rows: worse_than_dense(0.0, "seconds", "min")(graded(rows)))
    assert RunDirectory(tmp_path).stopped_after == 2


def graded(rows):
    return [row | {"seconds": row["round"] // 2} for row in rows]


def test_a_trial_is_not_asked(tmp_path):
    trained = play(tmp_path, rounds=2, stop_when=after_round(0), options={"fast_dev_run": True}, test=False)
    assert list(trained) == ["round-00", "round-01", "round-02"]
