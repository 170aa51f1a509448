"""Open a slide of any format, and describe what is known of it."""

import logging
import math
from pathlib import Path

from tiling.contracts import Slide, SlideInfo, StrPath
from tiling.errors import PassedOnError, SlideError
from tiling.listing.content import digest_content
from tiling.listing.slide_parts import check_companions, check_slide_file
from tiling.readers import READERS
from tiling.readers.common import note_mpp, note_stated_mpp
from tiling.urls import local_path

log = logging.getLogger(__name__)


def open_slide(path: StrPath, *, cache_bytes: int | None = None) -> Slide:
    """Open a slide with the first of `tiling.readers.READERS` that reads it.

    That is the fastest reader that gives OpenSlide's pixels; docs/readers.md lists them.

    Parameters
    ----------
    path : str or path
        The slide's file.
    cache_bytes : int, optional
        The most that is kept of decoded file tiles of this slide; 0: nothing, for regions drawn at
        random. None: all open slides of the process share one budget, a sixteenth of its memory
        (192 MiB to 1 GiB), or the environment variable ``WSI_PIPELINE_CACHE_MB``. As many are kept
        as a row of regions across the slide touches: a pass in raster order decodes each once, if
        this is enough.

    Returns
    -------
    slide : Slide
        Open until it is closed; use it in a ``with`` statement. It reads regions as (height, width,
        3) uint8 RGB.

    Raises
    ------
    SlideError
        If the file is missing, empty, truncated, or not a slide; with the remedy.
    UnsupportedSlideError
        If the file is sound, but not one 8-bit picture, or compressed as nothing here reads.
    """
    path = local_path(path, "slides")
    check_slide_file(path)
    check_companions(path)
    for reader in READERS:
        if reader.accepts(path):
            try:
                return reader(path, cache_bytes=cache_bytes)
            except PassedOnError as reason:
                log.debug("%s; not read by the reader of %s", reason, reader.title)
    raise SlideError(
        f"{path.name}: neither a format that OpenSlide knows nor a TIFF; check that it is a "
        "slide and that its copy is complete"
    )


def describe_slide(
    slide: Slide,
    *,
    path: Path,
    slide_id: str,
    mpp: float | None = None,
    content: str | None = None,
) -> SlideInfo:
    """Describe what is known of a slide, without anything that could identify a patient.

    Parameters
    ----------
    path : Path
        The slide's file; only its name is kept.
    mpp : µm per level-0 px
        Overrides the file's own, or supplies the missing one.
    content : str, optional
        Digest of the slide's files, if it is known; else they are read (`digest_content`).

    Raises
    ------
    SlideError
        If the resolution is stated nowhere, or `mpp` is not a positive number.
    """
    return SlideInfo(
        slide_id=slide_id,
        file_name=path.name.encode("utf-8", "backslashreplace").decode(),
        vendor=slide.vendor,
        size=slide.size,
        mpp=_resolve_mpp(slide, path, mpp),
        level_sizes=slide.level_sizes,
        level_downsamples=slide.level_downsamples,
        bounds=slide.bounds,
        objective_power=slide.objective_power,
        fingerprint=digest_content(path) if content is None else content,
    )


def _resolve_mpp(slide: Slide, path: Path, mpp: float | None) -> tuple[float, float]:
    if mpp is not None:
        if not (math.isfinite(mpp) and mpp > 0):
            raise SlideError(
                f"{path.name}: mpp must be a positive number of microns per pixel, got {mpp}; "
                "correct the manifest's mpp column"
            )
        return mpp, mpp
    if slide.mpp is None:
        raise SlideError(
            f"{path.name}: no microns-per-pixel in the file (openslide.mpp-x); give it in the "
            "manifest's mpp column"
        )
    return slide.mpp


def note_slide(slide: Slide, *, mpp: float | None = None) -> tuple[str, ...]:
    """Describe what was decided about a slide's file, and what looks mistaken in it.

    Parameters
    ----------
    mpp : µm per level-0 px
        Goes before the file's own, which then is not judged.

    Returns
    -------
    notes : sentences
        Which of several images is read; a resolution that is hardly the microscope's.
    """
    used = slide.mpp if mpp is None else (mpp, mpp)
    notes = slide.notes + (note_stated_mpp(slide.stated_mpp) if mpp is None else ())
    return notes + (() if used is None else note_mpp(used, slide.objective_power))
