"""Learning-rate schedules of the papers that torch does not have as one class."""

from collections.abc import Sequence
from math import cos, pi

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_multistep(
    optimizer: Optimizer, warmup_steps: int, milestones: Sequence[int], gamma: float = 0.1
) -> LambdaLR:
    """Raise the learning rate linearly from 0, then multiply it by `gamma` at each milestone.

    The factor at step t is min(1, t / warmup_steps) · gamma^(number of milestones at or before t), so step 0
    changes no weight. `warmup_steps` and `milestones` are in steps, or in epochs where
    `scheduler_interval` is "epoch"; no warm-up where `warmup_steps` is 0.

    Raises:
        ValueError: when `warmup_steps` is negative.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Section 4.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    >>> schedule = warmup_multistep(optimizer, warmup_steps=2, milestones=[3], gamma=0.5)
    >>> for step in range(4):
    ...     print(schedule.get_last_lr())
    ...     optimizer.step()
    ...     schedule.step()
    [0.0]
    [0.2]
    [0.4]
    [0.2]
    """
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps is {warmup_steps}, expected 0 (no warm-up) or more: set scheduler.warmup_steps")

    def factor(step: int) -> float:
        warmth = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return warmth * gamma ** sum(step >= milestone for milestone in milestones)

    return LambdaLR(optimizer, factor)


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, steps: int, lowest: float = 0.1) -> LambdaLR:
    """Raise the learning rate linearly, then let it fall along half a cosine to `lowest` of itself, where it stays.

    The factor at step t is (t + 1) / (warmup_steps + 1) before `warmup_steps`, which ends at 1, and then
    lowest + (1 - lowest) · (1 + cos(π · (t - warmup_steps) / (steps - warmup_steps))) / 2. `warmup_steps` and `steps`
    are in steps, or in epochs where `scheduler_interval` is "epoch"; `lowest` is a fraction in [0, 1].

    Raises:
        ValueError: unless 0 <= warmup_steps < steps and 0 <= lowest <= 1.

    Source: Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5, without restarts; as nanoGPT
    (github.com/karpathy/nanoGPT) has it.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    >>> schedule = warmup_cosine(optimizer, warmup_steps=1, steps=3, lowest=0.5)
    >>> for step in range(5):
    ...     print(schedule.get_last_lr())
    ...     optimizer.step()
    ...     schedule.step()
    [0.5]
    [1.0]
    [0.75]
    [0.5]
    [0.5]
    """
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps is {warmup_steps} and steps {steps}, expected 0 <= warmup_steps < steps: "
            "set scheduler.warmup_steps and scheduler.steps"
        )
    if not 0 <= lowest <= 1:
        raise ValueError(f"lowest is {lowest}, expected a fraction of the rate in [0, 1]: set scheduler.lowest")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        done = min(1.0, (step - warmup_steps) / (steps - warmup_steps))
        return lowest + (1 - lowest) * (1 + cos(pi * done)) / 2

    return LambdaLR(optimizer, factor)
