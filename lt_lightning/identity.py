"""What each file of a run says of itself: by it a whole file at a wrong place is told from the one that belongs there.

A checkpoint holds it under `lt_lightning`, a marker under `is`, a ticket file in its metadata: the name of the file,
round and arm of its fit, the run's seed, and a hash of the configuration.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lt_lightning.disk.configuration import fingerprint
from lt_lightning.disk.rundir import MARK, ArmDirectory, Checkpoint
from lt_lightning.exchange import ticketfile
from lt_lightning.plan import Plan, describe

_PRUNING = ("lottery", "prune", "seed", "share_dense")
"""Entries of a configuration that round 0 does not depend on."""


def mark(plan: Plan, round: int, arm: str, name: str) -> dict[str, Any]:
    """What a file of a fit says of itself; plain values.

    The checkpoints of round 0 are alike in all runs that train alike and may share them, so their hash is of training.
    """
    shared = round == 0 and name.endswith(".ckpt")
    of_training = training if _is_point(name) else _of_dense
    config = of_training(plan) if shared else plan.fingerprint
    return {"file": name, "round": round, "arm": arm, "seed": plan.seed, "config": config}


def training(plan: Plan) -> str:
    """A hash of what the points of round 0 depend on besides the seed: nothing in it is about pruning."""
    seeds = _relative("", {"seed_init": plan.seed_init, "seed_data": plan.seed_data}, plan.seed)
    config = training_config(plan.config, plan.seed)
    return fingerprint({**config, "lottery": {**seeds, "monitor": plan.monitor, "mode": plan.mode}})


def training_config(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The part of a configuration that round 0 depends on; seeds that follow the run's say so, to be alike in all."""
    kept = {key: value for key, value in config.items() if key not in _PRUNING}
    return {key: _relative(key, value, seed) for key, value in kept.items()}


def _relative(key: str, value: Any, seed: int) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _relative(str(name), each, seed) for name, each in value.items()}
    return "the run's" if key.startswith("seed") and value == seed else value


def _of_dense(plan: Plan) -> str:
    """A hash of what round 0 as a whole depends on: two options end it early."""
    return fingerprint({"training": training(plan), "dense": plan.dense, "early_bird": describe(plan.early_bird)})


def _is_point(name: str) -> bool:
    return name.startswith("step-")


def difference(plan: Plan, path: Path, round: int, arm: str) -> str | None:
    """What a whole file says of itself and what the file at its place should say; None if that is the same.

    Args:
        plan: of the run.
        path: of the file.
        round: that it should be of.
        arm: likewise.
    """
    said, wanted = _said(path), mark(plan, round, arm, path.name)
    if path.suffix == ".safetensors":
        wanted = {key: wanted[key] for key in ("round", "arm", "config")}
    elif path == plan.directory.rewind_point and _is_point(str(said.get("file"))):
        wanted = mark(plan, round, arm, _point_in_use(plan, said["file"]))  # a copy, where links were followed
    differing = [key for key in wanted if said.get(key) != wanted[key]]
    if not differing:
        return None
    return ", ".join(f"{key} {said.get(key, 'unknown')} instead of {wanted[key]}" for key in differing)


def _point_in_use(plan: Plan, name: str) -> str:
    """The name of the rewind point; that which is given, where the plan does not tell by steps."""
    own = plan.directory.point(plan.rewind_step.count)
    return own.name if plan.rewind_step.unit == "steps" and own.exists() else name


def _said(path: Path) -> Mapping[str, Any]:
    """What a whole file says of itself; empty if it says nothing, as one of another program."""
    if path.name == "done":
        found: Any = ArmDirectory(path.parent).read_done().get("is")
    elif path.suffix == ".safetensors":
        ticket = ticketfile.read_metadata(path)
        found = {"round": int(ticket.get("round", -1)), "arm": ticket.get("arm"), "config": ticket.get("config")}
    else:
        found = Checkpoint(path, mapped=True).get(MARK)
    return found if isinstance(found, Mapping) else {}
