"""Pictures of heatmaps: the slide, and the slide with its scores in a fixed colour scale."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from tiling.files import write_aside
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError

_OPACITY = 0.55  # of the heatmap over the tissue
_OUTLINE = (("white", 2.4), ("black", 1.1))  # cased, to be seen on tissue and on every colour
_DPI = 110
_LONG_SIDE_IN = 6.4  # long side of each picture, inches
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
    colour = _colour_map()(Normalize(*limits)(values[scored]))[:, :3] * 255
    overlay = thumbnail.copy()
    overlay[scored] = np.rint((1 - _OPACITY) * thumbnail[scored] + _OPACITY * colour)
    return overlay


def _pixels_under(n_thumbnail: int, slide: int, pixel_l0: int) -> NDArray[np.int64]:
    """Heatmap pixel under the centre of each thumbnail pixel, along one axis."""
    # floor((i + 1/2) * slide / n / pixel), in whole numbers
    twice_centre = (2 * np.arange(n_thumbnail, dtype=np.int64) + 1) * slide
    return twice_centre // (2 * n_thumbnail * pixel_l0)


def _colour_map() -> Colormap:
    return matplotlib.colormaps["RdYlBu_r"]  # blue to red; suitable for colour-blind readers


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
    figure, (left, right) = _arrange((width, height * tall))
    figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    _draw_slide(left, thumbnail, heatmap.slide_size, outlines)
    _draw_slide(right, overlay, heatmap.slide_size, outlines)
    left.set_title("slide, reference outlined" if outlines else "slide", fontsize=9)
    right.set_title("heatmap over the slide", fontsize=9)
    left.set_aspect(tall)
    right.set_aspect(tall)
    if mpp is not None:
        _draw_scale_bar(left, heatmap.slide_size, mpp)
    scale = ScalarMappable(Normalize(*limits), _colour_map())
    bar = figure.colorbar(scale, ax=[left, right], alpha=_OPACITY, fraction=0.035, pad=0.015)
    bar.set_label(f"{label} (uncoloured: not scored)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    with write_aside(path) as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a name; it is drawn as a box
        figure.savefig(scratch, format="png", dpi=_DPI, metadata={"Software": None})


def _arrange(slide_size: tuple[float, float]) -> tuple[Figure, tuple[Axes, Axes]]:
    """Two pictures, side by side if the slide is upright, one above the other if it is wide."""
    width, height = slide_size
    stacked = width > 1.6 * height
    long_side = max(width, height)
    wide = max(_LONG_SIDE_IN * width / long_side, 1.6)
    high = max(_LONG_SIDE_IN * height / long_side, 1.2)
    size = (wide + 1.2, 2 * high + 0.9) if stacked else (2 * wide + 1.2, high + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    return figure, (axes[0], axes[1])


def _draw_slide(
    axes: Axes,
    picture: NDArray[np.uint8],
    slide_size: tuple[int, int],
    outlines: Sequence[NDArray[np.float64]],
) -> None:
    """Draw a picture of the whole slide in level-0 px."""
    width, height = slide_size
    axes.imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
    if outlines:
        rings = [np.vstack([ring, ring[:1]]) for ring in outlines]
        for colour, width_pt in _OUTLINE:
            axes.add_collection(LineCollection(rings, colors=colour, linewidths=width_pt))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_scale_bar(axes: Axes, slide_size: tuple[int, int], mpp: tuple[float, float]) -> None:
    """Draw the longest round length that is at most a quarter of the slide's width."""
    width, height = slide_size
    fitting = [um for um in _SCALE_BARS_UM if um <= width * mpp[0] / 4]
    if not fitting:
        return
    length_um = fitting[-1]
    length_l0 = length_um / mpp[0]
    label = f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um} µm"
    x, y = 0.03 * width, 0.97 * height
    cased = [withStroke(linewidth=3, foreground="white")]  # to be read on dark tissue
    for colour, width_pt in (("white", 5), ("black", 3)):
        axes.plot(
            [x, x + length_l0], [y, y], color=colour, linewidth=width_pt, solid_capstyle="butt"
        )
    axes.text(
        x + length_l0 / 2, y - 0.012 * height, label, fontsize=8, ha="center", va="bottom",
        path_effects=cased,
    )  # fmt: skip
