"""Arrays and pictures of explanations as files: the same content, the same bytes."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling.files import write_aside

_OLDEST_DATE = (1980, 1, 1, 0, 0, 0)  # that a zip file can carry


def stretch(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Stretch a map over its image, (H, W) -> [0, 1]; one that is constant becomes 0.5.

    Examples
    --------
    >>> stretch(np.array([[-1.0, 0.0, 3.0]])).tolist()
    [[0.0, 0.25, 1.0]]
    """
    exact = np.asarray(values, np.float64)
    span = exact.max() - exact.min()
    if span <= 1e-6 * np.abs(exact).max():  # what is left is rounding of float32
        return np.full(exact.shape, 0.5)
    return np.asarray((exact - exact.min()) / span)


def as_grey(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Turn values in [0, 1] into 8-bit grey."""
    grey: NDArray[np.uint8] = np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return grey


def write_values(path: Path, values: NDArray[np.float32]) -> None:
    """Write a map as it is: a TIFF of float32."""
    with write_aside(path) as scratch:
        tifffile.imwrite(scratch, values, compression="zlib", metadata=None)


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture, (h, w) or (h, w, 3)."""
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
