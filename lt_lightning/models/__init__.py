"""The standard networks of lottery-ticket research, a GPT, and the LightningModules that train them."""

from lt_lightning.models.classifier import Classifier
from lt_lightning.models.conv import conv2, conv4, conv6
from lt_lightning.models.gpt import gpt
from lt_lightning.models.initializers import glorot_normal, kaiming_normal
from lt_lightning.models.language_model import LanguageModel
from lt_lightning.models.lenet import lenet_300_100
from lt_lightning.models.optimizers import decay_matrices
from lt_lightning.models.resnet import resnet20
from lt_lightning.models.schedules import warmup_cosine, warmup_multistep
from lt_lightning.models.vgg import vgg16, vgg19

__all__ = [
    "Classifier",
    "LanguageModel",
    "conv2",
    "conv4",
    "conv6",
    "decay_matrices",
    "glorot_normal",
    "gpt",
    "kaiming_normal",
    "lenet_300_100",
    "resnet20",
    "vgg16",
    "vgg19",
    "warmup_cosine",
    "warmup_multistep",
]
