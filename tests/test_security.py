"""Files of a run may come from anybody: no command unpickles them, and none runs what they name."""

import contextlib
import pickle
import shutil

import numpy as np
import pytest
import torch
from tiny import play
from torch.distributed.checkpoint import FileSystemReader

from lt_lightning.__main__ import main
from lt_lightning.data import cache
from lt_lightning.disk import parts
from lt_lightning.disk.plain_pickle import Reader, read_metadata
from lt_lightning.disk.rundir import Checkpoint

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
    torch.save({"state_dict": payload, "callbacks": payload}, path)


def as_yaml(path, payload):
    path.write_text(f"lottery: !!python/object/apply:builtins.open [{payload.marker}, w]\n")


def as_json(path, payload):
    path.write_text(
        f'{{"py/object": "builtins.open", "py/reduce": [{{"py/function": "builtins.open"}}, ["{payload.marker}"]]}}'
    )


def as_array(path, payload):
    with open(path, "wb") as file:
        np.savez(file, a=np.array([payload], dtype=object))


FORMS = [as_pickle, as_checkpoint, as_yaml, as_json, as_array]
FILES = [
    *("config.yaml", "environment.json", "records.csv", "state.json", "stopped", "sparse.json", "round-00/trained_in"),
    *(f"{fit}/{name}" for fit in FITS for name in ("ticket.safetensors", "metrics.csv", "done")),
    *(f"{fit}/{name}.ckpt/{part}" for fit in FITS for name in ("final", "last") for part in (".metadata", "meta.pt")),
    *(f"{fit}/{name}.ckpt/__0_0.distcp" for fit in FITS for name in ("final", "early_stop", "last")),
    *(
        f"points/step-{step}.ckpt/{part}"
        for step in (0, 2)
        for part in (".metadata", "meta.pt", "__0_0.distcp", "sha256")
    ),
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
    for arguments in commands(run, output):
        with contextlib.suppress(Exception):
            main(arguments)
    for again in (run, shutil.copytree(run, output / "again", symlinks=True)):
        if again != run:
            (again / "round-01" / "noise_0.5" / "done").unlink(missing_ok=True)
        with contextlib.suppress(Exception):
            play(again, keep_last=True, **ARGUMENTS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_no_command_runs_what_a_file_of_a_run_says(finished, tmp_path, form, capsys, record_property):
    marker = tmp_path / "marker"
    for number, name in enumerate(FILES):
        run = shutil.copytree(finished, tmp_path / f"run-{number}", symlinks=True)
        output = tmp_path / f"output-{number}"
        output.mkdir()
        form(run / name, Payload(marker))
        seal(run / name)
        try_all(run, output)
        assert not marker.exists(), name
        shutil.rmtree(run)
        shutil.rmtree(output)
    record_property("table", f"{form.__name__}: {len(FILES)} files, no payload was run")


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
