"""Runs that share round 0 train it once, and end as runs that train it themselves."""

import multiprocessing
import os
import socket
import time
from pathlib import Path

import lightning as L
import pytest
from app import run
from killing import assert_same_directories, checkpoint, differences, without_time
from tiny import Tiny, play

from lt_lightning import sharing
from lt_lightning.disk import liveness, lock
from lt_lightning.disk.rundir import Checkpoint, RunDirectory
from lt_lightning.plan import Plan
from lt_lightning.records import read_records
from lt_lightning.rewinds import RewindStep, keep_weights
from lt_lightning.schedules import geometric, one_shot

CONFIG = {"model": {"width": 12}, "data": {"batch_size": 20, "seed": 0}, "prune": {"rounds": 1}, "seed": 0}
STEPS = 15


def share(root, name="a", config=CONFIG, **arguments):
    return play(root / name, dense_directory=root / "dense", config=config, **arguments)


def steps(models):
    """How many steps each fit of this process has trained."""
    return {name: len(model.seen) for name, model in models.items()}


def dense_run(root, seed=0):
    (found,) = (root / "dense").glob(f"*/seed={seed}")
    return found


class Counted(L.Callback):
    """Count the steps of dense rounds in a file, whichever process trains."""

    def __init__(self, path, die_at=None):
        self.path, self.die_at = path, die_at

    def on_train_batch_end(self, trainer, *_):
        if "dense" in trainer.default_root_dir:
            with open(self.path, "a") as file:
                file.write(f"{trainer.global_step}\n")
            if trainer.global_step == self.die_at:
                os._exit(9)


