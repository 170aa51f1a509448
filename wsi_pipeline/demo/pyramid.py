"""Write a picture as a whole-slide image: a tiled, pyramidal TIFF that OpenSlide opens.

The resolution is stored in the TIFF's own tags, which OpenSlide, QuPath and tifffile read. The
same picture gives the same bytes: no date and no software version is written.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

from tiling.files import write_aside

MICRONS_PER_CM = 1e4
SCANNER_LEVELS = (1, 4, 16)  # downsamples, as Aperio's scanners store them


def write_pyramid(
    path: Path,
    image: NDArray[np.uint8],
    *,
    mpp: float,
    downsamples: Sequence[int] = SCANNER_LEVELS,
    tile_px: int = 256,
    quality: int = 85,
) -> Path:
    """Write a picture and its coarser levels as JPEG tiles.

    A pixel of a coarser level is the mean of the whole level-0 pixels under it; rows and columns
    left over at the right and lower edge belong to no pixel of that level, as scanners do it.

    Parameters
    ----------
    path : Path
        Written atomically; an existing file is replaced.
    image : (H, W, 3) uint8
        RGB, level 0.
    mpp : µm per level-0 px
    downsamples : sequence of int
        Level-0 px per px of each level; ascending from 1. A level that would be empty is left out.
    tile_px : px
        Side of the file's tiles, a multiple of 16 (TIFF 6.0, section 15).
    quality : int
        JPEG quality, 1 to 100; colour is stored at half resolution, as scanners do.

    Returns
    -------
    path : Path

    Raises
    ------
    ValueError
        If the picture is not RGB, or a length makes no pyramid.
    """
    _check(image, mpp, downsamples, tile_px)
    levels = [d for d in downsamples if min(image.shape[:2]) // d > 0]
    with write_aside(path) as scratch, tifffile.TiffWriter(scratch) as tiff:
        for downsample in levels:
            level = shrink(image, downsample)
            tiff.write(
                _tiles(level, tile_px),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric="rgb",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": quality},
                resolution=(MICRONS_PER_CM / (mpp * downsample),) * 2,
                resolutionunit="CENTIMETER",
                subfiletype=int(downsample > 1),  # 1: a reduced version of another page
                metadata=None,
                software=False,
            )
    return path


def _check(image: NDArray[np.uint8], mpp: float, downsamples: Sequence[int], tile_px: int) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(
            f"a slide is an (H, W, 3) uint8 picture with pixels, got {image.shape} {image.dtype}"
        )
    if not (np.isfinite(mpp) and mpp > 0):
        raise ValueError(f"mpp must be a positive number of µm per pixel, got {mpp}")
    ascending = all(a < b for a, b in itertools.pairwise(downsamples))
    if not downsamples or downsamples[0] != 1 or not ascending:
        raise ValueError(f"downsamples must ascend from 1, got {tuple(downsamples)}")
    if tile_px <= 0 or tile_px % 16:
        raise ValueError(f"tile_px must be a positive multiple of 16 (TIFF), got {tile_px}")


def shrink(image: NDArray[np.uint8], downsample: int) -> NDArray[np.uint8]:
    """Average whole squares of pixels; what is left over at the far edges is dropped.

    Parameters
    ----------
    image : (H, W, C) uint8
    downsample : px
        Side of the squares.

    Returns
    -------
    image : (H // downsample, W // downsample, C) uint8
        Means, rounded half up.

    Examples
    --------
    >>> shrink(np.array([[[0], [2], [9]], [[4], [8], [9]]], np.uint8), 2).tolist()
    [[[4]]]
    """
    if downsample == 1:
        return image
    height, width = (length // downsample for length in image.shape[:2])
    whole = image[: height * downsample, : width * downsample]
    # Rows first: the sums of a slide's width stay small, and uint32 never overflows.
    rows = np.add.reduceat(whole, np.arange(0, len(whole), downsample), axis=0, dtype=np.uint32)
    sums = np.add.reduceat(rows, np.arange(0, whole.shape[1], downsample), axis=1)
    area = downsample * downsample
    return ((sums + area // 2) // area).astype(np.uint8)


def _tiles(image: NDArray[np.uint8], tile_px: int) -> Iterator[NDArray[np.uint8]]:
    # Tiles that hang over are filled with the edge's own colour: JPEG would smear black into it.
    height, width = image.shape[:2]
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            tile = image[y : y + tile_px, x : x + tile_px]
            rows, columns = tile.shape[:2]
            yield np.pad(tile, ((0, tile_px - rows), (0, tile_px - columns), (0, 0)), mode="edge")
