"""From one slide file to its finished patch store: every step of `tiling`, in order."""

import errno
import importlib.metadata
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from tiling.annotation.audit import count_labels
from tiling.annotation.labels import label_tiles
from tiling.annotation.slide_annotation import (
    describe_lesions,
    note_unhit_lesions,
    read_slide_annotation,
)
from tiling.contracts import (
    SCHEMA,
    Annotation,
    OnProgress,
    Slide,
    SlideInfo,
    StrPath,
    TileConfig,
    TileGeometry,
)
from tiling.coords_hdf5 import find_coords, read_coords
from tiling.errors import (
    AnnotationError,
    GridError,
    PatchSizeError,
    SlideError,
    StoreError,
    TissueError,
)
from tiling.files import digest_file, digest_json, write_aside
from tiling.geometry import resolve_geometry
from tiling.grid import TileGrid, lay_grid
from tiling.listing.content import UNREAD, digest_content, look_at_files
from tiling.listing.slide_files import slide_stem
from tiling.overview import Overview, read_overview
from tiling.qc import SIDE_PX, draw_qc, write_qc
from tiling.resample import nearest_finer_level
from tiling.slide import describe_slide, note_slide, open_slide
from tiling.store import TileTable, finish_store, write_table
from tiling.tissue.slide_tissue import (
    SlideTissue,
    digest_mask,
    explain_no_tissue,
    find_tissue,
    tissue_meter,
)
from tiling.wording import format_duration, format_percent, format_rate, pluralize
from tiling.write_pixels import write_pixels

log = logging.getLogger(__name__)

FORMAT = 3  # raised when the same settings would give another store: older stores turn stale
CACHE_BYTES = 128 * 2**20  # of decoded file tiles: those that neighbouring blocks share
TILES_AT_ONCE = 2**18  # laid and measured: more need more memory and are no faster
# A patch of another tool may differ from ours by its own rounding: this share, or half a pixel.
SAME_SIZE, SAME_SIZE_L0 = 0.02, 0.5
CHEAP_PX = 32 * 2**20  # of a level: read within a second or so
VERSIONED = ("wsi-pipeline", "numpy", "zarr", "openslide-python", "openslide-bin", "tifffile")


@dataclass(frozen=True)
class TileSummary:
    """What came of one slide."""

    n_patches: int
    n_positive: int
    n_negative: int
    n_ignored: int  # label -1 by the rule
    n_unlabelled: int  # label -1, as the slide is not annotated
    n_unreadable: int
    seconds: float
    notes: tuple[str, ...]

    def __str__(self) -> str:
        counts = f"{self.n_positive} positive, {self.n_negative} negative"
        for n, word in ((self.n_ignored, "ignored"), (self.n_unlabelled, "unlabelled")):
            counts += f", {n} {word}" if n else ""
        bad = f", {self.n_unreadable} unreadable" if self.n_unreadable else ""
        notes = "".join(f"; {note}" for note in self.notes)
        rate = (
            f", {format_rate(self.n_patches / max(self.seconds, 1e-3))}" if self.n_patches else ""
        )
        patches = pluralize(self.n_patches, "patch")
        return f"{patches} ({counts}{bad}) in {format_duration(self.seconds)}{rate}{notes}"


def tile_fingerprint(
    slide_path: Path,
    *,
    slide_id: str,
    config: TileConfig,
    annotation_path: Path | None,
    slide_label: int | None,
    mpp: float | None,
    content: str | None = None,
) -> str:
    """Hash what a store is made from: the slide's and the annotation's bytes, and every setting.

    Parameters
    ----------
    content : str, optional
        Digest of the slide's files, if it is known; else they are read (`digest_content`).

    Raises
    ------
    SlideError, AnnotationError
        If a file cannot be read.
    """
    try:
        annotation = None if annotation_path is None else digest_file(annotation_path)
    except OSError as error:
        raise AnnotationError(
            f"{annotation_path}: cannot be read: {error.strerror or error}; check the path"
        ) from error
    return digest_json(
        {
            "schema": SCHEMA,
            "format": FORMAT,
            "slide": digest_content(slide_path) if content is None else content,
            "slide_id": slide_id,
            "config": asdict(
                replace(config, coords=None, tissue=replace(config.tissue, mask=None))
            ),
            "coords": _digest_coords(config.coords, slide_id),
            "tissue_mask": digest_mask(config.tissue.mask, slide_id),
            "annotation": annotation,
            "annotation_format": None
            if annotation_path is None
            else annotation_path.suffix.lower(),
            "slide_label": slide_label,
            "mpp": mpp,
        }
    )