SETTINGS = {
    "to the start": {},
    "late": {"rewind_step": 7},
    "at an epoch": {"rewind_step": "2 epochs", "rewind": keep_weights},
    "with points": {"points": [3, "1 epoch"], "rewind_step": 3},
    "dense alone": {"rounds": 0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_run_that_shares_round_0_ends_with_the_same_bits(tmp_path, settings):
    settings = {"controls": ["reinit"], **settings}
    play(tmp_path / "alone", config=CONFIG, **settings)
    share(tmp_path, "first", rewind_step=11, rounds=0)
    models = share(tmp_path, "second", **settings)
    models.pop("round-00", None)
    assert set(steps(models)) == ({"round-01", "round-01/reinit"} if settings.get("rounds", 1) else set())
    origin = tmp_path / "second" / "round-00" / "trained_in"
    assert (origin.parent / origin.read_text().strip()).resolve() == dense_run(tmp_path).resolve()
    origin.unlink()
    for link in (tmp_path / "second" / "points").glob("epoch-*"):
        if "points" not in settings:
            link.unlink()  # by which the rewind point was found
    assert_same_directories(tmp_path / "alone", tmp_path / "second")


def test_round_0_is_trained_once_and_linked(tmp_path):
    assert steps(share(tmp_path, "a", schedule=one_shot(0.5))) == {"round-00": 0, "round-01": STEPS}
    assert steps(share(tmp_path, "b", schedule=one_shot(0.2))) == {"round-00": 0, "round-01": STEPS}
    dense = dense_run(tmp_path)
    assert read_records(dense / "records.csv")[0]["steps"] == STEPS
    for name in ("points/step-0.ckpt", "round-00/final.ckpt", "round-00/early_stop.ckpt"):
        assert os.path.samefile(tmp_path / "a" / name, dense / name)
        assert os.path.samefile(tmp_path / "b" / name, dense / name)
    assert not (tmp_path / "a" / "round-00" / "last.ckpt").exists()
    assert not RunDirectory(dense).lock.exists()
    assert not RunDirectory(dense).state.exists()


def test_a_run_needs_nothing_of_the_shared_round_once_it_has_begun(tmp_path):
    play(tmp_path / "alone", config=CONFIG, rounds=2)
    share(tmp_path, rounds=1)
    dense_run(tmp_path).rename(tmp_path / "gone")
    assert set(steps(share(tmp_path, rounds=2))) == {"round-02"}
    (tmp_path / "a" / "round-00" / "trained_in").unlink()
    assert_same_directories(tmp_path / "alone", tmp_path / "a")


def test_without_hard_links_round_0_is_copied(tmp_path, monkeypatch):
    def impossible(*_):
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "link", impossible)
    play(tmp_path / "alone", config=CONFIG)
    share(tmp_path)
    assert not os.path.samefile(tmp_path / "a" / "points" / "step-0.ckpt", dense_run(tmp_path) / "points/step-0.ckpt")
    (tmp_path / "a" / "round-00" / "trained_in").unlink()
    assert_same_directories(tmp_path / "alone", tmp_path / "a")


def test_a_point_that_is_missing_is_trained_up_to_and_no_further(tmp_path):
    counted = tmp_path / "counted"
    watch = {"make_callbacks": lambda: [Counted(counted)]}
    share(tmp_path, "a", **watch)
    assert counted.read_text().split() == [str(step) for step in range(1, STEPS + 1)]
    counted.unlink()
    play(tmp_path / "alone", config=CONFIG, rewind_step=7)
    share(tmp_path, "b", rewind_step=7, **watch)
    assert counted.read_text().split() == [str(step) for step in range(1, 8)]
    point = dense_run(tmp_path) / "points" / "step-7.ckpt"
    assert differences(checkpoint(point), checkpoint(tmp_path / "alone/points/step-7.ckpt")) == []
    assert [path.name for path in dense_run(tmp_path).glob("up-to*")] == []
    counted.unlink()
    share(tmp_path, "c", rewind_step=7, **watch)
    assert not counted.exists()


def test_all_points_of_a_study_come_from_one_training(tmp_path):
    counted = tmp_path / "counted"
    watch = {"make_callbacks": lambda: [Counted(counted)], "points": [3, 7, "2 epochs"]}
    for step in (0, 3, 7, "2 epochs"):
        share(tmp_path, str(step), rewind_step=step, **watch)
    assert len(counted.read_text().split()) == STEPS
    names = {path.name for path in (dense_run(tmp_path) / "points").iterdir()}
    assert names == {"step-0.ckpt", "step-3.ckpt", "step-7.ckpt", "step-10.ckpt", "epoch-2.ckpt"}


def test_a_run_that_asks_for_more_points_later_gets_them(tmp_path):
    counted = tmp_path / "counted"
    watch = {"make_callbacks": lambda: [Counted(counted)]}
    play(tmp_path / "alone", config=CONFIG, points=[7, "1 epoch"])
    play(tmp_path / "a", config=CONFIG)
    share(tmp_path, "a", points=[7, "1 epoch"], **watch)
    assert counted.read_text().split() == [*map(str, range(1, 8)), *map(str, range(1, 6))]
    for name in ("step-7.ckpt", "epoch-1.ckpt"):
        made, wanted = (checkpoint(tmp_path / run / "points" / name) for run in ("a", "alone"))
        assert differences(made, wanted) == []


def test_a_run_that_asks_for_more_points_later_is_told_if_it_cannot_get_them(tmp_path):
    play(tmp_path, rounds=0)
    with pytest.warns(UserWarning, match=r"round 0 was trained before points=\['7 steps'\] were asked for"):
        play(tmp_path, rounds=0, points=[7])


def test_further_points_are_saved_without_sharing_too(tmp_path):
    play(tmp_path, points=["3 steps", "1 epoch"], rounds=0)
    points = {path.name: Checkpoint(path)["global_step"] for path in (tmp_path / "points").iterdir()}
    assert points == {"step-0.ckpt": 0, "step-3.ckpt": 3, "step-5.ckpt": 5, "epoch-1.ckpt": 5}
    assert (tmp_path / "rewind.ckpt").resolve().name == "step-0.ckpt"


def dies(root, counted, step):
    share(root, "killed", make_callbacks=lambda: [Counted(counted, die_at=step)])


def test_when_the_run_that_trains_is_killed_another_goes_on(tmp_path):
    counted = tmp_path / "counted"
    process = multiprocessing.get_context("fork").Process(target=dies, args=(tmp_path, counted, 8))
    process.start()
    process.join()
    assert process.exitcode == 9
    play(tmp_path / "alone", config=CONFIG)
    share(tmp_path, "other", make_callbacks=lambda: [Counted(counted)])
    assert counted.read_text().split() == [str(step) for step in (*range(1, 9), *range(6, STEPS + 1))]
    (tmp_path / "other" / "round-00" / "trained_in").unlink()
    assert_same_directories(tmp_path / "alone", tmp_path / "other")


def one_of_many(root, name, counted):
    share(root, name, make_callbacks=lambda: [Counted(counted)], rewind_step=7)


def test_of_runs_that_start_together_one_trains_and_the_others_wait(tmp_path):
    counted = tmp_path / "counted"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=one_of_many, args=(tmp_path, name, counted)) for name in "abcd"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert counted.read_text().split() == [str(step) for step in range(1, STEPS + 1)]
    (first, *others) = [without_time(read_records(tmp_path / name / "records.csv")) for name in "abcd"]
    assert len(first) == 2
    assert others == [first] * 3


