"""Files of a run may come from anybody: no command unpickles them, and none runs what they name."""

import contextlib
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny import play
from torch.distributed.checkpoint import FileSystemReader

from lt_lightning.__main__ import main
from lt_lightning.analysis import page, trust
from lt_lightning.cli.naming import run_directory
from lt_lightning.data import cache
from lt_lightning.disk import configuration, parts, redact
from lt_lightning.disk.plain_pickle import Reader, read_metadata
from lt_lightning.disk.rundir import Checkpoint
from lt_lightning.exchange.ticketfile import TicketFile

ARGUMENTS = {"rounds": 1, "controls": ["noise(0.5)"], "rewind_step": 2}
FITS = ("round-00", "round-01", "round-01/noise_0.5")


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose checkpoints are directories, and which is done but for its last control."""
    directory = tmp_path_factory.mktemp("finished")
    play(directory, keep_last=True, **ARGUMENTS)
    for path in [*directory.rglob("*.ckpt")]:
        if not path.is_symlink():
            content = dict(Checkpoint(path))
            path.unlink()
            parts.write(content, path)
    return directory


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run", symlinks=True)


def as_pickle(path, payload):
    path.write_bytes(pickle.dumps(payload))


def as_checkpoint(path, payload):
    with open(path, "wb") as file:
        torch.save({"state_dict": payload, "callbacks": payload}, file)


def as_text(path, payload):
    """As loaders of YAML and JSON read it that make objects."""
    call = {"py/reduce": [{"py/function": "builtins.open"}, [str(payload.marker), "w"]]}
    yaml = f"lottery: !!python/object/apply:builtins.open [{payload.marker}, w]\n"
    path.write_text(yaml if path.suffix == ".yaml" else json.dumps(call))


def as_array(path, payload):
    with open(path, "wb") as file:
        np.savez(file, a=np.array([payload], dtype=object))


TEXTS = [
    *("config.yaml", "environment.json", "records.csv", "state.json", "stopped", "sparse.json", "round-00/trained_in"),
    *(f"{fit}/{name}" for fit in FITS for name in ("metrics.csv", "done")),
]
IN_PARTS = [f"{fit}/{name}.ckpt" for fit in FITS for name in ("final", "last")] + ["points/step-0.ckpt"]
FILES = [
    *TEXTS,
    *(f"{fit}/ticket.safetensors" for fit in FITS),
    *(f"{path}/{part}" for path in IN_PARTS for part in (".metadata", "meta.pt", "__0_0.distcp")),
    *("points/step-2.ckpt/.metadata", "round-00/early_stop.ckpt/.metadata", "points/step-2.ckpt/sha256"),
]


def commands(run, output):
    """Every command that reads a run, as the arguments of `python -m lt_lightning`."""
    ticket = str(run / "round-01")
    yield from (["status", str(run)], ["summary", str(run), "--output", str(output)])
    yield from (["report", str(run), "--output", str(output)], ["analyse", "all", str(run), "--output", str(output)])
    yield from (["ticket", "show", ticket], ["ticket", "diff", ticket, str(run / "round-01" / "noise_0.5")])
    to = ["--to", "state-dict", "--output", str(output / "out.pt")]
    yield ["ticket", "export", ticket, *to]
    for name in ("final.ckpt", "final.ckpt/meta.pt", "final.ckpt/.metadata"):
        yield ["ticket", "export", ticket, "--weights", f"{ticket}/{name}", *to]
        yield ["ticket", "apply", ticket, f"{ticket}/{name}", "--output", str(output / "out.ckpt")]


def seal(path):
    """Whoever plants a file writes its checksum too."""
    if (path.parent / parts.MANIFEST).exists() and path.name != parts.MANIFEST:
        parts.seal(path.parent, {})


def try_all(run, output):
    """Run each command, and resume the run: once as it is, once with its last control to do."""
    every = [*commands(run, output)]
    for arguments in every:
        with contextlib.suppress(Exception):
            main(arguments)
    for again in (run, shutil.copytree(run, output / "again", symlinks=True)):
        if again != run:
            (again / "round-01" / "noise_0.5" / "done").unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            play(again, keep_last=True, **ARGUMENTS)
    return len(every)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "files"), [(as_pickle, FILES), (as_checkpoint, FILES), (as_text, TEXTS)])
def test_no_command_runs_what_a_file_of_a_run_says(finished, tmp_path, form, files, capsys, record_property):
    marker = tmp_path / "marker"
    for number, name in enumerate(files):
        run = shutil.copytree(finished, tmp_path / f"run-{number}", symlinks=True)
        output = tmp_path / f"output-{number}"
        output.mkdir()
        form(run / name, Payload(marker))
        seal(run / name)
        count = try_all(run, output)
        assert not marker.exists(), name
        shutil.rmtree(run)
        shutil.rmtree(output)
    record_property(
        "table",
        f"{form.__name__}: {len(files)} files, each read by {count} commands and two restarts: no payload was run",
    )


def test_the_metadata_of_a_directory_are_not_unpickled(run, tmp_path, capsys):
    marker, path = tmp_path / "marker", run / "round-01" / "final.ckpt"
    as_pickle(path / ".metadata", Payload(marker))
    seal(path / ".metadata")
    assert main(["analyse", "movement", str(run), "--output", str(tmp_path)]) == 2
    told = f"{path / '.metadata'} cannot be read: it names io.open. Expected the metadata"
    assert told in capsys.readouterr().err
    assert not marker.exists()
    with contextlib.suppress(Exception):
        FileSystemReader(path).read_metadata()
    assert marker.exists()  # torch's own reader does what the file says


def test_values_beside_the_tensors_are_not_unpickled(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "x.ckpt"
    parts.write({"state_dict": {"w": torch.ones(2), "extra": Payload(marker)}, "epoch": 1}, path)
    state = Checkpoint(path)["state_dict"]
    assert torch.equal(state["w"], torch.ones(2))
    with pytest.raises(
        ValueError, match=r"x\.ckpt cannot be read: Weights only load failed.*nothing else is unpickled"
    ):
        state["extra"]
    assert not marker.exists()


def test_a_directory_names_no_file_outside_of_it(tmp_path):
    path = tmp_path / "x.ckpt"
    parts.write({"state_dict": {"w": torch.ones(2)}}, path)
    found = read_metadata(path)
    for place in found.storage_data.values():
        object.__setattr__(place, "relative_path", "../y.ckpt/__0_0.distcp")
    (path / ".metadata").write_bytes(pickle.dumps(found))
    with pytest.raises(ValueError, match=r"it refers to '\.\./y\.ckpt/__0_0\.distcp', expected metadata of files in"):
        read_metadata(path)


def test_what_torch_writes_is_read_as_torch_reads_it(finished):
    path = finished / "round-00" / "last.ckpt"
    ours, theirs = Reader(path).read_metadata(), FileSystemReader(path).read_metadata()
    assert ours.state_dict_metadata == theirs.state_dict_metadata
    assert ours.planner_data == theirs.planner_data
    assert ours.storage_data == theirs.storage_data


def test_a_cache_of_data_holds_no_objects(tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "cached.npz"
    as_array(file, Payload(marker))
    assert cache._read(file) is None
    assert not marker.exists()
    with np.load(file, allow_pickle=True) as arrays:
        arrays["a"]
    assert marker.exists()


# What a stored configuration names

KNOWN = {"_target_": "lt_lightning.models.Classifier", "network": {"_target_": "torch.nn.Linear"}}


@pytest.mark.parametrize(
    "model",
    [
        {"_target_": "os.system", "command": "touch MARKER"},
        {"_target_": "torch.os.system", "command": "touch MARKER"},
        {"_target_": "lt_lightning.ticket_command.os.system", "command": "touch MARKER"},
        {"_target_": "builtins.open", "file": "MARKER", "mode": "w"},
        {"_target_": "lightning.pytorch.cli.LightningCLI"},
        {"_target_": "lightning.LightningModule.load_from_checkpoint", "checkpoint_path": "MARKER"},
        {"_target_": "lt_lightning.data.cache.cached"},
        {"_target_": "torch.load", "f": "MARKER", "weights_only": False},
        {"_target_": "torch.no_such_thing"},
        KNOWN | {"network": [{"a": {"_target_": "my_project.network", "_partial_": True}}]},
        KNOWN | {"network": {"_target_": ["os.system"]}},
        KNOWN | {"network": "${oc.decode:'{_target_: os.system}'}"},
    ],
)
def test_an_export_makes_only_what_fits_are_made_of(tmp_path, model, capsys):
    marker = tmp_path / "marker"
    config = json.loads(json.dumps({"model": model}).replace("MARKER", str(marker)))
    config |= {key: {"_target_": "lightning.Trainer"} for key in ("data", "trainer")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    TicketFile({"w": torch.tensor([True, False])}, {"w": torch.ones(2)}).write(tmp_path / "ticket.safetensors")
    export = ["ticket", "export", str(tmp_path), "--to", "onnx", "--output", str(tmp_path / "x.onnx")]
    assert main(export) == 2
    told = capsys.readouterr().err
    assert told.startswith(
        f"lt_lightning: {tmp_path / 'config.yaml'} may come from anybody, and it names code to run: model"
    )
    assert "Add --trust if you know where it comes from" in told
    assert not marker.exists()
    if model.get("_target_") == "builtins.open":
        with contextlib.suppress(Exception):
            main([*export, "--trust"])
        assert marker.exists()


def test_our_own_configurations_are_trusted():
    conf = Path(__file__).parent.parent / "conf"
    for path in [*conf.glob("model/*.yaml"), *conf.glob("trainer/*.yaml"), *conf.glob("experiment/*.yaml")]:
        found = {key: value for key, value in yaml.safe_load(path.read_text()).items() if key != "prune"}
        targets = [value for key, value in trust._texts(found, "") if key.endswith("_target_")]
        assert [each for each in targets if not trust._is_known(each)] == [], path


# Keys and passwords

KEY = "0123456789abcdef0123456789abcdef01234567"  # as W&B's


NAMES = [
    "api_key",
    "wandb_api_key",
    "apiKey",
    "hf_token",
    "password",
    "db_passwd",
    "token",
    "client_secret",
    "authToken",
]
NAMES += ["aws_secret_access_key", "credentials", "private-key"]
SHAPES = [("wandb_key", "Ab1"), ("key", "Xyz"), ("name", KEY), ("name", "hf_" + "a1" * 10), ("x", "sk-" + "a" * 24)]
SHAPES += [("uri", "postgresql://me:abc@host/db")]
PLAIN = [
    ("image_key", "img"),
    ("label_key", "labels"),
    ("max_tokens", 5),
    ("tokenizer", "gpt2"),
    ("pad_token", "<pad>"),
]
PLAIN += [("monitor", "val/loss"), ("revision", KEY), ("sha256", "ab" * 32), ("keys", "a1"), ("api_key", None)]
PLAIN += [("place", "/shared/keys/a1"), ("uri", "https://host/path"), ("is_secret", True)]


@pytest.mark.parametrize(("name", "value"), [*((name, "abc") for name in NAMES), *SHAPES])
def test_secrets_are_known_by_name_or_shape(name, value):
    secret = "me:abc" if name == "uri" else value
    assert secret not in str(redact.redacted({"a": [{name: value}]}))
    assert secret not in " ".join(redact.redacted_arguments(["train.py", f"+a.{name}={value}"]))
    assert secret not in redact.redacted_text(f"{{{name}: {value}}}")
    one, other = ({"a": {name: each}} for each in (value, value[::-1] if name not in ("name", "x", "uri") else value))
    assert configuration.compare(one, other) == []
    assert configuration.fingerprint(one) == configuration.fingerprint(other)


@pytest.mark.parametrize(("name", "value"), PLAIN)
def test_what_is_no_secret_stays_and_is_compared(name, value):
    assert redact.redacted({name: value}) == {name: value}
    assert redact.redacted_arguments([f"{name}={value}"]) == [f"{name}={value}"]
    assert len(configuration.compare({name: value}, {name: "another"})) == 1


def test_a_key_is_written_nowhere_and_another_is_no_other_configuration(tmp_path, monkeypatch):
    for key in (KEY, KEY[::-1]):
        monkeypatch.setattr(sys, "orig_argv", ["python", "mine.py", f"+service.api_key={key}"])
        config = {"service": {"api_key": key, "url": f"https://me:{key}@host"}}
        play(tmp_path, rounds=0, config=config, options={"max_epochs": 1})
    page.write(tmp_path)
    texts = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path, text in texts.items() if KEY.encode() in text or KEY[::-1].encode() in text] == []
    assert "api_key: REDACTED" in (tmp_path / "config.yaml").read_text()
    assert json.loads((tmp_path / "environment.json").read_text())[0]["command"] == (
        "python mine.py +service.api_key=REDACTED"
    )
    assert "api_key: REDACTED" in (tmp_path / "report.html").read_text()


def test_the_name_of_a_run_holds_no_key():
    told = run_directory("mine", "iterative", ["+model.token=abc", "model=conv2"], 0)
    assert told == "mine/prune=iterative,+model.token=REDACTED,model=conv2/seed=0"


@pytest.mark.slow
def test_a_key_on_the_command_line_is_written_nowhere(tmp_path):
    """Least of all into what Hydra and W&B keep."""
    overrides = ["prune.rounds=0", "trainer.max_epochs=1", "logger.mode=offline", f"+logger.settings.api_key={KEY}"]
    command = [sys.executable, Path(__file__).parent.parent / "train.py", "--multirun", "seed=0", *overrides]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "report.html", "multirun.yaml"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