def tile_slide(
    slide_path: StrPath,
    store_path: StrPath,
    *,
    slide_id: str | None = None,
    config: TileConfig | None = None,
    annotation_path: StrPath | None = None,
    slide_label: int | None = None,
    mpp: float | None = None,
    qc_path: StrPath | None = None,
    content_cache: StrPath | None = None,
    threads: int = 1,
    on_progress: OnProgress | None = None,
) -> TileSummary:
    """Cut one slide into labelled patches and write its store, whole or not at all.

    Parameters
    ----------
    slide_path : str or path
        The slide's file.
    store_path : str or path
        Folder of the store, by convention ``<slide_id>.zarr``. A store that is there is replaced.
    slide_id : str, optional
        The slide's name in all outputs; default: the file's name without its suffix.
    config : TileConfig, optional
        Patch size, resolution, tissue and label rules; default: ``TileConfig()``.
    annotation_path : str or path, optional
        The slide's annotation (ASAP or ImageScope XML, GeoJSON, CAMELYON JSON).
    slide_label : 1 tumour, 0 normal, None unknown
    mpp : µm per level-0 px
        Overrides the file's own.
    qc_path : str or path, optional
        Where the quality-control picture goes; also written where no tissue is found.
    content_cache : str or path, optional
        Where the digest of the slide's files is kept (`tiling.listing.content.digest_content`).
    threads : int
        Blocks of neighbouring patches read at a time.
    on_progress : function
        Called with (patches done, patches in all).

    Returns
    -------
    summary : TileSummary
        Counts of patches by label, seconds, and notes on the slide. Open the patches with
        ``PatchStore.open(store_path)``.

    Raises
    ------
    SlideError
        If the slide cannot be opened, has no resolution, or too many of its patches are unreadable.
    GridError, TissueError, AnnotationError
        If no tile fits, no tissue is found, or the annotation does not belong to the slide.
    StoreError
        If the disk is full.
    """
    started = time.monotonic()
    slide_path, store_path = Path(slide_path), Path(store_path)
    annotation_path = None if annotation_path is None else Path(annotation_path)
    qc_path = None if qc_path is None else Path(qc_path)
    content_cache = None if content_cache is None else Path(content_cache)
    slide_id = slide_stem(slide_path.name) if slide_id is None else slide_id
    config = TileConfig() if config is None else config
    content = digest_content(slide_path, cache=content_cache)
    state = look_at_files(slide_path)
    fingerprint = tile_fingerprint(
        slide_path,
        slide_id=slide_id,
        config=config,
        annotation_path=annotation_path,
        slide_label=slide_label,
        mpp=mpp,
        content=content,
    )
    with open_slide(slide_path, cache_bytes=CACHE_BYTES) as slide, _naming(slide_path):
        plan = plan_tiles(
            slide,
            slide_path,
            slide_id=slide_id,
            config=config,
            annotation_path=annotation_path,
            slide_label=slide_label,
            mpp=mpp,
            content=content,
            threads=threads,
        )
        picture = _Picture(qc_path, slide, plan.info, plan.geometry, plan.mask, plan.annotation)
        if not len(plan.table.coords):
            picture.write(plan.table)
        check_has_tiles(plan, config)
        with _full_disk_said(store_path), write_aside(store_path) as scratch:
            table = write_pixels(
                scratch, slide, plan.table, plan.geometry, config, threads, on_progress
            )
            notes = plan.notes + _unreadable_note(table)
            write_table(scratch, table)
            picture.write(table)
            if look_at_files(slide_path) != state:
                _check_unchanged(slide_path, content, content_cache)
            finish_store(scratch, store_attributes(plan, config, fingerprint, notes))
    return _summarise(table, notes, time.monotonic() - started)


