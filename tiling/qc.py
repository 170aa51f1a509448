"""The quality-control picture: what was taken for tissue, which tiles were cut, their labels."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion

from tiling.files import write_aside

SIDE_PX = 1200  # the longer side of the slide in the picture, about
LINE_PX = 26  # of the legend
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
OUTLINE = (255, 140, 0)  # of the tissue; seen on pink, white and black
UNREADABLE = (160, 0, 200)
COLOUR_BY_LABEL = {1: (220, 30, 30), 0: (0, 150, 70), -1: (120, 120, 120)}
NAME_BY_LABEL = {1: "positive", 0: "negative", -1: "unlabelled or ignored"}
FILL_ALPHA = 70  # of 255: the tissue shows through


def draw_qc(
    thumbnail: NDArray[np.uint8],
    *,
    pixel_l0: tuple[float, float],
    tissue: NDArray[np.bool_],
    coords: NDArray[np.int64],
    tile_l0: tuple[int, int],
    label: NDArray[np.int8],
    unreadable: NDArray[np.bool_],
    title: str,
) -> Image.Image:
    """Draw the tissue's outline and the tiles, coloured by label, over the slide.

    Parameters
    ----------
    thumbnail : (H, W, 3) uint8
    pixel_l0 : (x, y), level-0 px per px of the thumbnail
    tissue : (h, w) bool
        Covers the same slide, perhaps in other steps.
    coords : (n_tiles, 2), level-0 px
    tile_l0 : (width, height), level-0 px
    label : (n_tiles,) 1, 0, -1
    unreadable : (n_tiles,) bool
    title : str
        First line of the legend.

    Returns
    -------
    picture : RGB, the slide with a legend under it
    """
    size, factor = _picture_size(thumbnail, pixel_l0)
    slide = Image.fromarray(thumbnail).resize(size, Image.Resampling.BOX)
    slide = _draw_tiles(slide, factor, coords, tile_l0, label, unreadable)
    slide = _draw_outline(slide, tissue)
    return _add_legend(slide, title, label, unreadable)


def write_qc(path: Path, picture: Image.Image) -> None:
    """Write the picture as PNG, whole or not at all."""
    with write_aside(path) as scratch:
        save_qc(scratch, picture)


def save_qc(file: Path | BinaryIO, picture: Image.Image) -> None:
    """Encode the picture as PNG."""
    picture.save(file, format="PNG", compress_level=3)  # a third of the time


def _picture_size(
    thumbnail: NDArray[np.uint8], pixel_l0: tuple[float, float]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """Size of the slide in the picture (width, height), and picture px per level-0 px (x, y)."""
    height, width = thumbnail.shape[:2]
    zoom = SIDE_PX / max(width, height)
    zoom = float(max(1, int(zoom))) if zoom >= 1 else zoom  # whole steps keep small slides crisp
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    return size, (size[0] / (width * pixel_l0[0]), size[1] / (height * pixel_l0[1]))


def _draw_tiles(
    slide: Image.Image,
    factor: tuple[float, float],
    coords: NDArray[np.int64],
    tile_l0: tuple[int, int],
    label: NDArray[np.int8],
    unreadable: NDArray[np.bool_],
) -> Image.Image:
    layer = Image.new("RGBA", slide.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    for (x, y), kind, bad in zip(coords.tolist(), label.tolist(), unreadable, strict=True):
        colour = UNREADABLE if bad else COLOUR_BY_LABEL[kind]
        x0, y0 = x * factor[0], y * factor[1]
        x1 = max(x0, (x + tile_l0[0]) * factor[0] - 1)
        y1 = max(y0, (y + tile_l0[1]) * factor[1] - 1)
        alpha = FILL_ALPHA if kind == 1 or bad else FILL_ALPHA // 3
        draw.rectangle((x0, y0, x1, y1), fill=(*colour, alpha), outline=(*colour, 255))
    return Image.alpha_composite(slide.convert("RGBA"), layer).convert("RGB")


def _draw_outline(slide: Image.Image, tissue: NDArray[np.bool_]) -> Image.Image:
    mask = np.asarray(Image.fromarray(tissue).resize(slide.size, Image.Resampling.NEAREST))
    edge = mask & ~binary_erosion(mask, np.ones((3, 3), np.bool_), border_value=0)
    pixels = np.array(slide)
    pixels[edge] = OUTLINE
    return Image.fromarray(pixels)


def _add_legend(
    slide: Image.Image, title: str, label: NDArray[np.int8], unreadable: NDArray[np.bool_]
) -> Image.Image:
    readable = label[~unreadable]
    entries = [
        (colour, f"{NAME_BY_LABEL[kind]}: {int((readable == kind).sum())}")
        for kind, colour in COLOUR_BY_LABEL.items()
    ]
    entries += [
        (UNREADABLE, f"unreadable: {int(unreadable.sum())}"),
        (OUTLINE, "outline of tissue"),
    ]
    lines = len(entries) + 1
    picture = Image.new("RGB", (max(slide.width, 420), slide.height + lines * LINE_PX + 8), WHITE)
    picture.paste(slide, (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=15)
    top = slide.height + 6
    draw.text((6, top), title, fill=BLACK, font=font)
    for number, (colour, text) in enumerate(entries, start=1):
        y = top + number * LINE_PX
        draw.rectangle((6, y + 2, 22, y + 18), fill=colour)
        draw.text((30, y), text, fill=BLACK, font=font)
    return picture
