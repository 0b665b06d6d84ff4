"""What is damaged on disk is noticed, said, and made again by the fit that made it, and by no other."""

import inspect
import random
import shutil
import warnings

import pytest
import yaml
from test_lottery import Stop, StopAt, assert_same_state, final, records_without_time
from tiny import Tiny, play

from lt_lightning import keep_weights, load_ticket, lottery
from lt_lightning.__main__ import main
from lt_lightning.integrity import mend_config, set_aside_damaged

ARGUMENTS = {"rounds": 2, "controls": ["reinit"], "rewind_step": 7, "rewind": keep_weights}


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("finished")
    play(directory, **ARGUMENTS)
    return directory


@pytest.fixture
def run(finished, tmp_path):
    """A finished run of its own."""
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def again(directory, told="damaged", **arguments):
    """Run the same command; the names of the fits that trained, and what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        models = play(directory, **(ARGUMENTS | arguments))
    return list(models), [str(each.message) for each in said if told in str(each.message)]


MAKERS = {
    "config.yaml": None,
    "points/step-0.ckpt": "round-00",
    "points/step-7.ckpt": "round-00",
    "round-00/ticket.safetensors": "round-00",
    "round-00/final.ckpt": "round-00",
    "round-00/early_stop.ckpt": "round-00",
    "round-00/metrics.csv": "round-00",
    "round-00/done": "round-00",
    "round-01/ticket.safetensors": "round-00",
    "round-01/start.ckpt": "round-00",
    "round-01/final.ckpt": "round-01",
    "round-01/done": "round-01",
    "round-01/reinit/ticket.safetensors": "round-01/reinit",
    "round-01/reinit/final.ckpt": "round-01/reinit",
    "round-01/reinit/metrics.csv": "round-01/reinit",
    "round-01/reinit/done": "round-01/reinit",
    "round-02/ticket.safetensors": "round-01",
    "round-02/start.ckpt": "round-01",
    "round-02/next/ticket.safetensors": "round-02",
    "round-02/next/start.ckpt": "round-02",
}


@pytest.mark.parametrize("how", ["flipped", "cut"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_damaged_file_is_made_again_by_the_fit_that_made_it_and_by_no_other(finished, run, name, how):
    path, maker = run / name, MAKERS[name]
    size = path.stat().st_size
    if how == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    else:
        flip(path, path.read_bytes().index(b"layout") if name == "config.yaml" else size // 2)
    trained, said = again(run)
    assert trained == ([maker] if maker else [])
    assert len(said) == 1
    assert str(path) in said[0]
    if maker:
        round, arm = [*maker.split("/"), "ticket"][:2]
        assert f"round {int(round[-2:])} ({arm}), which makes it, is trained again; no other round is" in said[0]
    assert (path.parent / f"{path.name}.damaged").exists()
    assert path.read_bytes() == (finished / name).read_bytes() or name.endswith(("done", ".ckpt"))
    assert records_without_time(run) == records_without_time(finished)
    for fit in ("round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"):
        assert_same_state(final(run, fit), final(finished, fit))
    assert again(run) == ([], [])


PLACES = {  # what is put where, "other" is a run of another seed, and which fit makes it again
    ("round-01/ticket.safetensors", "round-02/ticket.safetensors"): "round-01",
    ("points/step-0.ckpt", "points/step-7.ckpt"): "round-00",
    ("round-01/done", "round-02/done"): "round-02",
    ("other/round-01/final.ckpt", "round-01/final.ckpt"): "round-01",
}
MORE_PLACES = {
    ("round-02/start.ckpt", "round-01/start.ckpt"): "round-00",
    ("round-01/early_stop.ckpt", "round-01/final.ckpt"): "round-01",
    ("round-01/reinit/final.ckpt", "round-01/final.ckpt"): "round-01",
    ("round-01/reinit/ticket.safetensors", "round-01/ticket.safetensors"): "round-00",
    ("round-02/ticket.safetensors", "round-02/next/ticket.safetensors"): "round-02",
    ("round-02/reinit/done", "round-01/reinit/done"): "round-01/reinit",
    ("other/round-01/ticket.safetensors", "round-01/ticket.safetensors"): "round-00",
    ("other/round-02/start.ckpt", "round-02/start.ckpt"): "round-01",
    ("other/points/step-7.ckpt", "points/step-7.ckpt"): "round-00",
    ("other/points/step-0.ckpt", "points/step-0.ckpt"): "round-00",
    ("other/round-00/final.ckpt", "round-00/final.ckpt"): "round-00",
    ("other/round-00/early_stop.ckpt", "round-00/early_stop.ckpt"): "round-00",
    ("other/round-02/reinit/done", "round-02/reinit/done"): "round-02/reinit",
}


@pytest.fixture(scope="session")
def other(tmp_path_factory):
    directory = tmp_path_factory.mktemp("other")
    play(directory, **(ARGUMENTS | {"seed": 1}))
    return directory


@pytest.mark.parametrize(
    ("source", "place", "maker"),
    [
        *((*places, maker) for places, maker in PLACES.items()),
        *(pytest.param(*places, maker, marks=pytest.mark.slow) for places, maker in MORE_PLACES.items()),
    ],
)
def test_a_whole_file_at_the_wrong_place_is_made_again(finished, other, run, source, place, maker):
    here = other / source.removeprefix("other/") if source.startswith("other/") else finished / source
    (run / place).write_bytes(here.read_bytes())
    trained, said = again(run, told="belongs elsewhere: it says")
    assert trained == [maker]
    assert len(said) == 1
    assert f"{run / place} belongs elsewhere: it says " in said[0]
    if source.startswith("other/"):
        assert "seed 1 instead of 0" in said[0] or place.endswith("ticket.safetensors")
    assert (run / f"{place}.damaged").exists()
    assert records_without_time(run) == records_without_time(finished)
    for fit in ("round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"):
        assert_same_state(final(run, fit), final(finished, fit))
    assert again(run, told="") == ([], [])


def test_another_runs_last_checkpoint_is_not_continued_from(finished, tmp_path):
    for seed in (0, 1):
        stop = StopAt("on_train_batch_end", 22)  # in the middle of round 1
        with pytest.raises(Stop):
            play(tmp_path / str(seed), make_callbacks=lambda stop=stop: [stop], **(ARGUMENTS | {"seed": seed}))
    last = tmp_path / "0" / "round-01" / "last.ckpt"
    last.write_bytes((tmp_path / "1" / "round-01" / "last.ckpt").read_bytes())
    _, said = again(tmp_path / "0", told="belongs elsewhere")
    assert [f"{last} belongs elsewhere: it says seed 1 instead of 0, config " in each for each in said] == [True]
    assert records_without_time(tmp_path / "0") == records_without_time(finished)


def test_a_rewind_point_of_another_step_is_not_started_from(run):
    link = run / "rewind.ckpt"
    link.unlink()
    link.symlink_to("points/step-0.ckpt")
    _, said = again(run, told="is one to step-7.ckpt now")
    assert said == [f"{link} was a link to step-0.ckpt, and is one to step-7.ckpt now."]
    assert link.resolve().name == "step-7.ckpt"
    link.unlink()
    shutil.copy(run / "points" / "step-0.ckpt", link)
    assert "belongs elsewhere: it says file step-0.ckpt instead of step-7.ckpt" in again(run, told="belongs")[1][0]
    assert link.resolve().name == "step-7.ckpt"


@pytest.mark.parametrize("name", ["round-02/ticket.safetensors", "round-02/start.ckpt"])
def test_a_damaged_ticket_is_made_again_for_a_control_that_is_to_do(finished, run, name):
    (run / "round-02" / "reinit" / "done").unlink()
    flip(run / name, 1000)
    trained, said = again(run)
    assert trained == ["round-01", "round-02/reinit"]
    assert f"{run / name} is damaged" in said[0]
    assert records_without_time(run) == records_without_time(finished)
    assert again(run) == ([], [])


def test_a_damaged_end_of_a_fit_that_is_not_done_is_written_again_from_its_last_checkpoint(finished, tmp_path):
    with pytest.raises(Stop):
        play(tmp_path, make_callbacks=lambda: [StopAt("on_test_start", 1)], **ARGUMENTS)
    flip(tmp_path / "round-00" / "final.ckpt", 1000)
    trained, said = again(tmp_path)
    assert "round 0 (ticket), which makes it, goes on; no other round is" in said[0]
    assert len(trained) == 5
    assert records_without_time(tmp_path) == records_without_time(finished)
    assert_same_state(final(tmp_path, "round-00"), final(finished, "round-00"))


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[1]", b'{"after_round": "x"}'])
def test_a_damaged_word_of_where_rounds_ended_is_asked_for_again(run, content):
    (run / "stopped").write_bytes(content)
    trained, said = again(run)
    assert trained == []
    assert said == [f"{run / 'stopped'} is damaged: it is now stopped.damaged, and stop_when is asked again."]


def test_records_are_written_anew_from_the_markers(finished, run):
    flip(run / "records.csv", 300)
    assert again(run) == ([], [])
    assert (run / "records.csv").read_bytes() == (finished / "records.csv").read_bytes()


@pytest.mark.slow
def test_a_bit_flip_anywhere_in_a_finished_run_is_noticed_or_harmless(finished, tmp_path, record_property):
    """Flips bits of every file, one at a time, and prints the table."""
    harmless = {
        "records.csv": "not read: written anew from the markers",
        "config.yaml": "the others change nothing that is compared",
        "environment.json": "nothing depends on it",
    }
    draws, lines = random.Random(0), []
    for path in sorted(p for p in finished.rglob("*") if p.is_file() and not p.is_symlink()):
        name, bits = path.relative_to(finished), path.stat().st_size * 8
        flips = draws.sample(range(bits), 40)
        noticed = sum(is_noticed(finished, tmp_path / "run", name, bit) for bit in flips)
        assert noticed == len(flips) or str(name) in harmless, name
        assert noticed > 0 or name.name in ("records.csv", "environment.json")
        lines.append(f"{name!s:36} {noticed} of {len(flips)} flips noticed; {harmless.get(str(name), '')}".rstrip("; "))
    assert len(lines) == 35
    record_property("table", "\n".join(lines))


def is_noticed(finished, run, name, bit):
    """Whether a run with this bit flipped is refused, or told what is damaged."""
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished, run, symlinks=True)
    flip(run / name, bit // 8, bit % 8)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            plan = plan_of(run)
            mend_config(plan)
            set_aside_damaged(plan)
        except ValueError as error:
            return str(run) in str(error)
    return any(str(run / name) in str(each.message) for each in said)


def plan_of(directory, **arguments):
    return inspect.getgeneratorlocals(lottery(Tiny, directory=directory, **(ARGUMENTS | arguments)))["plan"]


# What the rest of a run needs is looked at before it is trained


def test_an_unfinished_run_is_told_of_damage_to_what_it_continues_from(tmp_path):
    stop = StopAt("on_train_batch_end", 22)  # in the middle of round 1
    with pytest.raises(Stop):
        play(tmp_path, make_callbacks=lambda: [stop], **ARGUMENTS)
    flip(tmp_path / "round-01" / "last.ckpt", 1000)
    flip(tmp_path / "round-00" / "final.ckpt", 1000)  # nothing starts from it
    trained, said = again(tmp_path)
    assert trained[0] == "round-01"
    assert len(said) == 1
    assert "round-01/last.ckpt is damaged" in said[0]
    trained, said = again(tmp_path)
    assert trained == ["round-00"]
    assert "round-00/final.ckpt is damaged" in said[0]


@pytest.mark.parametrize("name", ["early_stop.ckpt", "metrics.csv"])
def test_what_an_unfinished_fit_has_measured_is_looked_at(tmp_path, finished, name):
    stop = StopAt("on_train_batch_end", 21)  # in the last epoch of round 1
    with pytest.raises(Stop):
        play(tmp_path, make_callbacks=lambda: [stop], **ARGUMENTS)
    path = tmp_path / "round-01" / name
    flip(path, path.stat().st_size // 2)
    trained, said = again(tmp_path)
    assert trained[0] == "round-01"
    assert f"round-01/{name} is damaged" in said[0]
    assert records_without_time(tmp_path) == records_without_time(finished)


def test_rows_that_a_checkpoint_does_not_know_are_no_damage(tmp_path, finished):
    stop = StopAt("on_train_batch_end", 21)
    with pytest.raises(Stop):
        play(tmp_path, make_callbacks=lambda: [stop], **ARGUMENTS)
    with open(tmp_path / "round-01" / "metrics.csv", "a") as file:
        file.write("14,2,0.5,,\n")  # as after a kill between the curves and the checkpoint
    assert again(tmp_path)[1] == []
    assert (tmp_path / "round-01" / "metrics.csv").read_bytes() == (finished / "round-01" / "metrics.csv").read_bytes()


def test_what_is_damaged_twice_is_set_aside_twice(run):
    for _ in range(2):
        flip(run / "round-02" / "final.ckpt", 1000)
        again(run)
    assert {path.name for path in run.glob("round-02/*.damaged*")} == {"final.ckpt.damaged", "final.ckpt.damaged1"}


def test_files_of_others_are_no_damage(run):
    for name in ("points/mine.ckpt", "round-01/mine.ckpt", "round-01/notes.csv"):
        (run / name).write_text("mine")
    assert again(run) == ([], [])


def test_points_that_were_removed_are_asked_for_when_a_round_starts_from_them(tmp_path):
    play(tmp_path, rounds=1)
    for point in (tmp_path / "points").iterdir():
        point.unlink()
    with pytest.raises(FileNotFoundError, match=r"rewind\.ckpt is missing, from which round 2 starts"):
        play(tmp_path, rounds=2)


def test_the_ticket_after_the_last_round_is_looked_at_when_the_run_grows(run):
    flip(run / "round-02" / "next" / "ticket.safetensors", 1000)
    trained, said = again(run, rounds=3)
    assert trained == ["round-02", "round-03", "round-03/reinit"]
    assert "round 2 (ticket), which makes it, is trained again" in said[0]


def test_a_damaged_ticket_is_not_loaded(run):
    path = run / "round-01" / "ticket.safetensors"
    flip(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match="is damaged: it does not hold what was written") as error:
        load_ticket(path)
    assert str(path) in str(error.value)


def test_rounds_that_were_trained_with_a_ticket_keep_it(run):
    """Trained again, a round may end with other bits on another machine; what began with its ticket stays as it is."""
    ticket = run / "round-01" / "ticket.safetensors"
    before = ticket.stat().st_mtime_ns
    (run / "round-00" / "done").unlink()
    play(run, **(ARGUMENTS | {"model": lambda: Tiny(lr=0.5), "may_vary": ["*.lr"]}))
    assert ticket.stat().st_mtime_ns == before


HEADER = b"step,epoch,val/loss\n"


@pytest.mark.parametrize("content", [b"\xff", b"val/loss", HEADER + b"1,0\n", HEADER + b"x,0,0.1\n"])
def test_damaged_curves_of_a_finished_round_are_named(run, content, capsys):
    path = run / "round-01" / "metrics.csv"
    path.write_bytes(content)
    assert main(["report", str(run)]) == (0 if content == b"val/loss" else 2)  # no rows are no curves
    if content != b"val/loss":
        told = capsys.readouterr().err
        assert told.startswith(f"lt_lightning: {path} is damaged: ")
        assert "Run the command again that made it: the round that wrote it is trained again." in told


def test_a_first_point_that_was_removed_is_named_by_who_asks_for_it(tmp_path):
    given = {"rounds": 1, "rewind_step": 7}
    play(tmp_path, **given)
    (tmp_path / "points" / "step-0.ckpt").unlink()
    told = r"points/step-0\.ckpt is missing, whose weights a control or rewind .* Put it back, or remove .*00/done"
    with pytest.raises(FileNotFoundError, match=told):
        play(tmp_path, controls=["noise(0.5)"], **given)
    (tmp_path / "round-00" / "done").unlink()
    assert list(play(tmp_path, controls=["noise(0.5)"], **given)) == ["round-00", "round-01/noise_0.5"]


# Configurations and layouts


def test_a_configuration_that_cannot_be_read_is_named(run):
    (run / "config.yaml").write_bytes(b"\x00\xff")
    for ticket in run.rglob("*.safetensors"):
        ticket.unlink()
    with pytest.raises(ValueError, match=r"config\.yaml cannot be read, and results lie beside it"):
        lottery(Tiny, directory=run, **ARGUMENTS)


def test_tickets_of_another_configuration_are_noticed_where_the_configuration_is_gone(run):
    (run / "config.yaml").unlink()
    with pytest.raises(ValueError, match=r"config\.yaml is gone, and the tickets here were made with another"):
        lottery(Tiny, directory=run, **(ARGUMENTS | {"seed": 1}))
    assert again(run) == ([], [])
    assert (run / "config.yaml").exists()


def test_a_second_run_does_not_write_the_configuration_of_the_first(tmp_path):
    first = lottery(Tiny, directory=tmp_path, rounds=1)
    next(first)
    before = (tmp_path / "config.yaml").read_bytes()
    lottery(Tiny, directory=tmp_path, rounds=1, seed=1)  # refused when it begins; the first may not have results yet
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_fewer_rounds_leave_the_configuration_alone(run, finished):
    assert again(run, rounds=1, controls=[])[0] == []
    assert (run / "config.yaml").read_bytes() == (finished / "config.yaml").read_bytes()


def test_a_configuration_that_differs_is_refused_and_not_mended(run):
    with pytest.raises(ValueError, match="results of another configuration"):
        lottery(Tiny, directory=run, **(ARGUMENTS | {"seed": 1}))


@pytest.mark.parametrize("layout", [None, 1, 2])
def test_a_directory_of_another_layout_is_refused(run, layout):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["lottery"] |= {"layout": layout}
    if layout is None:
        del config["lottery"]["layout"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for ticket in run.rglob("*.safetensors"):
        ticket.unlink()
    with pytest.raises(ValueError, match="the run directory") as error:
        lottery(Tiny, directory=run, **ARGUMENTS)
    assert f"{run} has layout {layout or 1}, and this release reads and writes layout 3" in str(error.value)
