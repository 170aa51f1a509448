"""Open a slide of any format, and describe what is known of it."""

import hashlib
import logging
import math
import os
import re
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tiling.contracts import Slide, SlideInfo, StrPath
from tiling.errors import (
    SeveralImagesError,
    SlideError,
    UnsupportedSlideError,
    UnsupportedTilesError,
)
from tiling.files import check_file, open_file
from tiling.listing.content import KIND, digest_content
from tiling.listing.slide_files import explain_format
from tiling.listing.slide_parts import explain_unreadable, is_dicom, list_parts
from tiling.readers.common import note_mpp, note_stated_mpp
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.readers.tiff_images import choose_image
from tiling.readers.tiff_levels import check_converted
from tiling.readers.tiff_pixels import CACHE_BYTES
from tiling.readers.tiff_reader import TiffReader
from tiling.readers.tiff_structure import TIFF_HEADS
from tiling.readers.tiled_tiff_reader import TiledTiffReader
from tiling.resample import nearest_finer_level, read_resampled
from tiling.threads import map_in_threads

log = logging.getLogger(__name__)

EDGE_BYTES = 2**20  # of the file's head and of its tail, hashed whole
SAMPLE_BYTES, N_SAMPLES = 2**16, 16  # and blocks spread evenly between them
OVERVIEW_BLOCK_PX = 1024  # side of what is read at once, px of the level read; larger is slower
SMALLEST_UNREADABLE_PX = 16  # overview px: a bad spot is narrowed down to this
PROBES = 4  # along x and y, in a block that cannot be read

# How OpenSlide reports formats that it knows and variants of them that it does not read.
UNSUPPORTED = re.compile(r"unsupported|not supported|(can't|cannot) handle|unknown", re.IGNORECASE)
PLAIN_TIFF_VENDOR = "generic-tiff"  # OpenSlide's word for a TIFF of no known maker


# --- opening ---------------------------------------------------------------------------------


