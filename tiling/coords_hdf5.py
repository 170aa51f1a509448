"""Where other tools put their patches: the ``coords`` HDF5 files of CLAM, TRIDENT and WSInfer.

All three keep (N, 2) top-left corners (x, y) in level-0 px. They differ in how they record
the size of a patch; the attributes of ``coords`` identify the tool:

- CLAM: ``patch_size`` px at ``patch_level``, whose ``downsample`` (x, y) it gives;
- TRIDENT: ``patch_size_level0`` level-0 px (and ``patch_size`` px at ``target_magnification``);
- WSInfer: ``patch_size`` level-0 px, read as px of ``patch_spacing_um_px`` µm.

They know squares only. Files that this project exports have ``patch_l0`` in addition: both sides
(x, y), which differ where a slide's pixels are not square.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SlideInfo, TileGeometry
from tiling.errors import GridError
from tiling.hdf5 import READ_ERRORS, get_dataset, open_hdf5

Tool = Literal["clam", "trident", "wsinfer"]

# A patch of another tool may differ from ours by its own rounding: this share, or half a pixel.
SAME_SIZE, SAME_SIZE_L0 = 0.02, 0.5

# TRIDENT writes SLIDE_patches.h5; CLAM and WSInfer SLIDE.h5.
NAMES = ("{}.h5", "{}_patches.h5", "{}.hdf5")


@dataclass(frozen=True)
class ForeignCoords:
    """Patches at the coordinates of another tool."""

    coords: NDArray[np.int64]  # (N, 2) top-left corners, level-0 px, in the order of the file
    patch_l0: tuple[float, float]  # side of a patch along x and y, level-0 px
    tool: Tool


def find_coords(folder: Path, slide_id: str) -> Path:
    """Find a slide's file in a folder of another tool.

    Raises
    ------
    GridError
        If there is none.
    """
    candidates = [folder / name.format(slide_id) for name in NAMES]
    for path in candidates:
        if path.is_file():
            return path
    raise GridError(
        f"{slide_id}: no coordinates in {folder.name} (looked for "
        f"{', '.join(path.name for path in candidates)}); name the file as the slide, or leave "
        "out tile.coords"
    )


def read_coords(path: Path) -> ForeignCoords:
    """Read a coordinates file of CLAM, TRIDENT or WSInfer.

    Raises
    ------
    GridError
        If the file cannot be read, has no patches, or does not record their size.
    """
    try:
        with open_hdf5(path) as file:
            found = get_dataset(file, "coords")
            coords, attributes = np.asarray(found[()]), dict(found.attrs)
    except READ_ERRORS as error:
        raise GridError(
            f"{path.name}: no coordinates can be read from it ({error}); wanted is an HDF5 file of "
            "CLAM, TRIDENT or WSInfer with a dataset 'coords'"
        ) from error
    if coords.ndim != 2 or coords.shape[1] != 2 or not len(coords):
        raise GridError(
            f"{path.name}: its coords have the shape {coords.shape}, wanted (N, 2), N at least 1"
        )
    tool, side = _side(path, attributes)
    return ForeignCoords(_as_pixels(path, coords), side, tool)


def take_coords(folder: Path, info: SlideInfo, geometry: TileGeometry) -> NDArray[np.int64]:
    """Take another tool's coordinates, if its patches are as large as ours.

    Returns
    -------
    coords : (N, 2) int64
        Top-left corners, level-0 px, in the order of the file.

    Raises
    ------
    GridError
        If there are none, or its patches are of another size, or off the slide.
    """
    path = find_coords(folder, info.slide_id)
    found = read_coords(path)
    ours = (geometry.patch_px * geometry.scale[0], geometry.patch_px * geometry.scale[1])
    if any(
        abs(a - b) > max(SAME_SIZE * b, SAME_SIZE_L0)
        for a, b in zip(found.patch_l0, ours, strict=True)
    ):
        wide, high = (side * mpp for side, mpp in zip(found.patch_l0, info.mpp, strict=True))
        is_square = abs(wide / high - 1) <= SAME_SIZE
        remedy = (
            f"for patches of {geometry.patch_px} px set "
            f"tile.target_mpp={wide / geometry.patch_px:.6g}"
            if is_square
            else f"no target_mpp fits, as the slide has {info.mpp[0]:g} x {info.mpp[1]:g} µm per "
            "pixel and our patches are square in µm; leave out tile.coords"
        )
        raise GridError(
            f"{path.name} ({found.tool}): its patches are {found.patch_l0[0]:g} x "
            f"{found.patch_l0[1]:g} level-0 px, {wide:.4g} x {high:.4g} µm, but "
            f"tile.patch_px={geometry.patch_px} at tile.target_mpp={geometry.target_mpp:g} is "
            f"{geometry.patch_px * geometry.target_mpp:g} µm; {remedy}"
        )
    side, size = np.array([geometry.patch_l0, geometry.patch_l0_y]), np.array(info.size)
    outside = np.flatnonzero(
        ((found.coords <= -side) | (found.coords >= size)).any(axis=1)  # not one pixel on it
    )
    if outside.size:
        x, y = found.coords[outside[0]].tolist()
        raise GridError(
            f"{path.name} ({found.tool}): {outside.size} of {len(found.coords)} patches lie off "
            f"the slide of {info.size[0]} x {info.size[1]} px, for example x={x}, y={y}; is it "
            "another slide's file?"
        )
    return found.coords


def _as_pixels(path: Path, coords: NDArray[Any]) -> NDArray[np.int64]:
    """Take coordinates as whole pixels; floats too, where nothing would be cut off."""
    number = coords.dtype.kind in "iuf"
    # Up to 2^53 a float holds every whole number; NaN compares false.
    if not (number and (np.abs(coords) < 2**53).all() and (coords == np.trunc(coords)).all()):
        raise GridError(
            f"{path.name}: its coords ({coords.dtype}) are not all whole numbers, but they are "
            "pixels of level 0; round them and write the file again"
        )
    return coords.astype(np.int64)


def _side(path: Path, attributes: dict[str, Any]) -> tuple[Tool, tuple[float, float]]:
    tool, square = _square(path, attributes)
    return tool, _pair(path, attributes, "patch_l0") if "patch_l0" in attributes else square


def _square(path: Path, attributes: dict[str, Any]) -> tuple[Tool, tuple[float, float]]:
    if "patch_size_level0" in attributes:
        return "trident", _pair(path, attributes, "patch_size_level0")
    if "patch_spacing_um_px" in attributes:
        return "wsinfer", _pair(path, attributes, "patch_size")
    size = _pair(path, attributes, "patch_size")
    if "patch_level" not in attributes:
        raise _missing(path, "patch_level")
    if "downsample" in attributes:
        scale = _pair(path, attributes, "downsample")
    elif np.array_equal(np.ravel(attributes["patch_level"]), [0]):
        scale = (1.0, 1.0)
    else:
        raise _missing(path, "downsample")
    return "clam", (size[0] * scale[0], size[1] * scale[1])


def _pair(path: Path, attributes: dict[str, Any], name: str) -> tuple[float, float]:
    if name not in attributes:
        raise _missing(path, name)
    try:
        values = np.broadcast_to(np.asarray(attributes[name], np.float64).ravel()[:2], 2)
    except (ValueError, TypeError):
        values = np.full(2, np.nan)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise GridError(
            f"{path.name}: its attribute {name} is {attributes[name]!r}, not a positive number"
        )
    return float(values[0]), float(values[1])


def _missing(path: Path, name: str) -> GridError:
    return GridError(
        f"{path.name}: its coords have no attribute {name}, so the size of a patch is unknown; "
        f"add it (h5py: file['coords'].attrs['{name}'] = ...), or leave out tile.coords"
    )
