"""What a mask is: a bool tensor shaped like its weight, where `True` is kept.

Masks travel as a plain dictionary from parameter name to tensor and never live on the module: there they would be
broadcast in every distributed forward pass and saved twice.
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]
"""Parameter name → bool tensor of the parameter's shape."""

Weights = Mapping[str, Tensor]
"""Parameter name → float tensor."""

Scores = Mapping[str, Tensor]
"""Parameter name → float tensor of the parameter's shape; higher is kept."""

Density = float | Mapping[str, float]
"""A density in (0, 1], or one per name pattern; the first pattern that matches a name counts."""

Prunable = Sequence[str] | Callable[[str, nn.Parameter, nn.Module], bool]
"""Which parameters may be pruned: name patterns, or a predicate of (name, parameter, owning module)."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ATTENTION_WEIGHTS = {"in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}


def linear_and_convolution(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """The default answer to what is prunable: weights of linear, convolution and attention projections.

    Biases, normalisation, embeddings and frozen parameters are left alone (Frankle & Carbin 2019, section 2, prune
    weights only).

    >>> linear_and_convolution("0.weight", nn.Linear(2, 2).weight, nn.Linear(2, 2))
    True
    """
    leaf = name.rpartition(".")[2]
    if not parameter.requires_grad:
        return False
    if isinstance(module, nn.MultiheadAttention):
        return leaf in _ATTENTION_WEIGHTS
    return leaf == "weight" and isinstance(module, (nn.Linear, nn.Bilinear, *_CONVOLUTIONS))


def find_prunable(module: nn.Module, prunable: Prunable = linear_and_convolution) -> dict[str, nn.Parameter]:
    """The parameters of `module` that may be pruned, in the module's own order, tied ones once.

    Args:
        module: any module; names lose the prefixes that `torch.compile` and wrappers add.
        prunable: a predicate of (name, parameter, owning module), or name patterns as in `fnmatch`. A pattern that
            opens with `!` leaves out what it matches; patterns that only leave out start from the default.

    Raises:
        ValueError: if nothing is prunable, or a pattern matches nothing.

    Example:
        >>> list(find_prunable(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)), ["!2.*"]))
        ['0.weight']
    """
    parameters = {plain_name(name): parameter for name, parameter in module.named_parameters()}
    if callable(prunable):
        owners = _owners(module)
        found = {n: p for n, p in parameters.items() if prunable(n, p, owners[id(p)])}
    else:
        found = _match(list(prunable), parameters, module)
    if not found:
        raise ValueError(
            f"nothing is prunable: of the {len(parameters)} parameters of {type(module).__name__} "
            f"({_few(parameters)}) none was chosen by prunable={prunable!r}. "
            "Pass lottery(..., prunable=[name patterns]) or a predicate that accepts at least one."
        )
    return found


def _match(patterns: list[str], parameters: dict[str, nn.Parameter], module: nn.Module) -> dict[str, nn.Parameter]:
    wanted = [p for p in patterns if not p.startswith("!")]
    unwanted = [p[1:] for p in patterns if p.startswith("!")]
    for pattern in wanted + unwanted:
        require_match(pattern, parameters)
    chosen = {n: p for n, p in parameters.items() if matches(n, wanted)} if wanted else find_prunable(module)
    return {n: p for n, p in chosen.items() if not matches(n, unwanted)}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether any of the patterns matches the name.

    >>> matches("network.output.weight", ["*output*"])
    True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def require_match(pattern: str, names: Mapping[str, object] | Sequence[str]) -> None:
    """Raise a ValueError that lists the names if the pattern matches none of them."""
    if not any(fnmatchcase(name, pattern) for name in names):
        raise ValueError(f"the pattern {pattern!r} matches nothing; the parameters are {_few(names, 20)}.")


def _owners(module: nn.Module) -> dict[int, nn.Module]:
    """Parameter id → the first module that holds it."""
    owners: dict[int, nn.Module] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(id(parameter), owner)
    return owners


def plain_name(name: str) -> str:
    """A parameter's name without what `torch.compile` and wrappers put into it.

    >>> plain_name("network._orig_mod.hidden1.weight")
    'network.hidden1.weight'
    """
    for prefix in ("_orig_mod.", "_fsdp_wrapped_module.", "_forward_module."):
        name = name.replace(prefix, "")
    return name


def _few(names: Mapping[str, object] | Sequence[str], limit: int = 5) -> str:
    shown = list(names)[:limit]
    return ", ".join(shown) + (", ..." if len(names) > limit else "")


def all_kept(weights: Weights) -> Masks:
    """The masks of the dense network: everything is kept.

    >>> all_kept({"w": torch.zeros(2)})
    {'w': tensor([True, True])}
    """
    return {name: torch.ones(weight.shape, dtype=torch.bool) for name, weight in weights.items()}


def kept(masks: Masks) -> int:
    """How many weights the masks keep."""
    return sum(int(mask.sum()) for mask in masks.values())


def total(masks: Masks) -> int:
    """How many weights the masks cover."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Masks) -> float:
    """Kept weights over prunable weights, in [0, 1]: the paper's P_m (Frankle & Carbin 2019, section 2).

    >>> density({"w": torch.tensor([True, False, False, False])})
    0.25
    """
    return kept(masks) / total(masks)


def check_fit(masks: Masks, weights: Weights) -> None:
    """Raise a ValueError that lists names and shapes unless the masks fit the weights one by one.

    >>> check_fit({"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.zeros(3)})
    Traceback (most recent call last):
    ...
    ValueError: the ticket does not fit the model:
      w: the mask is (2,), the weight is (3,)
    Use the ticket with the model that it was found in, or start in another directory.
    """
    problems = [f"{name}: in the ticket only" for name in masks if name not in weights]
    problems += [f"{name}: in the model only" for name in weights if name not in masks]
    problems += [
        f"{name}: the mask is {tuple(mask.shape)}, the weight is {tuple(weights[name].shape)}"
        for name, mask in masks.items()
        if name in weights and mask.shape != weights[name].shape
    ]
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(
            f"the ticket does not fit the model:{lines}\n"
            "Use the ticket with the model that it was found in, or start in another directory."
        )
