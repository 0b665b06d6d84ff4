"""VGG-16 and VGG-19 for CIFAR-10: convolutions with batch norm, and one linear layer."""

from collections import OrderedDict

from torch import nn

from lt_lightning.models.initializers import Initialize, kaiming_normal
from lt_lightning.models.shapes import Shape, channels_height_width, pooled

VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
VGG19 = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


def vgg16(shape: Shape = (3, 32, 32), num_classes: int = 10, initialize: Initialize = kaiming_normal) -> nn.Module:
    """Five stages of convolutions, a 2x2 max-pool between stages, global average pooling at the end.

    Images (batch, *shape) become logits (batch, num_classes). With 3 channels and 10 classes there are
    14,715,584 linear and convolution weights, and 14,724,042 parameters with batch norm's and the output
    bias. The convolutions have no bias, because the batch norm after each would cancel it. `initialize` draws the
    first values.

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 16x16 pixels.

    Source: Frankle et al. 2020 (arXiv 1912.05671), Table 1; the convolutions are configuration D of
    Simonyan & Zisserman 2015 (arXiv 1409.1556), Table 1.

    >>> [name for name, _ in vgg16().named_parameters() if name.endswith("weight")][-4:]
    ['norm12.weight', 'conv13.weight', 'norm13.weight', 'output.weight']
    """
    return _vgg("vgg16", VGG16, shape, num_classes, initialize)


def vgg19(shape: Shape = (3, 32, 32), num_classes: int = 10, initialize: Initialize = kaiming_normal) -> nn.Module:
    """VGG-16 with a fourth convolution in each of the last three stages; 20,024,000 weights.

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 16x16 pixels.

    Source: Frankle & Carbin 2019 (arXiv 1803.03635), Fig. 2; the convolutions are configuration E of
    Simonyan & Zisserman 2015 (arXiv 1409.1556), Table 1.

    >>> [name for name, _ in vgg19().named_parameters() if name.endswith("weight")][-2:]
    ['norm16.weight', 'output.weight']
    """
    return _vgg("vgg19", VGG19, shape, num_classes, initialize)


def _vgg(
    name: str, stages: tuple[tuple[int, ...], ...], shape: Shape, num_classes: int, initialize: Initialize
) -> nn.Module:
    channels, _, _ = channels_height_width(shape)
    pooled(name, shape, pools=len(stages) - 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, sizes in enumerate(stages):
        if stage > 0:
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        for outputs in sizes:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, outputs, kernel_size=3, padding=1, bias=False)
            layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
            layers[f"relu{number}"] = nn.ReLU()
            channels = outputs
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["output"] = nn.Linear(channels, num_classes)
    return initialize(nn.Sequential(layers))
