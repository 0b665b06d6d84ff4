import multiprocessing
import os
import signal
import socket

import pytest
from tiny import Tiny, play

from lt_lightning import lottery
from lt_lightning.disk.lock import hold


def work(directory, started, ended):
    """A run that waits in the middle of its first round."""
    for _ in lottery(Tiny, rounds=1, directory=directory):
        started.set()
        ended.wait(60)
        break


@pytest.fixture
def worker(tmp_path):
    context = multiprocessing.get_context("fork")
    started, ended = context.Event(), context.Event()
    process = context.Process(target=work, args=(tmp_path, started, ended))
    process.start()
    assert started.wait(60)
    process.let_end = ended.set
    yield process
    process.kill()
    process.join()


def test_a_second_run_in_a_directory_is_refused_and_told_who_is_there(tmp_path, worker):
    with pytest.raises(RuntimeError, match="two runs in one directory would overwrite each other") as error:
        play(tmp_path)
    assert f"{tmp_path} is in use by process {worker.pid} on {socket.gethostname()}" in str(error.value)


def test_the_lock_goes_when_the_run_ends(tmp_path, worker):
    worker.let_end()
    worker.join()
    assert not (tmp_path / "lock").exists()
    assert list(play(tmp_path)) == ["round-00", "round-01"]


def test_the_lock_of_a_killed_run_holds_nobody(tmp_path, worker):
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert (tmp_path / "lock").exists()
    assert list(play(tmp_path)) == ["round-00", "round-01"]
    assert not (tmp_path / "lock").exists()


def test_a_loop_that_was_left_does_not_lock_its_own_process_out(tmp_path):
    left = lottery(Tiny, rounds=1, directory=tmp_path)
    next(left)
    assert list(play(tmp_path)) == ["round-00", "round-01"]
    assert (tmp_path / "lock").exists()
    left.close()
    assert not (tmp_path / "lock").exists()


def test_a_lock_file_that_was_removed_while_it_was_waited_for_is_made_again(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    lockf = __import__("fcntl").lockf
    calls = []

    def removed_at_first(descriptor, how):
        calls.append(how)
        lockf(descriptor, how)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr("lt_lightning.disk.lock.fcntl.lockf", removed_at_first)
    with hold(path):
        assert len(calls) == 2
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"


def test_what_a_killed_run_left_behind_does_not_hold_the_lock(tmp_path):
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    with hold(tmp_path / "lock"):
        left_behind = context.Process(target=ended.wait, args=(60,))
        left_behind.start()  # it has inherited the open file
    try:
        rival = context.Process(target=work, args=(tmp_path, started := context.Event(), ended))
        rival.start()
        assert started.wait(60)
    finally:
        ended.set()
        left_behind.join()
        rival.join()
