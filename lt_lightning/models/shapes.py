"""The shape of one image, and what pooling leaves of it."""

from collections.abc import Sequence

Shape = Sequence[int]  # (channels, height, width) of one image, in pixels; lists from YAML are welcome


def channels_height_width(shape: Shape) -> tuple[int, int, int]:
    """The three sizes of an image.

    Raises:
        ValueError: when there are not three positive sizes.

    >>> channels_height_width([3, 32, 32])
    (3, 32, 32)
    """
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"shape is {tuple(shape)}, but an image has three positive sizes: "
            "set data.shape to [channels, height, width], as in [3, 32, 32]"
        )
    channels, height, width = shape
    return channels, height, width


def pooled(network: str, shape: Shape, pools: int) -> tuple[int, int]:
    """Height and width of an image after `pools` 2x2 max-pools, each of which rounds down.

    Raises:
        ValueError: when nothing is left; the message names `network`.

    >>> pooled("conv4", (3, 32, 32), pools=2)
    (8, 8)
    """
    _, height, width = channels_height_width(shape)
    smallest = 2**pools
    if min(height, width) < smallest:
        raise ValueError(
            f"{network} halves the image {pools} times and needs at least {smallest}x{smallest} pixels, "
            f"but shape is {tuple(shape)}: set data.shape to a larger image, or model to a network "
            "with fewer pools"
        )
    return height // smallest, width // smallest
