"""Augmentations: plain functions of a batch and of the uniform draws that belong to its images."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Augment = Callable[[Tensor, Tensor], Tensor]
"""(images uint8 [B, C, H, W], draws float32 [B, DRAWS] uniform in [0, 1)) → images, shape and type unchanged.

An augmentation takes all its randomness from the draws: this makes an image's augmentation a function of
(seed, epoch, position of the image in the epoch), whatever the batch size, the device or the number of ranks.
"""

DRAWS = 8


def flip_crop(images: Tensor, draws: Tensor, *, padding: int = 4) -> Tensor:
    """Flip each image horizontally with probability 1/2, then crop it at random from its zero-padded self.

    The padding is 0 in raw pixels, before normalisation, as is common practice: black, not the mean.

    Args:
        images: uint8 [B, C, H, W].
        draws: uniform in [0, 1), [B, 3] or wider: flip below 1/2, top, left.
        padding: pixels added on each side.

    Returns:
        uint8 [B, C, H, W].

    Source: He et al., Deep Residual Learning for Image Recognition (2016), section 4.2.

    Example:
        >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> unflipped_middle, flipped_top = torch.tensor([[[0.9, 0.5, 0.5]], [[0.1, 0.0, 0.5]]])
        >>> flip_crop(image, unflipped_middle, padding=1).flatten().tolist()
        [1, 2, 3, 4]
        >>> flip_crop(image, flipped_top, padding=1).flatten().tolist()
        [0, 0, 2, 1]
    """
    count, channels, height, width = images.shape
    corner = (draws[:, 1:3] * (2 * padding + 1)).long()
    rows = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + torch.arange(width, device=images.device)
    columns = torch.where(draws[:, :1] < 0.5, columns.flip(1), columns)
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, pixels.view(count, 1, -1).expand(-1, channels, -1)).view_as(images)
