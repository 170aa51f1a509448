"""Where other tools put their patches: the ``coords`` HDF5 files of CLAM, TRIDENT and WSInfer.

All three keep (N, 2) top-left corners (x, y) in level-0 px. They differ in how they say how large
a patch is; the attributes of ``coords`` tell them apart:

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

from tiling.errors import GridError
from tiling.hdf5 import READ_ERRORS, get_dataset, open_hdf5

Tool = Literal["clam", "trident", "wsinfer"]

# TRIDENT writes SLIDE_patches.h5; CLAM and WSInfer SLIDE.h5.
NAMES = ("{}.h5", "{}_patches.h5", "{}.hdf5")


@dataclass(frozen=True)
class ForeignCoords:
    """Patches as another tool has laid them."""

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
        If the file cannot be read, holds no patch, or does not say how large its patches are.
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
