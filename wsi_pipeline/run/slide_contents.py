"""Fingerprints of patch stores, which include every byte of their slides.

Checking whether a store can be kept takes as long as reading the slide, unless the digest of its
files is known and they have not changed since. In that case the command decides; otherwise the
worker that is assigned the slide decides, and tiles it if necessary.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tiling.contracts import TileConfig
from tiling.urls import is_url
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import read_mark, write_mark

log = logging.getLogger(__name__)


class TileInputs(TypedDict):
    """Arguments of `tiling.build` for a slide, in addition to its file."""

    slide_id: str
    config: TileConfig
    annotation_path: Path | None
    slide_label: int | None
    mpp: float | None


def tile_inputs(entry: SlideEntry, config: TileConfig) -> TileInputs:
    """Return the arguments of tiling from a row of the manifest and the settings."""
    return {
        "slide_id": entry.slide_id,
        "config": config,
        "annotation_path": entry.annotation,
        "slide_label": entry.label,
        "mpp": entry.mpp,
    }


def find_tile_fingerprint(run: RunFolder, entry: SlideEntry, config: TileConfig) -> str:
    """Hash the inputs of a slide's store, if possible without reading the slide.

    Returns
    -------
    fingerprint : str
        Empty if the slide has to be read, or there is no finished store to compare with.

    Raises
    ------
    SlideError, AnnotationError
        If a file is missing.
    """
    from tiling.listing.content import find_digest

    if not Unit("tile", entry.slide_id).is_marked(run):
        return ""
    content = find_digest(entry.path, cache=run.content(entry.slide_id))
    return "" if content is None else compute_tile_fingerprint(run, entry, config)


def compute_tile_fingerprint(run: RunFolder, entry: SlideEntry, config: TileConfig) -> str:
    """Hash the inputs of a slide's store; reads the slide unless its digest is known.

    The mark of a store made by an earlier version gets the new fingerprint.

    Raises
    ------
    SlideError, AnnotationError
        If a file cannot be read.
    """
    from tiling.listing.content import digest_content

    content = digest_content(entry.path, cache=run.content(entry.slide_id))
    fingerprint = _fingerprint(entry, config, content)
    _adopt_old_mark(run, entry, config, fingerprint)
    return fingerprint


def old_tile_fingerprint(entry: SlideEntry, config: TileConfig) -> str:
    """Hash the inputs of a store as earlier versions did, by samples of the slide."""
    from tiling.listing.samples import fingerprint_file

    return _fingerprint(entry, config, fingerprint_file(entry.path))


def _fingerprint(entry: SlideEntry, config: TileConfig, content: str) -> str:
    from tiling.build import tile_fingerprint

    return tile_fingerprint(entry.path, **tile_inputs(entry, config), content=content)


def _adopt_old_mark(
    run: RunFolder, entry: SlideEntry, config: TileConfig, fingerprint: str
) -> None:
    """Give an earlier version's mark the new fingerprint if the samples agree."""
    path = Unit("tile", entry.slide_id).mark(run, "done")
    mark = read_mark(path)
    if mark is None or mark.fingerprint == fingerprint:
        return
    if mark.fingerprint != old_tile_fingerprint(entry, config):
        return
    try:
        times = path.stat()
        write_mark(path, replace(mark, fingerprint=fingerprint))
        if not is_url(path):  # where no date can be set
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    except OSError as error:
        log.debug("%s: its mark is left as it is (%s)", entry.slide_id, error)
