"""Arrays and pictures of explanations as files: the same content, the same bytes."""

import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling.files import open_file, write_aside
from wsi_pipeline.errors import PipelineError

MAPS_SCHEMA = "wsi-pipeline/image-maps/2"  # of the list of a folder's maps
SHEET_ROWS = 16  # patches or images on a sheet; more could not be read in the report
_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # that a zip file can carry
_LEAST_PX = 48  # longer side of a picture on a sheet
_GAP_PX = 6


def stretch(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Stretch a map over its image, (H, W) -> [0, 1]; one that is constant becomes 0.5.

    Examples
    --------
    >>> stretch(np.array([[-1.0, 0.0, 3.0]])).tolist()
    [[0.0, 0.25, 1.0]]
    """
    exact = np.asarray(values, np.float64)
    if is_constant(exact):
        return np.full(exact.shape, 0.5)
    return np.asarray((exact - exact.min()) / (exact.max() - exact.min()))


def is_constant(values: NDArray[np.floating[Any]]) -> bool:
    """Whether a map has one value everywhere, up to the rounding of float32."""
    return bool(values.max() - values.min() <= 1e-6 * np.abs(values).max())


def as_grey(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Turn values in [0, 1] into 8-bit grey."""
    grey: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey


def write_values(
    path: Path, values: NDArray[np.float32], *, place: Mapping[str, Any] | None = None
) -> None:
    """Write a map as it is: a TIFF of float32.

    Parameters
    ----------
    path : Path
    values : (h, w) float32
    place : mapping, optional
        Where on a slide it lies: written as JSON into the description; ``um_per_px`` also as the
        resolution.
    """
    facts: dict[str, Any] = {}
    if place is not None:
        per_cm = 1e4 / place["um_per_px"]
        facts = {"description": json.dumps(place), "resolution": (per_cm, per_cm)}
        facts["resolutionunit"] = "CENTIMETER"
    with write_aside(path) as scratch:
        tifffile.imwrite(scratch, values, compression="zlib", metadata=None, **facts)


def read_values(path: Path, *, error: type[PipelineError], stage: str) -> NDArray[np.float32]:
    """Read what `write_values` wrote.

    Parameters
    ----------
    path : Path
    error : type
        Kind of the error.
    stage : str
        That makes the map, for the message.

    Raises
    ------
    error
        If it is missing or damaged.
    """
    try:
        with open_file(path, "rb") as file:
            return np.asarray(tifffile.imread(file), np.float32)
    except (OSError, ValueError, tifffile.TiffFileError) as cause:
        raise error(f"{path.name}: its map cannot be read; run {stage} again") from cause


def write_png(path: Path, picture: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write a picture: (h, w), or (h, w, 3) of 8 bits."""
    with write_aside(path) as scratch:
        Image.fromarray(picture).save(scratch, format="PNG")


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write an ``.npz`` as numpy would, but without the time of writing."""
    with write_aside(path) as scratch, zipfile.ZipFile(scratch, "w") as file:
        for name, values in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_OLDEST_DATE)
            file.writestr(info, buffer.getvalue(), compress_type=zipfile.ZIP_DEFLATED)


def lay_out_pictures(
    pictures: Sequence[NDArray[np.uint8]], *, columns: int | None = None
) -> NDArray[np.uint8]:
    """Lay pictures of one size out, row by row.

    Parameters
    ----------
    pictures : n of (h, w) or (h, w, 3)
        Small ones are enlarged, pixel by pixel.
    columns : int, optional
        None: as many as rows, or one more.

    Returns
    -------
    sheet : (height, width) or (height, width, 3)

    Examples
    --------
    >>> lay_out_pictures([np.zeros((40, 48), np.uint8)] * 3).shape
    (86, 102)
    """
    scale = max(1, -(-_LEAST_PX // max(pictures[0].shape[:2])))
    large = [one.repeat(scale, axis=0).repeat(scale, axis=1) for one in pictures]
    height, width, *colours = large[0].shape
    columns = columns or math.ceil(math.sqrt(len(large)))
    rows = math.ceil(len(large) / columns)
    size = (rows * (height + _GAP_PX) - _GAP_PX, columns * (width + _GAP_PX) - _GAP_PX)
    sheet = np.full((*size, *colours), 128, np.uint8)
    for number, picture in enumerate(large):
        row, column = divmod(number, columns)
        top, left = row * (height + _GAP_PX), column * (width + _GAP_PX)
        sheet[top : top + height, left : left + width] = picture
    return sheet
