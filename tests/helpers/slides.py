"""Tiny slides for tests: pyramids of known pixels, written with tifffile."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

MPP = 0.5

Pixels = NDArray[np.uint8]


def noise(width: int, height: int, *, seed: int = 0) -> Pixels:
    """(height, width, 3) of independent random pixels: nothing can be read from the wrong place."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def tissue(width: int, height: int, *, seed: int = 0) -> Pixels:
    """White glass with a pink, speckled ellipse in the middle."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    inside = ((x / width - 0.5) / 0.38) ** 2 + ((y / height - 0.5) / 0.38) ** 2 < 1
    pixels = np.full((height, width, 3), 245, np.uint8)
    pixels[inside] = np.array([200, 110, 160]) + rng.integers(-25, 26, (int(inside.sum()), 1))
    return pixels


def halve(pixels: Pixels, times: int = 1) -> Pixels:
    """The mean of blocks of 2 x 2, odd rests dropped, as scanners do."""
    for _ in range(times):
        height, width = (side // 2 * 2 for side in pixels.shape[:2])
        blocks = pixels[:height, :width].reshape(height // 2, 2, width // 2, 2, 3)
        pixels = np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
    return pixels


def write_slide(
    path: Path,
    levels: list[Pixels],
    *,
    mpp: tuple[float, float] | float | None = MPP,
    tile: tuple[int, int] | None = (64, 64),
    subifds: bool = False,
    compression: str | None = "deflate",
    bigtiff: bool = False,
    byteorder: str | None = None,
    **options: Any,
) -> Path:
    """Write a generic tiled (or, with ``tile=None``, striped) TIFF; resolution in its tags."""
    if mpp is not None:
        x, y = mpp if isinstance(mpp, tuple) else (mpp, mpp)
        options["resolution"] = (10_000 / x, 10_000 / y)
        options["resolutionunit"] = "CENTIMETER"
    options.setdefault("photometric", "rgb")
    options.setdefault("metadata", None)
    with tifffile.TiffWriter(path, bigtiff=bigtiff, byteorder=byteorder) as tif:
        for number, level in enumerate(levels):
            tif.write(
                level,
                tile=tile,
                compression=compression,
                subfiletype=int(number > 0),
                subifds=len(levels) - 1 if subifds and number == 0 else None,
                **options,
            )
    return path


def write_svs(
    path: Path,
    levels: list[Pixels],
    *,
    mpp: float | None = MPP,
    tile: tuple[int, int] = (64, 64),
    **options: Any,
) -> Path:
    """Write what OpenSlide takes for an Aperio slide: a description, a thumbnail, tiled levels."""
    height, width = levels[0].shape[:2]
    head = f"Aperio Image Library v11.2.1 \r\n{width}x{height} [0,0 {width}x{height}] (64x64)"
    resolution = "" if mpp is None else f"|MPP = {mpp}"
    options = {"photometric": "rgb", "metadata": None, "compression": "deflate", **options}
    with tifffile.TiffWriter(path) as tif:
        tif.write(
            levels[0],
            tile=tile,
            description=f"{head} RAW/RGB|AppMag = 20|Date = 12/29/09|User = secret{resolution}",
            **options,
        )
        thumbnail = np.ascontiguousarray(levels[0][::4, ::4])
        tif.write(thumbnail, photometric="rgb", compression="jpeg", description=head, metadata=None)
        for level in levels[1:]:
            tif.write(level, tile=tile, description=head, **options)
    return path


def drop_file_tile(path: Path, index: int, *, page: int = 0) -> Path:
    """Make a file tile one that is not stored: 0 bytes at 0."""
    with tifffile.TiffFile(path, mode="r+") as tif:
        for name in ("TileOffsets", "TileByteCounts"):
            tag = tif.pages[page].aspage().tags[name]
            values = list(tag.value)
            values[index] = 0
            tag.overwrite(values)
    return path


def write_ome(
    path: Path, levels: list[Pixels], *, mpp: float = MPP, unit: str = "µm", **options: Any
) -> Path:
    """Write an OME-TIFF whose smaller levels are SubIFDs."""
    size = {"nm": mpp * 1e3, "µm": mpp, "mm": mpp / 1e3}[unit]
    metadata = {f"PhysicalSize{axis}": size for axis in "XY"}
    units = {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "deflate", **options}
    with tifffile.TiffWriter(path, ome=True) as tif:
        tif.write(
            levels[0],
            metadata={"axes": "YXS", **metadata, **units},
            subifds=len(levels) - 1,
            **options,
        )
        for level in levels[1:]:
            tif.write(level, subfiletype=1, metadata=None, **options)
    return path


def break_file_tile(path: Path, index: int, *, page: int = 0) -> Path:
    """Overwrite one file tile's bytes with rubbish that no decoder takes."""
    with tifffile.TiffFile(path) as tif:
        offset = tif.pages[page].dataoffsets[index]
        count = tif.pages[page].databytecounts[index]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xa5" * count)
    return path
