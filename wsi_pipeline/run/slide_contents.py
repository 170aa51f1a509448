"""What a finished patch store was made from, down to each byte of its slide.

All bytes of a slide count, so finding out whether a store may be kept takes as long as reading the
slide, unless the digest of its files is known and they have not changed since. Then a command
decides at once; else the worker that has the slide decides, which also tiles it if need be.
"""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

from tiling.contracts import TileConfig
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import read_mark, write_mark

log = logging.getLogger(__name__)


class TileInputs(TypedDict):
    """What `tiling.build` needs to know of a slide, besides its file."""

    slide_id: str
    config: TileConfig
    annotation_path: Path | None
    slide_label: int | None
    mpp: float | None


def tile_inputs(entry: SlideEntry, config: TileConfig) -> TileInputs:
    """Give what a slide is tiled with: its row of the manifest, and the settings."""
    return {
        "slide_id": entry.slide_id,
        "config": config,
        "annotation_path": entry.annotation,
        "slide_label": entry.label,
        "mpp": entry.mpp,
    }


def find_tile_fingerprint(run: RunFolder, entry: SlideEntry, config: TileConfig) -> str:
    """Hash what a slide's store would be made from, if that is known without reading the slide.

    Returns
    -------
    fingerprint : str
        Empty where the slide has to be read, or nothing is finished that it could be compared with.

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
    """Hash what a slide's store would be made from; reads the slide unless its digest is known.

    A store that an earlier version made is bound to all bytes of its slide from now on.

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
    """Hash what a store would be made from as earlier versions did, by samples of the slide."""
    from tiling.listing.samples import fingerprint_file

    return _fingerprint(entry, config, fingerprint_file(entry.path))


def _fingerprint(entry: SlideEntry, config: TileConfig, content: str) -> str:
    from tiling.build import tile_fingerprint

    return tile_fingerprint(entry.path, **tile_inputs(entry, config), content=content)


def _adopt_old_mark(
    run: RunFolder, entry: SlideEntry, config: TileConfig, fingerprint: str
) -> None:
    """Give an earlier version's mark the fingerprint of all bytes, where the samples agree."""
    path = Unit("tile", entry.slide_id).mark(run, "done")
    mark = read_mark(path)
    if mark is None or mark.fingerprint == fingerprint:
        return
    if mark.fingerprint != old_tile_fingerprint(entry, config):
        return
    try:
        times = path.stat()
        write_mark(path, replace(mark, fingerprint=fingerprint))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    except OSError as error:
        log.debug("%s: its mark is left as it is (%s)", entry.slide_id, error)
