"""The ticket file of a control that starts from a fresh model: weights as they were drawn, before they are masked.

A model may draw them when it is made, when a Trainer sets it up, or in hooks at the start of the fit, of which the
last one to draw a weight counts.
"""

from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from lt_lightning.exchange.ticketfile import TicketFile, read, tensors_of
from lt_lightning.masks import Masks, plain_name
from lt_lightning.plan import Plan
from lt_lightning.processes import is_writer
from lt_lightning.prunable import ties
from lt_lightning.sharded import any_sharded


def write(plan: Plan, round: int, arm: str, masks: Masks, module: L.LightningModule) -> None:
    """Write the file with the weights that a module has now. Call on every process, before they are masked."""
    if is_writer() or any_sharded(masks):
        state, tied = tensors_of(module.state_dict()), ties(module, masks)
        file = TicketFile(masks, state, round, arm, "fresh", plan.fingerprint, tied=tied)
        file.write(plan.directory.arm(round, arm).ticket)


def update(path: Path, masks: Masks, module: L.LightningModule) -> None:
    """Put weights that were drawn since into the file; those that were only masked since stay as they were drawn.

    Not where weights lie in parts: there hooks come before the parts do.
    """
    if not is_writer() or any_sharded(masks) or not path.exists():  # a trial run writes elsewhere
        return
    file, now = read(path, state=True), tensors_of(module.state_dict())
    later = {name: value for name, value in now.items() if not _is_masked(file, masks, name, value)}
    if later:
        replace(file, masks=masks, state={**file.state, **later}).write(path)


def _is_masked(file: TicketFile, masks: Masks, name: str, value: Tensor) -> bool:
    """Whether a tensor is that of the file, with zeros at pruned places or without."""
    if name not in file.state or file.state[name].shape != value.shape:
        return False
    stored, value, mask = file.state[name].to(value.dtype), value.cpu(), masks.get(plain_name(name))
    return torch.equal(value, stored) or (mask is not None and torch.equal(value, torch.where(mask, stored, 0)))
