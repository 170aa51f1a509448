"""The dense map of an image or of a window of a slide: every patch, exactly, many times faster.

Inference only: no gradients are kept. To train, cut patches (`PatchNet.patch_logits`).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.config.devices import exact_fp32, require_float64
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.dense.costs import cheaper_by_patches, tile_products
from wsi_pipeline.models.dense.regions import TorchCorners, assemble, compute_regions, read_out
from wsi_pipeline.models.dense.repeats import find_distinct, take_patches
from wsi_pipeline.models.dense.schemes import Products
from wsi_pipeline.models.dense.scratch import Scratch
from wsi_pipeline.models.dense.weights import DenseWeights, transform_weights

if TYPE_CHECKING:
    from wsi_pipeline.models.dense.compiled import CompiledBlocks
    from wsi_pipeline.models.dense.compiled_patches import CompiledPatches

CPU_BLOCK, GPU_BLOCK = 32, 96  # patches, each way, computed at once
# Where patches are computed one by one; on a CPU their layers stay in its cache.
CPU_PATCHES_AT_ONCE, GPU_PATCHES_AT_ONCE = 32, 4096
COMPILED_PATCHES = 20_000  # compiled code saves 180 us per patch, and compiling takes 4 s
# Of patches far apart it saves 900 us and more.
COMPILED_LATTICE = 4_000
LATTICE_BLOCK = 1024  # px, each way, whose patches are compared for equality at once

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
        ``toom-cook`` is the fast one (of patches far apart, Winograd's); ``direct`` makes every
        product of the definition, for rounding errors as small as those of patch by patch.
    block : int, optional
        Patches, each way, computed at once. None: as it suits the device. Memory
        grows with its square, not with the image.
    compiled : bool, optional
        Whether to compute by compiled code (CPU). None: where a map is large enough to be worth
        four seconds of compiling.
    """

    def __init__(
        self,
        convolutions: list[nn.Conv2d],
        readout: Tensor,
        readout_bias: Tensor,
        *,
        products: Products = "toom-cook",
        block: int | None = None,
        compiled: bool | None = None,
    ) -> None:
        if (block is not None and block < 1) or products not in ("toom-cook", "direct"):
            raise ModelError(
                "the dense map's block is at least 1 and its products toom-cook or direct, got "
                f"block={block}, products={products!r}"
            )
        require_float64(readout.device, "the dense map of a PatchNet is prepared")
        self.weights: DenseWeights = transform_weights(
            convolutions, readout, readout_bias, products
        )
        self.convolutions = convolutions
        self.products = products
        self.m = self.weights.m
        on_cpu = readout.device.type == "cpu"
        self.block = block or (CPU_BLOCK if on_cpu else GPU_BLOCK)
        self.patches_at_once = CPU_PATCHES_AT_ONCE if on_cpu else GPU_PATCHES_AT_ONCE
        self.compiled = compiled
        self._scratch = Scratch()
        self._compiled: CompiledBlocks | None = None
        self._compiled_patches: CompiledPatches | None = None

    @torch.no_grad()
    def map_padded(self, pixels: Tensor) -> Tensor:
        """Evaluate every patch inside an array of pixels.

        Parameters
        ----------
        pixels : (c, H + m - 1, W + m - 1)
            On the device of the weights, and of their dtype.

        Returns
        -------
        tanh : (filters, H, W) in [-1, 1]
            Output of each filter for the patch with its top-left corner there.
        """
        return self.map_lattice(pixels, stride=1)

    @torch.no_grad()
    def map_lattice(self, pixels: Tensor, *, stride: int) -> Tensor:
        """Evaluate every `stride`-th patch along each axis inside an array of pixels.

        Each block is computed in the cheaper way: all patches by regions, or the lattice's patches
        one by one. Equal patches are evaluated once where that is cheaper still.

        Parameters
        ----------
        pixels : (c, H + m - 1, W + m - 1)
        stride : int
            Step between patches, px; from the first.

        Returns
        -------
        tanh : (filters, ceil(H / stride), ceil(W / stride)) in [-1, 1]

        Raises
        ------
        ModelError
            If no patch lies inside, or channels or dtype are not the network's.
        """
        weight = self.convolutions[0].weight
        if pixels.shape[0] != weight.shape[1] or pixels.dtype != weight.dtype:
            raise ModelError(
                f"this network takes {weight.shape[1]} channels of {weight.dtype}, got "
                f"{pixels.shape[0]} of {pixels.dtype}"
            )
        height, width = (side - self.m + 1 for side in pixels.shape[1:])
        if min(height, width) < 1:
            raise ModelError(
                f"no patch of side {self.m} lies in {pixels.shape[2]} x {pixels.shape[1]} px"
            )
        if stride < 1:
            raise ModelError(f"the step between patches is at least 1 px, got stride={stride}")
        with exact_fp32():
            return self._map_blocks(pixels, (height, width), stride)

    def _map_blocks(self, pixels: Tensor, size: tuple[int, int], stride: int) -> Tensor:
        """Map `size` = (H, W) patches block by block; blocks start on the lattice."""
        height, width = size
        step = max(stride, self.block // stride * stride)
        compiled = self._use_compiled(pixels, size, stride)
        if stride > 1 and self._by_patches((step, step), (step // stride) ** 2, compiled):
            step = max(stride, LATTICE_BLOCK // stride * stride)
        out = pixels.new_empty(self.weights.filters, -(-height // stride), -(-width // stride))
        for top in range(0, height, step):
            for left in range(0, width, step):
                h, w = min(step, height - top), min(step, width - left)
                # Of a block, nothing beyond the last patch of the lattice.
                h, w = ((side - 1) // stride * stride + 1 for side in (h, w))
                window = pixels[:, top : top + h + self.m - 1, left : left + w + self.m - 1]
                values = self._map_block(window, (h, w), stride, compiled)
                rows = slice(top // stride, top // stride + values.shape[0])
                columns = slice(left // stride, left // stride + values.shape[1])
                out[:, rows, columns] = values.permute(2, 0, 1)
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
        self, read: ReadWindow, *, top: int, left: int, height: int, width: int, stride: int = 1
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
        stride : int
            Step between evaluated pixels, from the window's first. For windows to join without a
            seam, `top` and `left` are multiples of it.

        Returns
        -------
        tanh : (filters, ceil(height / stride), ceil(width / stride))
        """
        radius = (self.m - 1) // 2
        wanted = (height + 2 * radius, width + 2 * radius)
        pixels = read(top - radius, left - radius, *wanted)
        if tuple(pixels.shape[1:]) != wanted:
            raise ModelError(
                f"a window of {wanted[1]} x {wanted[0]} px was asked for and one of "
                f"{pixels.shape[2]} x {pixels.shape[1]} px came"
            )
        return self.map_lattice(pixels, stride=stride)

    def _map_block(
        self, pixels: Tensor, size: tuple[int, int], stride: int, compiled: bool
    ) -> Tensor:
        """(c, h + m - 1, w + m - 1) -> tanh (ceil(h / stride), ceil(w / stride), filters)."""
        first, kind = find_distinct(pixels, self.m, stride)
        if self._by_patches(size, len(first), compiled):
            distinct = self._map_patches(pixels, stride, first, compiled)
            linear = distinct[kind].view(*(-(-side // stride) for side in size), -1)
        else:
            linear = self._map_regions(pixels.permute(1, 2, 0).contiguous(), size, compiled)
            linear = linear[::stride, ::stride]
        return torch.tanh(linear + self.weights.readout_bias)

    def _by_patches(self, size: tuple[int, int], patches: int, compiled: bool) -> bool:
        """Whether some patches one by one cost less than all of a block by regions."""
        fast = tile_products(self.m) if compiled and self.products == "toom-cook" else None
        return cheaper_by_patches(self.weights, *size, patches, compiled=compiled, fast=fast)

    def _map_patches(self, pixels: Tensor, stride: int, index: Tensor, compiled: bool) -> Tensor:
        """Evaluate some patches of the lattice one by one: linear models (n, filters)."""
        if compiled and self.products == "toom-cook":
            if self._compiled_patches is None:
                from wsi_pipeline.models.dense.compiled_patches import CompiledPatches

                self._compiled_patches = CompiledPatches(self.convolutions, self.weights.readout)
            across = (pixels.shape[2] - self.m) // stride + 1
            rows, columns = (part.numpy() * stride for part in (index // across, index % across))
            return self._compiled_patches.map_patches(pixels, rows, columns)
        return torch.cat(
            [
                self._run_layers(take_patches(pixels, self.m, stride, part), self.convolutions)
                for part in index.split(self.patches_at_once)
            ]
        )

    def _map_regions(self, pixels: Tensor, size: tuple[int, int], compiled: bool) -> Tensor:
        """Evaluate all patches of a block: (h + m - 1, w + m - 1, c) -> (h, w, filters)."""
        if compiled and not self.weights.tail:
            return self._compiled_blocks().map_block(pixels)
        corners = TorchCorners(self.weights, size)
        regions = compute_regions(pixels, self.weights, corners, self._scratch)
        if not self.weights.tail:
            return read_out(regions, self.weights)
        maps = assemble(regions, corners, self.m).flatten(0, 1)
        tail = list(self.weights.tail)
        parts = [self._run_layers(part, tail) for part in maps.split(self.patches_at_once)]
        return torch.cat(parts).view(*size, -1)

    def _run_layers(self, values: Tensor, convolutions: list[nn.Conv2d]) -> Tensor:
        """Run layers and the linear models patch by patch: (n, C, m, m) -> (n, filters)."""
        values = values.contiguous(memory_format=torch.channels_last)
        for conv in convolutions:
            values = F.conv2d(values, conv.weight, conv.bias, padding=1).relu_()
        return torch.einsum("nfhw,hwf->nf", values, self.weights.readout)

    def _compiled_blocks(self) -> "CompiledBlocks":
        if self._compiled is None:
            from wsi_pipeline.models.dense.compiled import CompiledBlocks

            self._compiled = CompiledBlocks(self.weights, self._scratch)
        return self._compiled

    def _use_compiled(self, pixels: Tensor, size: tuple[int, int], stride: int) -> bool:
        """Whether to use compiled code for a map of the patches at `size` = (H, W) px."""
        possible = pixels.device.type == "cpu" and pixels.dtype in (torch.float32, torch.float64)
        if self.compiled is not None:
            return self.compiled and possible
        if not possible:
            return False
        lattice = -(-size[0] // stride) * -(-size[1] // stride)
        return size[0] * size[1] >= COMPILED_PATCHES and lattice >= COMPILED_LATTICE
