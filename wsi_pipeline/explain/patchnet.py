"""What PatchNet sees, as pictures and arrays: one global map, one map per filter, their histograms.

Nothing is attributed after the fact: the global map is the probability Q of the patch around each
pixel, and a filter's map the tanh that went into it.

References
----------
.. [1] PatchNet paper 1 (see `wsi_pipeline.models.patchnet`), 3.4 and figures 11 to 13.
.. [2] PatchNet paper 2, appendix B: white speaks for class 1, the global map is not rescaled; the
   mean over all patches that hold a pixel is described, and found inferior.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import uniform_filter

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.base import Found, Method, Settings, Target
from wsi_pipeline.explain.files import as_grey, write_arrays, write_png
from wsi_pipeline.models.patchnet import PatchNet

HISTOGRAM_BINS = 256  # of equal width on [0, 1]; the papers name no number

# A filter whose outputs span less than this, of 2, is constant: what is left is rounding. The dense
# engine's differ from the definition's by about 1e-5 in float32 (docs/log.md).
CONSTANT_SPAN = 1e-4

_PER_ROW = 13  # 65 = 5 rows of 13
_BAR_PX = 32  # height of a histogram in the contact sheet
_GAP_PX = 6
_TITLE_PX = 12


@dataclass(frozen=True)
class PatchNetMaps:
    """What a PatchNet makes of one image."""

    heatmap: NDArray[np.float32]  # (H, W) in (0, 1): Q of the patch around each pixel
    raw: NDArray[np.float32]  # (filters, H, W) in [-1, 1]: the tanh of each filter there

    @property
    def filters(self) -> NDArray[np.float32]:
        """(filters, H, W) in [0, 1]: each filter stretched over this image."""
        return rescale_filters(self.raw)

    @property
    def histograms(self) -> NDArray[np.int64]:
        """(1 + filters, 256): of the global map, then of each rescaled filter; rows sum to H W."""
        return count_histograms(np.concatenate([self.heatmap[None], self.filters]))

    def write(self, folder: Path, stem: str) -> list[Path]:
        """Write all maps; the same maps give the same bytes.

        Returns
        -------
        files : list of Path
            ``<stem>.npz`` with ``heatmap``, ``filters_raw``, ``filters``, ``histograms``,
            ``bin_edges``; ``<stem>_filters.png`` all maps with their histograms on one sheet.
        """
        filters, histograms = self.filters, self.histograms
        arrays, sheet = folder / f"{stem}.npz", folder / f"{stem}_filters.png"
        write_arrays(
            arrays,
            {
                "heatmap": self.heatmap,
                "filters_raw": self.raw,
                "filters": filters,
                "histograms": histograms,
                "bin_edges": np.linspace(0, 1, HISTOGRAM_BINS + 1),
            },
        )
        titles = ["global", *(f"filter {number}" for number in range(len(filters)))]
        write_png(sheet, draw_sheet([self.heatmap, *filters], histograms, titles))
        return [arrays, sheet]


def map_patches(
    model: PatchNet, image: torch.Tensor, *, target: Target, seed: int, config: Settings
) -> Found:
    """Evaluate a PatchNet around every pixel of an image: (1, c, H, W) -> (H, W).

    The map is Q of the patch around each pixel, or 1 - Q where class 0 is explained.
    """
    heatmap, filters = model.dense_map(image[0])
    raw = filters.float().cpu().numpy().astype(np.float32)
    found = PatchNetMaps(heatmap.float().cpu().numpy().astype(np.float32), raw)
    return Found(heatmap if target == 1 else 1 - heatmap, found)


def rescale_filters(raw: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Stretch each filter's map to [0, 1]; a constant one becomes grey, 0.5.

    Parameters
    ----------
    raw : (filters, H, W)

    Returns
    -------
    filters : (filters, H, W) float32
    """
    values = np.asarray(raw, np.float64)
    low = values.min(axis=(1, 2), keepdims=True)
    span = values.max(axis=(1, 2), keepdims=True) - low
    flat = span <= CONSTANT_SPAN
    stretched = (values - low) / np.where(flat, 1, span)
    return np.where(flat, 0.5, stretched).astype(np.float32)


