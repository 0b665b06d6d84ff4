"""The same ticket on one process and on several: DDP, FSDP2, tensor parallel."""

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

import lightning as L
import pytest
import several
import torch
from killing import differences
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, XLAStrategy
from lightning.pytorch.utilities import rank_zero_only

from lt_lightning import load_ticket, strategies
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.records import read_records

NAMES = ["round-00", "round-01", "round-01/reinit", "round-02", "round-02/reinit"]
DDP = {"strategy": "ddp", "devices": 2}
FSDP2 = {"strategy": "fsdp2", "devices": 2}
COMMANDS = [[sys.executable], [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node=2"]]
slow = pytest.mark.slow


def run(directory, settings=(), fails=False, others=()):
    """Run the script in forks of this warmed process; what each said, by (rank, name of the fit).

    `others` are settings of all processes but the first.
    """
    settings = several.DEFAULTS | dict(settings)
    log = directory.with_name("log")
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    port = free_port()
    children = [
        start(rank, port, log, directory, settings | dict(others if rank else ()))
        for rank in range(settings["devices"])
    ]
    codes = ends_of(children)
    assert any(codes) == fails, log.read_text()[-3000:]
    return read_said(directory)


def ends_of(children):
    """The exit codes of all; when one fails, the others have five seconds more, as with the launchers."""
    codes, last = {}, None
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            ended, code = os.waitpid(child, os.WNOHANG)
            if ended:
                codes[child] = code
                last = last or (time.monotonic() + 5 if code else None)
            elif last and time.monotonic() > last:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return list(codes.values())


def start(rank, port, log, directory, settings):
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for number, name in ((1, "stdout"), (2, "stderr")):  # of the process, and of Python, where pytest captures it
        os.dup2(output, number)
        setattr(sys, name, os.fdopen(number, "w", buffering=1))
    try:
        faulthandler.dump_traceback_later(100, file=sys.stderr)  # where it hangs, if it does
        signal.alarm(120)
        if settings["devices"] > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": settings["devices"]}
            os.environ |= {key: str(value) for key, value in place.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            rank_zero_only.rank = rank  # found when Lightning is imported
        several.main(directory, settings)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launched(command, directory, settings):
    """Run the script as a user would; returns what each process said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*command, several.__file__, directory, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return read_said(directory)


def read_said(directory):
    said = {}
    for path in directory.parent.glob("rank-*.jsonl"):
        for line in map(json.loads, path.read_text().splitlines()):
            said[int(path.stem[5:]), line["name"]] = line
        path.unlink()
    return said


def masks(said, name="round-01"):
    """The hash of a fit's masks, which all processes have to agree on."""
    found = {line["masks"] for (_, fit), line in said.items() if fit == name}
    assert len(found) == 1
    return found.pop()


def rows(directory):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_records(directory / "records.csv")]


def assert_alike(one, other, tolerance):
    """Two runs have the same rows, up to rounding."""
    assert [(r["round"], r["arm"], r["density"], r["steps"]) for r in rows(one)] == [
        (r["round"], r["arm"], r["density"], r["steps"]) for r in rows(other)
    ]
    for row, wanted in zip(rows(one), rows(other), strict=True):
        metrics = {key: value for key, value in wanted.items() if key.endswith("loss")}
        assert {key: row[key] for key in metrics} == pytest.approx(metrics, rel=tolerance), row


def state(path):
    """All that a checkpoint holds, less what callbacks measured of time."""
    content = dict(Checkpoint(path))
    content.pop("callbacks", None)
    if path.is_dir():
        content["state_dict"] = dict(content["state_dict"])
        content["optimizer_states"] = [each | {"state": dict(each["state"])} for each in content["optimizer_states"]]
    return content


def assert_same_bits(one, other):
    """Two runs have left the same files, time aside."""
    assert rows(one) == rows(other)
    for path in (*one.rglob("*.ckpt"), *one.rglob("*.safetensors")):
        twin = other / path.relative_to(one)
        if path.suffix == ".ckpt":
            assert differences(state(path), state(twin), path.name) == []
        else:
            assert path.read_bytes() == twin.read_bytes()
    names = [sorted(p.relative_to(d).as_posix() for p in d.rglob("*")) for d in (one, other)]
    assert names[0] == names[1]


# The whole loop


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run on one process, and what it said."""
    directory = tmp_path_factory.mktemp("single") / "run"
    return directory, run(directory)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(FSDP2, id="fsdp2"),
        pytest.param(DDP, marks=slow, id="ddp"),
        pytest.param(FSDP2 | {"tensor_parallel": 2}, marks=slow, id="tensor parallel"),
        pytest.param(FSDP2 | {"devices": 4, "tensor_parallel": 2}, marks=slow, id="fsdp2 over tensor parallel"),
    ],
)
def test_a_run_on_several_processes_is_that_on_one_up_to_rounding(tmp_path, single, settings):
    said = run(tmp_path / "run", settings)
    assert sorted(said) == sorted((rank, name) for rank in range(settings["devices"]) for name in NAMES)
    assert {line["hidden"] for line in said.values()} == {0}, "pruned weights are zero"
    for name in NAMES:
        masks(said, name)
    assert_alike(tmp_path / "run", single[0], 0.02)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(tmp_path / "run", settings) == {}, "what is done is not trained again"
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


@slow
@pytest.mark.parametrize("criterion", ["magnitude", "random"])
@pytest.mark.parametrize("scope", ["globally", "layerwise", "erk", "balanced", "n_m", "channels"])
def test_identical_trained_weights_give_identical_masks(tmp_path, scope, criterion):
    """With a learning rate of 0 the trained weights are those that were drawn, under each strategy."""
    still = {"lr": 0.0, "scope": scope, "criterion": criterion, "epochs": 1, "controls": ["random_mask"]}
    ways = {"single": {}, "ddp": DDP, "fsdp2": FSDP2, "tp": FSDP2 | {"tensor_parallel": 2}}
    said = {way: run(tmp_path / way / "run", settings | still) for way, settings in ways.items()}
    for name in ("round-01", "round-01/random_mask", "round-02"):
        assert len({masks(each, name) for each in said.values()}) == 1
    files = [tmp_path / way / "run" / "round-02" / "ticket.safetensors" for way in ways]
    assert len({path.read_bytes() for path in files}) == 1, "the files are the same, byte by byte"


@slow
@pytest.mark.parametrize(
    "settings",
    [
        {"rewind": "keep_weights"},
        {"rewind": "fine_tune", "criterion": "movement"},
        {"rewind": "redraw"},
        {"criterion": "magnitude_increase", "scope": "layerwise", "optimizer": "SGD", "lr": 0.1},
        {"precision": "bf16-mixed"},
    ],
    ids=lambda settings: " ".join(map(str, settings.values())),
)
def test_rewinds_and_criteria_under_fsdp2(tmp_path, settings):
    run(tmp_path / "one", settings)
    said = run(tmp_path / "two", FSDP2 | settings)
    assert {line["hidden"] for line in said.values()} == {0}
    assert_alike(tmp_path / "two", tmp_path / "one", 0.05)


@slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "snip"}, "snip needs whole weights, and here each process holds a part: train under strategy"),
        (
            {"controls": ["noise(0.5)"]},
            "the control noise_0.5 changes the weights that a round starts from",
        ),
        ({"early_bird": 0.1}, "early_bird chooses masks while a round trains"),
        ({"gradual": "linearly"}, "gradual chooses masks while a round trains, and saves them with it"),
        ({"rewind": "keep_signs"}, "the rewind keep_signs changes the weights that a round starts from"),
    ],
)
def test_what_needs_whole_weights_is_refused_by_every_process(tmp_path, settings, message):
    run(tmp_path / "run", FSDP2 | {"rounds": 1} | settings, fails=True)
    assert (tmp_path / "log").read_text().count(f"{message}") >= 2


# Interruptions


@pytest.mark.parametrize(
    ("settings", "rank"),
    [
        pytest.param(FSDP2, 1, marks=slow, id="fsdp2"),
        pytest.param(FSDP2, 0, marks=slow, id="fsdp2, the first"),
        pytest.param(DDP, 1, marks=slow, id="ddp"),
        pytest.param(DDP, 0, marks=slow, id="ddp, the first"),
        pytest.param(FSDP2 | {"rewind": "keep_weights", "every": "3 steps"}, 1, marks=slow, id="within epochs"),
        pytest.param(DDP | {"gradual": "linearly", "every": "3 steps"}, 1, marks=slow, id="ddp, tightening masks"),
        pytest.param(DDP | {"early_bird": 0.9, "epochs": 4}, 0, marks=slow, id="ddp, an early end of round 0"),
    ],
)
def test_when_one_process_is_killed_the_run_ends_with_the_same_bits(tmp_path, settings, rank):
    settings = settings | {"norm": True, "rounds": 1}
    run(tmp_path / "whole", settings)
    run(tmp_path / "killed", settings | {"die": [rank, "round-01", 17]}, fails=True)
    assert not (tmp_path / "killed" / "round-01" / "done").exists()
    said = run(tmp_path / "killed", settings)
    assert said[rank, "round-01"]["began"] in (10, 15)
    assert_same_bits(tmp_path / "whole", tmp_path / "killed")


@slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(FSDP2, {}, id="fsdp2 to one"),
        pytest.param({}, FSDP2, id="one to fsdp2"),
        pytest.param(FSDP2, FSDP2 | {"devices": 4}, id="two to four"),
        pytest.param(FSDP2, DDP, id="fsdp2 to ddp"),
        pytest.param(FSDP2, FSDP2 | {"tensor_parallel": 2}, id="fsdp2 to tensor parallel"),
    ],
)
def test_a_run_goes_on_under_another_strategy_or_number_of_processes(tmp_path, single, before, after):
    run(tmp_path / "run", before | {"die": [0, "round-01", 17]}, fails=True)
    assert run(tmp_path / "run", after)[0, "round-01"]["began"] == 10
    assert_alike(tmp_path / "run", single[0], 0.02)


@slow
def test_a_damaged_part_of_a_checkpoint_is_made_again(tmp_path):
    run(tmp_path / "run", FSDP2 | {"rounds": 1})
    run(tmp_path / "whole", FSDP2 | {"rounds": 1})
    part = tmp_path / "run" / "round-01" / "final.ckpt" / "__1_0.distcp"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert {name for _, name in run(tmp_path / "run", FSDP2 | {"rounds": 1})} == {"round-01"}
    assert (part.parents[1] / "final.ckpt.damaged" / part.name).read_bytes() == content
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")


@slow
@pytest.mark.parametrize("command", COMMANDS, ids=["python", "torchrun"])
@pytest.mark.parametrize("settings", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_processes_that_lightning_or_torchrun_starts(tmp_path, single, command, settings):
    said = launched(command, tmp_path / "run", settings)
    assert {rank for rank, _ in said} == {0, 1}
    assert_alike(tmp_path / "run", single[0], 0.02)
    assert launched(command, tmp_path / "run", settings) == {}


# What is refused, and what is noticed


def test_weight_averaging_under_fsdp2_is_refused(tmp_path):
    run(tmp_path / "run", FSDP2 | {"averaged": True}, fails=True)
    said = (tmp_path / "log").read_text()
    assert "WeightAveraging copies the whole model, which ModelParallelStrategy has in parts: leave it out." in said


def test_processes_with_other_arguments_are_noticed(tmp_path):
    run(tmp_path / "run", DDP, others={"seed": 1}, fails=True)
    assert "the processes do not agree on what comes next (process 0: round-00 from" in (tmp_path / "log").read_text()


class Other:
    pass


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        (FSDPStrategy, "is the first FSDP"),
        (DeepSpeedStrategy, "has partitions of its own"),
        (XLAStrategy, "not tested"),
    ],
)
def test_strategies_that_cannot_be_exact_are_refused(strategy, said):
    with pytest.raises(ValueError, match=said):
        strategies.check(object.__new__(strategy))


def test_a_strategy_that_spawns_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"ddp_spawn, ddp_fork, ddp_notebook"):
        strategies.check(L.Trainer(strategy="ddp_spawn", devices=2, accelerator="cpu", logger=False).strategy)


def test_a_gathered_checkpoint_is_refused():
    strategy = ModelParallelStrategy(save_distributed_checkpoint=False)
    with pytest.raises(ValueError, match="gathers the whole model in one process for every checkpoint"):
        strategies.check(strategy)


@pytest.mark.parametrize("settings", [{}, pytest.param(FSDP2, marks=slow)], ids=["one", "fsdp2"])
def test_layers_that_the_trainer_lets_draw_are_drawn_from_the_seed(tmp_path, settings):
    """A module may make its layers in configure_model: reinit draws others all the same, and its ticket has them."""
    run(tmp_path / "late", settings | {"late": True, "rounds": 1})
    run(tmp_path / "early", settings | {"rounds": 1})
    ticket, control = (load_ticket(tmp_path / "late" / "round-01" / a / "ticket.safetensors") for a in ("", "reinit"))
    assert control.state.keys() == ticket.state.keys()
    assert not torch.equal(control.state["first.weight"], ticket.state["first.weight"])
    assert rows(tmp_path / "late") == rows(tmp_path / "early"), "the same weights as of a module that draws at once"


@slow
@pytest.mark.parametrize("settings", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_round_0_may_end_at_the_rewind_point(tmp_path, settings):
    said = run(tmp_path / "run", settings | {"dense": False, "rounds": 1, "criterion": "random"})
    assert [row["steps"] for row in rows(tmp_path / "run")] == [6, 20, 20]
    masks(said)


@slow
@pytest.mark.parametrize("settings", [DDP, FSDP2], ids=["ddp", "fsdp2"])
def test_processes_take_over_a_round_0_that_others_have_trained(tmp_path, settings):
    shared = {"dense_directory": str(tmp_path / "dense")}
    run(tmp_path / "alone", settings | {"rounds": 1})
    run(tmp_path / "first", settings | shared | {"rounds": 0})
    said = run(tmp_path / "second", settings | shared | {"rounds": 1})
    assert {line["began"] for (_, name), line in said.items() if name == "round-00"} == {None}
    (tmp_path / "second" / "round-00" / "trained_in").unlink()
    assert_same_bits(tmp_path / "alone", tmp_path / "second")


@slow
@pytest.mark.parametrize("command", COMMANDS, ids=["python", "torchrun"])
def test_processes_that_lightning_or_torchrun_starts_train_a_shared_round_0(tmp_path, command):
    shared = DDP | {"dense_directory": str(tmp_path / "dense"), "rounds": 1}
    launched(command, tmp_path / "run", shared)
    launched(command, tmp_path / "another", shared)
    assert len(list((tmp_path / "dense").glob("*/seed=0/round-00/done"))) == 1
    run(tmp_path / "alone", DDP | {"rounds": 1})
    assert rows(tmp_path / "run") == rows(tmp_path / "another") == rows(tmp_path / "alone")


# Ticket files


@slow
def test_the_ticket_of_any_strategy_is_read_by_any_other(tmp_path, single):
    run(tmp_path / "run", FSDP2)
    ours, theirs = (load_ticket(d / "round-01" / "ticket.safetensors") for d in (tmp_path / "run", single[0]))
    assert ours.masks.keys() == theirs.masks.keys()
    assert ours.state.keys() == theirs.state.keys()
    assert [value.shape for value in ours.state.values()] == [value.shape for value in theirs.state.values()]
