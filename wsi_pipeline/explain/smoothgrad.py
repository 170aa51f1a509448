"""SmoothGrad: saliency of many noisy copies of an image, averaged.

References
----------
.. [1] Smilkov, Thorat, Kim, Viégas, Wattenberg, "SmoothGrad: removing noise by adding noise",
   2017, arXiv:1706.03825: noise of 10 to 20 % of the image's range; averages signed gradients.
.. [2] The lecture averages saliency maps: gradients without their sign.
"""

from dataclasses import dataclass

from captum.attr import NoiseTunnel, Saliency
from torch import Tensor

from wsi_pipeline.explain.base import Method, Settings, Target, images_at_once, require
from wsi_pipeline.explain.gradients import DifferentiableLogit, strongest_channel
from wsi_pipeline.models.base import PatchClassifier


@dataclass(frozen=True)
class SmoothGradSettings(Settings):
    """How much noise, and what is averaged."""

    samples: int = 50  # noisy copies
    noise: float = 0.15  # standard deviation, of the image's range; values are not clipped
    signed: bool = False  # |mean of gradients| ([1]) in place of the mean of |gradients| ([2])

    def __post_init__(self) -> None:
        require(self.samples >= 1, f"smoothgrad needs at least 1 sample, got {self.samples}")
        require(self.noise >= 0, f"smoothgrad's noise is at least 0, got {self.noise}")


def smoothgrad(
    model: PatchClassifier,
    image: Tensor,
    *,
    target: Target,
    seed: int,
    config: SmoothGradSettings,
) -> Tensor:
    """Return the largest channel of mean |dy/dx|, or of |mean dy/dx|: (1, C, h, w) -> (h, w)."""
    tunnel = NoiseTunnel(Saliency(DifferentiableLogit(model, target)))
    gradients: Tensor = tunnel.attribute(
        image.requires_grad_(),
        nt_type="smoothgrad",
        nt_samples=config.samples,
        nt_samples_batch_size=min(config.samples, images_at_once(image)),
        stdevs=config.noise * float(image.detach().max() - image.detach().min()),
        abs=not config.signed,
    )
    return strongest_channel(gradients.abs())


METHOD = Method(smoothgrad, SmoothGradSettings, low=0)
