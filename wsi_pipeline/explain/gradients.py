"""What the gradient methods share: the plain image as their input, many channels as one map."""

from torch import Tensor

from wsi_pipeline.explain.base import Target, TargetLogit
from wsi_pipeline.models.base import PatchClassifier

_HALF_A_GREY_LEVEL = 1 / 510


class DifferentiableLogit(TargetLogit):
    """The logit of a class, with a finite gradient everywhere.

    Gamma correction has an infinite derivative at 0 and no value below, where noise leads; so has
    the estimate of the light. In models that do either, values below half a grey level are taken
    as that, and have a gradient of 0.
    """

    def __init__(self, model: PatchClassifier, target: Target) -> None:
        super().__init__(model, target)
        config = None if model.preprocess is None else model.preprocess.config
        self.clamps = config is not None and (config.gamma is not None or config.colour_constancy)

    def forward(self, x: Tensor) -> Tensor:
        """Score images: (B, C, h, w) -> (B,)."""
        return super().forward(x.clamp_min(_HALF_A_GREY_LEVEL) if self.clamps else x)


def strongest_channel(gradients: Tensor) -> Tensor:
    """Return the largest of each pixel's channels: (1, C, h, w) -> (h, w)."""
    return gradients[0].amax(dim=0)
