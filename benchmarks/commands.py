"""How long `status` and `summary` take on many runs, start-up included.

    python benchmarks/commands.py
    python benchmarks/commands.py --runs 500 --rounds 12 --repeats 5

Makes a study of runs as they lie on disk (no training): iterative pruning with one control under several learning rates
and seeds. A tenth of the runs is unfinished: running, failed or without a word. Each command runs in a process of its
own, in turns with one that only imports torch and one that does nothing; medians, in seconds.
"""

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

SEEDS = 5


def make_study(root, runs, rounds):
    """Run directories with markers, records and configurations, of the size that real ones have."""
    draw = random.Random(0)
    for number in range(runs):
        seed, method = number % SEEDS, number // SEEDS
        run = root / "study" / f"prune=iterative,model.optimizer.lr=0.{method:03d}" / f"seed={seed}"
        finished = rounds if number % 10 else rounds // 2
        rows = [row for n in range(finished + 1) for row in make_rows(n, seed, method, draw)]
        for row in rows:
            arm = run / f"round-{row['round']:02d}" / ("" if row["arm"] == "ticket" else row["arm"])
            arm.mkdir(parents=True, exist_ok=True)
            (arm / "done").write_text(json.dumps({"record": row, "metrics.csv": None, "sha256": "0" * 64}, indent=1))
        write_csv(run / "records.csv", rows)
        (run / "config.yaml").write_text(yaml.safe_dump(make_config(rounds, seed), sort_keys=False))
        if finished < rounds:
            (run / "state.json").write_text(json.dumps(make_state(number, finished + 1, rounds)))


def make_rows(n, seed, method, draw):
    for arm in ("ticket", "reinit") if n else ("ticket",):
        good = 0.98 - 0.002 * n * (1 + method % 3) * (1.5 if arm == "reinit" else 1.0) + draw.gauss(0, 0.002)
        numbers = {
            "train/loss": 1 - good,
            "val/loss": 1.1 - good,
            "val/acc": good,
            "test/acc": good - 0.004,
        }
        stops = {"early_stop_val_loss": 1.1 - good, "early_stop_val_acc": good, "early_stop_test_acc": good}
        about = {"round": n, "arm": arm, "seed": seed, "density": 0.8**n, "steps": 1200, "seconds": 3.21}
        yield about | {"early_stop_step": 600 + 20 * n} | numbers | stops


def make_config(rounds, seed):
    lottery = {"layout": 2, "rounds": rounds, "controls": ["reinit"], "monitor": "val/loss", "seed": seed}
    others = {f"key{n}": {"a": n, "b": "text"} for n in range(30)}
    return {"name": "study", "seed": seed} | others | {"lottery": lottery}


def make_state(number, round, rounds):
    state = ("running", "failed", "running")[number // 10 % 3]
    process = {
        "host": socket.gethostname() if number % 20 else "elsewhere",
        "pid": os.getpid(),
        "born": None,
        "job": None,
    }
    fit = {"round": round, "arm": "ticket", "density": 0.8**round, "step": 300, "steps": 1200, "seconds_per_step": 0.01}
    error = "ValueError: the loss is NaN" if state == "failed" else None
    command = "python train.py prune=iterative"
    counts = {"fits": 1 + 2 * rounds, "fits_done": 2 * round - 1, "started": time.time(), "beat": time.time()}
    return {"state": state, "error": error, "command": command} | process | fit | counts


def write_csv(path, rows):
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def seconds(command):
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode > 1 or done.stderr:
        sys.exit(done.stderr)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_study(Path(folder), given.runs, given.rounds)
        ours = {name: [sys.executable, "-m", "lt_lightning", name, folder] for name in ("status", "summary")}
        others = {name: [sys.executable, "-c", code] for name, code in {"nothing": "", "torch": "import torch"}.items()}
        times = {name: [] for name in (*ours, *others)}
        for _ in range(given.repeats):
            for name, command in (ours | others).items():
                times[name].append(seconds(command))
    print(f"{given.runs} runs of {1 + 2 * given.rounds} fits, median of {given.repeats}, in seconds")
    for name, values in times.items():
        label = name if name in ours else f"python -c {others[name][2]!r}"
        print(f"{label:<28}{statistics.median(values):6.2f}   (from {min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
