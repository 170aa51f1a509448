"""One image file to an array of the size and channels that a data set has."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from wsi_pipeline.errors import ManifestError
from wsi_pipeline.settings import ImagesConfig


def read_image(path: Path, *, channels: int) -> NDArray[np.uint8]:
    """Decode an image.

    Values of 16 bits or floats, as microscopes write them, are stretched to 0 to 255 over the
    image. Transparent pixels are white.

    Parameters
    ----------
    path : Path
    channels : 1 or 3
        A colour image asked for as one channel becomes its luma; a grey one asked for as three is
        repeated.

    Returns
    -------
    image : (H, W, channels) uint8

    Raises
    ------
    ManifestError
        If the file cannot be decoded as one image.
    """
    try:
        values = _decode(path)
    except Exception as error:  # decoders raise many kinds; each means: no image
        reason = str(error).replace(str(path), path.name)  # no folder of this machine is told
        raise ManifestError(f"{path.name}: cannot be decoded ({reason})") from error
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[2] not in (1, 3) or 0 in values.shape:
        raise ManifestError(
            f"{path.name}: an image has one or three channels, this one is {values.shape}"
        )
    if values.shape[2] == channels:
        return np.ascontiguousarray(values)
    if channels == 3:
        return np.repeat(values, 3, axis=2)
    return np.asarray(Image.fromarray(values).convert("L"))[..., None]


def _decode(path: Path) -> NDArray[np.uint8]:
    if path.suffix.lower() in (".tif", ".tiff"):
        values = _read_tiff(path)
        if values.ndim == 3 and values.shape[2] == 4 and values.dtype == np.uint8:
            return _on_white(Image.fromarray(values))
        return _to_uint8(values)
    with Image.open(path) as image:
        if image.mode in ("I", "I;16", "I;16B", "F"):
            return _to_uint8(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            return _on_white(image.convert("RGBA"))
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _read_tiff(path: Path) -> NDArray[Any]:
    """Read the picture of a TIFF, (H, W) or (H, W, samples), also where samples lie apart."""
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        values, axes = series.asarray(), series.axes
    if "S" in axes:
        values = np.moveaxis(values, axes.index("S"), -1)
    if len(axes.replace("S", "")) != 2:
        raise ValueError(f"one picture is wanted, its shape is {values.shape}")
    return values


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    exact = values.astype(np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("it holds values that are no numbers")
    low, high = exact.min(), exact.max()
    stretched = (exact - low) / (high - low) if high > low else np.zeros_like(exact)
    return np.asarray(np.round(stretched * 255), np.uint8)


def fit_image(image: NDArray[np.uint8], config: ImagesConfig, name: str) -> NDArray[np.uint8]:
    """Bring an image to the data set's size; as it is where there is none.

    Parameters
    ----------
    image : (H, W, C) uint8
    config : ImagesConfig
    name : str
        For errors.

    Raises
    ------
    ManifestError
        If it is too large to be padded or too small to be cropped.
    """
    if config.size is None or image.shape[:2] == config.size:
        return image
    height, width = config.size
    if config.fit == "resize":
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        resized = np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))
        return resized[..., None] if resized.ndim == 2 else resized
    room = (height - image.shape[0], width - image.shape[1])
    wrong = min(room) < 0 if config.fit == "pad" else max(room) > 0
    if wrong:
        raise ManifestError(
            f"{name}: {image.shape[1]} x {image.shape[0]} px cannot be "
            f"{'padded' if config.fit == 'pad' else 'cropped'} to {width} x {height} px; set "
            "another images.size, or images.fit: resize"
        )
    if config.fit == "pad":
        before = [r // 2 for r in room]
        edges = [(b, r - b) for b, r in zip(before, room, strict=True)]
        return np.pad(image, (*edges, (0, 0)))
    top, left = (-r // 2 for r in room)
    return image[top : top + height, left : left + width]