def count_histograms(maps: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Count the pixels of each map in 256 bins on [0, 1]; 1 itself is in the last.

    Parameters
    ----------
    maps : (n, H, W) in [0, 1]

    Returns
    -------
    counts : (n, 256)

    Examples
    --------
    >>> count_histograms(np.array([[[0.0, 1.0]]]))[0, [0, 255]].tolist()
    [1, 1]
    """
    bins = (maps.astype(np.float64) * HISTOGRAM_BINS).astype(np.int64)
    bins = np.minimum(bins, HISTOGRAM_BINS - 1)
    flat = bins.reshape(len(maps), -1)
    return np.stack([np.bincount(row, minlength=HISTOGRAM_BINS) for row in flat])


def average_over_patches(heatmap: NDArray[np.floating[Any]], m: int) -> NDArray[np.float64]:
    """Return each pixel the mean Q of all patches that hold it (paper 2, appendix B).

    The papers describe this and prefer the plain map; it blurs by a square of `m` pixels.

    Parameters
    ----------
    heatmap : (H, W)
        Q of the patch around each pixel.
    m : int
        Side of a patch; odd.

    Returns
    -------
    averaged : (H, W)
    """
    if m < 1 or m % 2 == 0:
        raise ModelError(f"the side of a patch is odd, got m={m}")
    sums = uniform_filter(np.asarray(heatmap, np.float64), m, mode="constant")
    counts = uniform_filter(np.ones(heatmap.shape), m, mode="constant")
    return np.asarray(sums / counts)


# ------------------------------------------------------------ pictures


def draw_sheet(
    maps: Sequence[NDArray[np.float32]], histograms: NDArray[np.int64], titles: Sequence[str]
) -> NDArray[np.uint8]:
    """Draw maps in rows, each with its histogram below (0 left, 1 right, highest bin full).

    Parameters
    ----------
    maps : n of (H, W) in [0, 1]
    histograms : (n, 256)
    titles : n of str

    Returns
    -------
    sheet : (height, width) uint8
    """
    height, width = maps[0].shape
    scale = max(1, -(-96 // max(height, width)))  # small maps are shown larger, pixel by pixel
    cell_width = max(width * scale, 64)
    cell_height = _TITLE_PX + height * scale + _BAR_PX
    rows = -(-len(maps) // _PER_ROW)
    columns = min(len(maps), _PER_ROW)
    size = (columns * (cell_width + _GAP_PX) + _GAP_PX, rows * (cell_height + _GAP_PX) + _GAP_PX)
    sheet = Image.new("L", size, 128)
    draw = ImageDraw.Draw(sheet)
    for number, (values, counts, title) in enumerate(zip(maps, histograms, titles, strict=True)):
        row, column = divmod(number, _PER_ROW)
        x = _GAP_PX + column * (cell_width + _GAP_PX)
        y = _GAP_PX + row * (cell_height + _GAP_PX)
        draw.text((x, y - 1), title, fill=255)
        grey = np.kron(as_grey(values), np.ones((scale, scale), np.uint8))
        sheet.paste(Image.fromarray(grey), (x, y + _TITLE_PX))
        bars = Image.fromarray(_draw_bars(counts, cell_width))
        sheet.paste(bars, (x, y + _TITLE_PX + height * scale))
    return np.asarray(sheet)


def _draw_bars(counts: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Draw a histogram: (_BAR_PX, width), black on white."""
    column = np.arange(HISTOGRAM_BINS) * width // HISTOGRAM_BINS
    sums = np.zeros(width)
    np.add.at(sums, column, counts)
    heights = np.ceil(sums / max(sums.max(), 1) * (_BAR_PX - 2))
    below = np.arange(_BAR_PX)[::-1, None] < heights[None, :]
    return np.where(below, 0, 255).astype(np.uint8)


METHOD = Method(map_patches, low=0, high=1, is_probability=True, models=(PatchNet,))
