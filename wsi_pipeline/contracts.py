"""Data passed between the packages of `wsi_pipeline`: frozen dataclasses with shapes and units."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress, TileConfig, Unclassified

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Definition = Literal["camelyon16", "patch"]  # of the FROC
DEFINITIONS: tuple[Definition, ...] = ("camelyon16", "patch")
Denominator = Literal["all", "normal"]  # slides that false positives are divided by
AtRate = Literal["linear", "step"]  # how an FROC curve is read between its points
# Slides and patients that a model was trained on, as in checkpoints and score files.
PROVENANCE = ("train_slides", "val_slides", "train_patients", "val_patients")
PrintLine = Callable[[str], None]


@dataclass(frozen=True)
class Reporter:
    """Shows what a piece of work does: how far it is (by calling it), and lines of text."""

    on_progress: OnProgress
    line: PrintLine

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` are done."""
        self.on_progress(done, total)


@dataclass(frozen=True)
class SlideEntry:
    """One row of the manifest."""

    slide_id: str
    path: Path
    patient: str  # group for splits; the slide_id where the manifest has none
    label: int | None = None  # 1 tumour, 0 normal, None unknown
    annotation: Path | None = None
    split: Split | None = None
    mpp: float | None = None  # overrides or supplies the file's own, µm per level-0 px
    unclassified: Unclassified | None = None  # overrides `TileConfig.unclassified`

    def tile_config(self, config: TileConfig) -> TileConfig:
        """Settings of the tiling of this slide: the config's, where its row sets none."""
        if self.unclassified is None:
            return config
        return replace(config, unclassified=self.unclassified)


@dataclass(frozen=True)
class Rule:
    """When a score is a positive decision: class 1, tumour."""

    threshold: float
    strict: bool = False  # iff score > threshold; else iff score >= threshold

    def decide(self, scores: float | NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Decide on each score; NaN is negative.

        Scores are compared in float64, as the tables hold them: float32 0.7 is 0.69999999, which
        does not reach 0.7.
        """
        values = np.asarray(scores, np.float64)
        return values > self.threshold if self.strict else values >= self.threshold

    def __str__(self) -> str:
        return f"score {'>' if self.strict else '>='} {self.threshold:g}"


@dataclass(frozen=True)
class Scores:
    """Scores of one slide's patches; the content of a score file."""

    coords: NDArray[np.int64]  #: (N, 2) x, y, level-0 px
    scores: NDArray[np.float32]  #: (N,) in [0, 1], higher is more suspicious; NaN = unreadable
    attributes: dict[str, Any]  #: file attributes: model, checkpoint digest, precision, settings
    coords_attributes: dict[str, Any]  #: CLAM's: patch_size, patch_level, downsample, ...
    #: (N, C) of the classes in attributes["classes"]; None: a model of one output
    probabilities: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Heatmap:
    """Scores arranged as an image of a slide."""

    values: NDArray[np.float32]  #: (H, W); NaN = not scored
    pixel_l0: tuple[int, int]  #: (x, y) level-0 px that one heatmap pixel covers
    slide_size: tuple[int, int]  #: (width, height), level-0 px
    mpp: tuple[float, float] | None = None  #: (x, y), µm per level-0 px; None: not known


@dataclass(frozen=True)
class Detections:
    """Points detected on one slide, in the order of detection."""

    x: NDArray[np.int64]  #: (N,) level-0 px
    y: NDArray[np.int64]  #: (N,)
    scores: NDArray[np.float64]  #: (N,)


@dataclass(frozen=True)
class OperatingPoint:
    """The point of an FROC curve with the most false positives that a rate allows."""

    threshold: float  #: detections of at least this score count; +inf (null in JSON): none does
    avg_fps: float  #: mean false positives per slide, at most the rate
    sensitivity: float  #: at this threshold


@dataclass(frozen=True)
class FrocCurve:
    """An FROC curve and its counts; the content of ``froc.json``."""

    definition: Definition
    fp_denominator: Denominator
    at_rate: AtRate
    n_slides: int
    n_normal: int
    n_lesions: int  #: ITC left out
    n_itc: int
    thresholds: NDArray[np.float64]  #: (K,) descending; the first is +inf (null in JSON)
    avg_fps: NDArray[np.float64]  #: (K,) mean false positives per slide; NaN where undefined
    sensitivity: NDArray[np.float64]  #: (K,)
    sensitivity_at: dict[str, float | None]  #: by rate, "0.25" ... "8"; `score` is their mean
    operating_points: dict[str, OperatingPoint | None]  #: by rate; None where undefined
    score: float | None
    score_ci95: tuple[float, float] | None = None
    undefined: dict[str, str] = field(default_factory=dict)  #: metric -> reason
    bootstrap: dict[str, Any] | None = None  #: replicates, skipped, seed, unit, intervals by rate
    #: Pointwise 95 % band: avg_fps, low, high, one list each
    band: dict[str, list[float]] | None = None
