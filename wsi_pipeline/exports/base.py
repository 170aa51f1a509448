"""Input of all export formats."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SlideInfo, TileGeometry
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.contracts import Heatmap, Scores
from wsi_pipeline.heatmaps.rasters import rasterise_scores


class Scored(ABC):
    """Rectangles with scores: the patches of a slide, or a whole image."""

    model: str  # name of the model's folder; empty: coordinates alone
    scores: Scores  # of coordinates alone: all NaN

    @property
    @abstractmethod
    def slide_id(self) -> str:
        """Of the slide, or image."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px."""

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) of the scanned part, level-0 px, where the file has it."""
        return None

    @property
    @abstractmethod
    def patch_l0(self) -> tuple[int, int]:
        """(width, height) of a patch, level-0 px."""

    @property
    def scored(self) -> NDArray[np.bool_]:
        """(N,) patches that have a score; the others could not be read."""
        return ~np.isnan(self.scores.scores)

    def classes(self, name: str) -> tuple[list[str], NDArray[np.float32]]:
        """Return the names of the classes, and (N, C) probabilities; of one output, as `name`."""
        if self.scores.probabilities is None:
            return [name], self.scores.scores[:, None]
        return self.scores.attributes["classes"], self.scores.probabilities

    def describe_unscored(self) -> str:
        """Describe how many patches have no score; empty if all have one."""
        lost = int((~self.scored).sum())
        return f"; skipped {lost} without a score" if lost else ""


@dataclass(frozen=True)
class ExportImage(Scored):
    """What is known of a single image, by one model; it is its only patch."""

    image_id: str
    width: int  # px
    height: int
    model: str
    scores: Scores  # one, of the corner (0, 0)

    @property
    def slide_id(self) -> str:
        """Of the image."""
        return self.image_id

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), px."""
        return self.width, self.height

    @property
    def patch_l0(self) -> tuple[int, int]:
        """The whole image."""
        return self.size


@dataclass(frozen=True)
class ExportSlide(Scored):
    """What is known of one slide, by one model."""

    info: SlideInfo
    geometry: TileGeometry
    model: str
    scores: Scores

    @property
    def slide_id(self) -> str:
        """Of the slide."""
        return self.info.slide_id

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px."""
        return self.info.size

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) of the scanned part, level-0 px, where the file has it."""
        return self.info.bounds

    @property
    def patch_l0(self) -> tuple[int, int]:
        """(width, height) of a patch, level-0 px."""
        return self.geometry.patch_l0, self.geometry.patch_l0_y

    def describe_square(self) -> str:
        """Describe the rounding for tools that support only squares; empty for square patches."""
        width, height = self.patch_l0
        if width == height:
            return ""
        return f"; other tools read {width} px squares, though patches are {height} px high"


def leave_unscored(coords: NDArray[np.int64]) -> Scores:
    """All-NaN scores, for formats that export coordinates only."""
    return Scores(np.asarray(coords, np.int64), np.full(len(coords), np.nan, np.float32), {}, {})


@dataclass(frozen=True)
class ExportJob:
    """A slide, the settings of its export, and its heatmap for the formats that need it."""

    slide: ExportSlide
    settings: ExportConfig  # with values of the run filled in

    @cached_property
    def heatmap(self) -> Heatmap:
        """Heatmap of the slide, as the stage ``heatmap`` builds it."""
        geometry = self.slide.geometry
        return rasterise_scores(
            self.slide.scores.coords,
            self.slide.scores.scores,
            slide_size=self.slide.info.size,
            patch_l0=self.slide.patch_l0,
            stride_l0=(geometry.stride_l0, geometry.stride_l0_y),
            overlap=self.settings.overlap or "mean",
        )


# Writes one slide into a folder; returns the files or folders written, and a summary.
Writer = Callable[[ExportJob, Path], tuple[list[Path], str]]
# Writes one image into a folder; gives back the files made.
ImageWriter = Callable[[ExportImage, ExportConfig, Path], list[Path]]
