"""Slides for the benchmarks: real H&E mirrored to any size, with a little grain; not run itself.

JPEG tiles, quality 80, chroma halved, pyramid 1, 4, 16, as Aperio writes them.
"""

import os
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import tifffile

_DATA = os.environ.get("WSI_PIPELINE_DATA", Path(__file__).parents[1] / "../shared/data")
SOURCE = Path(_DATA) / "slides" / "CMU-1-Small-Region.svs"
GRAIN = 3  # standard deviation of the noise, levels


def read_source():
    """The real slide's pixels, (H, W, 3)."""
    with openslide.OpenSlide(SOURCE) as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))


def mirrored(source, x, y, width, height, step=1):
    """A region of the source mirrored without end, or every `step`-th pixel of it."""
    rows, columns = source.shape[:2]
    down, across = np.arange(y, y + height, step), np.arange(x, x + width, step)
    down, across = down % (2 * rows), across % (2 * columns)
    down = np.where(down < rows, down, 2 * rows - 1 - down)
    across = np.where(across < columns, across, 2 * columns - 1 - across)
    return source[down[:, None], across]


def tiles_of(source, side, downsample, tile, seed, grain):
    """The tiles of one level, row by row; white beyond the slide."""
    rng = np.random.default_rng(seed)
    size = side // downsample
    noise = rng.normal(0, grain / downsample, (16, tile, tile, 3)).round().astype(np.int16)
    for y in range(0, size, tile):
        for x in range(0, size, tile):
            wide = mirrored(source, x * downsample, y * downsample, *2 * (tile * downsample,))
            if downsample > 1:
                wide = wide.reshape(tile, downsample, tile, downsample, 3).mean((1, 3))
            pixels = wide.astype(np.int16) + noise[rng.integers(len(noise))]
            pixels = np.clip(pixels, 0, 255).astype(np.uint8)
            pixels[max(0, size - y) :] = 255
            pixels[:, max(0, size - x) :] = 255
            yield pixels


def make_slide(path, side, *, tile=240, mpp=0.5, seed=0, grain=GRAIN):
    """Write an Aperio-like SVS of `side` x `side` px; `grain`: deviation of the noise, levels."""
    source = read_source()
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        for level, downsample in enumerate((1, 4, 16)):
            size = side // downsample
            head = f"Aperio Image Library v11.2.1 \r\n{size}x{size} [0,0 {size}x{size}]"
            tif.write(
                tiles_of(source, side, downsample, tile, seed + level, grain),
                shape=(size, size, 3),
                dtype=np.uint8,
                tile=(tile, tile),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                compressionargs={"level": 80},
                metadata=None,
                description=f"{head} ({tile}x{tile}) JPEG/YCC Q=80|AppMag = 20|MPP = {mpp}",
            )
            if level == 0:  # Aperio's second image is a thumbnail, which OpenSlide leaves out
                small = mirrored(source, 0, 0, side, side, step=side // 256)
                tif.write(np.ascontiguousarray(small), photometric="rgb", description=head)
    return path


GIGA_SIZE = (150_000, 153_000)  # 23 gigapixels
_PERIOD = 6144  # level-0 px after which a giga slide repeats
_GIGA_TILE = 256


def make_giga(path, size=GIGA_SIZE, *, mpp=0.25, grain=10):
    """Write a BigTIFF pyramid (1, 4, 16, 64) of JPEG tiles that repeat every 6144 level-0 px.

    The directory has every tile, the file the bytes of the first period only: 640 tiles of real
    H&E with grain, about 15 MB. Levels are means of each other.
    """
    if str(Path(__file__).parents[1]) not in sys.path:
        sys.path.append(str(Path(__file__).parents[1]))
    from tests.helpers.giga import begin_file, write_level

    base = mirrored(read_source(), 0, 0, _PERIOD, _PERIOD)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        link = begin_file(file)
        for downsample in (1, 4, 16, 64):
            side = _PERIOD // downsample
            small = base.reshape(side, downsample, side, downsample, 3).mean((1, 3))
            repeats = 3 * _GIGA_TILE // np.gcd(side, 3 * _GIGA_TILE) if side < 1024 else 1
            block = np.tile(small, (repeats, repeats, 1))
            block += rng.normal(0, grain / downsample**0.5, block.shape)
            pixels = np.clip(block.round(), 0, 255).astype(np.uint8)
            n = len(pixels) // _GIGA_TILE
            places = []
            for row in np.split(pixels, n):
                for tile in np.split(row, n, axis=1):
                    data = imagecodecs.jpeg8_encode(
                        np.ascontiguousarray(tile), level=80, subsampling="420"
                    )
                    places.append((file.tell(), len(data)))
                    file.write(data)
            across, down = (-(-(length // downsample) // _GIGA_TILE) for length in size)
            kind = (np.arange(down)[:, None] % n) * n + np.arange(across) % n
            link = write_level(
                file, link, downsample, size, _GIGA_TILE, np.array(places)[kind.ravel()], mpp,
                is_jpeg=True,
            )  # fmt: skip
    return path
