"""The run directory: paths, atomic writes, and which configurations are the same."""

import json
import os

import pytest
import torch
import yaml

from lt_lightning import rundir
from lt_lightning.rundir import (
    ArmDirectory,
    Checkpoint,
    RunDirectory,
    claim,
    commit,
    compare,
    fingerprint,
    flatten,
    model_state,
    partial_path,
    write_bytes,
    write_text,
)


class Killed(BaseException):
    """What happens at the worst moment."""


def killed(*_, **__):
    raise Killed


# Atomic writes


def test_a_kill_before_the_rename_leaves_the_old_content_and_the_new_one_beside_it(tmp_path, monkeypatch):
    target = tmp_path / "records.csv"
    write_bytes(target, b"old")
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "records.csv": b"old",
        ".records.csv.partial": b"new",
    }


def test_a_kill_while_the_content_is_written_leaves_the_old_content(tmp_path, monkeypatch):
    target = tmp_path / "records.csv"
    write_bytes(target, b"old")
    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(Killed):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"


def test_what_a_kill_left_behind_is_overwritten(tmp_path):
    partial_path(tmp_path / "a").write_bytes(b"half of a much longer content")
    write_bytes(tmp_path / "a", b"whole")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


def test_a_file_is_on_disk_before_it_gets_its_name_and_the_directory_after(tmp_path, monkeypatch):
    happened = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: happened.append("sync"))
    monkeypatch.setattr(os, "replace", lambda a, b: (happened.append("rename"), replace(a, b)))
    (tmp_path / "staged").write_bytes(b"new")
    commit(tmp_path / "staged", tmp_path / "target")
    assert happened == ["sync", "rename", "sync"]
    assert (tmp_path / "target").read_bytes() == b"new"
    assert not (tmp_path / "staged").exists()


def test_the_same_content_again_leaves_the_file_alone(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "config.yaml"
    write_text(target, "ä: 1\n")
    os.utime(target, ns=(1, 1))
    monkeypatch.setattr(os, "replace", killed)
    write_text(target, "ä: 1\n")
    assert target.stat().st_mtime_ns == 1
    assert target.read_bytes() == "ä: 1\n".encode()


# The paths


def test_the_paths_are_those_that_others_read(tmp_path):
    run = RunDirectory(tmp_path)
    paths = [run.config, run.records, run.rewind_point, run.point(0), run.point(500)]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "config.yaml", "records.csv", "rewind.ckpt", "points/step-0.ckpt", "points/step-500.ckpt",
    ]  # fmt: skip
    assert run.arm(3).path == tmp_path / "round-03"
    assert run.arm(3, "reinit").path == tmp_path / "round-03" / "reinit"
    assert run.arm(123).path == tmp_path / "round-123"
    names = {name: path.name for name, path in vars(run.arm(0)).items() if name != "path"}
    assert names == {
        "ticket": "ticket.safetensors",
        "start": "start.ckpt",
        "last": "last.ckpt",
        "early_stop": "early_stop.ckpt",
        "final": "final.ckpt",
        "curves": "metrics.csv",
        "done": "done",
        "next": "next",
    }


def test_finished_fits_come_by_round_the_ticket_before_its_controls(tmp_path):
    run = RunDirectory(tmp_path)
    fits = [
        (0, "ticket"),
        (1, "ticket"),
        (1, "a"),
        (1, "zebra"),
        (2, "ticket"),
        (2, "a"),
        (10, "ticket"),
        (100, "ticket"),
    ]
    for round, arm in reversed(fits):
        write_text(run.arm(round, arm).done, json.dumps({"round": round, "arm": arm}))
    run.arm(11).path.mkdir()
    run.arm(2, "interrupted").path.mkdir()
    assert [(row["round"], row["arm"]) for row in run.finished()] == fits


def test_a_run_that_has_not_begun_has_finished_nothing(tmp_path):
    assert RunDirectory(tmp_path / "nowhere").finished() == []


def points(run, *steps):
    for step in steps:
        write_text(run.point(step), f"point {step}")


def test_the_rewind_point_is_a_relative_link_that_survives_a_move(tmp_path):
    run = RunDirectory(tmp_path / "here")
    points(run, 0, 7)
    run.link_rewind_point(run.point(0))
    run.link_rewind_point(run.point(7))
    assert os.readlink(run.rewind_point) == os.path.join("points", "step-7.ckpt")
    run.path.rename(tmp_path / "there")
    assert RunDirectory(tmp_path / "there").rewind_point.read_text() == "point 7"


