"""Lightning is published as two packages, `lightning` and `pytorch_lightning`: their classes are alike, not the same.

A project may be written with either. This package imports the first; where it asks what a callback or a module of the
project is, it asks for the class of both.
"""

import sys
from typing import Any

_OURS, _OTHER = "lightning.pytorch", "pytorch_lightning"


def twins(*classes: type) -> tuple[Any, ...]:
    """These classes of `lightning.pytorch`, and their namesakes in `pytorch_lightning` if the project imported it.

    >>> from lightning.pytorch.callbacks import Checkpoint
    >>> twins(Checkpoint)[0] is Checkpoint
    True
    """
    found = (_namesake(each) for each in classes)
    return (*classes, *(each for each in found if each is not None))


def _namesake(each: type) -> Any:
    """The class of the same name in the same place of the other package, None where that was not imported."""
    module = sys.modules.get(_OTHER + each.__module__.removeprefix(_OURS))
    return getattr(module, each.__name__, None)
