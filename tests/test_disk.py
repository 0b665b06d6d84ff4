"""A disk that is full or cannot be written: it is said so, nothing is lost, and the same command goes on."""

import errno
import subprocess

import pytest
from test_lottery import assert_same_state, final, records_without_time
from tiny import play

from lt_lightning import keep_weights

ARGUMENTS = {"rounds": 1, "controls": ["reinit"], "rewind_step": 7, "rewind": keep_weights}


class Disk:
    """A small disk of its own."""

    def __init__(self, path):
        self.path = path

    def mount(self, options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.path], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    def change(self, options):
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    disk = Disk(path)
    disk.mount("size=20k")
    yield disk
    subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_is_said_so_and_the_same_command_goes_on_when_there_is_room(disk, tmp_path):
    size, refused = 20, []
    while True:
        try:
            play(disk.path / "run", **ARGUMENTS)
            break
        except OSError as error:
            refused.append(error)
            size += 8
            disk.change(f"size={size}k")
    assert len(refused) >= 10
    for error in refused:
        assert error.errno == errno.ENOSPC
        assert "cannot be written. Make room and run again. Nothing that was there is lost" in str(error)
        assert str(disk.path / "run") in str(error)
    play(tmp_path / "whole", **ARGUMENTS)
    assert records_without_time(disk.path / "run") == records_without_time(tmp_path / "whole")
    for name in ("round-00", "round-01", "round-01/reinit"):
        assert_same_state(final(disk.path / "run", name), final(tmp_path / "whole", name))
    assert not list(disk.path.rglob(".*.partial"))


@pytest.mark.parametrize("finished", [False, True])
def test_a_disk_that_cannot_be_written_is_said_so_before_anything_is_trained(disk, finished):
    disk.change("size=1m")
    if finished:
        play(disk.path / "run", **ARGUMENTS)
    disk.change("ro")
    with pytest.raises(OSError, match=r"cannot be written\. Make it writable, or choose another directory") as raised:
        play(disk.path / "run", **ARGUMENTS)
    assert raised.value.errno == errno.EROFS
    disk.change("rw")
