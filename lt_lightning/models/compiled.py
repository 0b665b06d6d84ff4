"""Networks that are compiled in place, so that no parameter gets another name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def compile_network(network: nn.Module, options: Mapping[str, Any] | None) -> None:
    """Let calls of `network` be compiled; copies and pickles of it are not, as with torch's `Module.compile`.

    That method passes over containers of torch's own, such as `nn.Sequential`, and all layers of torch's in them.

    Args:
        network: any module.
        options: arguments of `torch.compile`; None compiles nothing.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 1))
        >>> compile_network(network, {"backend": "eager"})
        >>> network(torch.ones(3, 2)).shape, list(network.state_dict())
        (torch.Size([3, 1]), ['0.weight', '0.bias'])
    """
    if options is None:
        return
    if not isinstance(options, Mapping):
        raise ValueError(
            f"compile={options!r} must be arguments of torch.compile, or None: model.compile={{}} or "
            "'model.compile={mode: reduce-overhead}' (model.compile=null)."
        )

    def called(*inputs: Tensor) -> Any:
        return network._call_impl(*inputs)

    network._compiled_call_impl = torch.compile(called, **options)  # what `Module.compile` sets
