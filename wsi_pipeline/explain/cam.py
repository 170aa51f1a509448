"""CAM: what a linear readout of averaged maps takes from each position.

References
----------
.. [1] Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative
   Localization", CVPR 2016, equation 2.
"""

import torch
from torch import Tensor

from wsi_pipeline.explain.base import Method, Settings, Target
from wsi_pipeline.explain.grad_cam import stretch_over
from wsi_pipeline.models.cam import CAM


@torch.no_grad()
def class_activation_map(
    model: CAM, image: Tensor, *, target: Target, seed: int, config: Settings
) -> Tensor:
    """Stretch sum_f w_f F_f over an image: (1, C, h, w) -> (h, w)."""
    maps = stretch_over(image, model.class_map(image))[0]
    return maps if target == 1 else -maps


METHOD = Method(class_activation_map, models=(CAM,))
