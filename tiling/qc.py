"""The quality-control picture: what was taken for tissue, which tiles were cut, their labels."""

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiling.files import write_aside

SIDE_PX = 1200  # the longer side of the slide in the picture, about
LINE_PX = 26  # of the legend
MARGIN_PX = 8
MIN_WIDTH_PX = 620  # of the legend
WHITE = (255, 255, 255)
BLACK = (0, 0, 0)
# Distinguishable with any colour vision: M. Okabe and K. Ito, "Color universal design", 2008.
OUTLINE = (0, 190, 110)  # of the tissue; seen on pink, white and black
UNREADABLE = (240, 200, 0)
COLOUR_BY_LABEL = {1: (213, 62, 0), 0: (0, 114, 178), -1: (110, 110, 110)}
NAME_BY_LABEL = {1: "positive", 0: "negative", -1: "unlabelled or ignored"}
FILL_ALPHA = {1: 80, 0: 16, -1: 90}  # of 255: the tissue shows through
UNREADABLE_ALPHA = 120
SMALL_TILE_PX = 5  # smaller tiles have no line around them: lines would be all that is seen
GRID_ALPHA = {1: 255, 0: 150, -1: 200}
LEGEND_PX = 430  # of both columns
OUTLINE_PX = 2
LARGE_PX = 2**25  # averaged before Pillow gets it
BAR_SHARE = 0.25  # of the picture's width, that the scale bar takes at most


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
    mpp: float,
    tumour: Any = None,
) -> Image.Image:
    """Draw tissue, tiles coloured by label, and the annotation over the slide.

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
    mpp : µm per level-0 px along x
        For the scale bar.
    tumour : shapely area, level-0 px
        What is annotated; None if nothing is.

    Returns
    -------
    picture : RGB, the slide with a legend and a scale bar under it
    """
    size, factor = _picture_size(thumbnail, pixel_l0)
    small, step = _shrink(thumbnail, size)
    covered = (0, 0, thumbnail.shape[1] / step, thumbnail.shape[0] / step)  # of `small`
    slide = Image.fromarray(small).resize(size, Image.Resampling.BOX, covered)
    slide = _draw_tiles(slide, factor, coords, tile_l0, label, unreadable)
    slide = _draw_outline(slide, tissue)
    _draw_annotation(slide, factor, tumour)
    entries = _legend(label, unreadable, annotated=tumour is not None)
    return _add_legend(slide, title, entries, um_per_px=mpp / factor[0])


def write_qc(path: Path, picture: Image.Image) -> None:
    """Write the picture as PNG atomically."""
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


