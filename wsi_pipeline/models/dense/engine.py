"""The dense map of an image or of a window of a slide: every patch, exactly, many times faster.

Inference only: no gradients are kept. To train, cut patches (`PatchNet.patch_logits`).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.dense.regions import assemble, compute_regions, read_out
from wsi_pipeline.models.dense.schemes import Products
from wsi_pipeline.models.dense.weights import DenseWeights, transform_weights

BLOCK = 32  # patches, each way, computed at once
ASSEMBLED_PATCHES = 256  # small patches put together at once, for layers that share nothing

ReadWindow = Callable[[int, int, int, int], Tensor]  # (top, left, height, width) -> (c, h, w)


class DenseEngine:
    """A subnet, ready to be evaluated around every pixel.

    Make one per network and use it for many images: the weights are transformed once. Later
    changes of the network's weights are not seen.

    Parameters
    ----------
    convolutions : list of Conv2d
        3 x 3, padding 1, stride 1, each followed by a ReLU.
    readout : (filters, m, m)
        One linear model per filter over its own map.
    readout_bias : (filters,)
    products : {"toom-cook", "direct"}
        ``toom-cook`` is the fast one; ``direct`` makes every product of the definition, for
        rounding errors as small as those of patch by patch.
    block : int
        Patches, each way, computed at once. Memory grows with its square, not with the image.
    """

    def __init__(
        self,
        convolutions: list[nn.Conv2d],
        readout: Tensor,
        readout_bias: Tensor,
        *,
        products: Products = "toom-cook",
        block: int = BLOCK,
    ) -> None:
        if block < 1 or products not in ("toom-cook", "direct"):
            raise ModelError(
                "the dense map's block is at least 1 and its products toom-cook or direct, got "
                f"block={block}, products={products!r}"
            )
        self.weights: DenseWeights = transform_weights(
            convolutions, readout, readout_bias, products
        )
        self.m = self.weights.m
        self.block = block

    @torch.no_grad()
    def map_padded(self, pixels: Tensor) -> Tensor:
        """Evaluate every patch that lies wholly inside some pixels.

        Parameters
        ----------
        pixels : (c, H + m - 1, W + m - 1)
            On the device of the weights, and of their dtype.

        Returns
        -------
        tanh : (filters, H, W) in [-1, 1]
            What each filter says of the patch with its top-left corner there.
        """
        height, width = (side - self.m + 1 for side in pixels.shape[1:])
        if min(height, width) < 1:
            raise ModelError(
                f"no patch of side {self.m} lies in {pixels.shape[2]} x {pixels.shape[1]} px"
            )
        channels_last = pixels.permute(1, 2, 0)
        out = pixels.new_empty(self.weights.filters, height, width)
        for top in range(0, height, self.block):
            for left in range(0, width, self.block):
                bottom, right = min(top + self.block, height), min(left + self.block, width)
                window = channels_last[top : bottom + self.m - 1, left : right + self.m - 1]
                values = self._map_block(window.contiguous())
                out[:, top:bottom, left:right] = values.permute(2, 0, 1)
        return out

    def map_image(self, image: Tensor) -> Tensor:
        """Evaluate the patch around every pixel; beyond the image are zeros.

        Parameters
        ----------
        image : (c, H, W)

        Returns
        -------
        tanh : (filters, H, W) in [-1, 1]
        """
        return self.map_padded(F.pad(image, ((self.m - 1) // 2,) * 4))

    def map_region(
        self, read: ReadWindow, *, top: int, left: int, height: int, width: int
    ) -> Tensor:
        """Map a window of an image too large to hold.

        Windows of one image join without a seam: each reads the (m - 1) / 2 px around it.

        Parameters
        ----------
        read : callable
            ``read(top, left, height, width)`` gives those pixels, (c, height, width). It is
            asked for pixels beyond the image too, and gives zeros there.
        top, left, height, width : px
            The window.

        Returns
        -------
        tanh : (filters, height, width)
        """
        radius = (self.m - 1) // 2
        wanted = (height + 2 * radius, width + 2 * radius)
        pixels = read(top - radius, left - radius, *wanted)
        if tuple(pixels.shape[1:]) != wanted:
            raise ModelError(
                f"a window of {wanted[1]} x {wanted[0]} px was asked for and one of "
                f"{pixels.shape[2]} x {pixels.shape[1]} px came"
            )
        return self.map_padded(pixels)

    def _map_block(self, pixels: Tensor) -> Tensor:
        """(h + m - 1, w + m - 1, c) -> tanh (h, w, filters)."""
        regions = compute_regions(pixels, self.weights)
        if self.weights.tail:
            linear = self._finish_patches(assemble(regions, self.m))
        else:
            linear = read_out(regions, self.weights)
        return torch.tanh(linear + self.weights.readout_bias)

    def _finish_patches(self, maps: Tensor) -> Tensor:
        """Run the layers that share nothing: (h, w, C, m, m) -> linear models (h, w, filters)."""
        weight = self.weights.readout.permute(2, 0, 1)
        parts = []
        for part in maps.flatten(0, 1).split(ASSEMBLED_PATCHES):
            values = part.contiguous(memory_format=torch.channels_last)
            for conv in self.weights.tail:
                values = F.conv2d(values, conv.weight, conv.bias, padding=1).relu_()
            parts.append(torch.einsum("nfhw,fhw->nf", values, weight))
        return torch.cat(parts).view(*maps.shape[:2], -1)
