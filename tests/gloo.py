"""Real processes that talk through gloo, started once: a team of each size, forked from one that has imported all."""

import multiprocessing
import tempfile
import traceback
from datetime import timedelta

import torch
import torch.distributed as dist

import lt_lightning  # noqa: F401  imported once for all


class Teams:
    """Runs a function on every process of a team; functions and values must be importable and picklable."""

    def __init__(self, sizes=(1, 2, 4)):
        self._ours, theirs = multiprocessing.get_context("spawn").Pipe()
        self._leader = multiprocessing.get_context("spawn").Process(target=lead, args=(theirs, sizes))
        self._leader.start()
        theirs.close()

    def run(self, size, function, *args):
        """What the function returned, or the error that it raised, by rank."""
        self._ours.send((size, function, args))
        if not self._ours.poll(120):
            raise TimeoutError(f"{function.__name__} does not end on {size} processes: one waits for another")
        return self._ours.recv()

    def close(self):
        self._ours.close()
        self._leader.join(10)
        self._leader.kill()


def lead(pipe, sizes):
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    teams, followers = {}, []
    for size in sizes:
        store = tempfile.mktemp()
        teams[size] = []
        for rank in range(size):
            ours, theirs = fork.Pipe()
            followers.append(fork.Process(target=follow, args=(theirs, store, rank, size), daemon=True))
            followers[-1].start()
            teams[size].append(ours)
    try:
        while True:
            size, function, args = pipe.recv()
            for member in teams[size]:
                member.send((function, args))
            pipe.send([member.recv() for member in teams[size]])
    except EOFError:
        for follower in followers:
            follower.kill()


def follow(pipe, store, rank, size):
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    while True:
        function, args = pipe.recv()
        try:
            pipe.send(function(*args))
        except Exception as error:
            traceback.print_exc()
            pipe.send(error)
