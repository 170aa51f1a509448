"""Pictures of heatmaps: the slide, and the slide with its scores in a fixed colour scale.

Drawn by Pillow: importing matplotlib takes longer than all other work on a heatmap.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiling.files import write_aside
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.colours import colour_of, find_font

_OPACITY = 0.55  # of the heatmap over the tissue
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_OUTLINE = ((_WHITE, 4), (_BLACK, 2))  # cased, to be seen on tissue and on every colour; px
_LONG_SIDE_PX = 704  # of each picture
_LEAST_PX = (176, 132)  # width, height
_MARGIN_PX, _TITLE_PX, _HEADING_PX = 10, 17, 14
_BAR_PX, _TICK_PX, _TICKS = 24, 12, 5
_SCALE_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)


def compose_overlay(
    thumbnail: NDArray[np.uint8], heatmap: Heatmap, *, limits: tuple[float, float] = (0, 1)
) -> NDArray[np.uint8]:
    """Blend a heatmap into the thumbnail of its slide.

    Parameters
    ----------
    thumbnail : (h, w, 3) uint8
        RGB of the whole slide, however small.
    heatmap : Heatmap
        The colour of a thumbnail pixel is that of the heatmap pixel under its centre.
    limits : (low, high)
        Of the colours.

    Returns
    -------
    overlay : (h, w, 3) uint8
        The thumbnail unchanged where nothing was scored.

    Raises
    ------
    HeatmapError
        If the thumbnail is not an RGB picture.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise HeatmapError(
            f"thumbnail must be (h, w, 3) uint8, got {thumbnail.shape} {thumbnail.dtype}"
        )
    columns = _pixels_under(thumbnail.shape[1], heatmap.slide_size[0], heatmap.pixel_l0[0])
    rows = _pixels_under(thumbnail.shape[0], heatmap.slide_size[1], heatmap.pixel_l0[1])
    values = heatmap.values[np.ix_(rows, columns)]
    scored = ~np.isnan(values)
    colour = colour_of(values[scored], limits) * 255
    overlay = thumbnail.copy()
    overlay[scored] = np.rint((1 - _OPACITY) * thumbnail[scored] + _OPACITY * colour)
    return overlay


def _pixels_under(n_thumbnail: int, slide: int, pixel_l0: int) -> NDArray[np.int64]:
    """Heatmap pixel under the centre of each thumbnail pixel, along one axis."""
    # floor((i + 1/2) * slide / n / pixel), in whole numbers
    twice_centre = (2 * np.arange(n_thumbnail, dtype=np.int64) + 1) * slide
    return twice_centre // (2 * n_thumbnail * pixel_l0)


def draw_overlay(
    path: Path,
    heatmap: Heatmap,
    thumbnail: NDArray[np.uint8],
    *,
    title: str,
    mpp: tuple[float, float] | None = None,
    outlines: Sequence[NDArray[np.float64]] = (),
    limits: tuple[float, float] = (0, 1),
    label: str = "score",
) -> None:
    """Draw the slide and, next to it, the slide with its heatmap, as PNG.

    The colour scale of scores is always 0 to 1, so that pictures can be compared.

    Parameters
    ----------
    path : Path
        Written atomically; equal input gives equal bytes.
    heatmap : Heatmap
    thumbnail : (h, w, 3) uint8
        RGB of the whole slide.
    title : str
    mpp : (x, y), µm per level-0 px, optional
        Draws a scale bar, and the slide in its true proportions; without it pixels are square.
    outlines : sequence of (n, 2), level-0 px
        Rings of the reference annotation, drawn over both pictures.
    limits : (low, high)
        Of the colours.
    label : str
        What the values are.
    """
    overlay = compose_overlay(thumbnail, heatmap, limits=limits)
    width, height = heatmap.slide_size
    tall = 1.0 if mpp is None else mpp[1] / mpp[0]  # of a level-0 px
    size = _picture_size(width, height * tall)
    left, right = (_scale(pixels, size) for pixels in (thumbnail, overlay))
    for picture in (left, right):
        _draw_outlines(picture, heatmap.slide_size, outlines)
    if mpp is not None:
        _draw_scale_bar(left, width * mpp[0])
    sheet = _lay_out(
        ("slide, reference outlined" if outlines else "slide", left),
        ("heatmap over the slide", right),
        title=title,
        bar=_draw_bar(limits, f"{label} (uncoloured: not scored)", length=size[1]),
        stacked=width > 1.6 * height * tall,
    )
    with write_aside(path) as scratch:
        sheet.save(scratch, format="PNG", compress_level=4)


def _picture_size(width: float, height: float) -> tuple[int, int]:
    """Size of each picture; a slide that is much longer than wide is stretched to be seen."""
    factor = _LONG_SIDE_PX / max(width, height)
    least_width, least_height = _LEAST_PX
    if width < height:
        return max(round(factor * width), least_width), _LONG_SIDE_PX
    return _LONG_SIDE_PX, max(round(factor * height), least_height)


