"""Run directories as a study leaves them, made up from random numbers instead of training."""

import math

import numpy as np
import torch
import yaml

from lt_lightning.disk import environment
from lt_lightning.disk.rundir import RunDirectory
from lt_lightning.exchange.ticketfile import TicketFile
from lt_lightning.records import to_csv, write_records

LENET = {"hidden1.weight": (300, 784), "hidden2.weight": (100, 300), "output.weight": (10, 100)}
SMALL = {"hidden.weight": (12, 784), "output.weight": (10, 12)}


def make_study(root, *, seeds=3, rounds=20, controls=("reinit", "random_mask"), shapes=SMALL, points=500, methods=1):
    """Runs of some seeds, all done; returns their directories."""
    names = ["prune=iterative", *(f"prune=iterative,lr={n}" for n in range(1, methods))]
    return [
        make_run(root / name / f"seed={n}", n, rounds, controls, shapes, points) for name in names for n in range(seeds)
    ]


def make_run(path, seed, rounds, controls=(), shapes=SMALL, points=500):
    """One run."""
    run, draw = RunDirectory(path), torch.Generator().manual_seed(seed)
    first = {name: torch.randn(shape, generator=draw) / math.sqrt(shape[1]) for name, shape in shapes.items()}
    order = {name: torch.rand(shape, generator=draw) for name, shape in shapes.items()}
    rows = []
    for round in range(rounds + 1):
        density = 0.8**round
        masks = {
            name: values <= values.flatten().kthvalue(max(1, int(density * values.numel()))).values
            for name, values in order.items()
        }
        for arm in ("ticket", *(controls if round else ())):
            own = (
                masks
                if arm != "random_mask"
                else {n: m.flatten()[torch.randperm(m.numel(), generator=draw)].view(m.shape) for n, m in masks.items()}
            )
            rows.append(make_fit(run, round, arm, seed, own, first, draw, points))
    run.config.write_text(
        yaml.safe_dump(
            {"data": {"shape": [1, 28, 28]}, "lottery": {"rounds": rounds, "controls": list(controls), "dense": True}}
        )
    )
    write_records(run.records, rows)
    environment.note(path, f"python train.py seed={seed}")
    return path


def make_fit(run, round, arm, seed, masks, first, draw, points):
    """The files of one fit; returns its record."""
    files = run.arm(round, arm)
    files.path.mkdir(parents=True)
    TicketFile(masks, first, round, arm).write(files.ticket)
    end = {name: (w + 0.05 * torch.randn(w.shape, generator=draw)) * masks[name] for name, w in first.items()}
    torch.save({"state_dict": end}, files.final)
    noise = np.random.default_rng([seed, round, *arm.encode()]).normal(0, 0.01, (points + 1, 3))
    noise, ends = noise[1:], noise[0]
    curve = [
        {
            "step": 100 * (n + 1),
            "epoch": n // 10,
            "train/loss": math.exp(-n / 50) + abs(a),
            "val/loss": 0.1 + math.exp(-n / 40) + abs(b),
            "val/acc": 0.98 - math.exp(-n / 30) / 2 + c,
        }
        for n, (a, b, c) in enumerate(noise.tolist())
    ]
    files.curves.write_text(to_csv(curve))
    kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
    loss, accuracy, stop = ends.tolist()
    row = {
        "round": round,
        "arm": arm,
        "seed": seed,
        "density": kept,
        "steps": 100 * points,
        "seconds": 60.5,
        "early_stop_step": 4000 + int(1e5 * stop),
        "val/loss": curve[-1]["val/loss"],
        "test/loss": 0.1 + abs(loss),
        "test/acc": 0.975 + accuracy / 5 - 0.0005 * round,
        "early_stop_test_acc": 0.976,
    }
    files.mark_done(row)
    return row
