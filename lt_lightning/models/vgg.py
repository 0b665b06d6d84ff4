"""VGG-16 for CIFAR-10: thirteen convolutions with batch norm and one linear layer."""

from collections import OrderedDict

from torch import nn

from lt_lightning.models.initializers import kaiming_normal
from lt_lightning.models.shapes import Shape, channels_height_width, pooled

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def vgg16(shape: Shape = (3, 32, 32), num_classes: int = 10) -> nn.Module:
    """Five stages of convolutions, a 2x2 max-pool between stages, global average pooling at the end.

    Images (batch, *shape) become logits (batch, num_classes). With 3 channels and 10 classes there are
    14,715,584 linear and convolution weights, and 14,724,042 parameters with batch norm's and the output
    bias. The convolutions have no bias, because the batch norm after each would cancel it. Values start as in
    `initializers.kaiming_normal`.

    Raises:
        ValueError: when `shape` is not (channels, height, width) of at least 16x16 pixels.

    Source: Frankle et al. 2020 (arXiv 1912.05671), Table 1; the convolutions are configuration D of
    Simonyan & Zisserman 2015 (arXiv 1409.1556), Table 1.

    >>> [name for name, _ in vgg16().named_parameters() if name.endswith("weight")][-4:]
    ['norm12.weight', 'conv13.weight', 'norm13.weight', 'output.weight']
    """
    channels, _, _ = channels_height_width(shape)
    pooled("vgg16", shape, pools=len(STAGES) - 1)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    number = 0
    for stage, sizes in enumerate(STAGES):
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
    return kaiming_normal(nn.Sequential(layers))
