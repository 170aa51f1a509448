"""One block of patches, layer by layer: the interior, four edges and four corners of every patch.

After layer k, a value of a patch depends on the patch's own zero border only if it lies within k px
of it. So there are three kinds of values, and each is computed once for all patches that share it:

    corner  edge     corner     corner (k x k): near two borders; each patch has its own
       ..   ......   ..         edge: near one border; shared by all patches of that row (or column)
    edge    interior edge       interior: as if there were no border; shared by all patches
       ..   ......   ..
    corner  edge     corner

A border value reads border values of the layer before (through a scheme, see `schemes`) and shared
ones; products of shared values with each tap are made once and kept apart, to be added where they
belong. docs/dense_patchnet.md draws this.

Frames. A block has h x w patches, patch (i, j) with its top-left corner at pixel (i, j) of the
block's pixels. Maps are (row, column, channel). The interior after layer k has its value for
position (u, v) of patch (i, j) at [i + u - k, j + v - k]. Border values are counted from the
outside inwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from wsi_pipeline.models.dense.schemes import Scheme
from wsi_pipeline.models.dense.scratch import Scratch
from wsi_pipeline.models.dense.weights import CORNERS, FAR, SIDES, DenseWeights, LayerWeights

CORNER_PATCHES = (
    128  # patches whose corners are computed at once, so that they stay in a CPU's cache
)


@dataclass(frozen=True)
class Border:
    """Where a side reads the interior of the layer before, counted from a patch's corner."""

    near: int  # the interior's outermost row (or column)
    inner: int  # the one after it
    tap: int  # index of the tap that points inwards: 2 (d = +1), at the far end 0 (d = -1)

    @classmethod
    def of(cls, side: str, m: int, k: int) -> "Border":
        """Return it for layer k of patches of side m."""
        return cls(m - 2 * k + 1, m - 2 * k, 0) if side in FAR else cls(0, 1, 2)


@dataclass(frozen=True)
class Shared:
    """Products of one layer's taps with what patches share of the layer before."""

    interior: Tensor  # (Y, X, 3, 3, C): tap (dy, dx) of the interior
    across_rows: Tensor  # (Y, X - 2, 3, C): summed along x; tap dy kept apart
    across_columns: Tensor  # (X, Y - 2, 3, C): summed along y; tap dx kept apart; transposed
    edges: dict[str, Tensor]  # side -> (k, lines, along, 3, C): taps along the side kept apart


@dataclass(frozen=True)
class Regions:
    """All values of a block's patches after layer k.

    Edges are (k, lines, along, C): a line is a row of patches at the top and bottom, a column of
    patches at the left and right.
    """

    k: int
    interior: Tensor  # (h + m - 2k - 1, w + m - 2k - 1, C)
    edges: dict[str, Tensor]
    corners: "TorchCorners"


