"""A copy of a module to look into: it stands at a checkpoint, logs nothing, and what happens to it stays its own."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor, nn

from lt_lightning.masks import plain_name


def probe(trainer: L.Trainer, state: Mapping[str, Any]) -> L.LightningModule:
    """A copy of the module that a Trainer has just fitted, with these weights and buffers, in training mode."""
    copied = copy.deepcopy(trainer.lightning_module)
    copied.load_state_dict(state, strict=copied.strict_loading)
    copied.trainer = trainer
    copied.log = copied.log_dict = _ignore  # type: ignore[method-assign]
    return copied.train()


def _ignore(*arguments: Any, **options: Any) -> None:
    """Log nothing."""


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Name, without what `torch.compile` and wrappers put into it → parameter.

    >>> list(parameters_of(nn.Linear(2, 2)))
    ['weight', 'bias']
    """
    return {plain_name(name): parameter for name, parameter in module.named_parameters()}


def require_loss(module: L.LightningModule, why: str) -> None:
    """Raise a ValueError unless `training_step` can be asked for a loss on one process.

    Args:
        module: the module.
        why: what needs the loss, for the message.
    """
    name = type(module).__name__
    if not module.automatic_optimization:
        raise ValueError(
            f"{why} needs the loss that training_step returns, and {name} has automatic_optimization=False: its "
            "training_step takes the steps itself. Choose a criterion that looks at weights, such as magnitude."
        )
    if is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True):
        raise ValueError(
            f"{why} needs the loss of a batch, and training_step of {name} takes a dataloader_iter: let it take one."
        )
    if any(isinstance(each, nn.SyncBatchNorm) for each in module.modules()):
        raise ValueError(
            f"{why} is computed by one process, for which the SyncBatchNorm of {name} would wait: leave out "
            "sync_batchnorm=True, or choose a criterion that looks at weights, such as magnitude."
        )


def loss(module: L.LightningModule, batch: Any, why: str, temperature: float = 1.0) -> Tensor:
    """What `training_step` of a probe returns for a batch: a scalar that gradients flow through.

    Args:
        module: the probe.
        batch: as a loader gives it, on the module's device.
        why: what needs the loss, for messages.
        temperature: what the output of `forward` is divided by.

    Raises:
        ValueError: if it returns no loss, or `forward` is not called, so that there are no logits to divide.
    """
    with_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    logits: list[Tensor] = []

    def divide(module: nn.Module, inputs: Any, output: Any) -> Any:
        logits.append(output / temperature)
        return logits[-1]

    handle = module.register_forward_hook(divide) if temperature != 1 else nullcontext()
    with handle, torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        returned = module.training_step(batch, 0) if with_index else module.training_step(batch)
    if temperature != 1 and not logits:
        raise ValueError(
            f"{why} divides the logits by a temperature, and training_step of {type(module).__name__} does not call "
            "self(...), whose result they are: let it do so, or choose temperature=1 "
            "(prune.criterion.temperature=1)."
        )
    found = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
        raise ValueError(
            f"{why} needs a loss, and training_step of {type(module).__name__} returned {_told(returned)}: it has to "
            'return a scalar with a gradient, or {"loss": scalar}.'
        )
    return found.squeeze()


def _told(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
    return f"a dict of {list(value)}" if isinstance(value, Mapping) else repr(value)
