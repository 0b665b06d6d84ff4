"""Networks of one architecture as one, with their tensors stacked along a new dimension."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lt_lightning.models import Classifier
from lt_lightning.models.classifier import Batch, is_read
from lt_lightning.replicates.joined import OF_ALL


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """One network in whose place all of them run: each parameter and buffer is theirs, stacked along a new dimension.

    Args:
        networks: of one architecture; they lend their values, and stay as they are.

    Example:
        >>> stacked = stack([nn.Linear(3, 2), nn.Linear(3, 2)])
        >>> {name: tuple(each.shape) for name, each in stacked.named_parameters()}
        {'weight': (2, 2, 3), 'bias': (2, 2)}
        >>> run(stacked, torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 2])
    """
    made = copy.deepcopy(networks[0])
    seen: dict[Tensor, Tensor] = {}  # tensors are keys by identity
    for one, *theirs in zip(made.modules(), *(each.modules() for each in networks), strict=True):
        for kind in ("_parameters", "_buffers"):
            for name, value in getattr(one, kind).items():
                if value is not None and value not in seen:
                    values = torch.stack([getattr(each, kind)[name].detach() for each in theirs])
                    is_parameter = isinstance(value, nn.Parameter)
                    seen[value] = nn.Parameter(values, value.requires_grad) if is_parameter else values
                if value is not None:
                    getattr(one, kind)[name] = seen[value]  # tied ones stay tied
        if type(one) is nn.Linear and "forward" not in vars(one):
            one.forward = partial(_linear, one)  # type: ignore[method-assign]
    return made


def run(network: nn.Module, inputs: Tensor, *, shared: bool = False) -> Tensor:
    """The outputs of stacked networks, [networks, batch, ...], each on its own inputs.

    Args:
        network: from `stack`; in training mode batch norms update their stacked statistics.
        inputs: [networks, batch, ...]; or [batch, ...] if they are `shared` by all.
        shared: see there.

    Example:
        >>> networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
        >>> inputs = torch.ones(5, 3)
        >>> outputs = run(stack(networks), inputs, shared=True)
        >>> torch.allclose(outputs[1], networks[1](inputs))
        True
    """
    # By module, each once: with `tie_weights` torch would leave a layer that occurs twice with tensors of this call.
    tensors = {
        f"{prefix}.{name}".removeprefix("."): value
        for prefix, module in network.named_modules()
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    }

    def one(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return torch.func.functional_call(network, tensors, (inputs,), tie_weights=False)

    return torch.func.vmap(one, in_dims=(0, None if shared else 0))(tensors, inputs)


def _linear(layer: nn.Linear, inputs: Tensor) -> Tensor:
    """A linear layer whose weight gradient comes out of a batched product in the order that it is stored in.

    Of `F.linear` it comes transposed, and copying it took longer than the product.
    """
    outputs = (layer.weight @ inputs.flatten(0, -2).mT).mT if inputs.dim() > 1 else layer.weight @ inputs
    outputs = outputs if layer.bias is None else outputs + layer.bias.to(outputs.dtype)
    return outputs.unflatten(0, inputs.shape[:-1]) if inputs.dim() > 2 else outputs


def clip(gradients: Sequence[Tensor], value: float, algorithm: str) -> None:
    """Clip stacked gradients in place, each network's by its own norm, as Lightning does with those of one.

    Args:
        gradients: [networks, ...] each.
        value: the largest norm of all gradients of a network, or the largest absolute value.
        algorithm: "norm" or "value".

    Example:
        >>> gradients = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]
        >>> clip(gradients, 1.0, "norm")
        >>> gradients[0].round(decimals=3)
        tensor([[0.6000, 0.8000],
                [0.3000, 0.4000]])
    """
    if algorithm == "value":
        for each in gradients:
            each.clamp_(-value, value)
        return
    norms = torch.stack([each.reshape(len(each), -1).norm(dim=1) for each in gradients]).norm(dim=0)
    scale = (value / (norms + 1e-6)).clamp(max=1.0)
    for each in gradients:
        each.mul_(scale.view(-1, *[1] * (each.dim() - 1)))


class Stacked(L.LightningModule):
    """The module that the leader trains: the classifiers of all seeds, with their weights stacked."""

    def __init__(self, members: Sequence[Classifier], turn_to: Callable[[int], Any]) -> None:
        super().__init__()
        self._members, self._turn_to = list(members), turn_to  # in a list: they are no submodules
        self._predicted: list[tuple[Tensor, Tensor]] = []

    def setup(self, stage: str) -> None:
        """Stack the weights, now that the tickets have let their modules become double or stay single."""
        self.network = stack([each.network for each in self._members])

    def make_views(self) -> None:
        """Let the members' parameters and buffers be views of the stacked ones, on their device."""
        for number, member in enumerate(self._members):
            member.to(self.device)
            for mine, stacked in self._pairs(member):
                mine.data = stacked.detach()[number]

    def take_copies(self) -> None:
        """Let the members' tensors be their own again."""
        for member in self._members:
            for mine, _ in self._pairs(member):
                mine.data = mine.detach().clone()

    def _pairs(self, member: Classifier) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(member.network.parameters(), self.network.parameters(), strict=True)
        yield from zip(member.network.buffers(), self.network.buffers(), strict=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the first member, with stacked parameters in the place of its own, and its schedule."""
        first = self._members[0]
        made = first.configure_optimizers()
        optimizer: Any = made["optimizer"] if isinstance(made, Mapping) else made
        mine = {id(own): stacked for own, stacked in self._pairs(first)}
        state = {mine[id(each)]: _repeated(values, len(self._members)) for each, values in optimizer.state.items()}
        for group in optimizer.param_groups:
            group["params"] = [mine[id(each)] for each in group["params"]]
        optimizer.state.clear()
        optimizer.state.update(state)
        return made

    def training_step(self, batches: Sequence[Batch], batch_idx: int) -> Tensor:
        """The sum of the members' losses: the gradient of each is that of its own."""
        inputs, labels = (torch.stack(parts) for parts in zip(*batches, strict=True))
        logits = run(self.network, inputs)
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(1)
        self._predicted.append((logits.detach().argmax(-1), labels))
        self._log(losses.detach())
        return losses.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Let each member log what it makes of its logits."""
        logits = run(self.network, batch[0], shared=True)
        for number, member in enumerate(self._members):
            self._turn_to(number)
            member._current_fx_name = "validation_step"
            member.forward = partial(_given, logits[number])  # type: ignore[method-assign]
            member.validation_step(batch, batch_idx)
            del member.forward

    def _log(self, losses: Tensor) -> None:
        if not is_read(self.trainer) and self._members[0].is_accuracy_logged:
            return
        for number, member in enumerate(self._members):
            self._turn_to(number)
            member._current_fx_name = "training_step"
            member.log_step(losses[number])

    def update_accuracies(self) -> None:
        """Let the members' metrics have seen all batches; one by one they would take most of a step on a GPU."""
        if not self._predicted:
            return
        predicted, labels = (torch.cat(parts, 1) for parts in zip(*self._predicted, strict=True))
        self._predicted.clear()
        for number, member in enumerate(self._members):
            member.train_accuracy.update(predicted[number], labels[number])


def _given(outputs: Tensor, inputs: Tensor) -> Tensor:
    """What was computed before."""
    return outputs


def _repeated(state: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The state of a parameter for as many stacked ones; some optimizers have one before their first step."""
    return {key: value if key in OF_ALL else torch.stack([value] * count) for key, value in state.items()}
