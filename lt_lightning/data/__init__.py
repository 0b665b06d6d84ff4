"""Images and texts as tensors on the training device, in an order that is a function of (seed, epoch)."""

from lt_lightning.data.augment import Augment, flip_crop
from lt_lightning.data.digits import digits
from lt_lightning.data.hub import hub
from lt_lightning.data.images import Images
from lt_lightning.data.splits import Source, Splits
from lt_lightning.data.tensors import TensorLoader
from lt_lightning.data.text import Text
from lt_lightning.data.windows import WindowLoader

__all__ = [
    "Augment",
    "Images",
    "Source",
    "Splits",
    "TensorLoader",
    "Text",
    "WindowLoader",
    "digits",
    "flip_crop",
    "hub",
]
