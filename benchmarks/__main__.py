"""Every figure of docs/performance.md, measured on this machine.

python -m benchmarks                  # all, some forty minutes on one calm core
python -m benchmarks --quick          # under three minutes
python -m benchmarks sparse callback  # some of them
"""

import argparse
import json
import logging
import warnings

import torch

from benchmarks import callback, memory, plugin, process, replicates, resnet, rounds, sparse
from benchmarks.side_by_side import machine

MODULES = (sparse, callback, plugin, resnet, memory, rounds, process, replicates)
PARTS = {each.__name__.split(".")[1]: each for each in MODULES}


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all without any")
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats")
    parser.add_argument("--output", default="benchmarks.json", help="where to write rows, hardware and versions")
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    about, rows = machine(), []
    print(", ".join(f"{key} {value}" for key, value in about.items()), end="\n\n")
    print(f"{'reached':>8} {'to reach':>8}   what", flush=True)
    for name, part in PARTS.items():
        for what, goal, reached, *seconds in part.rows(asked.quick) if name in (asked.parts or PARTS) else ():
            rows.append({"what": what, "to_reach": goal, "reached": reached, "of": seconds})
            print(f"{reached:8.3f} {goal or '':>8}   {what}", flush=True)
    with open(asked.output, "w") as file:
        json.dump({"machine": about, "quick": asked.quick, "rows": rows}, file, indent=1)
    print(f"\n{asked.output}")


if __name__ == "__main__":
    main()
