"""The CAM network of PatchNet paper 2: where a linear readout of averaged maps comes from.

References
----------
.. [1] Zhou, Khosla, Lapedriza, Oliva, Torralba, "Learning Deep Features for Discriminative
   Localization", CVPR 2016.
.. [2] PatchNet paper 2, appendix C: a VGG-19 with only three pooling layers. Which three is not
   specified; the first are kept here, so that blocks 4 and 5 work at an eighth of the resolution
   (docs/models.md).
"""

import torch
from torch import Tensor

from wsi_pipeline.models.vgg import VGGFeatures, make_output


class CAM(VGGFeatures):
    """VGG-19's convolutions with three poolings, global average, one logit: 20,024,897 parameters.

    An image of 128 x 128 px has maps of 16 x 16.
    """

    configuration = "E"
    poolings = 3

    def __init__(self, *, width: float = 1.0) -> None:
        super().__init__(width=width)
        self.output = make_output(self.channels)

    def top(self, maps: Tensor) -> Tensor:
        """Return the logits of images from their last maps: (B, channels, h, w) -> (B,)."""
        with torch.autocast(maps.device.type, enabled=False):
            logits: Tensor = self.output(maps.to(self.output.weight.dtype).mean(dim=(2, 3)))
        return logits.squeeze(-1)

    def class_map(self, x: Tensor) -> Tensor:
        """Return sum_f w_f F_f, whose mean plus the bias is the logit ([1], eq. 2).

        Parameters
        ----------
        x : (B, 3, H, W) float in [0, 1]

        Returns
        -------
        maps : (B, h, w)
            At the resolution of the last convolution; positive values speak for class 1.
        """
        return torch.einsum("bfhw,f->bhw", self.feature_maps(x), self.output.weight[0])
