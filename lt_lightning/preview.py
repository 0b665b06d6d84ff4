"""What a lottery would prune, as a table, without training."""

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from lt_lightning.masks import all_kept, kept
from lt_lightning.plan import Plan
from lt_lightning.prunable import Row, find_prunable, survey
from lt_lightning.rehearsal import draw

_SHOWN = 4
"""So many rounds are listed before the last one."""


def show(plan: Plan, module: nn.Module) -> None:
    """Print which parameters of a module the plan would prune, which not and why, and how many weights rounds keep.

    Raises:
        ValueError: if nothing is prunable or the schedule does not fit, after the table that shows it.
    """
    print(table(survey(module, plan.prunable)))
    parameters = find_prunable(module, plan.prunable)
    print(f"kept: {_listed(list(_kept_in_rounds(plan, parameters)))}")


def table(rows: Sequence[Row]) -> str:
    """The parameters that may be pruned and the others, in aligned columns, and their totals.

    >>> print(table(survey(nn.Linear(20, 100))))
    pruned  shape   count  share
    weight  100x20  2,000   100%
    <BLANKLINE>
    not pruned  shape  count  why
    bias        100      100  bias
    <BLANKLINE>
    2,000 of 2,100 parameters may be pruned, in 1 of 2 tensors
    """
    pruned, left = [row for row in rows if row.reason is None], [row for row in rows if row.reason is not None]
    whole = _count(pruned)
    shares = [f"{100 * _count([row]) / whole:.3g}%".rjust(len("share")) for row in pruned]
    parts = [
        *_aligned("pruned", "share", pruned, shares),
        *_aligned("not pruned", "why", left, [str(row.reason) for row in left]),
        f"{whole:,} of {_count(rows):,} parameters may be pruned, in {len(pruned)} of {len(rows)} tensors",
    ]
    return "\n".join(parts)


def _count(rows: Sequence[Row]) -> int:
    return sum(row.parameter.numel() for row in rows)


def _aligned(title: str, last: str, rows: Sequence[Row], notes: Sequence[str]) -> Iterator[str]:
    """The lines of one table and an empty one; nothing if it has no rows."""
    if not rows:
        return
    names = [title, *(row.name for row in rows)]
    shapes = ["shape", *("x".join(map(str, row.parameter.shape)) or "scalar" for row in rows)]
    counts = ["count", *(f"{row.parameter.numel():,}" for row in rows)]
    widths = [max(map(len, column)) for column in (names, shapes, counts)]
    for name, shape, count, note in zip(names, shapes, counts, [last, *notes], strict=True):
        yield f"{name:<{widths[0]}}  {shape:<{widths[1]}}  {count:>{widths[2]}}  {note}"
    yield ""


def _kept_in_rounds(plan: Plan, parameters: Mapping[str, nn.Parameter]) -> Iterator[int]:
    """How many weights each round keeps: the scope itself is asked, which rounds in its own way."""
    masks = all_kept(parameters)
    plan.check_patterns(masks)
    yield kept(masks)
    yield from map(kept, draw(plan, masks, range(1, plan.rounds + 1)))


def _listed(counts: list[int]) -> str:
    """Count by round, with the first and the last one named.

    >>> _listed([100, 80, 64, 51, 41, 33])
    '100 in round 0, 80 in round 1, 64 in round 2, 51 in round 3, ..., 33 in round 5'
    """
    told = [f"{count:,} in round {round}" for round, count in enumerate(counts)]
    return ", ".join(told if len(told) <= _SHOWN + 1 else [*told[:_SHOWN], "...", told[-1]])
