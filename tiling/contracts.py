"""What crosses a boundary of `tiling`: frozen values, each field with its shape, unit and frame.

Frames: a position is (x, y), the top-left corner, in level-0 pixels of OpenSlide's frame;
arrays are (row, column). Lengths have their unit as suffix: `_l0` level-0 px, `_px` px at
`target_mpp`, `_um` microns.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from tiling.urls import local_path

SCHEMA = "wsi-pipeline/patch-store/1"

OnProgress = Callable[[int, int], None]  # called with what is done, and of how much
StrPath = str | os.PathLike[str]  # a path, as the public functions take it
PixelArrays = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]  # n pictures of one shape

LabelRule = Literal["inner", "centre", "fraction"]
EdgeRule = Literal["drop", "pad"]
StoreKind = Literal["patches", "coords"]
CLASS_NAMES = ("normal", "tumour")  # of patches, by label
# Two resolutions are one if they differ by less than this share: rounding in a file, not a scale.
SAME_MPP = 1e-3
AnnotationOrigin = Literal["level0", "bounds"]
Unclassified = Literal["auto", "tumour", "region"]


@dataclass(frozen=True)
class SlideInfo:
    """What is known of a slide without reading its pixels; nothing that identifies a patient."""

    slide_id: str
    file_name: str  # no folder
    vendor: str
    size: tuple[int, int]  # (width, height), level-0 px
    mpp: tuple[float, float]  # (x, y), µm per level-0 px
    level_sizes: tuple[tuple[int, int], ...]  # (width, height) of each level
    level_downsamples: tuple[float, ...]  # level-0 px per px of each level, >= 1
    bounds: (
        tuple[int, int, int, int] | None
    )  # (x, y, width, height) l0 of the scanned part, if stated
    objective_power: float | None  # shown, never computed with
    fingerprint: str  # of all bytes of its files, not of their paths or dates


class Slide(Protocol):
    """An open slide. Every reader passes the same contract test, with OpenSlide as the oracle."""

    @property
    def vendor(self) -> str:
        """Name of the scanner's maker as OpenSlide spells it, e.g. ``aperio``."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px; None if not recorded."""

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each stored level, the finest first."""

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 px per px of each stored level."""

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) level-0 px of the scanned part, if recorded."""

    @property
    def objective_power(self) -> float | None:
        """Objective power (40 for 40x), if recorded."""

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px as the file states it, even if it cannot be a microscope's."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about the file and what is missing of it, one sentence each."""

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read pixels.

        Parameters
        ----------
        location : (x, y), level-0 px
            Top-left corner; may lie outside the slide.
        level : int
            Index into the stored pyramid.
        size : (width, height), px at that level

        Returns
        -------
        region : (height, width, 3) uint8
            RGB; transparent, missing and outside pixels are white.

        Raises
        ------
        SlideError
            If the file's pixels cannot be decoded there. The slide stays usable for other regions.
        """

    def read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        """Read pixels as `read_region` does, into the caller's memory.

        Parameters
        ----------
        out : (height, width, 3) uint8
            Filled; need not be contiguous.
        """

    def read_level(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a level's own pixels, where `read_region` would blend them.

        As `read_region`, but for `corner`: (x, y), px of that level.

        Raises
        ------
        SlideError
            If the reader reads this level by level-0 positions only, or cannot decode it there.
        """

    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exception: object) -> None: ...


@dataclass(frozen=True)
class TissueConfig:
    """Detection of tissue on a thumbnail."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  read by pydantic on the class

    mpp: float = 8.0  # µm per px of the thumbnail the mask is made on
    min_saturation: float = 0.05  # HSV saturation against glass: paler is not tissue
    min_object_um2: float = 10_000.0  # smaller specks are dirt (a square of 100 µm)
    max_hole_um2: float = 40_000.0  # smaller holes (lumina, vessels) are filled
    min_fraction: float = 0.1  # a tile is kept if at least this share of it is tissue
    # Folder of <slide_id>.tif, .tiff, .png or .geojson with tissue masks; None: detect tissue.
    mask: Path | None = None

    def __post_init__(self) -> None:
        if self.mask is not None:  # a str is taken, too
            object.__setattr__(self, "mask", local_path(self.mask, "tissue masks"))


@dataclass(frozen=True)
class TileConfig:
    """How a slide is cut into labelled patches."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    target_mpp: float = 0.5  # µm per px of a patch
    patch_px: int = 512  # side of a patch, px at target_mpp (lecture: 512)
    stride_px: int | None = None  # step, px at target_mpp; None: patch_px (no overlap)
    inner_px: int | None = (
        None  # side of the centred inner square; None: half of patch_px (lecture)
    )
    label_rule: LabelRule = "inner"
    positive_fraction: float = 0.5  # label_rule fraction: positive iff share >= this
    negative_fraction: float = 0.0  # label_rule fraction: negative iff share <= this; between: -1
    # Where an annotation's (0, 0) lies: at the slide's corner, or at that of its bounds (QuPath).
    annotation_origin: AnnotationOrigin = "level0"
    exclude: tuple[str, ...] = ()  # groups and classes cut out of the tumour, besides the known
    # Annotations without a group or class. auto: regions (not tumour) where anything else in the
    # file has a class, else tumour.
    unclassified: Unclassified = "auto"
    edge: EdgeRule = "drop"  # tiles that hang over the slide's right or lower edge
    store: StoreKind = "patches"  # "coords" keeps no pixels; later stages read the slide
    # Folder of <slide_id>.h5 of CLAM, TRIDENT or WSInfer, whose patches are taken; None: our grid.
    coords: Path | None = None
    max_unreadable: float = 0.5  # a slide with a larger share of unreadable patches fails
    tissue: TissueConfig = field(default_factory=TissueConfig)

    def __post_init__(self) -> None:
        if self.coords is not None:
            object.__setattr__(self, "coords", local_path(self.coords, "coordinates"))