def test_a_run_that_waits_says_so_and_goes_on(tmp_path):
    state = RunDirectory(tmp_path / "waits").state
    plan = plan_of(tmp_path)
    with lock.hold(plan.directory.lock):
        process = multiprocessing.get_context("fork").Process(target=share, args=(tmp_path, "waits"))
        process.start()
        until(lambda: (liveness.read(state) or {}).get("state") == "waiting")
        assert liveness.read(state)["error"] == f"for {plan.directory.path}"
        assert not (tmp_path / "waits" / "round-00").exists()
    process.join()
    assert process.exitcode == 0
    assert len(read_records(tmp_path / "waits" / "records.csv")) == 2


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_signs_of_life_on_another_machine_are_waited_for_whatever_the_lock_says(tmp_path):
    shared = plan_of(tmp_path)
    state = {"state": "running", "host": "another", "pid": 1, "beat": time.time()}
    shared.directory.path.mkdir(parents=True)
    for change, in_use in (({}, True), ({"beat": time.time() - 200}, False), ({"host": socket.gethostname()}, False)):
        shared.directory.state.write_text(liveness.json.dumps(state | change))
        assert sharing.is_in_use_elsewhere(shared) == in_use


def test_a_sign_of_life_counts_wherever_the_process_works(tmp_path):
    process = {"host": "another", "pid": 1, "born": 2}
    other = tmp_path / "state.json"
    state = {"state": "running", **process, "beat": 0.0, "works_for": str(other)}
    assert liveness.judge(state, now=1000.0) == "died"
    other.write_text(liveness.json.dumps({**process, "beat": 990.0}))
    assert liveness.judge(state, now=1000.0) == "running"
    other.write_text(liveness.json.dumps({**process, "pid": 3, "beat": 990.0}))
    assert liveness.judge(state, now=1000.0) == "died"


@pytest.mark.parametrize("name", ["last.ckpt", "final.ckpt"])
@pytest.mark.parametrize("harm", ["removed", "flipped"])
def test_what_is_damaged_or_gone_is_trained_again(tmp_path, name, harm):
    counted = tmp_path / "counted"
    watch = {"make_callbacks": lambda: [Counted(counted)]}
    share(tmp_path, "a", **watch)
    damaged = dense_run(tmp_path) / "round-00" / name
    content = bytearray(damaged.read_bytes())
    damaged.unlink()
    if harm == "flipped":
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        with pytest.warns(UserWarning, match="is damaged"):
            share(tmp_path, "b", **watch)
    else:
        share(tmp_path, "b", **watch)
    a, b = (without_time(read_records(tmp_path / run / "records.csv")) for run in "ab")
    assert a == b
    again = len(counted.read_text().split()) - STEPS
    assert again == (STEPS if name == "last.ckpt" or harm == "flipped" else 0)


def plan_of(root, config=CONFIG, seed=0, **arguments):
    """The plan of the dense round that a run would share."""
    made = []
    original = sharing.plan_of

    def noting(*given):
        made.append(original(*given))
        return made[-1]

    sharing.plan_of = noting
    try:
        from lt_lightning import lottery

        arguments = {"rounds": 1} | arguments
        lottery(
            Tiny, directory=root / "x", dense_directory=root / "dense", config=config, seed=seed, **arguments
        ).close()
    finally:
        sharing.plan_of = original
    return made[0]


def key(**arguments):
    return plan_of(Path("anywhere"), **arguments).directory.path.parent.name