def _shrink(thumbnail: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], int]:
    """Average squares of pixels in a large picture, which stays larger than `size`.

    Pillow needs four bytes a pixel, and a large overview has a hundred million.

    Returns
    -------
    picture : (h, w, 3) uint8
    side : int
        Of the squares.
    """
    if thumbnail.shape[0] * thumbnail.shape[1] <= LARGE_PX:
        return thumbnail, 1
    step = min(thumbnail.shape[1] // size[0], thumbnail.shape[0] // size[1])
    height, width = (-(-side // step) for side in thumbnail.shape[:2])
    small = np.empty((height, width, 3), np.uint8)
    for row in range(height):  # the last row and column average what there is
        band = thumbnail[row * step : (row + 1) * step]
        total = band.sum(axis=0, dtype=np.float64)
        edges = np.arange(0, thumbnail.shape[1], step)
        n_px = len(band) * np.diff(np.append(edges, thumbnail.shape[1]))
        small[row] = np.rint(np.add.reduceat(total, edges, axis=0) / n_px[:, None])
    return small, step


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
    lines = min(tile_l0[0] * factor[0], tile_l0[1] * factor[1]) >= SMALL_TILE_PX
    # What matters most last: overlapping tiles hide each other.
    order = np.lexsort((unreadable, label == 1))
    for row in order.tolist():
        x, y = coords[row].tolist()
        kind = int(label[row])
        colour, alpha = COLOUR_BY_LABEL[kind], FILL_ALPHA[kind]
        if unreadable[row]:
            colour, alpha = UNREADABLE, UNREADABLE_ALPHA
        x0, y0 = x * factor[0], y * factor[1]
        x1 = max(x0, (x + tile_l0[0]) * factor[0] - 1)
        y1 = max(y0, (y + tile_l0[1]) * factor[1] - 1)
        line = (*colour, GRID_ALPHA[kind]) if lines else None
        draw.rectangle((x0, y0, x1, y1), fill=(*colour, alpha), outline=line)
    return Image.alpha_composite(slide.convert("RGBA"), layer).convert("RGB")


def _draw_outline(slide: Image.Image, tissue: NDArray[np.bool_]) -> Image.Image:
    rows, columns = (
        ((np.arange(n) + 0.5) * side / n).astype(np.int64)
        for n, side in zip(slide.size[::-1], tissue.shape, strict=True)
    )
    mask = tissue[rows[:, None], columns]
    edge = mask & ~_erode(mask, OUTLINE_PX)
    pixels = np.array(slide)
    pixels[edge] = OUTLINE
    return Image.fromarray(pixels)


def _erode(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Take away a rim; beyond the picture's edge there is no tissue."""
    height, width = mask.shape
    padded = np.pad(mask, by)
    across = np.logical_and.reduce([padded[:, i : i + width] for i in range(2 * by + 1)])
    inner: NDArray[np.bool_] = np.logical_and.reduce(
        [across[i : i + height] for i in range(2 * by + 1)]
    )
    return inner


def _draw_annotation(slide: Image.Image, factor: tuple[float, float], tumour: Any) -> None:
    """Draw black lines cased in white: seen on every colour."""
    if tumour is None or tumour.is_empty:
        return
    import shapely

    drawn = shapely.simplify(tumour, 0.5 / max(factor))
    rings = shapely.get_rings(shapely.get_parts(drawn))
    outlines = [
        [(x * factor[0], y * factor[1]) for x, y in shapely.get_coordinates(ring).tolist()]
        for ring in rings
    ]
    draw = ImageDraw.Draw(slide)
    for colour, width in ((WHITE, 4), (BLACK, 2)):
        for outline in outlines:
            draw.line(outline, fill=colour, width=width, joint="curve")


def _legend(
    label: NDArray[np.int8], unreadable: NDArray[np.bool_], *, annotated: bool
) -> list[tuple[tuple[int, int, int], str]]:
    readable = label[~unreadable]
    entries = [
        (colour, f"{NAME_BY_LABEL[kind]}: {int((readable == kind).sum())}")
        for kind, colour in COLOUR_BY_LABEL.items()
    ]
    if unreadable.any():
        entries.append((UNREADABLE, f"unreadable: {int(unreadable.sum())}"))
    entries.append((OUTLINE, "outline of tissue"))
    if annotated:
        entries.append((BLACK, "annotation"))
    return entries


def _add_legend(
    slide: Image.Image,
    title: str,
    entries: list[tuple[tuple[int, int, int], str]],
    *,
    um_per_px: float,
) -> Image.Image:
    """Put the title and the entries, in two columns, and a scale bar under the slide."""
    font = ImageFont.load_default(size=15)
    rows = -(-len(entries) // 2)
    width = max(slide.width, MIN_WIDTH_PX, math.ceil(font.getlength(title)) + 2 * MARGIN_PX)
    height = slide.height + (rows + 1) * LINE_PX + 2 * MARGIN_PX
    picture = Image.new("RGB", (width, height), WHITE)
    picture.paste(slide, (0, 0))
    draw = ImageDraw.Draw(picture)
    top = slide.height + MARGIN_PX
    draw.text((MARGIN_PX, top), title, fill=BLACK, font=font)
    for number, (colour, text) in enumerate(entries):
        x = MARGIN_PX + 220 * (number // rows)
        y = top + (1 + number % rows) * LINE_PX
        draw.rectangle((x, y + 2, x + 16, y + 18), fill=colour)
        draw.text((x + 24, y), text, fill=BLACK, font=font)
    _draw_scale_bar(draw, font, right=width - MARGIN_PX, top=top + LINE_PX, um_per_px=um_per_px)
    return picture


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw,
    font: Any,
    *,
    right: int,
    top: int,
    um_per_px: float,
) -> None:
    longest_px = min(BAR_SHARE * right, right - LEGEND_PX)
    length_um = scale_bar_um(longest_px * um_per_px)
    left = right - length_um / um_per_px
    y = top + 4
    draw.line((left, y, right, y), fill=BLACK, width=3)
    for x in (left, right):
        draw.line((x, y - 5, x, y + 5), fill=BLACK, width=2)
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} microns"
    draw.text((right - font.getlength(text), y + 8), text, fill=BLACK, font=font)


def scale_bar_um(longest_um: float) -> float:
    """Find the longest of 1, 2, 5, 10, ... µm (or their tenths, ...) that is not too long.

    Examples
    --------
    >>> scale_bar_um(4300), scale_bar_um(0.15)
    (2000.0, 0.1)
    """
    power = 10.0 ** math.floor(math.log10(longest_um))
    return max((step * power for step in (1, 2, 5) if step * power <= longest_um), default=power)