def _check_unchanged(slide_path: Path, content: str, cache: Path | None) -> None:
    """Refuse to keep a store whose slide was written to while it was tiled."""
    if digest_content(slide_path, cache=cache) != content:
        raise SlideError(
            f"{slide_path.name}: changed while it was tiled; wait until it is copied whole, then "
            "run the same command again"
        )


def _digest_coords(folder: Path | None, slide_id: str) -> str | None:
    return None if folder is None else digest_file(find_coords(folder, slide_id))


# --- planning: which tiles, which labels -----------------------------------------------------


@dataclass(frozen=True)
class TilePlan:
    """Which tiles of a slide become patches, and with which labels; no patch is read for it."""

    info: SlideInfo
    geometry: TileGeometry
    mask: SlideTissue
    table: TileTable
    n_tiles: int  # of the whole grid
    annotation: Annotation | None
    slide_label: int | None
    notes: tuple[str, ...]


def plan_tiles(
    slide: Slide,
    slide_path: Path,
    *,
    slide_id: str,
    config: TileConfig,
    annotation_path: Path | None = None,
    slide_label: int | None = None,
    mpp: float | None = None,
    content: str = UNREAD,
    threads: int = 1,
) -> TilePlan:
    """Choose and label an open slide's tiles, as `tile_slide` does; the table may be empty.

    Other parameters and the errors are those of `tile_slide`; see also `check_has_tiles`.

    Parameters
    ----------
    content : str, optional
        Digest of the slide's files; not needed for a plan that is not carried out.
    """
    info = describe_slide(slide, path=slide_path, slide_id=slide_id, mpp=mpp, content=content)
    geometry = resolve_geometry(config, slide_mpp=info.mpp)
    if config.coords is None:
        grid = _lay_grid(info, geometry, config)
        n_tiles, tiles = len(grid), grid.iterate(most=TILES_AT_ONCE)
    else:
        coords = _foreign_grid(config.coords, info, geometry)
        n_tiles = len(coords)
        tiles = (coords[i : i + TILES_AT_ONCE] for i in range(0, n_tiles, TILES_AT_ONCE))
    notes = note_slide(slide, mpp=mpp)
    annotation, drawn = read_slide_annotation(annotation_path, info, config)
    notes += drawn
    mask = find_tissue(slide, info, config, threads)
    notes += mask.notes + _overview_note(mask.overview)
    table = _choose_tiles(tiles, mask, geometry, config)
    if len(table.coords):
        table = _label(table, geometry, annotation, annotation_path, slide_label, config)
        notes += note_unhit_lesions(table, annotation)
    return TilePlan(info, geometry, mask, table, n_tiles, annotation, slide_label, notes)


def check_has_tiles(plan: TilePlan, config: TileConfig) -> None:
    """Refuse a plan without any tile.

    Raises
    ------
    TissueError
    """
    if not len(plan.table.coords):
        grid = _lay_grid(plan.info, plan.geometry, config)

        def fullest(mask: SlideTissue) -> float:
            measure = tissue_meter(mask, plan.geometry)
            tiles = grid.iterate(most=TILES_AT_ONCE)
            return max((float(measure(group).max(initial=0)) for group in tiles), default=0.0)

        raise TissueError(
            explain_no_tissue(plan.mask, plan.info, config, n_tiles=plan.n_tiles, fullest=fullest)
        )


def store_attributes(
    plan: TilePlan, config: TileConfig, fingerprint: str, notes: tuple[str, ...]
) -> dict[str, Any]:
    """Put a store's group attributes together."""
    return {
        "slide": asdict(plan.info),
        "tiling": _resolved(config, plan.geometry, plan.info),
        "slide_label": plan.slide_label,
        "lesions": describe_lesions(plan.annotation, plan.info),
        "fingerprint": fingerprint,
        "versions": _versions(),
        "notes": list(notes),
    }


def draw_plan(slide: Slide, plan: TilePlan) -> Image:
    """Draw the quality-control picture of a plan."""
    return _Picture(None, slide, plan.info, plan.geometry, plan.mask, plan.annotation).draw(
        plan.table
    )


