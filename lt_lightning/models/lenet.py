"""LeNet-300-100: the fully connected network of the first lottery tickets."""

from collections import OrderedDict
from math import prod

from torch import nn

from lt_lightning.models.initializers import glorot_normal
from lt_lightning.models.shapes import Shape, channels_height_width


def lenet_300_100(shape: Shape = (1, 28, 28), num_classes: int = 10) -> nn.Module:
    """Two hidden layers of 300 and 100 units with ReLU; 266,200 weights on MNIST, biases not counted.

    Images (batch, *shape) become logits (batch, num_classes). Weights and biases start as in
    `initializers.glorot_normal`.

    Raises:
        ValueError: when `shape` is not (channels, height, width).

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Fig. 2.

    >>> [name for name, _ in lenet_300_100().named_parameters() if name.endswith("weight")]
    ['hidden1.weight', 'hidden2.weight', 'output.weight']
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        flatten=nn.Flatten(),
        hidden1=nn.Linear(prod(channels_height_width(shape)), 300),
        hidden1_relu=nn.ReLU(),
        hidden2=nn.Linear(300, 100),
        hidden2_relu=nn.ReLU(),
        output=nn.Linear(100, num_classes),
    )
    return glorot_normal(nn.Sequential(layers))
