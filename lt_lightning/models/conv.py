"""Conv-2, Conv-4 and Conv-6: small VGG-like networks for CIFAR-10, without batch norm.

Each stage is two 3x3 convolutions and a 2x2 max-pool; two hidden layers of 256 units follow, with ReLU
throughout, and after each of these dropout, if there is any. Weights and biases start as in
`initializers.glorot_normal`. The counts below are of weights on (3, 32, 32) with 10 classes, biases not counted.
Conv-6 is larger than the 1.7M that the paper's figure gives, which does not fit the densities in the same paper.

Source: Frankle & Carbin 2019 (arXiv 1803.03635), Fig. 2.
"""

from collections import OrderedDict

from torch import nn

from lt_lightning.models.initializers import glorot_normal
from lt_lightning.models.shapes import Shape, channels_height_width, pooled


def conv2(shape: Shape = (3, 32, 32), num_classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """Two convolutions of 64 channels; 4,300,992 weights.

    Images (batch, *shape) become logits (batch, num_classes).

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 2x2 pixels.

    >>> [name for name, _ in conv2().named_parameters() if name.endswith("weight")]
    ['conv1.weight', 'conv2.weight', 'hidden1.weight', 'hidden2.weight', 'output.weight']
    """
    return _conv("conv2", (64,), shape, num_classes, dropout)


def conv4(shape: Shape = (3, 32, 32), num_classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """Conv-2 with a second stage of 128 channels; 2,425,024 weights.

    Images (batch, *shape) become logits (batch, num_classes).

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 4x4 pixels.

    >>> sum(weight.numel() for name, weight in conv4().named_parameters() if name.endswith("weight"))
    2425024
    """
    return _conv("conv4", (64, 128), shape, num_classes, dropout)


def conv6(shape: Shape = (3, 32, 32), num_classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """Conv-4 with a third stage of 256 channels; 2,261,184 weights.

    Images (batch, *shape) become logits (batch, num_classes).

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 8x8 pixels.

    >>> conv6((1, 4, 4))
    Traceback (most recent call last):
    ValueError: conv6 halves the image 3 times and needs at least 8x8 pixels, but shape is (1, 4, 4): ...
    """
    return _conv("conv6", (64, 128, 256), shape, num_classes, dropout)


def _conv(name: str, stages: tuple[int, ...], shape: Shape, num_classes: int, dropout: float) -> nn.Module:
    channels, _, _ = channels_height_width(shape)
    height, width = pooled(name, shape, pools=len(stages))
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, outputs in enumerate(stages, start=1):
        for conv in (f"conv{2 * stage - 1}", f"conv{2 * stage}"):
            layers[conv] = nn.Conv2d(channels, outputs, kernel_size=3, padding=1)
            layers[f"{conv}_relu"] = nn.ReLU()
            channels = outputs
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    inputs = channels * height * width
    for hidden in ("hidden1", "hidden2"):
        layers[hidden] = nn.Linear(inputs, 256)
        layers[f"{hidden}_relu"] = nn.ReLU()
        if dropout:
            layers[f"{hidden}_dropout"] = nn.Dropout(dropout)
        inputs = 256
    layers["output"] = nn.Linear(256, num_classes)
    return glorot_normal(nn.Sequential(layers))