def _lay_grid(info: SlideInfo, geometry: TileGeometry, config: TileConfig) -> TileGrid:
    tile_l0 = (geometry.patch_l0, geometry.patch_l0_y)
    grid = lay_grid(
        info.size,
        tile_l0=tile_l0,
        stride_l0=(geometry.stride_l0, geometry.stride_l0_y),
        edge=config.edge,
    )
    if not len(grid):
        raise PatchSizeError(
            f"the slide has {info.size[0]} x {info.size[1]} level-0 pixels, too few for one tile "
            f"of {tile_l0[0]} x {tile_l0[1]} (patch_px={config.patch_px} at "
            f"target_mpp={config.target_mpp:g})",
            "use a smaller tile.patch_px, or tile.edge=pad",
            "use --set tile.edge=pad, or leave the slide out",
        )
    return grid


def _foreign_grid(folder: Path, info: SlideInfo, geometry: TileGeometry) -> NDArray[np.int64]:
    """Take another tool's coordinates, if its patches are as large as ours."""
    path = find_coords(folder, info.slide_id)
    found = read_coords(path)
    ours = (geometry.patch_px * geometry.scale[0], geometry.patch_px * geometry.scale[1])
    if any(
        abs(a - b) > max(SAME_SIZE * b, SAME_SIZE_L0)
        for a, b in zip(found.patch_l0, ours, strict=True)
    ):
        wide, high = (side * mpp for side, mpp in zip(found.patch_l0, info.mpp, strict=True))
        is_square = abs(wide / high - 1) <= SAME_SIZE
        cure = (
            f"for patches of {geometry.patch_px} px set "
            f"tile.target_mpp={wide / geometry.patch_px:.6g}"
            if is_square
            else f"no target_mpp fits, as the slide has {info.mpp[0]:g} x {info.mpp[1]:g} µm per "
            "pixel and our patches are square in µm; leave out tile.coords"
        )
        raise GridError(
            f"{path.name} ({found.tool}): its patches are {found.patch_l0[0]:g} x "
            f"{found.patch_l0[1]:g} level-0 px, {wide:.4g} x {high:.4g} µm, but "
            f"tile.patch_px={geometry.patch_px} at tile.target_mpp={geometry.target_mpp:g} is "
            f"{geometry.patch_px * geometry.target_mpp:g} µm; {cure}"
        )
    side, size = np.array([geometry.patch_l0, geometry.patch_l0_y]), np.array(info.size)
    outside = np.flatnonzero(
        ((found.coords <= -side) | (found.coords >= size)).any(axis=1)  # not one pixel on it
    )
    if outside.size:
        x, y = found.coords[outside[0]].tolist()
        raise GridError(
            f"{path.name} ({found.tool}): {outside.size} of {len(found.coords)} patches lie off "
            f"the slide of {info.size[0]} x {info.size[1]} px, for example x={x}, y={y}; is it "
            "another slide's file?"
        )
    return found.coords


def _choose_tiles(
    tiles: Iterable[NDArray[np.int64]],
    mask: SlideTissue,
    geometry: TileGeometry,
    config: TileConfig,
) -> TileTable:
    """Keep the tiles with tissue, group by group: a whole grid may be larger than the memory."""
    measure = tissue_meter(mask, geometry)
    coords, tissue = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
    for group in tiles:
        fraction = measure(group)
        if config.coords is None:
            kept = fraction >= config.tissue.min_fraction  # 0 keeps every tile
        else:  # the other tool has chosen
            kept = np.ones(len(group), np.bool_)
        coords.append(group[kept])
        tissue.append(fraction[kept])
    n_kept = sum(map(len, tissue))
    return TileTable(
        coords=np.concatenate(coords),
        tissue=np.concatenate(tissue),
        label=np.full(n_kept, -1, np.int8),
        tumour=np.zeros(n_kept, np.float32),
        unreadable=np.zeros(n_kept, np.bool_),
        lesion_pairs=np.zeros((0, 2), np.int64),
    )


def _label(
    table: TileTable,
    geometry: TileGeometry,
    annotation: Annotation | None,
    annotation_path: Path | None,
    slide_label: int | None,
    config: TileConfig,
) -> TileTable:
    with _naming(annotation_path):
        labels = label_tiles(
            table.coords,
            geometry=geometry,
            annotation=annotation,
            slide_label=slide_label,
            config=config,
        )
    return replace(
        table, label=labels.label, tumour=labels.tumour, lesion_pairs=labels.lesion_pairs
    )


