"""A network shared by several processes: FSDP2 over the data-parallel ones, a plan for the tensor-parallel ones.

For Lightning's `ModelParallelStrategy`, which makes the mesh and calls `configure_model`. Under any other strategy
there is no mesh, and nothing happens.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

MANY = 2**16
"""A child of the network with so many parameters is gathered for itself; smaller ones with the rest of the network."""


def shard(network: nn.Module, mesh: "DeviceMesh | None") -> None:
    """Divide the parameters of `network` among the processes of `mesh`, in place; buffers stay whole.

    Each of the network's blocks, and then the rest of it, is gathered when it computes. Blocks are the elements of
    `network.blocks` where there is such a thing, or else the children of many parameters. Where the mesh has more than
    one tensor-parallel process and the network has a `tensor_parallel_plan(processes)`, that divides its layers first;
    without one, the processes of that dimension compute the same.

    Calling it again does nothing, so `configure_model` may be called for every fit and test.

    Args:
        network: on any device; every process holds the same values.
        mesh: with the dimensions "data_parallel" and "tensor_parallel"; None: nothing is shared.

    Raises:
        ValueError: for a compiled network or one with channels last, and if the plan cannot work: dropout, whose draws
            would differ, or heads that cannot be divided.

    Source: torch's tutorial of `fully_shard`; the plan is that of Shoeybi et al. 2019 (arXiv 1909.08053), section 3.

    >>> shard(nn.Linear(2, 2), None)
    """
    if mesh is None or is_sharded(network):
        return
    from torch.distributed.fsdp import fully_shard

    if network._compiled_call_impl is not None:
        raise ValueError("processes cannot share a compiled network: set model.compile=null.")
    if not all(each.is_contiguous() for each in network.parameters()):
        raise ValueError("processes cannot share weights with channels last: set model.channels_last=false.")
    if mesh["tensor_parallel"].size() > 1 and hasattr(network, "tensor_parallel_plan"):
        _divide(network, mesh["tensor_parallel"])
    among = mesh["data_parallel"]
    # By default the outermost module stays gathered after a forward: a validation would leave plain parameters behind.
    for module in (*blocks(network), network):
        fully_shard(module, mesh=among, reshard_after_forward=True)


def is_sharded(network: nn.Module) -> bool:
    """Whether the parameters are divided already.

    >>> is_sharded(nn.Linear(2, 2))
    False
    """
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in network.parameters())


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """What is gathered for itself: elements of `network.blocks`, or the children of many parameters.

    >>> [layer.out_features for layer in blocks(nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100)))]
    [300]
    """
    if isinstance(listed := getattr(network, "blocks", None), nn.ModuleList):
        yield from listed
        return
    for child in network.children():
        if sum(parameter.numel() for parameter in child.parameters()) >= MANY:
            yield child


def _divide(network: nn.Module, mesh: "DeviceMesh") -> None:
    """Divide the layers of the network's plan; each process keeps the others whole."""
    from torch.distributed.tensor import DTensor, Replicate, distribute_module
    from torch.distributed.tensor.parallel import parallelize_module

    def enter(layer: nn.Module, inputs: tuple[Tensor, ...], mesh: "DeviceMesh") -> tuple[Tensor, ...]:
        return tuple(DTensor.from_local(each, mesh, [Replicate()], run_check=False) for each in inputs)

    def leave(layer: nn.Module, output: DTensor, mesh: "DeviceMesh") -> Tensor:
        return output.to_local()

    plan: Callable[[int], dict[str, Any]] = network.tensor_parallel_plan  # type: ignore[assignment]
    parallelize_module(network, mesh, plan(mesh.size()))
    for layer in list(network.modules()):
        if any(not isinstance(each, DTensor) for each in layer.parameters(recurse=False)):
            # clip_grad_norm_ adds up norms of one mesh only, so these parameters must lie on it too
            distribute_module(layer, mesh, input_fn=enter, output_fn=leave)  # type: ignore[arg-type]  # torch says None
