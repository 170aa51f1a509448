"""Patches that occur more than once, as in an empty background."""

import torch
from torch import Tensor

_CHANNEL, _COLUMN, _ROW = 6364136223846793005, 2862933555777941757, 3202034522624059733  # odd


def find_distinct(pixels: Tensor, m: int, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Find the distinct ones among the patches of some pixels; exact.

    Patches are compared by the bits of their pixels, first by a sum over the window (of linear cost
    in m), then, where those agree, pixel by pixel.

    Parameters
    ----------
    pixels : (c, H + m - 1, W + m - 1) float
    m : int
        Side of a patch.
    stride : int
        Step between patches.

    Returns
    -------
    first : (n,) int64
        Index, row by row on the lattice of patches, of one patch of each kind.
    kind : (lattice patches,) int64
        Which of them each patch equals.
    """
    bits = pixels.double().contiguous().view(torch.int64)
    mixed = torch.zeros_like(bits[0])
    for channel in bits:
        mixed = mixed * _CHANNEL + (channel ^ (channel >> 29))
    sums = _sum_along(_sum_along(mixed, m, _COLUMN), m, _ROW, rows=True)
    sums = sums[::stride, ::stride].reshape(-1)
    _, kind = torch.unique(sums, return_inverse=True)
    count = len(kind)
    order = torch.arange(count - 1, -1, -1, device=kind.device)
    first = kind.new_zeros(int(kind.max()) + 1).scatter_(0, kind.flip(0), order)
    if len(first) < count and not _equal(pixels, m, stride, torch.arange(count), first[kind]):
        every = torch.arange(count, device=kind.device)  # two sums met by chance: take all
        return every, every
    return first, kind


def take_patches(pixels: Tensor, m: int, stride: int, index: Tensor) -> Tensor:
    """Cut some patches of the lattice: (n, c, m, m)."""
    windows = pixels.unfold(1, m, stride).unfold(2, m, stride)
    width = windows.shape[2]
    return windows[:, index // width, index % width].transpose(0, 1)


def _sum_along(values: Tensor, m: int, base: int, *, rows: bool = False) -> Tensor:
    """Sum base^(m - 1 - d) values[d] over each window of m, modulo 2^64."""
    axis = 0 if rows else 1
    length = values.shape[axis] - m + 1
    total = torch.zeros_like(values.narrow(axis, 0, length))
    for d in range(m):
        total = total * base + values.narrow(axis, d, length)
    return total


def _equal(pixels: Tensor, m: int, stride: int, index: Tensor, other: Tensor) -> bool:
    different = (index.to(other.device) != other).nonzero()[:, 0]
    return all(
        torch.equal(
            take_patches(pixels, m, stride, part), take_patches(pixels, m, stride, other[part])
        )
        for part in different.split(512)
    )
