"""Two ways to do the same, timed by turns in one process, and on which machine."""

import platform
import statistics
import time
from functools import partial

import lightning
import torch


def ratio(one, other, repeats=5):
    """Median CPU seconds of `one` over those of `other`, which are called by turns; and the two medians.

    CPU seconds of this process and all its threads: what else the machine does adds less to them than to the clock.
    """
    one()
    other()
    return alternated(partial(seconds, one), partial(seconds, other), repeats)


def seconds(function):
    """CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def alternated(one, other, repeats):
    """The same, of functions that tell their seconds themselves."""
    spans = {one: [], other: []}
    for turn in range(repeats):
        for each in (one, other) if turn % 2 else (other, one):
            spans[each].append(each())
    first, second = (statistics.median(spans[each]) for each in (one, other))
    return first / second, first, second


def machine():
    """Hardware and versions, as plain values."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    with open("/proc/loadavg") as file:
        load = float(file.read().split()[0])
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(names),
        "threads": torch.get_num_threads(),
        "load": load,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
    }