def _scale(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Image.Image:
    larger = pixels.shape[1] > size[0] or pixels.shape[0] > size[1]
    method = Image.Resampling.BOX if larger else Image.Resampling.NEAREST
    return Image.fromarray(pixels).resize(size, method)


def _draw_outlines(
    picture: Image.Image, slide_size: tuple[int, int], outlines: Sequence[NDArray[np.float64]]
) -> None:
    """Draw rings in level-0 px over a picture of the whole slide."""
    draw = ImageDraw.Draw(picture)
    factor = np.array(picture.size) / np.array(slide_size)
    rings = [(np.vstack([ring, ring[:1]]) * factor).ravel().tolist() for ring in outlines]
    for colour, width in _OUTLINE:
        for ring in rings:
            draw.line(ring, fill=colour, width=width, joint="curve")


def _draw_scale_bar(picture: Image.Image, width_um: float) -> None:
    """Draw the longest round length that is at most a quarter of the slide's width."""
    fitting = [um for um in _SCALE_BARS_UM if um <= width_um / 4]
    if not fitting:
        return
    length_um = fitting[-1]
    length = length_um / width_um * picture.width
    text = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    x, y = 0.03 * picture.width, 0.97 * picture.height
    draw, font = ImageDraw.Draw(picture), find_font(_TICK_PX)
    draw.rectangle((x - 1, y - 4, x + length + 1, y + 3), fill=_WHITE)
    draw.rectangle((x, y - 3, x + length, y + 2), fill=_BLACK)
    centre = max(x + length / 2, draw.textlength(text, font) / 2 + 2)
    draw.text((centre, y - 6), text, _BLACK, font, anchor="mb", stroke_width=2, stroke_fill=_WHITE)


def _draw_bar(limits: tuple[float, float], label: str, *, length: int) -> Image.Image:
    """Draw the colour scale, upright, with its ticks and label."""
    low, high = limits
    font = find_font(_TICK_PX)
    ticks = [low + (high - low) * i / _TICKS for i in range(_TICKS + 1)]
    texts = [f"{value:.3g}".replace("-", "\N{MINUS SIGN}") for value in ticks]
    length = max(length, round(font.getlength(label)) + 2)
    width = _BAR_PX + 8 + round(max(map(font.getlength, texts)))
    picture = Image.new("RGB", (width + 2 * _TICK_PX, length + 2 * _TICK_PX), _WHITE)
    draw = ImageDraw.Draw(picture)
    values = np.linspace(high, low, length)
    blended = (1 - _OPACITY) + _OPACITY * colour_of(values, limits)
    column = np.rint(255 * blended).astype(np.uint8)[:, None]
    picture.paste(Image.fromarray(np.repeat(column, _BAR_PX, axis=1)), (0, _TICK_PX))
    draw.rectangle((0, _TICK_PX, _BAR_PX, _TICK_PX + length), outline=_BLACK)
    for i, text in enumerate(texts):
        y = _TICK_PX + round(length * (1 - i / _TICKS))
        draw.line((_BAR_PX, y, _BAR_PX + 3, y), fill=_BLACK)
        draw.text((_BAR_PX + 6, y), text, _BLACK, font, anchor="lm")
    upright = Image.new("RGB", (length, 2 * _TICK_PX), _WHITE)
    ImageDraw.Draw(upright).text((length / 2, _TICK_PX), label, _BLACK, font, anchor="mm")
    picture.paste(upright.rotate(90, expand=True), (width, _TICK_PX))
    return picture


def _lay_out(
    *pictures: tuple[str, Image.Image], title: str, bar: Image.Image, stacked: bool
) -> Image.Image:
    """Arrange pictures with headings in a column or a row, with the colour bar to the right."""
    font, small = find_font(_TITLE_PX), find_font(_HEADING_PX)
    (width, height), gap = pictures[0][1].size, _MARGIN_PX
    head, step_y = _TITLE_PX + 3 * gap, _HEADING_PX + gap + height + gap
    n_x, n_y = (1, len(pictures)) if stacked else (len(pictures), 1)
    inner = (n_x * (width + gap), n_y * step_y)
    needed = (inner[0] + bar.width + gap, max(inner[1], bar.height))
    size = (max(needed[0], round(font.getlength(title)) + gap) + gap, head + needed[1] + gap)
    sheet = Image.new("RGB", size, _WHITE)
    draw = ImageDraw.Draw(sheet)
    draw.text((size[0] / 2, gap), title, _BLACK, font, anchor="mt")
    left = (size[0] - needed[0]) // 2
    for number, (heading, picture) in enumerate(pictures):
        column, row = (0, number) if stacked else (number, 0)
        x, y = left + column * (width + gap), head + row * step_y
        draw.text((x + width / 2, y), heading, _BLACK, small, anchor="mt")
        y += _HEADING_PX + gap
        sheet.paste(picture, (x, y))
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline=_BLACK)
    top = head + max(0, (inner[1] - bar.height + _HEADING_PX) // 2)
    sheet.paste(bar, (left + inner[0] + gap // 2, top))
    return sheet
