"""The standard networks of lottery-ticket research, and the LightningModule that trains them."""

from lt_lightning.models.classifier import Classifier
from lt_lightning.models.conv import conv2, conv4, conv6
from lt_lightning.models.lenet import lenet_300_100
from lt_lightning.models.resnet import resnet20
from lt_lightning.models.schedules import warmup_multistep
from lt_lightning.models.vgg import vgg16

__all__ = [
    "Classifier",
    "conv2",
    "conv4",
    "conv6",
    "lenet_300_100",
    "resnet20",
    "vgg16",
    "warmup_multistep",
]
