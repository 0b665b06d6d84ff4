"""The run directory: its paths, and what they say about how far it is."""

import os

import pytest
import torch

from lt_lightning.disk import rundir
from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.rundir import ArmDirectory, Checkpoint, RunDirectory, model_state


class Killed(BaseException):
    """What happens at the worst moment."""


def killed(*_, **__):
    raise Killed


def test_the_monitor_is_that_of_the_first_fit_that_found_one(tmp_path):
    run = RunDirectory(tmp_path)
    assert run.monitor_found() is None
    fits = [(0, "ticket", None), (2, "ticket", "late"), (1, "reinit", "beside"), (1, "ticket", "val_loss")]
    for round, arm, monitor in fits:
        run.arm(round, arm).path.mkdir(parents=True, exist_ok=True)
        run.arm(round, arm).mark_done({"round": round, "arm": arm}, monitor=monitor)
    assert run.monitor_found() == "val_loss"
    assert [(row["round"], row["arm"]) for row in run.finished()] == [
        (0, "ticket"), (1, "ticket"), (1, "reinit"), (2, "ticket"),
    ]  # fmt: skip


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
        "origin": "trained_in",
        "sparse": "sparse.json",
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
        run.arm(round, arm).mark_done({"round": round, "arm": arm})
    run.arm(11).path.mkdir()
    run.arm(2, "interrupted").path.mkdir()
    assert [(row["round"], row["arm"]) for row in run.finished()] == fits


def test_a_marker_holds_its_checksum(tmp_path):
    arm = ArmDirectory(tmp_path)
    arm.mark_done({"round": 1, "arm": "ticket"})
    digest = "2a9aeedd886d8a803fc74f2ae316c2781a26656f030aad154ba8ca06dd5fa4f2"
    record = '{\n  "round": 1,\n  "arm": "ticket"\n }'
    assert arm.done.read_text() == f'{{\n "record": {record},\n "metrics.csv": null,\n "sha256": "{digest}"\n}}\n'
    assert arm.is_done_whole()


@pytest.mark.parametrize("content", ["", "5", "[]", "{}", '{"record": {}, "sha256": "0"}'])
def test_a_marker_that_holds_something_else_is_not_whole(tmp_path, content):
    arm = ArmDirectory(tmp_path)
    arm.done.write_text(content)
    assert not arm.is_done_whole()


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
    assert reads == [{"map_location": "cpu", "weights_only": True, "mmap": False}]


def test_a_checkpoint_runs_no_code_of_others(tmp_path):
    torch.save({"state_dict": {}, "path": ArmDirectory(tmp_path)}, tmp_path / "x.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        Checkpoint(tmp_path / "x.ckpt")["state_dict"]


def test_the_models_own_state_is_not_the_averaged_one():
    assert model_state({"state_dict": {"w": 1}}) == {"w": 1}
    assert model_state({"state_dict": {"w": 1}, "current_model_state": {"w": 2}}) == {"w": 2}
