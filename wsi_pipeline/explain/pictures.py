"""Pictures of explanations: a map over its image, and all methods side by side."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiling.files import write_aside
from wsi_pipeline.explain.files import write_png

OPACITY = 0.5  # of a map over its image
_DPI = 110
_CELL_PX = 160  # longer side of a picture on the sheet
_GAP_PX = 8
_TITLE_PX = 14


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
    figure = Figure(figsize=(5, 4.2), layout="constrained")
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
    path: Path,
    images: Sequence[tuple[str, NDArray[np.uint8]]],
    maps: Sequence[tuple[str, Sequence[NDArray[np.uint8] | None]]],
) -> None:
    """Draw images as rows and methods as columns; white speaks for the class that is explained.

    Parameters
    ----------
    path : Path
    images : n of (title, (h, w, 3) or (h, w, 1))
    maps : k of (method, n of (h, w) or None)
        None: this method has no map of that image.
    """
    side = _CELL_PX + _GAP_PX
    size = ((1 + len(maps)) * side, _TITLE_PX + len(images) * (side + _TITLE_PX))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, (method, _) in enumerate(maps, start=1):
        draw.text((column * side, 0), method, fill="black")
    for row, (title, image) in enumerate(images):
        top = _TITLE_PX + row * (side + _TITLE_PX)
        draw.text((0, top), title, fill="black")
        cells = [np.broadcast_to(image, (*image.shape[:2], 3)), *(of[row] for _, of in maps)]
        for column, cell in enumerate(cells):
            if cell is None:
                continue
            scale = _CELL_PX / max(cell.shape[:2])
            wide, high = (max(1, round(n * scale)) for n in (cell.shape[1], cell.shape[0]))
            small = Image.fromarray(np.ascontiguousarray(cell)).convert("RGB")
            small = small.resize((wide, high), Image.Resampling.NEAREST)
            sheet.paste(small, (column * side, top + _TITLE_PX))
    write_png(path, np.asarray(sheet))
