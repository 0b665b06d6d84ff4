"""ResNet-20 for CIFAR-10, which the first lottery-ticket paper calls Resnet-18."""

from collections import OrderedDict

from torch import Tensor, nn

from lt_lightning.models.initializers import Initialize, kaiming_normal
from lt_lightning.models.shapes import Shape, channels_height_width


def resnet20(
    shape: Shape = (3, 32, 32), num_classes: int = 10, width: int = 16, initialize: Initialize = kaiming_normal
) -> nn.Module:
    """Three stages of three basic blocks (`width`, 2·width, 4·width channels), then global average pooling.

    Images (batch, *shape) become logits (batch, num_classes). A convolution with its own batch norm is the
    shortcut where the shape changes: `stage2.block1.shortcut` and `stage3.block1.shortcut`, 2,560 weights
    together at width 16. Then there are 270,896 linear and convolution weights, 272,474 parameters with batch
    norm's and the output bias, and 274,042 numbers with batch norm's running means and variances: the 274K
    that Frankle & Carbin report. `initialize` draws the first values: those of OpenLTH, or `glorot_normal` as Frankle &
    Carbin.

    Raises:
        ValueError: when `shape` is not (channels, height, width).

    Source: He et al. 2016 (arXiv 1512.03385), Section 4.2; the shortcuts are those of Frankle & Carbin 2019
    (arXiv 1803.03635), Section 4.

    >>> [name for name, _ in resnet20().named_parameters() if "shortcut.weight" in name]
    ['stage2.block1.shortcut.weight', 'stage3.block1.shortcut.weight']
    """
    channels, _, _ = channels_height_width(shape)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(width),
        relu=nn.ReLU(),
        stage1=_stage(width, width, stride=1),
        stage2=_stage(width, 2 * width, stride=2),
        stage3=_stage(2 * width, 4 * width, stride=2),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        output=nn.Linear(4 * width, num_classes),
    )
    return initialize(nn.Sequential(layers))


def _stage(inputs: int, outputs: int, stride: int) -> nn.Module:
    blocks: OrderedDict[str, nn.Module] = OrderedDict(
        block1=BasicBlock(inputs, outputs, stride),
        block2=BasicBlock(outputs, outputs),
        block3=BasicBlock(outputs, outputs),
    )
    return nn.Sequential(blocks)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, batch norm after each, added to a shortcut; ReLU comes last.

    Features (batch, inputs, h, w) become (batch, outputs, h / stride, w / stride), rounded up.

    Source: He et al. 2016 (arXiv 1512.03385), Fig. 5 left.

    >>> import torch
    >>> BasicBlock(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        # Not in one Sequential: a pattern for the convolutions, *conv*, must not match the shortcut's weight.
        self.shortcut: nn.Module = nn.Identity()
        self.shortcut_norm: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, kernel_size=1, stride=stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Features (batch, inputs, h, w) to (batch, outputs, h / stride, w / stride), rounded up."""
        hidden = self.norm1(self.conv1(images)).relu()
        hidden = self.norm2(self.conv2(hidden))
        return (hidden + self.shortcut_norm(self.shortcut(images))).relu()
