"""What a parameter is to its layer: a weight to prune, or something to leave alone, and why."""

import re

from torch import nn

from lt_lightning.parametrized import source

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_WEIGHTS = (
    ((nn.Linear, nn.Bilinear, *_CONVOLUTIONS), "weight"),
    ((nn.MultiheadAttention,), "(in|q|k|v)_proj_weight"),
    ((nn.RNNBase,), r"weight_(ih|hh|hr)_l\d+(_reverse)?"),
    ((nn.RNNCellBase,), "weight_(ih|hh)"),
)
"""Classes of layers, and the names of their weights as a regular expression."""

_ELSEWHERE = {"transformers.pytorch_utils.Conv1D": "weight"}
"""The same for layers of packages that may not be installed: a linear layer with its weight transposed."""

_NORMALISATION = re.compile(r"Norm(\dd)?$")


def layer_weights(name: str, parameter: nn.Parameter, module: nn.Module) -> bool:
    """The default answer to what is prunable: weights of linear, convolution, recurrent and attention layers.

    Biases, normalisation, embeddings and frozen parameters are left alone (Frankle & Carbin 2019, section 2, prune
    weights only). Of a weight under weight norm the direction is pruned, under spectral norm the original.

    Args:
        name: the parameter's name; its end is its name in the layer.
        parameter: the parameter.
        module: the layer that holds it, or computes its weight from it.

    >>> layer_weights("0.weight", nn.Linear(2, 2).weight, nn.Linear(2, 2))
    True
    """
    return why_left(name, parameter, module) is None


def why_left(name: str, parameter: nn.Parameter, module: nn.Module) -> str | None:
    """Why `layer_weights` leaves a parameter alone, as a short phrase; None if it does not.

    >>> why_left("0.bias", nn.Linear(2, 2).bias, nn.Linear(2, 2))
    'bias'
    """
    if not parameter.requires_grad:
        return "frozen (requires_grad=False)"
    computed = source(name, module)
    if computed and computed.reason:
        return computed.reason
    leaf = computed.tensor if computed else name.rpartition(".")[2]
    pattern = _names_of_weights(module)
    if pattern and re.fullmatch(pattern, leaf):
        return None
    return _what_else(name, leaf, module, known=pattern is not None)


def _names_of_weights(module: nn.Module) -> str | None:
    ours = (pattern for classes, pattern in _WEIGHTS if isinstance(module, classes))
    bases = (f"{base.__module__}.{base.__qualname__}" for base in type(module).__mro__)
    return next(ours, None) or next((_ELSEWHERE[base] for base in bases if base in _ELSEWHERE), None)


def _what_else(name: str, leaf: str, module: nn.Module, *, known: bool) -> str:
    kind = type(module).__name__
    if _NORMALISATION.search(kind):
        return "normalisation"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return f'embedding; add it with prunable=["+{name}"]'
    if "bias" in leaf:
        return "bias"
    if known:
        return f"no weight of {kind} that we know; name it in prunable"
    return f"a parameter of {kind}, which is no layer that we know; name it in prunable"