@dataclass(frozen=True)
class TileGeometry:
    """A `TileConfig` resolved for one slide; all lengths in level-0 px unless named otherwise."""

    patch_px: int
    inner_px: int
    target_mpp: float
    patch_l0: int  # side of a tile, level-0 px along x, rounded to whole pixels
    patch_l0_y: int  # along y; differs where mpp x and y differ
    stride_l0: int
    stride_l0_y: int
    scale: tuple[float, float]  # exact level-0 px per patch px (x, y): target_mpp / slide mpp


@dataclass(frozen=True)
class PatchKind:
    """What patches, or single images, are like; a model scores those of the kind it learnt."""

    shape: tuple[int, int, int]  # (height, width, channels), px
    mpp: float  # µm per px; 0: unknown, which single images may be
    class_names: tuple[str, str] = CLASS_NAMES  # by label
    single: bool = False  # images by themselves; else squares cut from slides

    def has_pixels_like(self, other: "PatchKind") -> bool:
        """Whether size, channels and resolution are the same."""
        if self.mpp <= 0 or other.mpp <= 0:
            return self.shape == other.shape and self.mpp == other.mpp
        return self.shape == other.shape and abs(self.mpp / other.mpp - 1) <= SAME_MPP

    def __str__(self) -> str:
        if not self.single:
            return f"patches of {self.shape[0]} px at {self.mpp:g} µm/px"
        resolution = f"at {self.mpp:g} µm/px" if self.mpp > 0 else "of unknown resolution"
        return f"images of {' x '.join(map(str, self.shape))} {resolution}"


@dataclass(frozen=True)
class PatchOrigin:
    """Where a patch, or a single image, is from."""

    source_id: str  # slide_id; of a single image, its image_id
    row: int  # of the slide's store, or among the images of the run
    corner: tuple[int, int] | None = None  # (x, y), top-left, level-0 px; None: a single image
    scale: tuple[float, float] = (1.0, 1.0)  # (x, y) level-0 px per px of the patch


@dataclass(frozen=True)
class Annotation:
    """What a person drew, as shapely geometry in level-0 px.

    `tumour` is the union of the tumour polygons with exclusions and holes cut out. Its parts,
    polygons that touch being one, are the lesions, in the order of `lesions`.
    """

    tumour: Any  # shapely MultiPolygon, valid, maybe empty
    # ids "1", "2", ... in this order (top to bottom, then left to right); each a shapely Polygon,
    # or a MultiPolygon where its parts touch in points only
    lesions: tuple[Any, ...]
    notes: tuple[str, ...] = ()  # what was repaired, skipped or guessed, one sentence each
    # Every tumour polygon as drawn: its name and its bounding box (x0, y0, x1, y1), level-0 px.
    drawn: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()


@dataclass(frozen=True)
class Footprint:
    """What something takes on disk."""

    files: int
    bytes: int  # sum of the files' lengths

    def __add__(self, other: "Footprint") -> "Footprint":
        return Footprint(self.files + other.files, self.bytes + other.bytes)


@dataclass(frozen=True)
class PatchLabels:
    """Labels of the tiles of one slide."""

    label: NDArray[np.int8]  # (N,) 1, 0, -1 unlabelled or ignored
    tumour: NDArray[np.float32]  # (N,) share of the inner square inside the annotation
    lesion_pairs: NDArray[np.int64]  # (M, 2) row of the tile, index into `Annotation.lesions`
