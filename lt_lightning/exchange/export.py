"""Tickets in the forms of others: `torch.nn.utils.prune`, plain dense weights, ONNX."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from lt_lightning import sharded
from lt_lightning.disk.atomic import staged
from lt_lightning.masks import Masks, few, plain_name

ONNX_LIMIT = 2_000_000_000
"""Bytes of a model beyond which one ONNX file cannot hold it."""


def to_torch_prune(model: nn.Module, masks: Masks) -> list[tuple[nn.Module, str]]:
    """Hang masks on a model as `torch.nn.utils.prune` does: `weight_orig` and the buffer `weight_mask` make `weight`.

    Whatever trains the model then, its pruned weights stay zero: they are masked in every forward pass. Optimizers
    must be made afterwards. torch's own tools go on from there, and `prune.remove(layer, name)` makes it plain again.

    Args:
        model: any module that is not sharded, such as one to which `load_ticket(path).apply` was applied.
        masks: parameter name → bool tensor of its shape; a tied weight is masked in all layers that hold it.

    Returns:
        (layer, name) of each, as functions such as `prune.global_unstructured` and `prune.remove` take them.

    Raises:
        ValueError: if the model has no such parameter, one of another shape, or one that is sharded.

    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> pairs = to_torch_prune(model, {"0.weight": torch.tensor([[True, False]])})
    >>> [name for name, _ in model.named_parameters()], [name for name, _ in model.named_buffers()]
    (['0.weight_orig'], ['0.weight_mask'])
    >>> for layer, name in pairs:
    ...     _ = prune.remove(layer, name)
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight']
    """
    named = {plain_name(name): each for name, each in model.named_parameters(remove_duplicate=False)}
    for name, mask in masks.items():
        if name not in named or named[name].shape != mask.shape:
            there = f"of shape {tuple(named[name].shape)}" if name in named else "not in the model"
            raise ValueError(
                f"{name} is {there}, and its mask of shape {tuple(mask.shape)}: give the masks that "
                "load_ticket(path).apply(model) returned, and a model that is not pruned yet."
            )
        if sharded.is_sharded(named[name]) or sharded.is_sharded(mask):
            raise ValueError(
                f"{name} is sharded, which torch.nn.utils.prune does not know: give a model on one device."
            )
    by_parameter = {id(named[name]): mask for name, mask in masks.items()}
    holders = [
        (layer, leaf, by_parameter[id(each)], each)
        for layer in model.modules()
        for leaf, each in layer.named_parameters(recurse=False, remove_duplicate=False)
        if id(each) in by_parameter
    ]
    for layer, leaf, mask, each in holders:
        prune.custom_from_mask(layer, leaf, mask.to(each.device))
    return [(layer, leaf) for layer, leaf, _, _ in holders]


def masked(state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """A state dict in which pruned weights are zero; everything else is as it was.

    Args:
        state: name → weight or buffer.
        masks: parameter name → bool tensor of its shape, tied ones under each of their names.

    Raises:
        ValueError: if a mask has no weight, or one of another shape.

    >>> masked({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}, {"w": torch.tensor([True, False])})
    {'w': tensor([1., 0.]), 'b': tensor([3.])}
    """
    _check(state, masks)
    return {
        name: value.masked_fill(~masks[plain_name(name)], 0) if plain_name(name) in masks else value
        for name, value in state.items()
    }


def in_prune_form(state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """The state dict that a model has after `to_torch_prune`: arguments and errors as for `masked`.

    A plain model reads it after `prune.identity(layer, name)` of each of its masked layers.

    >>> in_prune_form({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([True, False])})
    {'w_orig': tensor([1., 2.]), 'w_mask': tensor([1., 0.])}
    """
    _check(state, masks)
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        mask = masks.get(plain_name(name))
        found |= {name: value} if mask is None else {f"{name}_orig": value, f"{name}_mask": mask.to(value.dtype)}
    return found


def _check(state: Mapping[str, Tensor], masks: Masks) -> None:
    plain = {plain_name(name): value for name, value in state.items()}
    problems = [f"{name}: no such weight; there are {few(list(plain))}" for name in masks if name not in plain]
    problems += [
        f"{name}: the mask is {tuple(mask.shape)}, the weight is {tuple(plain[name].shape)}"
        for name, mask in masks.items()
        if name in plain and plain[name].shape != mask.shape
    ]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the masks do not fit the weights:{lines}\nGive weights of the model that the ticket is of.")


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict atomically, by the name's end for safetensors or for `torch.load`.

    Raises:
        ValueError: if the name ends otherwise.
    """
    if path.suffix == ".safetensors":
        content = save({name: value.detach().cpu().clone().contiguous() for name, value in state.items()})
        with staged(path) as file:
            file.write(content)
        return
    if path.suffix not in (".pt", ".pth", ".ckpt", ".bin"):
        raise ValueError(
            f"{path}: the name must end with .safetensors, or with .pt, .pth, .ckpt or .bin for torch.load."
        )
    with staged(path) as file:
        torch.save({name: value.detach().cpu() for name, value in state.items()}, file)


def to_onnx(model: nn.Module, inputs: Tensor | tuple[Tensor, ...], path: str | Path) -> None:
    """Write a model as one ONNX file, by torch's exporter, in evaluation mode; `pip install "lt-lightning[export]"`.

    Pruned weights are zeros in it. The first dimension of all inputs, the batch, stays free.

    Args:
        model: any module, under its masks; it is left in the mode that it was in.
        inputs: what its `forward` takes, (batch, ...) each.
        path: the file.

    Raises:
        ValueError: if the model is too large for one file, or torch cannot export it.
        ModuleNotFoundError: if onnx and onnxscript are not installed.
    """
    _require_exporter()
    size = sum(each.nbytes for each in model.state_dict().values() if isinstance(each, Tensor))
    if size > ONNX_LIMIT:
        raise ValueError(
            f"the model has {size:,} bytes, and one ONNX file holds {ONNX_LIMIT:,}: call torch.onnx.export."
        )
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    # Of a batch of one torch's exporter would make a constant.
    batches = tuple(torch.cat([each, each]) if len(each) == 1 else each for each in given)
    content = _exported(model, batches)
    with staged(Path(path)) as file:
        file.write(content)


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> bytes:
    batch = torch.export.Dim("batch")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shapes = tuple({0: batch} for _ in inputs)
            program = torch.onnx.export(model, inputs, dynamo=True, dynamic_shapes=shapes, verbose=False)
    except torch.onnx.errors.OnnxExporterError as error:
        raise ValueError(f"torch cannot export {type(model).__name__} to ONNX: {error}") from error
    finally:
        model.train(training)
    assert program is not None
    return program.model_proto.SerializeToString()


def _require_exporter() -> None:
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ModuleNotFoundError(
                f'ONNX files need {name}, which is not installed: pip install "lt-lightning[export]"', name=name
            )
