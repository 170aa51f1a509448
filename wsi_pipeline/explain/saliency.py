"""Saliency: how fast the logit changes with each pixel.

References
----------
.. [1] Simonyan, Vedaldi, Zisserman, "Deep Inside Convolutional Networks: Visualising Image
   Classification Models and Saliency Maps", ICLR workshop 2014, section 3.1: of several channels
   the largest.
"""

from captum.attr import Saliency
from torch import Tensor

from wsi_pipeline.explain.base import Method, Settings, Target
from wsi_pipeline.explain.gradients import DifferentiableLogit, strongest_channel
from wsi_pipeline.models.base import PatchClassifier


def saliency(
    model: PatchClassifier, image: Tensor, *, target: Target, seed: int, config: Settings
) -> Tensor:
    """Return max_c |dy/dx_c| in the plain image: (1, C, h, w) -> (h, w)."""
    attribution = Saliency(DifferentiableLogit(model, target))
    return strongest_channel(attribution.attribute(image.requires_grad_()))


METHOD = Method(saliency, low=0)
