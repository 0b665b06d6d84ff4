"""A run on two processes, forked from this warmed one as `torchrun` would start them, of which one gets a signal."""

import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress

import torch
from lightning.pytorch.utilities import rank_zero_only
from tiny import play

OPTIONS = {"devices": 2, "strategy": "ddp", "max_epochs": 4, "use_distributed_sampler": True}
ARGUMENTS = {"rounds": 2, "controls": ["reinit"], "every": None, "options": OPTIONS}


def start(directory):
    """Start both; their process numbers by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(directory, rank, port) for rank in range(2)]


def _fork(directory, rank, port):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    child = os.fork()
    if child:
        _listen()
        return child
    code = 1
    try:
        log = os.open(f"{directory}-{rank}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "GROUP_RANK": 0}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "tests"}
        os.environ |= {name: str(value) for name, value in told.items()}
        rank_zero_only.rank = rank
        torch.set_num_threads(1)
        play(directory, make_callbacks=_listen, **ARGUMENTS)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _listen():
    """Let a signal come: a process that it ends before its run has begun would be missed by `torchrun` alone."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    return ()


def ends(processes, seconds):
    """The exit codes of both, None of one that had to be killed as it still ran after so many seconds."""
    deadline, codes = time.monotonic() + seconds, dict.fromkeys(processes)
    while None in codes.values() and time.monotonic() < deadline:
        for each in [each for each, code in codes.items() if code is None]:
            ended, status = os.waitpid(each, os.WNOHANG)
            codes[each] = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.01)
    for each in [each for each, code in codes.items() if code is None]:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
        os.waitpid(each, 0)
    return list(codes.values())
