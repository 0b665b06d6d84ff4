"""Which of Lightning's strategies a ticket trains under, and what is to be said of the others."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    XLAStrategy,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lt_lightning.twins import twins

_SHARDED_INSTEAD = (
    "Shard the model in its configure_model with torch.distributed.fsdp.fully_shard, and pass "
    "Trainer(strategy=ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1)); trainer=fsdp2 on the "
    "command line."
)


def is_sharded(strategy: Any) -> bool:
    """Whether each process holds parts of the parameters (FSDP2, tensor parallel), so that checkpoints are in parts."""
    return isinstance(strategy, twins(ModelParallelStrategy))


def check(strategy: Any, callbacks: Iterable[Any] = ()) -> None:
    """Raise a ValueError for a strategy under which a ticket would not be exact, or was never seen to be."""
    name = type(strategy).__name__
    if isinstance(strategy, twins(FSDPStrategy)):
        raise ValueError(
            f"{name} is the first FSDP: it keeps all weights of a layer in one flat tensor, where masks have no place, "
            f"and cannot fit a module twice. Use FSDP2. {_SHARDED_INSTEAD}"
        )
    if isinstance(strategy, twins(DeepSpeedStrategy)):
        raise ValueError(f"{name} has partitions of its own, with which tickets were not tested. {_SHARDED_INSTEAD}")
    if isinstance(getattr(strategy, "launcher", None), twins(_MultiProcessingLauncher)):
        raise ValueError(
            f"this {name} spawns or forks processes (ddp_spawn, ddp_fork, ddp_notebook), which end with each fit, and "
            'with them what the ticket learned in it: pass strategy="ddp" in a script, or one device in a notebook.'
        )
    if is_sharded(strategy) and not strategy._save_distributed_checkpoint:
        raise ValueError(
            f"{name}(save_distributed_checkpoint=False) gathers the whole model in one process for every checkpoint: "
            "leave that argument out."
        )
    if is_sharded(strategy) and any(isinstance(each, twins(WeightAveraging)) for each in callbacks):
        raise ValueError(f"WeightAveraging copies the whole model, which {name} has in parts: leave it out.")
    tested = twins(SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)
    if not isinstance(strategy, tested) or isinstance(strategy, twins(XLAStrategy)):
        raise ValueError(
            f'{name} was not tested with tickets. Pass strategy="auto", strategy="ddp" or a ModelParallelStrategy.'
        )


class FSDP2(ModelParallelStrategy):
    """A `ModelParallelStrategy` whose data-parallel size is what the number of processes leaves to it.

    Args:
        tensor_parallel_size: processes that share the layers of one copy of the model; 1: none do.

    Raises:
        ValueError: when the processes start, if their number is no multiple of that.
    """

    def __init__(self, tensor_parallel_size: int = 1) -> None:
        super().__init__(data_parallel_size=1, tensor_parallel_size=tensor_parallel_size)

    def setup_environment(self) -> None:
        """Find out how many processes there are."""
        self.set_world_ranks()
        size = self._tensor_parallel_size
        if self.world_size % int(size):
            raise ValueError(
                f"tensor_parallel_size={size} does not divide the {self.world_size} processes: set "
                "trainer.strategy.tensor_parallel_size or trainer.devices."
            )
        self._data_parallel_size = self.world_size // int(size)
        super().setup_environment()
