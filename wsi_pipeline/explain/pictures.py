"""Pictures of explanations: a map over its image, and all methods side by side."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tiling.files import write_aside
from wsi_pipeline.explain.files import write_png

OPACITY = 0.5  # of a map over its image
_DPI = 110
_CELL_PX = 160  # longer side of a picture on the sheet
_GAP_PX = 8
_TITLE_PX = 18
_FONT_PX = 12


def find_limits(maps: Sequence[NDArray[np.float32]], *, signed: bool) -> tuple[float, float]:
    """Find the scale that maps share; around 0 where they have signs.

    Examples
    --------
    >>> find_limits([np.array([-1.0, 3.0]), np.array([0.0, 2.0])], signed=True)
    (-3.0, 3.0)
    """
    low = min(float(one.min()) for one in maps)
    high = max(float(one.max()) for one in maps)
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low, low + 1)


def draw_overlay(
    path: Path,
    image: NDArray[np.uint8],
    values: NDArray[np.float32],
    *,
    limits: tuple[float, float],
    title: str,
    um_per_px: float | None = None,
) -> None:
    """Draw a map over its image, with a colour bar and, where the resolution is known, a scale bar.

    Parameters
    ----------
    path : Path
    image : (h, w, 3) or (h, w, 1) uint8
    values : (h, w)
    limits : (low, high)
        Of the colours.
    title : str
    um_per_px : float, optional
    """
    colours = matplotlib.colormaps["RdYlBu_r"]
    height = np.clip(4 * image.shape[0] / image.shape[1] + 0.3, 1.8, 8)  # inches, as the image's
    figure = Figure(figsize=(5, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(np.broadcast_to(image, (*image.shape[:2], 3)))
    axes.imshow(values, cmap=colours, norm=Normalize(*limits), alpha=OPACITY)
    axes.set_axis_off()
    axes.set_title(title.replace("$", r"\$"), fontsize=8)
    figure.colorbar(ScalarMappable(Normalize(*limits), colours), ax=axes, alpha=OPACITY)
    if um_per_px is not None:
        length_um = choose_bar(image.shape[1] * um_per_px)
        y, x = 0.95 * image.shape[0], 0.04 * image.shape[1]
        axes.plot([x, x + length_um / um_per_px], [y, y], color="black", linewidth=3)
        axes.text(x, y, f"{length_um:g} µm", fontsize=8, va="bottom")
    with write_aside(path) as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; it is drawn as a box
        figure.savefig(scratch, format="png", dpi=_DPI, metadata={"Software": None})


def choose_bar(width_um: float) -> float:
    """Choose the length of a scale bar: 1, 2 or 5 times a power of 10, at most 40 % of the width.

    Examples
    --------
    >>> choose_bar(112.0), choose_bar(256.0), choose_bar(4.0)
    (20.0, 100.0, 1.0)
    """
    power = 10.0 ** np.floor(np.log10(0.4 * width_um))
    return float(max(step * power for step in (1, 2, 5) if step * power <= 0.4 * width_um))


def draw_sheet(
    path: Path, rows: Sequence[tuple[Sequence[str], Sequence[NDArray[np.uint8] | None]]]
) -> None:
    """Draw pictures in rows, one below the other in each column.

    Parameters
    ----------
    path : Path
    rows : n of (captions, pictures)
        Captions stand above the pictures of their columns, shortened to fit; a single one has the
        whole row. Pictures are (h, w), (h, w, 1) or (h, w, 3), enlarged or reduced to one longer
        side; None: an empty place.
    """
    side, font = _CELL_PX + _GAP_PX, ImageFont.load_default(_FONT_PX)
    columns = max((max(len(captions), len(pictures)) for captions, pictures in rows), default=1)
    cells = [[one if one is None else _fit(one) for one in pictures] for _, pictures in rows]
    heights = [max((one.height for one in row if one is not None), default=0) for row in cells]
    tops = np.cumsum([0, *(_TITLE_PX * bool(row[0]) for row in rows)])
    tops += np.cumsum([_GAP_PX, *(height + _GAP_PX * (height > 0) for height in heights)])
    sheet = Image.new("RGB", (max(1, columns) * side, int(tops[-1])), "white")
    draw = ImageDraw.Draw(sheet)
    for top, (captions, _), row in zip(tops.tolist(), rows, cells, strict=False):
        room = (columns if len(captions) == 1 else 1) * side - _GAP_PX
        for column, caption in enumerate(captions):
            short = _shorten(caption, room, font)
            draw.text((column * side + _GAP_PX // 2, top), short, fill="black", font=font)
        for column, picture in enumerate(row):
            if picture is not None:
                below = top + _TITLE_PX * bool(captions)
                sheet.paste(picture, (column * side + _GAP_PX // 2, below))
    write_png(path, np.asarray(sheet))


def _fit(picture: NDArray[np.uint8]) -> Image.Image:
    flat = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
    scale = _CELL_PX / max(flat.shape[:2])
    size = (max(1, round(flat.shape[1] * scale)), max(1, round(flat.shape[0] * scale)))
    image = Image.fromarray(np.ascontiguousarray(flat)).convert("RGB")
    return image.resize(size, Image.Resampling.NEAREST)


def _shorten(text: str, room: int, font: Any) -> str:
    """Cut the end of a text off that is wider than `room` px."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"
