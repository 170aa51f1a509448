"""Guided backpropagation of many noisy copies of an image, averaged.

The sources are those of its parts, `wsi_pipeline.explain.guided_backprop` and
`wsi_pipeline.explain.smoothgrad`; the lecture shows them together.
"""

from torch import Tensor

from wsi_pipeline.explain.base import Method, Target
from wsi_pipeline.explain.guided_backprop import guided
from wsi_pipeline.explain.smoothgrad import SmoothGradSettings, smoothgrad
from wsi_pipeline.models.base import PatchClassifier


def guided_smoothgrad(
    model: PatchClassifier,
    image: Tensor,
    *,
    target: Target,
    seed: int,
    config: SmoothGradSettings,
) -> Tensor:
    """Average guided gradients as SmoothGrad averages plain ones: (1, C, h, w) -> (h, w)."""
    with guided(model, image):
        return smoothgrad(model, image, target=target, seed=seed, config=config)


METHOD = Method(guided_smoothgrad, SmoothGradSettings, low=0)
