"""One image file to an array of the size and channels that a data set has."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tiling.files import check_file
from tiling.readers.tiff_images import choose_image
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ManifestError


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
        check_file(path)
        values = _decode(path)
    except Exception as error:  # decoders raise many kinds; each means: no image
        reason = getattr(error, "strerror", None) or str(error)
        reason = reason.removeprefix(f"{path.name}: ").replace(str(path), path.name)
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
        return _read_tiff(path)
    with Image.open(path) as image:
        if image.mode in ("I", "I;16", "I;16B", "F"):
            return _to_uint8(np.asarray(image))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            return _on_white(image.convert("RGBA"))
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _read_tiff(path: Path) -> NDArray[np.uint8]:
    """Read the picture of a TIFF, (H, W, 1 or 3), also where samples are stored apart."""
    with tifffile.TiffFile(path) as file:
        image = choose_image(path.name, file)
        if image.n_focal > 1:
            raise ValueError(
                f"a stack of {image.n_focal} focal planes; save the plane that is needed"
            )
        planes = [_page_samples(page) for page in image.levels[0]]
        if len(planes) > 1:
            return _to_uint8(np.concatenate(planes, axis=2), image.page.bitspersample)
        return _tiff_picture(planes[0], image.page)


def _page_samples(page: tifffile.TiffPage) -> NDArray[Any]:
    """Read a page: (H, W, samples)."""
    values, axes = page.asarray(), page.axes
    return np.moveaxis(values, axes.index("S"), -1) if "S" in axes else values[..., None]


def _tiff_picture(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """Turn a TIFF's samples into a picture on white: (H, W, n) -> (H, W, 1 or 3)."""
    n = _TIFF_SAMPLES.get(page.photometric)
    extra = tuple(page.extrasamples)
    if n is None or values.shape[2] != n + len(extra) or (n == 1 and len(extra) > 1):
        kind = getattr(page.photometric, "name", page.photometric)
        raise ValueError(
            f"{values.shape[2]} samples of the TIFF photometric {kind} are no colours that are "
            "read here; save it as RGB or grey"
        )
    colours = _tiff_colours(values[..., :n], page)
    if not extra or extra[0] not in _TIFF_ALPHA:  # what else it is for, a model cannot know
        return colours
    if values.dtype != np.uint8:
        raise ValueError(f"its transparency is of {values.dtype}; save it with 8 bits, or without")
    alpha = values[..., n : n + 1]
    if extra[0] == tifffile.EXTRASAMPLE.ASSOCALPHA:  # colours that are multiplied with it already
        return np.asarray(np.minimum(colours + (255.0 - alpha), 255), np.uint8)
    rgb = np.repeat(colours, 3 // colours.shape[2], axis=2)
    return _on_white(Image.fromarray(np.concatenate([rgb, alpha], axis=2)))


# Samples that a TIFF's colours take, by its tag PhotometricInterpretation (TIFF 6.0).
_TIFF_SAMPLES: dict[int | None, int] = {
    tifffile.PHOTOMETRIC.MINISWHITE: 1,
    tifffile.PHOTOMETRIC.MINISBLACK: 1,
    tifffile.PHOTOMETRIC.PALETTE: 1,
    tifffile.PHOTOMETRIC.RGB: 3,
    tifffile.PHOTOMETRIC.YCBCR: 3,
    tifffile.PHOTOMETRIC.SEPARATED: 4,
}
_TIFF_ALPHA = (tifffile.EXTRASAMPLE.ASSOCALPHA, tifffile.EXTRASAMPLE.UNASSALPHA)
_JPEG = (tifffile.COMPRESSION.OJPEG, tifffile.COMPRESSION.JPEG)


def _tiff_colours(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[np.uint8]:
    """Turn a TIFF's samples into grey or RGB: (H, W, n) -> (H, W, 1 or 3)."""
    kind = page.photometric
    if kind == tifffile.PHOTOMETRIC.PALETTE:
        # 16 bits, as TIFF 6.0 has it; 8 where no value is above them, as libtiff takes it.
        table = np.asarray(page.colormap)
        table = table >> 8 if table.max() > 255 else table
        return np.moveaxis(table[:, values[..., 0].astype(np.intp)], 0, -1).astype(np.uint8)
    if kind == tifffile.PHOTOMETRIC.MINISWHITE:
        return 255 - _to_uint8(values, page.bitspersample)
    if kind == tifffile.PHOTOMETRIC.YCBCR and page.compression not in _JPEG:  # JPEG's are RGB now
        return _convert("YCbCr", values)
    if kind == tifffile.PHOTOMETRIC.SEPARATED:
        if "InkSet" in page.tags and page.tags["InkSet"].value != 1:
            raise ValueError("its inks are not those of CMYK; save it as RGB")
        return _convert("CMYK", values)
    return _to_uint8(values, page.bitspersample)


def _convert(mode: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn samples of 8 bits into RGB as Pillow does: (H, W, n) -> (H, W, 3)."""
    if values.dtype != np.uint8:
        raise ValueError(f"its colours are {mode} of {values.dtype}; save it as RGB")
    size = (values.shape[1], values.shape[0])
    image = Image.frombytes(mode, size, np.ascontiguousarray(values).tobytes())
    return np.asarray(image.convert("RGB"))


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _to_uint8(values: NDArray[Any], bits: int = 8) -> NDArray[np.uint8]:
    if values.dtype == np.uint8:  # of fewer bits, 1 is not nearly black
        return values if bits >= 8 else np.asarray(values * (255 / (2**bits - 1))).astype(np.uint8)
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
