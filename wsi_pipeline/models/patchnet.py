"""PatchNet: a small network on small patches, averaged over the image.

It sees one small patch at a time, and the probability of the image is the mean of the patches'
probabilities. The map of these *is* the explanation: nothing is attributed after the fact.

References
----------
.. [1] Radhakrishnan, Durham, Soylemezoglu, Uhler, "PatchNet: Interpretable Neural Networks for
   Image Classification", sections 3.2 (network), 3.4 (heat maps), 3.5 (Precision-PatchNet).
.. [2] The same authors, "PatchNet: Context-Restricted Architectures to Provide Visual Features for
   Image Classification", section 2 and appendix B.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.dense import DenseEngine
from wsi_pipeline.models.dense.schemes import Products
from wsi_pipeline.models.preprocess import min_max

Grid = Literal["ceil", "floor", "center"]
Normalise = Literal["unit", "minmax"]

# Paper 1 gives strides with its data sets: (m, s) = (15, 3) DTD, (15, 5) and (31, 10) ISIC 2016,
# (17, 5) nuclei. Paper 2 gives none; 3, 5, 5, 10 for m = 11, 17, 21, 31 is our choice.
STRIDE_BY_SIDE = {11: 3, 15: 3, 17: 5, 21: 5, 31: 10}

M = 17  # default side of a patch, px

# Values of one layer's output that are computed at once. Patches share nothing, so this changes no
# result; on a CPU layers that stay in its cache are 1.5 times as fast (measured, m = 17 and 31).
CPU_LAYER_VALUES = 2**21
GPU_LAYER_VALUES = 2**28
# Work from which compiled code pays on a CPU, in multiplications and additions of the definition:
# about three seconds; compiling takes as long.
COMPILED_WORK = 2e11


class Subnet(nn.Module):
    """The subnet S of paper 1, 3.2: seven convolutions, 64 linear models, tanh, one logit.

    Parameters
    ----------
    m : int
        Side of its patch; odd, so that there is a centre, and at least 3.
    channels : int
        Of the image.
    filters, depth : int
        The papers have 64 and 7.
    """

    def __init__(self, m: int, *, channels: int = 3, filters: int = 64, depth: int = 7) -> None:
        super().__init__()
        if m < 3 or m % 2 == 0:
            raise ModelError(f"PatchNet's patch side m must be odd and at least 3, got m={m}")
        if filters < 1 or depth < 1 or channels < 1:
            raise ModelError(
                "PatchNet needs at least one filter, one layer and one channel, got "
                f"filters={filters}, depth={depth}, channels={channels}"
            )
        self.m = m
        layers: list[nn.Module] = []
        for layer in range(depth):
            conv = nn.Conv2d(channels if layer == 0 else filters, filters, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # paper 1: Kaiming normal
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # Conv2d's bias is there by default
            layers += [conv, nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        # One linear model per filter, over its own m x m map: PyTorch's default for m^2 inputs.
        bound = 1 / m
        self.readout_weight = nn.Parameter(torch.empty(filters, m, m).uniform_(-bound, bound))
        self.readout_bias = nn.Parameter(torch.empty(filters).uniform_(-bound, bound))
        self.output = nn.Linear(filters, 1)
        # A CPU's engine, and the weights that it was made of.
        self._engine: tuple[DenseEngine, list[Tensor]] | None = None

    def filter_outputs(self, patches: Tensor) -> Tensor:
        """Compute the tanh of the linear models: (N, c, m, m) -> (N, filters) in [-1, 1]."""
        maps = self.convolutions(patches)
        linear = torch.einsum("nfhw,fhw->nf", maps, self.readout_weight)
        return torch.tanh(linear + self.readout_bias)

    def combine_filters(self, tanh: Tensor) -> Tensor:
        """Return Q from the filters' maps: (filters, H, W) -> (H, W) in (0, 1)."""
        probability: Tensor = self.output(tanh.movedim(0, -1)).squeeze(-1).sigmoid()
        return probability

    def dense_engine(
        self, products: Products = "toom-cook", *, compiled: bool | None = None
    ) -> DenseEngine:
        """Prepare the filters' maps of images or slides, with the weights as they are now."""
        convolutions = [layer for layer in self.convolutions if isinstance(layer, nn.Conv2d)]
        return DenseEngine(
            convolutions,
            self.readout_weight,
            self.readout_bias,
            products=products,
            compiled=compiled,
        )

    def lattice_logits(self, pixels: Tensor, stride: int) -> Tensor:
        """Return the logit of Q for every `stride`-th patch, by the dense engine, without gradient.

        Parameters
        ----------
        pixels : (c, H, W) float32, on the CPU

        Returns
        -------
        logits : (l,) float32
            Row by row.
        """
        tanh = self._current_engine().map_lattice(pixels, stride=stride)
        with torch.autocast(pixels.device.type, enabled=False):
            logits: Tensor = self.output(tanh.flatten(1).T)
        return logits.squeeze(-1)

    def _current_engine(self) -> DenseEngine:
        weights = [p.detach() for p in self.parameters()]
        if self._engine is not None:
            engine, before = self._engine
            if all(torch.equal(a, b) for a, b in zip(weights, before, strict=True)):
                return engine
        engine = self.dense_engine(compiled=True)
        self._engine = engine, [weight.clone() for weight in weights]
        return engine

    def count_work(self) -> int:
        """Count a patch's multiplications and additions, by the definition."""
        convolutions = (layer for layer in self.convolutions if isinstance(layer, nn.Conv2d))
        return sum(2 * conv.weight.numel() * self.m**2 for conv in convolutions)

    def forward(self, patches: Tensor) -> Tensor:
        """Return the logit of Q for each patch: (N, c, m, m) -> (N,)."""
        tanh = self.filter_outputs(patches)
        with torch.autocast(patches.device.type, enabled=False):
            # In half precision the last sum would leave a few hundred distinct scores.
            logits: Tensor = self.output(tanh.to(self.output.weight.dtype))
        return logits.squeeze(-1)