def test_a_kill_while_linking_leaves_the_old_rewind_point(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    points(run, 0, 7)
    run.link_rewind_point(run.point(0))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            run.link_rewind_point(run.point(7))
    assert run.rewind_point.read_text() == "point 0"
    run.link_rewind_point(run.point(7))
    assert run.rewind_point.read_text() == "point 7"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points", "rewind.ckpt"]


def staged_next(run, round):
    write_text(run.arm(round).next / "start.ckpt", "start")
    write_text(run.arm(round).next / "ticket.safetensors", "ticket")


def files(directory):
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


def test_the_ticket_found_after_the_last_round_moves_to_its_own_directory(tmp_path):
    run = RunDirectory(tmp_path)
    staged_next(run, 2)
    run.promote_next(3)
    assert files(run.arm(3).path) == {"start.ckpt": "start", "ticket.safetensors": "ticket"}
    assert not run.arm(2).next.exists()


def test_a_promotion_that_was_interrupted_at_any_file_is_finished_by_the_next_one(tmp_path, monkeypatch):
    replace = os.replace
    for count in (0, 1):
        run = RunDirectory(tmp_path / str(count))
        staged_next(run, 2)
        left = [count]

        def replace_some(a, b, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            replace(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace_some)
            with pytest.raises(Killed):
                run.promote_next(3)
        assert not run.arm(3).ticket.exists()
        run.promote_next(3)
        assert files(run.arm(3).path) == {"start.ckpt": "start", "ticket.safetensors": "ticket"}


def test_a_ticket_that_has_a_directory_is_not_replaced(tmp_path):
    run = RunDirectory(tmp_path)
    staged_next(run, 2)
    write_text(run.arm(3).ticket, "mine")
    run.promote_next(3)
    assert files(run.arm(3).path) == {"ticket.safetensors": "mine"}
    run.promote_next(1)
    assert not run.arm(1).path.exists()


def test_trial_rounds_get_an_empty_directory_with_the_runs_points(tmp_path):
    run = RunDirectory(tmp_path)
    points(run, 0, 7)
    run.link_rewind_point(run.point(7))
    write_text(tmp_path / "fast_dev_run" / "round-00" / "done", "of an earlier trial")
    trial = run.scratch(create=True)
    assert trial.path == tmp_path / "fast_dev_run"
    assert sorted(path.name for path in trial.path.iterdir()) == ["points", "rewind.ckpt"]
    assert trial.rewind_point.read_text() == "point 7"
    assert trial.point(0).read_text() == "point 0"
    assert (trial.is_scratch, run.is_scratch) == (True, False)


def test_the_trial_directory_of_a_new_run_is_empty_and_others_do_not_touch_it(tmp_path):
    run = RunDirectory(tmp_path)
    assert not run.scratch(create=False).path.exists()
    trial = run.scratch(create=True)
    assert list(trial.path.iterdir()) == []
    write_text(trial.path / "mine", "")
    run.scratch(create=False)
    assert (trial.path / "mine").exists()


def test_removing_a_trial_leaves_the_points_it_is_linked_to(tmp_path):
    run = RunDirectory(tmp_path)
    points(run, 0)
    run.link_rewind_point(run.point(0))
    run.scratch(create=True)
    run.scratch(create=True)
    assert run.rewind_point.read_text() == "point 0"


# Checkpoints


def test_a_checkpoint_is_read_when_first_looked_into_and_once(tmp_path, monkeypatch):
    missing = Checkpoint(tmp_path / "missing.ckpt")
    with pytest.raises(FileNotFoundError):
        missing["state_dict"]
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 3}, tmp_path / "there.ckpt")
    reads = []
    load = torch.load
    monkeypatch.setattr(rundir.torch, "load", lambda *a, **k: (reads.append(k), load(*a, **k))[1])
    there = Checkpoint(tmp_path / "there.ckpt")
    assert reads == []
    assert (there["epoch"], list(there), len(there), "loops" in there) == (3, ["state_dict", "epoch"], 2, False)
    assert reads == [{"map_location": "cpu", "weights_only": True}]