# --- what it says of the slide ----------------------------------------------------------------


def _overview_note(overview: Overview) -> tuple[str, ...]:
    share = overview.unreadable.mean()
    if not share:
        return ()
    return (
        f"{format_percent(share, 1)} of the slide's overview cannot be decoded; "
        "copy the file again from its source",
    )


def _unreadable_note(table: TileTable) -> tuple[str, ...]:
    n_bad = int(table.unreadable.sum())
    if not n_bad:
        return ()
    return (
        f"{n_bad} of {pluralize(len(table.unreadable), 'patch')} cannot be decoded "
        "and get no score; copy the file again from its source",
    )


# --- what goes with the pixels ---------------------------------------------------------------


@dataclass(frozen=True)
class _Picture:
    path: Path | None
    slide: Slide
    info: SlideInfo
    geometry: TileGeometry
    mask: SlideTissue
    annotation: Annotation | None

    def write(self, table: TileTable) -> None:
        """Draw and keep the quality-control picture, if one is wanted."""
        if self.path is not None:
            write_qc(self.path, self.draw(table))

    def draw(self, table: TileTable) -> Image:
        """Draw the quality-control picture."""
        title = (
            f"{self.info.slide_id}: {self.info.size[0]} x {self.info.size[1]} px, "
            f"{self.info.mpp[0]:.4g} microns per px"
        )
        overview = self._overview()
        return draw_qc(
            overview.rgb,
            pixel_l0=overview.pixel_l0,
            tissue=self.mask.tissue,
            coords=table.coords,
            tile_l0=(self.geometry.patch_l0, self.geometry.patch_l0_y),
            label=table.label,
            unreadable=table.unreadable,
            title=title,
            mpp=self.info.mpp[0],
            tumour=None if self.annotation is None else self.annotation.tumour,
        )

    def _overview(self) -> Overview:
        """The overview of the mask; of a small slide a finer one, if it is cheap to read."""
        coarse = self.mask.overview
        mpp = (
            max(side * mpp for side, mpp in zip(self.info.size, self.info.mpp, strict=True))
            / SIDE_PX
        )
        scale = (mpp / self.info.mpp[0], mpp / self.info.mpp[1])
        level = nearest_finer_level(self.info.level_downsamples, scale)
        width, height = self.info.level_sizes[level]
        if max(coarse.rgb.shape) >= SIDE_PX or width * height > CHEAP_PX:
            return coarse
        return read_overview(self.slide, mpp=self.info.mpp, target_mpp=mpp)


def _resolved(config: TileConfig, geometry: TileGeometry, info: SlideInfo) -> dict[str, Any]:
    """Every setting of the tiling as it was used, none left to a default."""
    stride_px = geometry.patch_px if config.stride_px is None else config.stride_px
    level = nearest_finer_level(info.level_downsamples, geometry.scale)
    return {
        **asdict(config),
        "coords": None if config.coords is None else config.coords.name,  # of a path, its last name
        **asdict(geometry),
        "stride_px": stride_px,
        "level": level,  # the stored level that patches are read from
        "tissue": {
            **asdict(config.tissue),
            "mask": None if config.tissue.mask is None else config.tissue.mask.name,
        },
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _summarise(table: TileTable, notes: tuple[str, ...], seconds: float) -> TileSummary:
    counts = count_labels(table.label, table.tumour, table.unreadable)
    return TileSummary(
        n_patches=counts.patches,
        n_positive=counts.positive,
        n_negative=counts.negative,
        n_ignored=counts.ignored,
        n_unlabelled=counts.unlabelled,
        n_unreadable=counts.unreadable,
        seconds=seconds,
        notes=notes,
    )


# --- errors ----------------------------------------------------------------------------------


@contextmanager
def _naming(path: Path | None) -> Iterator[None]:
    """Put the file's name before a message that does not name it yet."""
    try:
        yield
    except (SlideError, GridError, TissueError, AnnotationError) as error:
        if path is None or str(error).startswith(f"{path.name}: "):
            raise
        raise error.about(path.name) from error


@contextmanager
def _full_disk_said(store_path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"{store_path.name}: no space left on device for the patch store; free some space in "
            f"{store_path.parent}, write elsewhere, or use store: coords, which keeps no pixels"
        ) from error
