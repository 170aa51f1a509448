"""PatchNet's own map of a whole slide: Q of the patch around every step-th pixel.

The slide is treated as one image at the resolution of the training, with zeros beyond it, and is
mapped window by window. Windows overlap by the patch radius, so the map equals that of the whole
image. Only tissue is mapped.

References
----------
.. [1] PatchNet paper 1, 3.4, and paper 2, appendix B: heat maps at stride 1.
"""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from torch import Tensor

from tiling.contracts import OnProgress, Slide, TileGeometry
from tiling.errors import SlideError
from tiling.resample import nearest_finer_level, read_resampled
from wsi_pipeline.cohort.stains import StainMap
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.rasters import rasterise_scores
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.dense.engine import COMPILED_LATTICE
from wsi_pipeline.models.patchnet import PatchNet

log = logging.getLogger(__name__)


WINDOW_PX = 256  # side of a window, px at the target resolution; its surroundings are read twice
CHUNK_PX = 512  # side of what is read from the slide at once
LOST_PX = 32  # largest side of the parts in which undecodable pixels are located
CHUNKS_KEPT = 64  # 64 MiB: two rows of a wide slide's windows seldom need more


@dataclass(frozen=True)
class DenseMap:
    """Result of `map_slide`."""

    heatmap: Heatmap  # Q; NaN where there is no tissue, or pixels could not be decoded
    n_mapped: int  # patches evaluated
    n_unreadable: int  # patches wanted with a pixel that could not be decoded, or one near it
    filters: Mapping[int, Heatmap] = field(default_factory=dict)  # by number: tanh, in [-1, 1]


def check_mappable(model: PatchClassifier) -> PatchNet:
    """Refuse models that have no dense map.

    Raises
    ------
    HeatmapError
        If it is not a PatchNet, or its preprocessing depends on the whole image.
    """
    if not isinstance(model, PatchNet):
        raise HeatmapError(
            f"only PatchNet is mapped without seams, not {type(model).__name__}; choose another "
            "heatmap.method"
        )
    config = None if model.preprocess is None else model.preprocess.config
    whole = model.normalise == "minmax" or (
        config is not None and (config.minmax or config.colour_constancy or config.crop is not None)
    )
    if whole or model.subnet.convolutions[0].in_channels != 3:
        raise HeatmapError(
            "heatmap.dense_step_px: this PatchNet stretches or crops each image as a whole, or has "
            "one channel, so a slide cannot be mapped in windows; train one with normalise: unit "
            "and without preprocess.minmax, colour_constancy and crop"
        )
    return model