ALIKE = {
    "rounds": {"rounds": 5},
    "schedule": {"schedule": geometric(0.5)},
    "rewind step": {"rewind_step": 3},
    "controls": {"controls": ["reinit"]},
    "prunable": {"prunable": ["!output*"]},
    "pruning in the configuration": {"config": {**CONFIG, "prune": {"rounds": 3}}},
    "where the data lie": {"config": {**CONFIG, "data": {**CONFIG["data"], "path": "/elsewhere"}}},
    "seed": {"config": {**CONFIG, "data": {**CONFIG["data"], "seed": 3}, "seed": 3}, "seed": 3},
}
OTHER = {
    "name": {"config": {**CONFIG, "name": "which a project may tell its models by"}},
    "model": {"config": {**CONFIG, "model": {"width": 13}}},
    "data": {"config": {**CONFIG, "data": {"batch_size": 10, "seed": 0}}},
    "order": {"config": {**CONFIG, "data": {**CONFIG["data"], "seed": 5}}},
    "seed_init": {"seed_init": 5},
    "seed_data": {"seed_data": 5},
    "monitor": {"monitor": "val/acc"},
    "mode": {"mode": "max"},
}


@pytest.mark.parametrize("change", ALIKE.values(), ids=ALIKE)
def test_runs_that_train_alike_share(change):
    assert key(**change) == key()


@pytest.mark.parametrize("change", OTHER.values(), ids=OTHER)
def test_runs_that_train_otherwise_do_not_share(change):
    assert key(**change) != key()


def test_each_seed_has_its_own_round(tmp_path):
    assert plan_of(tmp_path, seed=3).directory.path.name == "seed=3"
    assert isinstance(plan_of(tmp_path), Plan)


def test_a_trial_shares_nothing(tmp_path):
    share(tmp_path, options={"fast_dev_run": True}, test=False)
    assert not list(tmp_path.rglob("done"))
    assert steps(share(tmp_path)) == {"round-00": 0, "round-01": STEPS}


def test_sharing_without_a_configuration_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"only config tells whether they do: pass config=\{\.\.\.\}"):
        share(tmp_path, config=None)


def test_sharing_with_an_instance_is_refused(tmp_path):
    with pytest.raises(ValueError, match="the model is an instance, with weights of its own: pass lottery"):
        share(tmp_path, model=Tiny())


def test_a_point_that_is_never_reached_is_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"the point after 15 steps \(points or rewind_step\) lies at or beyond"):
        share(tmp_path, points=[15])


def test_points_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"points='late' is not understood: write 0, 500"):
        share(tmp_path, points=["late"])


def test_the_point_that_a_batch_of_several_steps_passes_is_saved_after_it(tmp_path):
    class TwoSteps(Tiny):
        automatic_optimization = False

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            for _ in range(2):
                loss = Tiny.training_step(self, batch, index)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    play(tmp_path, model=lambda: TwoSteps(schedule=False), points=[3], rounds=0)
    assert os.readlink(tmp_path / "points" / "step-3.ckpt") == "step-4.ckpt"
    assert Checkpoint(tmp_path / "points" / "step-3.ckpt")["global_step"] == 4


def test_rewind_step_of_epochs_is_the_point_of_the_dense_round(tmp_path):
    plan = plan_of(tmp_path, rewind_step="2 epochs", points=[3])
    assert plan.points == (RewindStep(3), RewindStep(2, "epochs"))


SHORT = ["trainer.max_epochs=1", "prune.rounds=1", "prune.controls=[]"]


def test_train_shares_within_an_experiment_and_tells_the_loggers_all(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars(directory):
        events = EventAccumulator(str(directory / "tensorboard" / "round-00")).Reload()
        return {tag: sorted((e.step, e.value) for e in events.Scalars(tag)) for tag in events.Tags()["scalars"]}

    alone, shared = tmp_path / "default" / "alone" / "0", tmp_path / "default" / "shared" / "0"
    run(alone, *SHORT, "logger=tensorboard", "share_dense=false")
    run(shared, *SHORT, "logger=tensorboard")
    assert (shared / "round-00" / "trained_in").exists()
    assert not (alone / "round-00" / "trained_in").exists()
    rows = [without_time(read_records(each / "records.csv")) for each in (alone, shared)]
    assert rows[0] == rows[1]
    assert scalars(shared) == scalars(alone)
    assert len(scalars(shared)["train/loss"]) > 0


def test_train_shares_nothing_outside_the_folders_of_experiments(tmp_path):
    run(tmp_path / "mine", *SHORT)
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}
