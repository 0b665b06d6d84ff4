"""How the published networks draw their first weights: in place, returning the network."""

from collections.abc import Callable
from typing import TypeVar

from torch import nn

Network = TypeVar("Network", bound=nn.Module)

Initialize = Callable[[nn.Sequential], nn.Module]
"""Draws the first weights of a network, in place, and returns it."""


def glorot_normal(network: Network) -> Network:
    """Draw every linear and convolution weight from N(0, 2 / (fan_in + fan_out)); biases are zero.

    Batch norm starts as torch has it: scales are one.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Fig. 2: "Gaussian Glorot".

    >>> glorot_normal(nn.Linear(2, 3)).bias.tolist()
    [0.0, 0.0, 0.0]
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            _zero_bias(module)
    return network


def kaiming_normal(network: Network) -> Network:
    """Draw linear and convolution weights from N(0, 2 / fan_in), batch-norm scales from U(0, 1).

    Biases are zero. Source: OpenLTH (github.com/facebookresearch/open_lth), `models/initializers.py` and
    `models/bn_initializers.py`: its CIFAR defaults are `kaiming_normal` and batch norm `uniform`. There the
    output layer keeps torch's own uniform bias.

    >>> scale = kaiming_normal(nn.BatchNorm2d(100)).weight
    >>> bool(((scale >= 0) & (scale < 1)).all())
    True
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            _zero_bias(module)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def _zero_bias(module: nn.Linear | nn.Conv2d) -> None:
    if module.bias is not None:
        nn.init.zeros_(module.bias)