def test_a_checkpoint_runs_no_code_of_others(tmp_path):
    torch.save({"state_dict": {}, "path": ArmDirectory(tmp_path)}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        Checkpoint(tmp_path / "x.ckpt")["state_dict"]


def test_the_models_own_state_is_not_the_averaged_one():
    assert model_state({"state_dict": {"w": 1}}) == {"w": 1}
    assert model_state({"state_dict": {"w": 1}, "current_model_state": {"w": 2}}) == {"w": 2}


# Configurations

CONFIG = {
    "data": {"name": "digits", "path": "/here", "num_workers": 0},
    "trainer": {"max_steps": 100, "accelerator": "cpu", "strategy": {"name": "auto"}, "callbacks": []},
    "logger": {"project": "mine"},
    "lottery": {"rounds": 3, "controls": [], "seed": 0},
    "prune": {"rounds": 3},
}


def altered(key, value):
    """The configuration with another value at a dotted key."""
    tree = json.loads(json.dumps(CONFIG))
    *parents, leaf = key.split(".")
    inner = tree
    for parent in parents:
        inner = inner.setdefault(parent, {})
    inner[leaf] = value
    return tree


NEUTRAL = [
    ("data.path", "/there"),
    ("data.num_workers", 4),
    ("prune.dry_run", True),
    ("num_workers", 4),
    ("trainer.accelerator", "gpu"),
    ("trainer.devices", 8),
    ("trainer.num_nodes", 2),
    ("trainer.strategy", "ddp"),
    ("trainer.strategy.name", "fsdp"),
    ("trainer.enable_progress_bar", False),
    ("trainer.fast_dev_run", True),
    ("trainer.log_every_n_steps", 1),
    ("trainer.profiler", "simple"),
    ("logger.project", "yours"),
    ("logger", None),
    ("launcher.partition", "gpu"),
    ("lottery.rounds", 9),
    ("lottery.controls", ["reinit"]),
    ("prune.rounds", 9),
    ("prune.controls", ["reinit"]),
]
DECISIVE = [
    ("data.name", "mnist"),
    ("trainer.max_steps", 101),
    ("trainer.precision", "16-mixed"),
    ("trainer.callbacks", [1]),
    ("lottery.seed", 1),
    ("lottery.rewind_step", "3 steps"),
    ("model.width", 3),
]


@pytest.mark.parametrize(("key", "value"), NEUTRAL)
def test_what_cannot_change_a_result_does_not_matter(key, value):
    assert compare(CONFIG, altered(key, value)) == []
    assert compare(altered(key, value), CONFIG) == []
    assert fingerprint(altered(key, value)) == fingerprint(CONFIG)


@pytest.mark.parametrize(("key", "value"), DECISIVE)
def test_what_can_change_a_result_is_shown(key, value):
    there = flatten(CONFIG).get(key, "not set")
    assert compare(CONFIG, altered(key, value)) == [f"{key}: {there} there, {value} now"]
    assert compare(altered(key, value), CONFIG) == [f"{key}: {value} there, {there} now"]
    assert fingerprint(altered(key, value)) != fingerprint(CONFIG)


def test_none_differs_from_not_set():
    assert compare({"a": None}, {}) == ["a: None there, not set now"]


def test_flattening_keeps_lists_and_empty_mappings():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": [{"f": 2}], 3: None}) == {
        "a.b.c": 1,
        "a.d": {},
        "e": [{"f": 2}],
        "3": None,
    }


def test_a_fingerprint_is_16_digits_whatever_the_order_of_the_keys():
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert fingerprint({"a": 1, "b": {"c": 2, "d": 3}}) == "f493194fdc4deeae"


def test_a_directory_is_claimed_by_the_first_configuration(tmp_path):
    path = tmp_path / "run" / "config.yaml"
    claim(path, CONFIG)
    assert yaml.safe_load(path.read_text()) == CONFIG
    grown = altered("lottery.rounds", 9)
    claim(path, grown)
    assert yaml.safe_load(path.read_text()) == grown


def test_what_was_computed_keeps_its_configuration_where_nothing_that_counts_differs(tmp_path):
    path = tmp_path / "config.yaml"
    claim(path, CONFIG)
    (tmp_path / "round-00").mkdir()
    (tmp_path / "round-00" / "done").touch()
    claim(path, CONFIG | {"logger": "csv", "threads": 3})
    assert yaml.safe_load(path.read_text()) == CONFIG
    claim(path, altered("lottery.rounds", 12))
    assert yaml.safe_load(path.read_text()) == altered("lottery.rounds", 12)


def test_another_configuration_takes_over_while_nothing_was_computed(tmp_path):
    claim(tmp_path / "config.yaml", CONFIG)
    other = altered("trainer.max_steps", 5)
    claim(tmp_path / "config.yaml", other)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == other


def test_another_configuration_is_refused_with_all_that_differs_and_the_stored_one_stays(tmp_path):
    claim(tmp_path / "config.yaml", CONFIG)
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "step-0.ckpt").touch()
    other = altered("trainer.max_steps", 5) | {"seed": 3, "logger": "csv"}
    with pytest.raises(ValueError, match="another configuration") as error:
        claim(tmp_path / "config.yaml", other)
    assert str(error.value) == (
        f"{tmp_path} holds results of another configuration:\n"
        "  trainer.max_steps: 100 there, 5 now\n"
        "  seed: not set there, 3 now\n"
        "Choose another directory, or remove this one if its results are not needed."
    )
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


@pytest.mark.parametrize(
    "value", [1e-05, 1e16, 0.1, "1e-5", "no", "2020-01-01", "ä: [", None, True, [1, [2.5, "x"]], {}]
)
def test_a_value_equals_itself_after_it_was_stored(tmp_path, value):
    for _ in range(2):
        claim(tmp_path / "config.yaml", {"x": value})
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"x": value}
