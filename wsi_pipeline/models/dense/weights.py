"""A subnet's weights, rearranged and transformed for the dense map; computed once per map."""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from wsi_pipeline.models.dense.schemes import Products, Scheme, choose_scheme

# A corner is named by its sides; taps of a side at the far end are read in reverse, so that each
# border is counted from the outside inwards.
CORNERS = tuple(product(("top", "bottom"), ("left", "right")))
SIDES = ("top", "bottom", "left", "right")
FAR = ("bottom", "right")


@dataclass(frozen=True)
class LayerWeights:
    """One convolution. `co` and `ci` are its channels out and in."""

    bias: Tensor  # (co,)
    taps: Tensor  # (ci, 9 co): tap (dy, dx) of every filter, for positions shared by all patches
    scheme: Scheme | None  # None for the first layer: before it there is no border
    edges: dict[str, Tensor]  # side -> (products, ci, 3 co): transformed across the border, with
    #                           the three taps along it side by side
    corners: dict[tuple[str, str], Tensor]  # (products^2, ci, co)


@dataclass(frozen=True)
class DenseWeights:
    """A whole subnet."""

    m: int  # side of a patch, px
    split: tuple[LayerWeights, ...]  # layers computed by regions
    tail: tuple[nn.Conv2d, ...]  # layers computed patch by patch: beyond (m - 1) / 2 all is border
    readout: Tensor  # (m, m, filters)
    readout_bias: Tensor  # (filters,)

    @property
    def filters(self) -> int:
        """Channels of each layer's output."""
        return len(self.readout_bias)


def transform_weights(
    convolutions: list[nn.Conv2d], readout: Tensor, readout_bias: Tensor, products: Products
) -> DenseWeights:
    """Rearrange and transform a subnet's weights.

    Parameters
    ----------
    convolutions : list of Conv2d
        3 x 3, padding 1; each followed by a ReLU.
    readout : (filters, m, m)
    readout_bias : (filters,)
    products : {"toom-cook", "direct"}
    """
    m = readout.shape[-1]
    n_split = min(len(convolutions), (m - 1) // 2)
    layers = (_layer(conv, k, products) for k, conv in enumerate(convolutions[:n_split], 1))
    return DenseWeights(
        m=m,
        split=tuple(layers),
        tail=tuple(convolutions[n_split:]),
        readout=readout.detach().permute(1, 2, 0).contiguous(),
        readout_bias=readout_bias.detach(),
    )


def _layer(conv: nn.Conv2d, k: int, products: Products) -> LayerWeights:
    weight = conv.weight.detach()
    if conv.bias is None:
        raise ValueError("the dense map needs convolutions with a bias")
    ci = weight.shape[1]
    taps = weight.permute(1, 2, 3, 0).reshape(ci, -1).contiguous()
    if k == 1:
        return LayerWeights(conv.bias.detach(), taps, None, {}, {})
    scheme = choose_scheme(k - 1, products)
    # Transformed in float64: what is lost here would be lost in every patch.
    across = scheme.taps.to(weight.device)
    rows = weight.double().permute(2, 1, 3, 0)  # (dy, ci, dx, co)
    columns = weight.double().permute(3, 1, 2, 0)  # (dx, ci, dy, co)
    edges = {}
    for side in SIDES:
        first = _from_outside(rows if side in ("top", "bottom") else columns, side, 0)
        moved = torch.einsum("ad,dixo->aixo", across, first).flatten(2)
        edges[side] = moved.to(weight.dtype).contiguous()
    corners = {}
    for vertical, horizontal in CORNERS:
        both = weight.double().permute(2, 3, 1, 0)  # (dy, dx, ci, co)
        both = _from_outside(_from_outside(both, vertical, 0), horizontal, 1)
        moved = torch.einsum("ay,bx,yxio->abio", across, across, both).flatten(0, 1)
        corners[vertical, horizontal] = moved.to(weight.dtype).contiguous()
    return LayerWeights(conv.bias.detach(), taps, scheme, edges, corners)


def _from_outside(taps: Tensor, side: str, axis: int) -> Tensor:
    return taps.flip(axis) if side in FAR else taps
