"""Small networks, and images for them."""

import numpy as np
import torch
from torch import nn

from wsi_pipeline.models import build_model
from wsi_pipeline.models.base import PatchClassifier

OPTIONS = {
    "cam": {"width": 1 / 64},
    "patchnet": {"m": 5, "stride": 3, "filters": 4, "depth": 2},
    "protopnet": {"base": "vgg11", "width": 1 / 16, "prototypes_per_class": 2, "depth": 8},
    "vgg11": {"width": 1 / 64},
    "vgg11_pooled": {"width": 1 / 64, "preprocess": {"gamma": 2.2, "crop": (32, 32)}},
    "vgg16": {"width": 1 / 32},
}


def network(name):
    """Build a network whose maps are not all zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_model(name, **OPTIONS[name])
        for parameter in net.parameters():
            if parameter.ndim == 1:
                nn.init.normal_(parameter, std=0.1)
            elif len(parameter) == 1:
                nn.init.normal_(parameter)
    return net


def draw_images(n=2, height=32, width=40, channels=3):
    """(n, height, width, channels) uint8: noise, with some black pixels."""
    random = np.random.default_rng(1)
    images = random.integers(0, 256, (n, height, width, channels), np.uint8)
    images[:, 10:14, 10:14] = 0
    return images


def draw_images_for(name, n=2):
    """Images on which a network's last maps are more than one position."""
    return draw_images(n, *((64, 96) if name == "protopnet" else (32, 40)))


class Linear(PatchClassifier):
    """<w, x> + 1/3 of images of one size."""

    def __init__(self, height=12, width=16, channels=3, seed=0):
        super().__init__()
        self.options = {}
        random = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(channels, height, width, generator=random).double())

    def forward(self, x):
        return (x * self.weight).sum(dim=(1, 2, 3)) + 1 / 3
