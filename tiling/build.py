"""From one slide file to its finished patch store: every step of `tiling`, in order."""

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tiling.annotation.audit import count_labels
from tiling.attributes import store_attributes
from tiling.contracts import SCHEMA, OnProgress, StrPath, TileConfig
from tiling.coords_hdf5 import find_coords
from tiling.errors import AnnotationError, SlideError, StoreError, naming_file
from tiling.files import check_replaceable, digest_file, digest_json, write_aside
from tiling.listing.content import digest_content, find_digest, look_at_files
from tiling.listing.slide_files import slide_stem
from tiling.plan_picture import draw_plan
from tiling.qc import write_qc
from tiling.slide import open_slide
from tiling.store_files import TileTable, finish_store, is_store_folder, write_table
from tiling.threads import in_background
from tiling.tile_plan import check_has_tiles, plan_tiles
from tiling.tissue.slide_tissue import digest_mask
from tiling.urls import as_path, local_path
from tiling.wording import format_duration, format_rate, pluralize
from tiling.write_pixels import write_pixels

FORMAT = 3  # raised when the same settings would give another store: older stores turn stale
CACHE_BYTES = 128 * 2**20  # of decoded file tiles: those that neighbouring blocks share


@dataclass(frozen=True)
class TileSummary:
    """What came of one slide."""

    n_patches: int
    n_positive: int
    n_negative: int
    n_ignored: int  #: label -1 by the rule
    n_unlabelled: int  #: label -1, as the slide is not annotated
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
            f", {format_rate(self.n_patches / max(self.seconds, 1e-3), 'patch')}"
            if self.n_patches
            else ""
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
    settings = _digest_settings(slide_id, config, annotation_path, slide_label, mpp)
    return _join(settings, digest_content(slide_path) if content is None else content)


def _join(settings: dict[str, Any], content: str) -> str:
    return digest_json({**settings, "slide": content})


def _digest_settings(
    slide_id: str,
    config: TileConfig,
    annotation_path: Path | None,
    slide_label: int | None,
    mpp: float | None,
) -> dict[str, Any]:
    """List what a store is made from beside the slide, files by their digests."""
    try:
        annotation = None if annotation_path is None else digest_file(annotation_path)
    except OSError as error:
        raise AnnotationError(
            f"{annotation_path}: cannot be read: {error.strerror or error}; check the path"
        ) from error
    return {
        "schema": SCHEMA,
        "format": FORMAT,
        "slide_id": slide_id,
        "config": asdict(replace(config, coords=None, tissue=replace(config.tissue, mask=None))),
        "coords": _digest_coords(config.coords, slide_id),
        "tissue_mask": digest_mask(config.tissue.mask, slide_id),
        "annotation": annotation,
        "annotation_format": None if annotation_path is None else annotation_path.suffix.lower(),
        "slide_label": slide_label,
        "mpp": mpp,
    }


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
    """Cut one slide into labelled patches and write its store atomically.

    Parameters
    ----------
    slide_path : str or path
        The slide's file.
    store_path : str or path
        Folder of the store, by convention ``<slide_id>.zarr``. A store that is there is replaced,
        anything else refused.
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
        If something else than a store is at `store_path`, which is left as it is, or the disk is
        full.
    """
    started = time.monotonic()
    slide_path, store_path = local_path(slide_path, "slides"), as_path(store_path)
    try:
        check_replaceable(store_path, is_store_folder)
    except FileExistsError as error:
        raise StoreError(f"{store_path}: {error.strerror}") from error
    if annotation_path is not None:
        annotation_path = local_path(annotation_path, "annotations")
    qc_path = None if qc_path is None else as_path(qc_path)
    content_cache = None if content_cache is None else as_path(content_cache)
    slide_id = slide_stem(slide_path.name) if slide_id is None else slide_id
    config = TileConfig() if config is None else config
    state = look_at_files(slide_path)
    # Before the files are used: one that changes meanwhile leaves a store that is out of date.
    settings = _digest_settings(slide_id, config, annotation_path, slide_label, mpp)
    with (
        # Reading every byte takes as long as all other work if no pixels are stored.
        in_background(
            partial(_digest_if_still, slide_path, state, content_cache)
        ) as wait_for_content,
        open_slide(slide_path, cache_bytes=CACHE_BYTES) as slide,
        naming_file(slide_path),
    ):
        plan = plan_tiles(
            slide,
            slide_path,
            slide_id=slide_id,
            config=config,
            annotation_path=annotation_path,
            slide_label=slide_label,
            mpp=mpp,
            threads=threads,
        )
        if qc_path is not None and not len(plan.table.coords):
            write_qc(qc_path, draw_plan(slide, plan))
        check_has_tiles(plan, config)
        with (
            _full_disk_said(store_path),
            write_aside(store_path, is_ours=is_store_folder) as scratch,
        ):
            table = write_pixels(
                scratch, slide, plan.table, plan.geometry, config, threads, on_progress
            )
            notes = plan.notes + _unreadable_note(table)
            write_table(scratch, table)
            if qc_path is not None:
                write_qc(qc_path, draw_plan(slide, replace(plan, table=table)))
            content = wait_for_content()
            _check_unchanged(slide_path, content, content_cache)
            plan = replace(plan, info=replace(plan.info, fingerprint=content))
            attributes = store_attributes(plan, config, _join(settings, content), notes)
            finish_store(scratch, attributes, table)
    return _summarise(table, notes, time.monotonic() - started)


def _digest_if_still(slide_path: Path, state: tuple[str, int], cache: Path | None) -> str:
    """Hash a slide's files, which must be in a state until it is done; nothing is written."""
    content = find_digest(slide_path, cache=cache) or digest_content(slide_path)
    if look_at_files(slide_path) != state:
        raise _changed(slide_path)
    return content


def _check_unchanged(slide_path: Path, content: str, cache: Path | None) -> None:
    """Refuse to keep a store whose slide was written to while it was tiled; keep the digest."""
    if digest_content(slide_path, cache=cache) != content:
        raise _changed(slide_path)


def _changed(slide_path: Path) -> SlideError:
    return SlideError(
        f"{slide_path.name}: changed while it was tiled; wait until it is copied whole, then "
        "run the same command again"
    )


def _digest_coords(folder: Path | None, slide_id: str) -> str | None:
    return None if folder is None else digest_file(find_coords(folder, slide_id))


def _unreadable_note(table: TileTable) -> tuple[str, ...]:
    n_bad = int(table.unreadable.sum())
    if not n_bad:
        return ()
    return (
        f"{n_bad} of {pluralize(len(table.unreadable), 'patch')} cannot be decoded "
        "and get no score; copy the file again from its source",
    )


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