def map_slide(
    model: PatchNet,
    slide: Slide,
    coords: NDArray[np.int64],
    *,
    geometry: TileGeometry,
    step_px: int,
    device: torch.device,
    stain_map: StainMap | None = None,
    filters: Sequence[int] = (),
    on_progress: OnProgress | None = None,
) -> DenseMap:
    """Map a slide where it has tiles.

    Parameters
    ----------
    model : PatchNet
        As returned by `check_mappable`; moved to the device.
    slide : open slide
    coords : (N, 2), level-0 px
        Top-left corners of the tiles; the rest of the slide is not mapped.
    geometry : TileGeometry
        Of the tiles.
    step_px : int
        Step between patches, px at the target resolution, at least 1.
    device : torch.device
    stain_map : StainMap, optional
        Applied to the slide's colours, as to the patches of the training.
    filters : sequence of int
        Numbers of filters whose maps are kept too.
    on_progress : function, optional
        Called with windows done, and windows in all.

    Returns
    -------
    map : DenseMap
        A pixel of its heatmap is `step_px` wide, rounded to whole level-0 px, and shows Q of the
        patch nearest to its centre.

    Raises
    ------
    HeatmapError
        If the step is less than 1, or there is no such filter.
    """
    if step_px < 1:
        raise HeatmapError(f"heatmap.dense_step_px must be at least 1, got {step_px}")
    n_filters = len(model.subnet.readout_weight)
    if unknown := [number for number in filters if number >= n_filters]:
        raise HeatmapError(
            f"heatmap.filters: no filter {unknown[0]}; the model has 0 to {n_filters - 1}"
        )
    lattice = _Lattice.over(slide.size, geometry.scale, step_px)
    frame = _frame_of_tiles(coords, slide.size, geometry, lattice)
    kept = {number: replace(frame, values=frame.values.copy()) for number in filters}
    source = _SlidePixels(slide, geometry.scale, lattice.image_px, model, device, stain_map)
    side = max(1, WINDOW_PX // step_px)
    windows = _windows(lattice, frame, side)
    many = len(windows) * side**2 >= COMPILED_LATTICE  # in one window alone there may be few
    engine = model.to(device).eval().subnet.dense_engine(compiled=many if step_px > 1 else None)
    n_mapped = n_unreadable = 0
    for number, window in enumerate(windows, start=1):
        shown = frame.values[window.shown]  # a view: the map takes the place of the frame's ones
        place = window.place(step_px, lattice)
        with torch.no_grad():
            tanh = engine.map_region(source.read, **place, stride=step_px)
            q = model.subnet.combine_filters(tanh).cpu().numpy()
        lost = source.find_lost(**place, radius=(engine.m - 1) // 2)
        if lost is not None:
            q[lost[::step_px, ::step_px]] = np.nan
        wanted = np.zeros(q.shape, np.bool_)
        rows, columns = np.nonzero(~np.isnan(shown))
        wanted[window.rows[rows], window.columns[columns]] = True
        n_unreadable += int((wanted & np.isnan(q)).sum())
        n_mapped += int((wanted & ~np.isnan(q)).sum())
        for filter_number, one in kept.items():
            values = np.where(np.isnan(q), np.nan, tanh[filter_number].cpu().numpy())
            one.values[window.shown] *= values[np.ix_(window.rows, window.columns)]
        shown *= q[np.ix_(window.rows, window.columns)]
        if on_progress:
            on_progress(number, len(windows))
    return DenseMap(frame, n_mapped, n_unreadable, kept)


@dataclass(frozen=True)
class _Lattice:
    """Where patches are centred: every `step` px from half a step on, in an image of the slide."""

    image_px: tuple[int, int]  # (width, height), px at the target resolution
    scale: tuple[float, float]  # (x, y) level-0 px per px
    step: int

    @classmethod
    def over(cls, size: tuple[int, int], scale: tuple[float, float], step: int) -> "_Lattice":
        width, height = (max(1, int(side / s)) for side, s in zip(size, scale, strict=True))
        return cls((width, height), scale, step)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        first = min(self.step // 2, *(side - 1 for side in self.image_px))
        width, height = (len(range(first, side, self.step)) for side in self.image_px)
        return height, width

    def position(self, index: int) -> int:
        """Px of the image at which a row or column lies."""
        return min(self.step // 2, *(side - 1 for side in self.image_px)) + index * self.step

    def nearest(
        self, shape: tuple[int, int], pixel_l0: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column of the lattice nearest to the centre of each heatmap row and column."""
        found = []
        for n, count, pixel, scale in zip(
            shape, self.shape, reversed(pixel_l0), reversed(self.scale), strict=True
        ):
            centre = (np.arange(n) + 0.5) * pixel / scale - 0.5
            index = np.rint((centre - self.position(0)) / self.step)
            found.append(np.clip(index, 0, count - 1).astype(np.int64))
        return found[0], found[1]


def _frame_of_tiles(
    coords: NDArray[np.int64],
    size: tuple[int, int],
    geometry: TileGeometry,
    lattice: _Lattice,
) -> Heatmap:
    """Create the heatmap: 0 on tiles, NaN elsewhere."""
    patch = (geometry.patch_l0, geometry.patch_l0_y)
    x, y = (
        min(max(1, round(lattice.step * scale)), side)
        for scale, side in zip(lattice.scale, patch, strict=True)
    )
    return rasterise_scores(
        coords,
        np.ones(len(coords), np.float32),
        slide_size=size,
        patch_l0=patch,
        stride_l0=(geometry.stride_l0, geometry.stride_l0_y),
        pixel_l0=(x, y),
    )


@dataclass(frozen=True)
class _Window:
    """Neighbouring patches that are mapped at once, and the heatmap pixels that show them."""

    corner: tuple[int, int]  # (row, column) of the lattice
    shown: tuple[slice, slice]  # rows and columns of the heatmap
    rows: NDArray[np.int64]  # of each heatmap row, the patch it shows, from the corner on
    columns: NDArray[np.int64]

    def place(self, step: int, lattice: _Lattice) -> dict[str, int]:
        """Return top, left, height and width, px of the image: to its last patch that is shown."""
        return {
            "top": lattice.position(self.corner[0]),
            "left": lattice.position(self.corner[1]),
            "height": int(self.rows[-1]) * step + 1,
            "width": int(self.columns[-1]) * step + 1,
        }


def _windows(lattice: _Lattice, frame: Heatmap, side: int) -> list[_Window]:
    """Cut the lattice into windows, and keep those that contain pixels to show."""
    n_rows, n_columns = lattice.shape
    rows, columns = lattice.nearest((frame.values.shape[0], frame.values.shape[1]), frame.pixel_l0)
    windows = []
    for top, left in product(range(0, n_rows, side), range(0, n_columns, side)):
        y, x = (
            slice(*np.searchsorted(places, (start, start + side)).tolist())
            for places, start in ((rows, top), (columns, left))
        )
        if not np.isnan(frame.values[y, x]).all():
            windows.append(_Window((top, left), (y, x), rows[y] - top, columns[x] - left))
    return windows


class _SlidePixels:
    """A slide as one image at the target resolution, prepared for the model; zeros beyond it.

    It is read in chunks that are always the same, so that a pixel is the same in every window.
    """

    def __init__(
        self,
        slide: Slide,
        scale: tuple[float, float],
        image_px: tuple[int, int],
        model: PatchNet,
        device: torch.device,
        stain_map: StainMap | None,
    ) -> None:
        self._slide = slide
        self._stain_map = stain_map
        self._scale = scale
        self._width, self._height = image_px
        self._level = nearest_finer_level(slide.level_downsamples, scale)
        self._model = model
        self._device = device
        self._chunks: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._has_lost = False

    def read(self, top: int, left: int, height: int, width: int) -> Tensor:
        """Return a window: (3, height, width) on the device."""
        rows = slice(max(top, 0), min(top + height, self._height))
        columns = slice(max(left, 0), min(left + width, self._width))
        window = torch.zeros((3, height, width), device=self._device)
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return window
        pixels = torch.from_numpy(self._assemble(rows, columns)[..., :3]).to(self._device)
        x = pixels.permute(2, 0, 1)[None].to(torch.float32).div_(255.0)
        window[
            :, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
        ] = self._model.prepare(x)[0]
        return window

    def find_lost(
        self, top: int, left: int, height: int, width: int, *, radius: int
    ) -> NDArray[np.bool_] | None:
        """Find pixels of a window just read with one within `radius` that could not be decoded.

        Returns
        -------
        lost : (height, width), or None for none
        """
        rows = slice(max(top - radius, 0), min(top + height + radius, self._height))
        columns = slice(max(left - radius, 0), min(left + width + radius, self._width))
        lost = self._assemble(rows, columns)[..., 3]
        if not lost.any():
            return None
        near = maximum_filter(lost, 2 * radius + 1, mode="constant")
        y, x = top - rows.start, left - columns.start
        found: NDArray[np.bool_] = near[y : y + height, x : x + width] > 0
        return found

    def _assemble(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, 4), np.uint8)
        for row in range(rows.start // CHUNK_PX, (rows.stop - 1) // CHUNK_PX + 1):
            for column in range(columns.start // CHUNK_PX, (columns.stop - 1) // CHUNK_PX + 1):
                chunk = self._chunk(row, column)
                y0, x0 = row * CHUNK_PX, column * CHUNK_PX
                y = slice(max(rows.start, y0), min(rows.stop, y0 + len(chunk)))
                x = slice(max(columns.start, x0), min(columns.stop, x0 + chunk.shape[1]))
                out[
                    y.start - rows.start : y.stop - rows.start,
                    x.start - columns.start : x.stop - columns.start,
                ] = chunk[y.start - y0 : y.stop - y0, x.start - x0 : x.stop - x0]
        return out

    def _chunk(self, row: int, column: int) -> NDArray[np.uint8]:
        """(height, width, 4): red, green, blue, and 1 where they could not be decoded."""
        key = (row, column)
        if key in self._chunks:
            self._chunks.move_to_end(key)
            return self._chunks[key]
        y, x = row * CHUNK_PX, column * CHUNK_PX
        size = (min(CHUNK_PX, self._width - x), min(CHUNK_PX, self._height - y))
        chunk = np.zeros((size[1], size[0], 4), np.uint8)
        self._fill(chunk, x, y)
        self._chunks[key] = chunk
        if len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)
        return chunk

    def _fill(self, chunk: NDArray[np.uint8], x: int, y: int) -> None:
        """Read a chunk, or a part of it; undecodable pixels are located by quartering."""
        height, width = chunk.shape[:2]
        try:
            pixels = read_resampled(
                self._slide,
                (x * self._scale[0], y * self._scale[1]),
                extent_l0=(width * self._scale[0], height * self._scale[1]),
                out_px=(width, height),
                level=self._level,
            )
        except SlideError as error:
            log.log(logging.DEBUG if self._has_lost else logging.WARNING, "%s", error)
            self._has_lost = True
            if max(height, width) <= LOST_PX:
                chunk[..., 3] = 1
                return
            for rows, columns in product(_halves(height), _halves(width)):
                self._fill(chunk[rows, columns], x + columns.start, y + rows.start)
            return
        chunk[..., :3] = pixels if self._stain_map is None else self._stain_map(pixels)


def _halves(length: int) -> list[slice]:
    middle = (length + 1) // 2
    return [part for part in (slice(0, middle), slice(middle, length)) if part.start < part.stop]