class PatchNet(PatchClassifier):
    """Mean of a subnet's probabilities over the patches of an image.

    Its rule is class 1 iff P > 1/2, strictly (paper 1: threshold .5 + eps).

    Parameters
    ----------
    m : int
        Side of a patch, px; odd.
    stride : int, optional
        Step between patches, px. None: the papers' step for this `m`, else m // 3.
    grid : {"ceil", "floor", "center"}
        What becomes of a remainder: ``ceil`` pads zeros below and to the right until every pixel
        is covered, the only reading that gives the 0.333 of paper 1, appendix A; ``floor``
        drops it; ``center`` places one patch around each stride-th pixel, padded on all sides.
    region : int, optional
        Only patches of the central square of this side (paper 2, appendix F).
    normalise : {"unit", "minmax"}
        ``minmax`` stretches each image to [0, 1] as the papers do; ``unit`` leaves [0, 1] as it
        is, for slide patches, where the stretch would turn empty glass into noise.
    channels, filters, depth : int
        Of the subnet.
    """

    strict = True

    def __init__(
        self,
        *,
        m: int = M,
        stride: int | None = None,
        grid: Grid = "ceil",
        region: int | None = None,
        normalise: Normalise = "unit",
        channels: int = 3,
        filters: int = 64,
        depth: int = 7,
    ) -> None:
        super().__init__()
        sizes = {"m": m, "stride": stride, "region": region}
        sizes |= {"channels": channels, "filters": filters, "depth": depth}
        for name, value in sizes.items():
            if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
                raise ModelError(f"PatchNet's {name} is a whole number, got {name}={value!r}")
        self.subnet = Subnet(m, channels=channels, filters=filters, depth=depth)
        self.m = m
        self.stride = STRIDE_BY_SIDE.get(m, m // 3) if stride is None else stride
        if self.stride < 1 or (region is not None and region < m):
            raise ModelError(
                "PatchNet's stride must be at least 1 and its region hold a patch, got "
                f"stride={stride}, region={region}, m={m}"
            )
        if grid not in ("ceil", "floor", "center") or normalise not in ("unit", "minmax"):
            raise ModelError(
                "PatchNet's grid is ceil, floor or center and normalise unit or minmax, got "
                f"grid={grid!r}, normalise={normalise!r}"
            )
        self.grid: Grid = grid
        self.region = region
        self.normalise: Normalise = normalise
        self.options = {
            "m": m,
            "stride": self.stride,
            "grid": grid,
            "region": region,
            "normalise": normalise,
            "channels": channels,
            "filters": filters,
            "depth": depth,
        }

    @classmethod
    def check_size(cls, size: tuple[int, int], *, m: int = M, **_: Any) -> None:
        """Refuse a patch that is larger than the image: most of it would be padding."""
        height, width = size
        if isinstance(m, int) and m > min(size):
            largest = (min(size) - 1) // 2 * 2 + 1
            raise ModelError(
                f"PatchNet's patch of {m} x {m} px is larger than the images to train on, "
                f"{width} x {height} px; set model.options.m to an odd number of at most "
                f"{largest}, or train on larger ones"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return log P - log(1 - P) of each image, whose sigmoid is P = mean Q.

        Parameters
        ----------
        x : (B, c, H, W) float in [0, 1]

        Returns
        -------
        logits : (B,)
        """
        log_p, log_not_p = log_mean_probability(self.patch_logits(x))
        return log_p - log_not_p

    def patch_logits(self, x: Tensor) -> Tensor:
        """Return the logit of Q for each patch of each image: (B, c, H, W) -> (B, l).

        On a CPU and without gradients the dense engine computes larger amounts, in fp32 whatever
        the precision: it is faster than patches in bf16. The logits agree to about 1e-5.
        """
        x = self._frame(self.prepare(x))
        if self._use_engine(x):
            return torch.stack([self.subnet.lattice_logits(image, self.stride) for image in x])
        patches = self._cut_frame(x)  # (B, l, c, m, m)
        parts = patches.flatten(0, 1).split(self.patches_at_once(x.device))
        logits = torch.cat([self.subnet(part) for part in parts])
        return logits.view(patches.shape[:2])

    def _use_engine(self, x: Tensor) -> bool:
        """Whether to compute the patches of framed images by the dense engine."""
        weight = self.subnet.readout_weight
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        exact = x.dtype == weight.dtype == torch.float32
        rows, columns = ((side - self.m) // self.stride + 1 for side in x.shape[-2:])
        work = len(x) * rows * columns * self.subnet.count_work()
        return exact and x.device.type == "cpu" and work >= COMPILED_WORK

    def patches_at_once(self, device: torch.device) -> int:
        """Return how many patches to compute at once on a device."""
        values = CPU_LAYER_VALUES if device.type == "cpu" else GPU_LAYER_VALUES
        return max(1, values // self.subnet.readout_weight.numel())

    def predict(self, x: Tensor) -> Tensor:
        """Predict class 1 iff P > 1/2, strictly (paper 1: threshold .5 + eps): (B,) bool."""
        logits: Tensor = self(x)
        return logits > 0

    def prepare(self, x: Tensor) -> Tensor:
        """Prepare images as for training; the shape changes only by a crop."""
        channels = self.options["channels"]
        if x.shape[1] != channels:
            raise ModelError(
                f"this PatchNet takes images of {channels} channels, these have {x.shape[1]}; set "
                f"model.options.channels={x.shape[1]}, or images.channels={channels}"
            )
        x = super().prepare(x)
        return x if self.normalise == "unit" else min_max(x)

    def cut(self, x: Tensor) -> Tensor:
        """Cut images into patches.

        Parameters
        ----------
        x : (B, c, H, W)

        Returns
        -------
        patches : (B, l, c, m, m)
            Row by row.
        """
        return self._cut_frame(self._frame(x))

    def _cut_frame(self, x: Tensor) -> Tensor:
        windows = x.unfold(-2, self.m, self.stride).unfold(-2, self.m, self.stride)
        return windows.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)

    def _frame(self, x: Tensor) -> Tensor:
        """Crop and pad images so that their patches lie inside: (B, c, H, W) -> (B, c, h, w)."""
        x = self._crop_region(x)
        x = F.pad(x, self._padding(x.shape[-2], x.shape[-1]))
        if min(x.shape[-2:]) < self.m:
            raise ModelError(
                f"an image of {x.shape[-1]} x {x.shape[-2]} px holds no patch of m={self.m}; "
                "use a smaller m, or grid=ceil"
            )
        return x

    def _crop_region(self, x: Tensor) -> Tensor:
        if self.region is None:
            return x
        height, width = x.shape[-2:]
        if min(height, width) < self.region:
            raise ModelError(
                f"an image of {width} x {height} px is smaller than region={self.region}"
            )
        top, left = (height - self.region) // 2, (width - self.region) // 2
        return x[..., top : top + self.region, left : left + self.region]

    def _padding(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Zeros to add at the (left, right, top, bottom)."""
        if self.grid == "floor":
            return (0, 0, 0, 0)
        if self.grid == "center":
            radius = (self.m - 1) // 2
            return (radius, radius, radius, radius)
        right, below = (_missing(side, self.m, self.stride) for side in (width, height))
        return (0, right, 0, below)

    @torch.no_grad()
    def dense_map(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the subnet on the patch around every pixel of an image (paper 1, 3.4).

        The image is padded with (m - 1) / 2 zeros, and each patch by itself inside the subnet, so
        this is not a crop of one pass over the whole image. What patches share is computed once
        (docs/dense_patchnet.md); no gradients are kept.

        Parameters
        ----------
        image : (c, H, W) float in [0, 1]

        Returns
        -------
        heatmap : (H, W) in (0, 1)
            Q of the patch around each pixel.
        filters : (filters, H, W) in [-1, 1]
            The tanh output of each filter there.
        """
        tanh = self.subnet.dense_engine().map_image(self.prepare(image[None])[0])
        return self.subnet.combine_filters(tanh), tanh


class PrecisionPatchNet(PatchNet):
    """PatchNet whose class-0 loss penalises each suspicious patch by itself (paper 1, 3.5).

    Equation (2) as printed lacks a minus sign: it would be least where every Q is 1. The loss of
    a class-0 image is -(1/l) sum log(1 - Q_i), at least the plain one (Jensen), with equality iff
    all Q are equal.
    """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch: scalar."""
        logits = self.patch_logits(x)
        log_p, _ = log_mean_probability(logits)
        negative = F.softplus(logits).mean(dim=1)
        return torch.where(y > 0.5, -log_p, negative).mean()


def log_mean_probability(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return log P and log(1 - P) of P = mean sigmoid(z_j), finite for any logits.

    Parameters
    ----------
    logits : (B, l)

    Returns
    -------
    log_p, log_not_p : (B,)
        logsumexp_j logsigmoid(+-z_j) - log l: log P and log(1 - P), finite for any logits.
    """
    log_n = math.log(logits.shape[1])
    log_p = torch.logsumexp(F.logsigmoid(logits), dim=1) - log_n
    log_not_p = torch.logsumexp(F.logsigmoid(-logits), dim=1) - log_n
    return log_p, log_not_p


def _missing(side: int, m: int, stride: int) -> int:
    """Zeros to add so that patches of `m` at `stride` cover `side` pixels.

    A stride above `m` leaves pixels between patches; no patch begins beyond the image then either.
    """
    steps = min(-(-max(side - m, 0) // stride), (side - 1) // stride)
    return max(0, steps * stride + m - side)
