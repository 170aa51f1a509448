"""Feature maps: what one layer makes of an image, channel by channel.

The lecture shows them next to first-layer filters ([lecture] in docs/references.md).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.explain.base import Found, Method, Settings, Target
from wsi_pipeline.explain.files import as_grey, lay_out_pictures, stretch, write_arrays, write_png
from wsi_pipeline.explain.grad_cam import find_layer, keep_output, stretch_over
from wsi_pipeline.models.resnet import ResNetClassifier
from wsi_pipeline.models.vgg import VGGFeatures


@dataclass(frozen=True)
class FeatureMapSettings(Settings):
    """The layer to explain."""

    # As in model.named_modules(); None: the last ReLU of the convolutions, before the last pooling
    layer: str | None = None


@dataclass(frozen=True)
class FeatureMaps:
    """A layer's output for one image."""

    maps: NDArray[np.float32]  # (f, h', w'), not rescaled

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write ``.npz`` with ``maps``, and ``_maps.png``, each map stretched by itself."""
        arrays, sheet = folder / f"{stem}.npz", folder / f"{stem}_maps.png"
        write_arrays(arrays, {"maps": self.maps})
        write_png(sheet, lay_out_pictures([as_grey(stretch(one)) for one in self.maps]))
        return [arrays, sheet]


@torch.no_grad()
def feature_maps(
    model: VGGFeatures | ResNetClassifier,
    image: Tensor,
    *,
    target: Target,
    seed: int,
    config: FeatureMapSettings,
) -> Found:
    """Return the mean size of a layer's maps, stretched bilinearly: (1, C, h, w) -> (h, w)."""
    layer = find_layer(model, config.layer) if config.layer else model.last_layer
    _, maps = keep_output(model, image, layer)
    values = stretch_over(image, maps.detach().abs().mean(dim=1))[0]
    return Found(values, FeatureMaps(maps.detach()[0].float().cpu().numpy()))


METHOD = Method(feature_maps, FeatureMapSettings, low=0, models=(VGGFeatures, ResNetClassifier))
