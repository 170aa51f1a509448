"""One patch: the pixels of a tile at exactly the target resolution."""

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Slide, TileGeometry
from tiling.resample import nearest_finer_level, read_resampled

# Half a pixel over a whole patch: resampling could not move any pixel to another place.
IDENTITY_TOLERANCE_PX = 0.5


def read_patch(
    slide: Slide,
    location: tuple[int, int],
    *,
    geometry: TileGeometry,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Read one patch from the nearest finer level, averaged to the exact target resolution.

    Where a stored level has that resolution (to within half a pixel over the patch) its pixels are
    given as they are, bit for bit.

    Parameters
    ----------
    location : (x, y), level-0 px
        Top-left corner of the tile; what lies outside the slide is white.
    geometry : TileGeometry
        The tiles of this slide.
    out : (patch_px, patch_px, 3) uint8, optional
        Memory to fill.

    Returns
    -------
    patch : (patch_px, patch_px, 3) uint8
        RGB at `target_mpp`; `out` where it is given.

    Raises
    ------
    SlideError
        If the slide's pixels cannot be decoded there.
    """
    side = geometry.patch_px
    level = stored_level(slide, geometry)
    if level is not None:
        if out is None:
            return slide.read_region(location, level, (side, side))
        slide.read_into(out, location, level)
        return out
    level = nearest_finer_level(slide.level_downsamples, geometry.scale)
    extent = (side * geometry.scale[0], side * geometry.scale[1])
    patch = read_resampled(slide, location, extent_l0=extent, out_px=(side, side), level=level)
    if out is None:
        return patch
    out[...] = patch
    return out


def stored_level(slide: Slide, geometry: TileGeometry) -> int | None:
    """Find the stored level that has the target resolution; None where patches are resampled."""
    level = nearest_finer_level(slide.level_downsamples, geometry.scale)
    side, downsample = geometry.patch_px, slide.level_downsamples[level]
    same = (abs(side * scale / downsample - side) for scale in geometry.scale)
    return level if all(shift < IDENTITY_TOLERANCE_PX for shift in same) else None
