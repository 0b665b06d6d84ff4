"""What exact selection costs where weights are sharded, in time and in memory.

    python benchmarks/selection.py
    python benchmarks/selection.py --sizes 1 --repeats 3

Time: `select` under `globally` at density 0.8 from all weights kept, on one process that holds all (one `kthvalue`), on
one process with sharded tensors, and on two; one thread each, in turns, medians. Memory: what the resident set of a
process rises by at most while |w| is made and selection runs (VmHWM, reset through /proc/self/clear_refs, so on Linux
only; memory that is freed goes back at once), beside what its scores take and 16 MB. Values are normal; in "ties" they
are rounded to a hundredth, so that hundreds of thousands are equal.
"""

import argparse
import gc
import multiprocessing
import os
import re
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from lt_lightning.masks import all_kept
from lt_lightning.scopes import globally, select

MB = 2**20


def make_weights(millions, ties, sharded):
    """One matrix of half of the weights and four of an eighth, of which each process makes its own part."""
    rows = round(millions * 1e6 / 1000 / 8)
    generator = torch.Generator().manual_seed(dist.get_rank())
    weights = {}
    for n, factor in enumerate((4, 1, 1, 1, 1)):
        shape = (rows * factor, 1000)
        size = shape[0] // dist.get_world_size() + (dist.get_rank() < shape[0] % dist.get_world_size())
        part = torch.randn(size, 1000, generator=generator)
        part = part.mul_(100).round_().div_(100) if ties else part
        placed = {"placements": [Shard(0)], "shape": shape, "stride": (1000, 1)}
        mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if sharded else None
        weights[f"w{n}"] = DTensor.from_local(part, mesh, **placed) if sharded else part
    return weights


def seconds(weights, masks):
    scores = {name: weight.abs() for name, weight in weights.items()}
    dist.barrier()
    start = time.perf_counter()
    select(scores, masks, 0.8, globally)
    dist.barrier()
    return time.perf_counter() - start


def peak(weights, masks):
    """The most that the resident set rises by, and what the scores take, in MB."""
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    scores = {name: weight.abs() for name, weight in weights.items()}
    held = sum(score.to_local().nbytes for score in scores.values()) / MB
    select(scores, masks, 0.8, globally)
    return resident("VmHWM") - before, held


def resident(key):
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def work(pipe, store, rank, size):
    """Do what is asked, on one of the processes: make weights, or measure."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    weights = masks = None
    while (job := pipe.recv()) is not None:
        if isinstance(job, tuple):
            weights = masks = None
            weights = make_weights(*job)
            masks = all_kept(weights)
        pipe.send({"time": seconds, "memory": peak}[job](weights, masks) if isinstance(job, str) else None)
    dist.destroy_process_group()


class Team:
    """Processes that work together."""

    def __init__(self, size):
        spawn = multiprocessing.get_context("spawn")
        store = tempfile.mktemp()
        self.pipes = []
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=work, args=(theirs, store, rank, size), daemon=True).start()
            self.pipes.append(ours)

    def do(self, job):
        for pipe in self.pipes:
            pipe.send(job)
        return [pipe.recv() for pipe in self.pipes]

    def end(self):
        for pipe in self.pipes:
            pipe.send(None)


def time_all(millions, ties, repeats):
    ways = {"unsharded": (1, False), "1 process": (1, True), "2 processes": (2, True)}
    teams = {way: Team(size) for way, (size, _) in ways.items()}
    for way, (_, sharded) in ways.items():
        teams[way].do((millions, ties, sharded))
    times = {way: [] for way in ways}
    for repeat in range(repeats + 1):
        for way in list(ways)[:: 1 if repeat % 2 else -1]:
            taken = max(teams[way].do("time"))
            if repeat:  # the first warms up
                times[way].append(taken)
    for team in teams.values():
        team.end()
    plain = statistics.median(times["unsharded"])
    for way in ways:
        taken = statistics.median(times[way])
        spread = f"{min(times[way]):.3f} to {max(times[way]):.3f}"
        print(f"  {way}: {taken:.3f} s, {taken / plain:.2f} of unsharded ({spread} in {repeats})", flush=True)


def measure_memory(millions, ties):
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what is freed goes back, and is not counted again
    for size in (1, 2):
        team = Team(size)
        team.do((1, ties, True))
        team.do("memory")  # the first loads code
        team.do((millions, ties, True))
        rises, held = zip(*team.do("memory"), strict=True)
        team.end()
        verdict = "within" if all(rise <= own + 16 for rise, own in zip(rises, held, strict=True)) else "ABOVE"
        print(
            f"  memory, {size} process(es): at most {max(rises):.1f} MB; scores {max(held):.1f} MB "
            f"+ {max(rises) - max(held):.1f} MB, {verdict} scores + 16 MB",
            flush=True,
        )
    del os.environ["MALLOC_MMAP_THRESHOLD_"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 10, 50], help="millions of weights")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    for millions in options.sizes:
        for ties in (False, True):
            print(f"{millions:g}M weights{', ties' if ties else ''}", flush=True)
            time_all(millions, ties, options.repeats)
            measure_memory(millions, ties)


if __name__ == "__main__":
    main()
