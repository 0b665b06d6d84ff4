"""The validation loss among what a validation logged, for a lottery that was not told what to monitor."""

import re
from collections.abc import Iterable

AUTO = "auto"
"""The monitor that stands for the module's own validation loss."""

_VALIDATION = frozenset({"val", "valid", "validation", "eval", "evaluation", "dev"})
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_LOADER = re.compile(r"/dataloader_idx_(\d+)$")


def validation_loss(names: Iterable[str]) -> str | None:
    """Choose the validation loss among the metrics of a validation; the order of the names makes no difference.

    First come names made of "loss" and a word for validation ("val/loss", "val_loss", "valid_loss", "ValidationLoss"),
    then "loss" alone, then a name with further words, if it is the only one. Of several validation loaders the first
    counts.

    Args:
        names: what one validation logged, without metrics of training.

    Returns:
        One of the names; None if there is no loss, or several and none of them is the whole.

    >>> validation_loss(["val_loss", "val_kl_loss"]), validation_loss(["ptl/val_loss", "val_mae"])
    ('val_loss', 'ptl/val_loss')
    >>> validation_loss(["val/loss/dataloader_idx_1", "val/loss/dataloader_idx_0"])
    'val/loss/dataloader_idx_0'
    >>> validation_loss(["val_acc"]), validation_loss(["val_box_loss", "val_class_loss"])
    (None, None)
    """
    ranks = {name: rank for name in names if (rank := _rank(name)) is not None}
    best = min(ranks.values(), default=None)
    found = sorted((name for name in ranks if ranks[name] == best), key=_order)
    whole = best is not None and best < _PART
    return found[0] if found and (whole or len({_LOADER.sub("", name) for name in found}) == 1) else None


_PART = 3
"""The rank of a loss that may be one of several terms."""


def _rank(name: str) -> int | None:
    words = [word.lower() for word in _WORD.findall(_LOADER.sub("", name))]
    if "loss" not in words or words[-1] == "step":
        return None
    rest = [word for word in words if word not in _VALIDATION and word != "loss"]
    if len(words) == len(rest) + 1:  # no word for validation
        return 2 if not rest else None
    return {(): 0, ("epoch",): 1}.get(tuple(rest), _PART)


def _order(name: str) -> tuple[int, bool, str]:
    loader = _LOADER.search(name)
    return int(loader[1]) if loader else -1, _LOADER.sub("", name) != "val/loss", name