class TorchCorners:
    """Corners in plain torch, on any device."""

    def __init__(self, weights: DenseWeights, size: tuple[int, int]) -> None:
        self.weights = weights
        self.size = size  # (h, w) patches
        on_cpu = weights.readout.device.type == "cpu"
        self.rows = max(1, CORNER_PATCHES // size[1]) if on_cpu else size[0]
        # Each corner's values, (k, k, rows, w, C) for some rows of patches at a time.
        self.values: dict[tuple[str, str], list[Tensor]] = {}

    def advance(self, shared: Shared, borders: dict[str, Border]) -> None:
        """Go on by one layer."""
        h, w = self.size
        before = self.values
        k = len(before[CORNERS[0]][0]) + 1 if before else 1
        self.values = {
            corner: [
                _next_corner(
                    before[corner][number] if before else None,
                    shared,
                    corner,
                    (borders[corner[0]], borders[corner[1]]),
                    self.weights.split[k - 1],
                    (top, min(self.rows, h - top), w),
                )
                for number, top in enumerate(range(0, h, self.rows))
            ]
            for corner in CORNERS
        }

    def read_out(self) -> Tensor:
        """Return the corners' part of the linear models: (h, w, filters)."""
        total = self.weights.readout.new_zeros(*self.size, self.weights.filters)
        for (vertical, horizontal), chunks in self.values.items():
            weight = self.weights.readout
            weight = weight.flip(0) if vertical in FAR else weight
            weight = weight.flip(1) if horizontal in FAR else weight
            for number, chunk in enumerate(chunks):
                part = total[number * self.rows : number * self.rows + chunk.shape[2]]
                for p, row in enumerate(chunk):
                    for q, values in enumerate(row):
                        part.addcmul_(values, weight[p, q])
        return total


def compute_regions(
    pixels: Tensor, weights: DenseWeights, corners: TorchCorners, scratch: Scratch
) -> Regions:
    """Run the layers that are computed by regions over a block.

    Parameters
    ----------
    pixels : (h + m - 1, w + m - 1, channels)
        Pixels of all patches of the block.
    weights : DenseWeights
    corners : Corners
        New ones, of h x w patches.
    """
    h, w = (side - weights.m + 1 for side in pixels.shape[:2])
    regions = Regions(0, pixels, {}, corners)
    for layer in weights.split:
        k = regions.k + 1
        borders = {side: Border.of(side, weights.m, k) for side in SIDES}
        shared = _share(regions, layer, scratch)
        edges = {
            side: _next_edge(shared, side, borders[side], h if side in ("top", "bottom") else w, k)
            for side in SIDES
        }
        corners.advance(shared, borders)
        interior = shared.across_rows[:-2, :, 0] + shared.across_rows[1:-1, :, 1]
        interior += shared.across_rows[2:, :, 2]
        regions = Regions(
            k,
            interior.add_(layer.bias).relu_(),
            {side: edge.add_(layer.bias).relu_() for side, edge in edges.items()},
            corners,
        )
    return regions


def _share(regions: Regions, layer: LayerWeights, scratch: Scratch) -> Shared:
    """Multiply what is shared with each tap."""
    height, width, channels = regions.interior.shape
    taps = scratch.take("interior", layer.taps, height * width, layer.taps.shape[1])
    torch.mm(regions.interior.reshape(-1, channels), layer.taps, out=taps)
    taps = taps.view(height, width, 3, 3, -1)
    across_rows = taps[:, :-2, :, 0] + taps[:, 1:-1, :, 1]
    across_rows += taps[:, 2:, :, 2]
    columns = taps.transpose(0, 1)
    across_columns = columns[:, :-2, 0] + columns[:, 1:-1, 1]
    across_columns += columns[:, 2:, 2]
    edges = {}
    if layer.scheme is not None:
        edges = {
            side: multiply_edge(edge, layer.edges[side], layer.scheme, scratch, side)
            for side, edge in regions.edges.items()
        }
    return Shared(taps, across_rows, across_columns, edges)


def multiply_edge(
    edge: Tensor, weights: Tensor, scheme: Scheme, scratch: Scratch, side: str
) -> Tensor:
    """Sum the products of an edge across the border, the three taps along it kept apart.

    Parameters
    ----------
    edge : (k - 1, lines, along, ci)
    weights : (products, ci, 3 co)
    scheme : Scheme

    Returns
    -------
    products : (k, lines, along, 3, co)
    """
    n, lines, along, channels = edge.shape
    products, size = scheme.products, lines * along
    moved = scratch.take("edge moved", edge, products, size * channels)
    torch.mm(scheme.inputs.to(edge), edge.reshape(n, -1), out=moved)
    made = scratch.take("edge products", edge, products, size, weights.shape[2])
    torch.bmm(moved.view(products, size, channels), weights, out=made)
    summed = scratch.take(("edge", side), edge, n + 1, size * weights.shape[2])
    torch.mm(scheme.outputs.to(edge), made.view(products, -1), out=summed)
    return summed.view(n + 1, lines, along, 3, -1)


def _next_edge(shared: Shared, side: str, border: Border, lines: int, k: int) -> Tensor:
    """Return an edge's sums after layer k, without bias: (k, lines, along, C)."""
    across = shared.across_rows if side in ("top", "bottom") else shared.across_columns
    near, inner = (across[at : at + lines] for at in (border.near, border.inner))
    if k == 1:
        return (near[:, :, 1] + inner[:, :, border.tap])[None]
    taps = shared.edges[side]
    edge = taps[:, :, :-2, 0] + taps[:, :, 1:-1, 1]
    edge += taps[:, :, 2:, 2]
    # The two innermost of the border reach into the interior.
    edge[k - 2] += near[:, :, border.tap]
    edge[k - 1] += near[:, :, 1]
    edge[k - 1] += inner[:, :, border.tap]
    return edge


def _next_corner(
    corner: Tensor | None,
    shared: Shared,
    name: tuple[str, str],
    borders: tuple[Border, Border],
    layer: LayerWeights,
    patches: tuple[int, int, int],
) -> Tensor:
    """Return a corner's values after this layer for some rows of patches: (k, k, rows, w, C)."""
    top, rows, w = patches
    y, x = borders
    if corner is None:
        made = layer.bias.expand(1, 1, rows, w, -1).clone()
    else:
        made = multiply_corner(corner, layer.corners[name], layer.scheme)
        made += layer.bias
    k = len(made)
    if k > 1:
        # Along the vertical side's edge (rows p), whose taps are dx; and along the other's (dy).
        edge = shared.edges[name[0]][:, top : top + rows]
        near, inner = (edge[:, :, at : at + w] for at in (x.near, x.inner))
        made[:, k - 1] += near[:, :, :, 1]
        made[:, k - 1] += inner[:, :, :, x.tap]
        made[:, k - 2] += near[:, :, :, x.tap]
        edge = shared.edges[name[1]].transpose(1, 2)
        near, inner = (edge[:, top + at : top + at + rows] for at in (y.near, y.inner))
        made[k - 1] += near[:, :, :, 1]
        made[k - 1] += inner[:, :, :, y.tap]
        made[k - 2] += near[:, :, :, y.tap]
    # The interior, read by the four innermost values: those at distance k - 1 read two lines of
    # it, with the middle and the inward tap, those at k - 2 one, with the inward tap.
    reads = {k - 1: (0, 1), k - 2: (2,)} if k > 1 else {0: (0, 1)}
    y_reads = ((y.near, 1), (y.inner, y.tap), (y.near, y.tap))
    x_reads = ((x.near, 1), (x.inner, x.tap), (x.near, x.tap))
    for p, vertical in reads.items():
        for q, horizontal in reads.items():
            for dy, dx in ((a, b) for a in vertical for b in horizontal):
                (row, tap_y), (column, tap_x) = y_reads[dy], x_reads[dx]
                row += top
                made[p, q] += shared.interior[row : row + rows, column : column + w, tap_y, tap_x]
    return made.relu_()


def multiply_corner(corner: Tensor, weights: Tensor, scheme: Scheme | None) -> Tensor:
    """Convolve corners with what they hold themselves.

    Parameters
    ----------
    corner : (k - 1, k - 1, rows, w, ci)
    weights : (products^2, ci, co)
    scheme : Scheme

    Returns
    -------
    made : (k, k, rows, w, co)
    """
    assert scheme is not None  # only the first layer has none, and it has no corner before it
    n, _, rows, w, channels = corner.shape
    into, out, products = scheme.inputs.to(corner), scheme.outputs.to(corner), scheme.products
    moved = (into @ corner.reshape(n, -1)).view(products, n, -1)
    moved = torch.matmul(into, moved)  # (products, products, rows w ci)
    made = torch.bmm(moved.view(products**2, rows * w, channels), weights)
    made = (out @ made.view(products, -1)).view(n + 1, products, -1)
    return torch.matmul(out, made).view(n + 1, n + 1, rows, w, -1)


def read_out(regions: Regions, weights: DenseWeights) -> Tensor:
    """Apply the 64 linear models, without their bias, to all patches: (h, w, filters)."""
    k, m = regions.k, weights.m
    total = regions.corners.read_out()
    total += _slide(regions.interior[None], weights.readout[k : m - k, k : m - k])[0]
    for side, edge in regions.edges.items():
        upright = side in ("top", "bottom")
        weight = weights.readout if upright else weights.readout.transpose(0, 1)
        weight = weight.flip(0) if side in FAR else weight
        for p in range(k):
            part = _slide(edge[p][None], weight[p : p + 1, k : m - k])[0]
            total += part if upright else part.transpose(0, 1)
    return total


def _slide(maps: Tensor, weight: Tensor) -> Tensor:
    """Correlate each channel with its own weights: (1, Y, X, C), (y, x, C) -> (1, Y', X', C)."""
    channels = maps.shape[-1]
    made = F.conv2d(
        maps.permute(0, 3, 1, 2), weight.permute(2, 0, 1)[:, None].contiguous(), groups=channels
    )
    return made.permute(0, 2, 3, 1)


def assemble(regions: Regions, corners: TorchCorners, m: int) -> Tensor:
    """Put the values of each patch together: (h, w, C, m, m).

    For patches so small that after these layers all is border; their other layers are computed
    patch by patch.
    """
    k = regions.k
    inner = m - 2 * k
    h, w = (side - inner + 1 for side in regions.interior.shape[:2])
    maps = regions.interior.new_empty(h, w, regions.interior.shape[2], m, m)
    maps[..., k : m - k, k : m - k] = regions.interior.unfold(0, inner, 1).unfold(1, inner, 1)
    for side, edge in regions.edges.items():
        values = edge.unfold(2, inner, 1)  # (k, lines, along', C, inner)
        if side in ("top", "bottom"):
            values = values.permute(1, 2, 3, 0, 4)
            rows = slice(0, k) if side == "top" else slice(m - k, m)
            maps[..., rows, k : m - k] = values if side == "top" else values.flip(3)
        else:
            values = values.permute(2, 1, 3, 4, 0)
            columns = slice(0, k) if side == "left" else slice(m - k, m)
            maps[..., k : m - k, columns] = values if side == "left" else values.flip(4)
    for (vertical, horizontal), chunks in corners.values.items():
        values = torch.cat(chunks, dim=2).permute(2, 3, 4, 0, 1)  # (h, w, C, k, k)
        rows = slice(0, k) if vertical == "top" else slice(m - k, m)
        columns = slice(0, k) if horizontal == "left" else slice(m - k, m)
        values = values if vertical == "top" else values.flip(3)
        maps[..., rows, columns] = values if horizontal == "left" else values.flip(4)
    return maps