def open_slide(path: StrPath, *, cache_bytes: int = CACHE_BYTES) -> Slide:
    """Open a slide with the fastest reader that gives OpenSlide's pixels.

    That is the tiled-TIFF reader where it knows the file's layout and its probes agree with
    OpenSlide; else OpenSlide; and the TIFF reader where OpenSlide refuses. OME-TIFF, and TIFF with
    several images, are read by the TIFF reader although OpenSlide takes them for plain TIFF of the
    first image: OpenSlide sees neither their resolution and pyramid nor which image is the slide.

    Parameters
    ----------
    path : str or path
        The slide's file.
    cache_bytes : int
        The most that is kept of decoded file tiles. As many are kept as a row of regions across
        the slide touches: a pass in raster order decodes each once, if this is enough.

    Returns
    -------
    slide : Slide
        Open until it is closed; use it in a ``with`` statement. It reads regions as (height, width,
        3) uint8 RGB.

    Raises
    ------
    SlideError
        If the file is missing, empty, cut off, or no slide; the message says which and what to do.
    UnsupportedSlideError
        If the file is sound, but not one 8-bit picture, or compressed as nothing here reads.
    """
    path = Path(path)
    _check_file(path)
    _check_companions(path)
    try:
        slide = OpenSlideReader(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return _open_tiff(path, cache_bytes)
    except openslide.OpenSlideError as error:
        return _open_damaged(path, error, cache_bytes)
    if slide.vendor == PLAIN_TIFF_VENDOR:
        try:
            chosen = _choose_tiff_reader(path, slide, cache_bytes)
        except SlideError:
            slide.close()
            raise
        if chosen is not None:
            slide.close()
            return chosen
    try:
        return TiledTiffReader(path, slide, cache_bytes=cache_bytes)
    except UnsupportedTilesError:
        slide.close()
        raise
    except SlideError as reason:
        log.debug("%s; read by OpenSlide", reason)
        return slide


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise SlideError(
            f"{path.name}: a folder, not a slide file; name the slide in it (of MIRAX the .mrxs "
            "file, of DICOM one .dcm file of the finest level)"
        )
    if reason := explain_format(path.name):
        raise SlideError(f"{path.name}: {reason}")
    try:
        with open_file(path, "rb") as file:
            is_empty = not file.read(1)
    except OSError as error:
        raise explain_unreadable(path, error) from error
    if is_empty:
        raise SlideError(f"{path.name}: the file is empty (0 bytes); copy it again from its source")


def _check_companions(path: Path) -> None:
    """Refuse pipes and devices next to a slide, which OpenSlide would open and wait for."""
    if is_dicom(path):  # it opens all that is in the folder
        with os.scandir(path.parent) as entries:
            odd = [e for e in entries if not e.is_file() and not e.is_dir()]
        others = [path.with_name(entry.name) for entry in odd]
    else:
        others = [part.path for part in list_parts(path)[1:]]
    for other in others:
        try:
            check_file(other)
        except FileNotFoundError:
            continue  # a broken link
        except OSError as error:
            raise SlideError(
                f"{path.name}: {other.name} next to it is {error.strerror}; remove it"
            ) from error


def _is_tiff(path: Path) -> bool:
    with open_file(path, "rb") as file:
        return file.read(4) in TIFF_HEADS


def _open_tiff(path: Path, cache_bytes: int) -> Slide:
    if not _is_tiff(path):
        raise SlideError(
            f"{path.name}: neither a format that OpenSlide knows nor a TIFF; check that it is a "
            "slide and that its copy is complete"
        )
    return TiffReader(path, cache_bytes=cache_bytes)


def _open_damaged(path: Path, error: openslide.OpenSlideError, cache_bytes: int) -> Slide:
    # OpenSlide knows the format but not this variant of it (then the TIFF reader may, or reports
    # what it lacks), or the file is damaged.
    reason = str(error).replace(str(path), path.name)
    if not _is_tiff(path):
        if UNSUPPORTED.search(reason):
            raise UnsupportedSlideError(
                f"{path.name}: OpenSlide does not read this variant of the format: {reason}; "
                "convert it, for example to JPEG compression, with the scanner's own software"
            ) from error
        raise SlideError(
            f"{path.name}: OpenSlide cannot open it: {reason}; if the file is damaged or cut off, "
            "copy it again from its source"
        ) from error
    slide = TiffReader(path, cache_bytes=cache_bytes)
    if slide.n_beyond_end:
        slide.close()
        raise SlideError(
            f"{path.name}: the file is cut off: {slide.n_beyond_end} of its file tiles lie beyond "
            "its end; copy it again from its source"
        ) from error
    return slide


def _choose_tiff_reader(path: Path, slide: OpenSlideReader, cache_bytes: int) -> Slide | None:
    """The TIFF reader, if it sees more of the file than OpenSlide does; None to keep OpenSlide.

    Raises
    ------
    UnsupportedSlideError
        If OpenSlide would show another image than the slide, or wrong colours.
    """
    try:
        tiff = TiffReader(path, cache_bytes=cache_bytes)
    except SeveralImagesError:
        raise
    except UnsupportedSlideError as error:
        _check_openslide_shows_it(path, slide, error)
        return None
    except SlideError as error:  # a damaged directory, of which OpenSlide reads what it can
        log.debug("%s; read by OpenSlide", error)
        return None
    sees_more = len(tiff.level_sizes) > len(slide.level_sizes)
    if tiff.is_plain and tiff.size == slide.size and not sees_more:
        tiff.close()
        return None
    return tiff


def _check_openslide_shows_it(path: Path, slide: OpenSlideReader, reason: SlideError) -> None:
    """See that OpenSlide shows the picture of a TIFF whose pixels the TIFF reader does not read."""
    try:
        with tifffile.TiffFile(path) as tif:
            image = choose_image(path.name, tif)
            is_other = image.is_ome or len(image.levels[0]) > 1
            page = image.page
            is_other = is_other or (page.imagewidth, page.imagelength) != slide.size
            if not is_other:
                check_converted(path.name, page)
                return
    except SlideError:
        raise
    except Exception as error:  # also damaged
        log.debug("%s: %s", path.name, error)
        return
    raise reason


# --- describing ------------------------------------------------------------------------------


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


def fingerprint_file(path: Path) -> str:
    """Hash a file's size, head and tail, and 16 blocks between: quick, and good for finding copies.

    Neither path nor date counts. A damaged copy of a slide may have the fingerprint of the sound
    one: what is made from a slide is bound to all of its bytes
    (`tiling.listing.content.digest_content`).
    Earlier versions wrote this fingerprint into patch stores.

    Returns
    -------
    fingerprint : 64 hexadecimal digits

    Raises
    ------
    SlideError
        If the file cannot be read.
    """
    _check_file(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_file(path, "rb") as file:
        digest.update(file.read(EDGE_BYTES))
        for part in range(1, N_SAMPLES + 1):
            file.seek(size * part // (N_SAMPLES + 1))
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()


def is_made_from(fingerprint: str, path: Path, *, cache: Path | None = None) -> bool:
    """Whether a store's fingerprint of its slide is that of a slide's files.

    Parameters
    ----------
    fingerprint : str
        As `SlideInfo` has it; also that of samples, of earlier versions.
    path : Path
        The slide.
    cache : Path, optional
        See `tiling.listing.content.digest_content`.

    Raises
    ------
    SlideError
        If the slide cannot be read.
    """
    if fingerprint.startswith(KIND):
        return digest_content(path, cache=cache) == fingerprint
    return fingerprint_file(path) == fingerprint


# --- overview --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overview:
    """The whole slide as one small picture."""

    rgb: NDArray[np.uint8]  # (H, W, 3)
    pixel_l0: tuple[float, float]  # (x, y) level-0 px per px of the picture
    unreadable: NDArray[np.bool_]  # (H, W) True where the file could not be decoded: white in `rgb`


def read_thumbnail(
    slide: Slide, *, mpp: tuple[float, float], target_mpp: float
) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """Read the whole slide as a picture of about `target_mpp`.

    Parameters
    ----------
    mpp : (x, y), µm per level-0 px
    target_mpp : µm per px of the thumbnail
        Of a coarser slide the finest level is given.

    Returns
    -------
    thumbnail : (H, W, 3) uint8
        What cannot be decoded is white.
    pixel_l0 : (x, y), level-0 px per px of the thumbnail
        Exact: the thumbnail covers the slide from edge to edge.
    """
    overview = read_overview(slide, mpp=mpp, target_mpp=target_mpp)
    return overview.rgb, overview.pixel_l0


def read_overview(
    slide: Slide, *, mpp: tuple[float, float], target_mpp: float, threads: int = 1
) -> Overview:
    """Read the thumbnail as `read_thumbnail` does, and mark which of its pixels are unknown."""
    width, height = slide.size
    out_width = min(width, max(1, round(width * mpp[0] / target_mpp)))
    out_height = min(height, max(1, round(height * mpp[1] / target_mpp)))
    pixel_l0 = (width / out_width, height / out_height)
    overview = Overview(
        rgb=np.full((out_height, out_width, 3), 255, np.uint8),
        pixel_l0=pixel_l0,
        unreadable=np.zeros((out_height, out_width), np.bool_),
    )
    level = nearest_finer_level(slide.level_downsamples, pixel_l0)
    side = max(1, int(OVERVIEW_BLOCK_PX * slide.level_downsamples[level] / max(pixel_l0)))
    blocks = [
        (x, y, min(x + side, out_width), min(y + side, out_height))
        for y, x in product(range(0, out_height, side), range(0, out_width, side))
    ]

    def fill(block: tuple[int, int, int, int]) -> None:
        _fill_block(slide, overview, block, level)

    for _ in map_in_threads(fill, blocks, threads=threads):
        pass
    return overview


def _fill_block(
    slide: Slide, overview: Overview, block: tuple[int, int, int, int], level: int
) -> None:
    """Read one block of the overview; quarter it where it fails, down to the spot that is bad."""
    x0, y0, x1, y1 = block
    pixel_x, pixel_y = overview.pixel_l0
    try:
        overview.rgb[y0:y1, x0:x1] = _read_part(
            slide,
            (x0 * pixel_x, y0 * pixel_y),
            extent_l0=((x1 - x0) * pixel_x, (y1 - y0) * pixel_y),
            out_px=(x1 - x0, y1 - y0),
            level=level,
        )
    except SlideError as error:
        small = max(x1 - x0, y1 - y0) <= SMALLEST_UNREADABLE_PX
        if small or not _is_readable_somewhere(slide, overview, block, level):
            log.debug("overview: %s", error)
            overview.unreadable[y0:y1, x0:x1] = True
            return
        for part in _quarter(block):
            _fill_block(slide, overview, part, level)


def _is_readable_somewhere(
    slide: Slide, overview: Overview, block: tuple[int, int, int, int], level: int
) -> bool:
    """Try a few pixels of a block that cannot be read: what is bad all over is not narrowed down.

    A failed read is slow, as the slide is opened anew.
    """
    x0, y0, x1, y1 = block
    for row, column in product(range(PROBES), range(PROBES)):
        x = x0 + (x1 - x0) * (column + 0.5) / PROBES
        y = y0 + (y1 - y0) * (row + 0.5) / PROBES
        at = (int(x * overview.pixel_l0[0]), int(y * overview.pixel_l0[1]))
        try:
            slide.read_region(at, level, (1, 1))
        except SlideError:
            continue
        return True
    return False


class _StoredLevel:
    """One stored level as a slide of its own, level-0 px being that level's."""

    level_downsamples = (1.0,)

    def __init__(self, slide: TiledTiffReader, level: int) -> None:
        self._slide, self._level = slide, level

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        return self._slide.read_level(location, self._level, size)


def _read_part(
    slide: Slide,
    location: tuple[float, float],
    *,
    extent_l0: tuple[float, float],
    out_px: tuple[int, int],
    level: int,
) -> NDArray[np.uint8]:
    """Read part of the overview, from the level's own pixels where the reader gives them.

    A level of 16.0005 has hardly a pixel that starts on a whole level-0 pixel, so that OpenSlide
    interpolates all of it: slow, and less sharp than what is stored.
    """
    downsample = slide.level_downsamples[level]
    if isinstance(slide, TiledTiffReader) and not downsample.is_integer():
        try:
            return read_resampled(
                cast("Slide", _StoredLevel(slide, level)),
                (location[0] / downsample, location[1] / downsample),
                extent_l0=(extent_l0[0] / downsample, extent_l0[1] / downsample),
                out_px=out_px,
                level=0,
            )
        except SlideError as error:
            log.debug("%s; asking OpenSlide", error)
    return read_resampled(slide, location, extent_l0=extent_l0, out_px=out_px, level=level)


def _quarter(block: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
    x0, y0, x1, y1 = block
    middle_x, middle_y = (x0 + x1 + 1) // 2, (y0 + y1 + 1) // 2
    parts = [
        (left, top, right, bottom)
        for top, bottom in ((y0, middle_y), (middle_y, y1))
        for left, right in ((x0, middle_x), (middle_x, x1))
    ]
    return [part for part in parts if part[0] < part[2] and part[1] < part[3]]
