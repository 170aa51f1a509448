"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, tiled TIFF.

After one failed read an OpenSlide handle fails permanently, even for intact regions. The reader
therefore reopens the file after a failure, so that one bad spot affects only one region.
"""

import re
import threading
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from tiling.errors import PassedOnError, SlideError, UnsupportedSlideError
from tiling.readers.base import Reader
from tiling.readers.common import composite_over_white, parse_number, positive_mpp
from tiling.readers.memory import openslide_cache
from tiling.readers.tiff_structure import find_cut, is_tiff
from tiling.threads import check_stopped

LARGEST_TILE_BYTES = 2**30  # decoded, four bytes per pixel: 16,384 x 16,384 px
# How OpenSlide reports formats that it knows and variants of them that it does not read.
UNSUPPORTED = re.compile(r"unsupported|not supported|(can't|cannot) handle|unknown", re.IGNORECASE)


class OpenSlideReader(Reader):
    """A slide read by OpenSlide, which keeps decoded file tiles in a cache of its own.

    Parameters
    ----------
    path : Path
        The slide, or the one file of it that OpenSlide wants named (``.mrxs``, one ``.dcm``).
    cache_bytes : int, optional
        Not used: all slides read by OpenSlide share its cache.

    Raises
    ------
    PassedOnError
        If OpenSlide refuses a TIFF that is not cut off.
    UnsupportedSlideError
        If OpenSlide knows the format but not this variant of it.
    SlideError
        If OpenSlide cannot open the file, or it states tiles so large that OpenSlide would end
        this process.
    """

    title = "OpenSlide"
    suffixes = frozenset(
        {
            ".bif", ".czi", ".dcm", ".dicom", ".mrxs", ".ndpi", ".scn", ".svs", ".svslide", ".tif",
            ".tiff", ".vms", ".vmu",
        }
    )  # fmt: skip

    def __init__(self, path: Path, *, cache_bytes: int | None = None) -> None:
        try:
            handle = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise _explain_refusal(path, error) from error
        handle.set_cache(openslide_cache())
        self._handle: openslide.OpenSlide | None = handle
        self._is_open = True
        self._lock = threading.Lock()
        properties = dict(handle.properties)
        try:
            _check_tiles(path.name, properties)
        except SlideError:
            handle.close()
            raise
        self._describe(
            path,
            vendor=properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown"),
            level_sizes=tuple((int(w), int(h)) for w, h in handle.level_dimensions),
            level_downsamples=tuple(float(d) for d in handle.level_downsamples),
            stated_mpp=positive_mpp(
                parse_number(properties.get(openslide.PROPERTY_NAME_MPP_X)),
                parse_number(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
            ),
            bounds=_read_bounds(properties),
            objective_power=parse_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        )

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether OpenSlide knows the format."""
        return openslide.OpenSlide.detect_format(path) is not None

    def _read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        check_stopped()
        handle = self._get_handle()
        try:
            return _read(handle, location, level, size)
        except openslide.OpenSlideError:
            # The failure may be another thread's: read this region with a handle of its own.
            return self._read_afresh(handle, location, level, size)

    def _read_afresh(
        self,
        failed: openslide.OpenSlide,
        location: tuple[int, int],
        level: int,
        size: tuple[int, int],
    ) -> NDArray[np.uint8]:
        try:
            region = _read(openslide.OpenSlide(self._path), location, level, size)
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{self._path.name}: cannot decode level {level} at {tuple(location)}, "
                f"{size[0]} x {size[1]} px: {self._say(error)}"
            ) from error
        finally:
            self._replace(failed)
        return region

    def _say(self, error: Exception) -> str:
        return str(error).replace(str(self._path), self._path.name)

    def _get_handle(self) -> openslide.OpenSlide:
        with self._lock:
            if not self._is_open:
                raise SlideError(f"{self._path.name}: the slide is closed; open it again")
            if self._handle is None:
                self._handle = self._open_again()
            return self._handle

    def rest(self) -> None:
        """Release the file until the next read, which opens it again."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def _replace(self, failed: openslide.OpenSlide) -> None:
        # The failed handle is dropped, not closed: another thread may still be inside it, and
        # openslide-python closes it when the last of them lets go.
        with self._lock:
            if self._handle is failed:
                self._handle = self._open_again()

    def _open_again(self) -> openslide.OpenSlide:
        try:
            handle = openslide.OpenSlide(self._path)
        except (openslide.OpenSlideError, OSError) as error:
            raise SlideError(
                f"{self._path.name}: cannot be opened again: {self._say(error)}; was the file "
                "moved or changed?"
            ) from error
        handle.set_cache(openslide_cache())
        return handle

    def close(self) -> None:
        """Release the file."""
        self._is_open = False
        self.rest()


def _read(
    handle: openslide.OpenSlide, location: tuple[int, int], level: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    x, y = location
    width, height = size
    # openslide-python hands out straight, not premultiplied, alpha.
    image = handle.read_region((int(x), int(y)), level, (int(width), int(height)))
    return composite_over_white(np.asarray(image))


def _explain_refusal(path: Path, error: openslide.OpenSlideError) -> SlideError:
    reason = str(error).replace(str(path), path.name)
    cut = find_cut(path) if is_tiff(path) else None
    if cut:
        return SlideError(f"{path.name}: the file is cut off: {cut}; copy it again from its source")
    if is_tiff(path):
        return PassedOnError(f"{path.name}: OpenSlide cannot open it: {reason}")
    if UNSUPPORTED.search(reason):
        return UnsupportedSlideError(
            f"{path.name}: OpenSlide does not read this variant of the format: {reason}; "
            "convert it, for example to JPEG compression, with the scanner's own software"
        )
    return SlideError(
        f"{path.name}: OpenSlide cannot open it: {reason}; if the file is damaged or cut off, "
        "copy it again from its source"
    )


def _check_tiles(file_name: str, properties: dict[str, str]) -> None:
    # A damaged directory can name tiles of terabytes; OpenSlide, asked for one, aborts the process.
    for key, value in properties.items():
        if key.startswith("openslide.level[") and key.endswith("].tile-width"):
            width = int(value)
            height = int(properties.get(key.replace("tile-width", "tile-height"), 0))
            if 4 * width * height > LARGEST_TILE_BYTES:
                raise SlideError(
                    f"{file_name}: its directory lists file tiles of {width} x {height} px; "
                    "if damaged, copy it again from its source, else convert it to smaller ones"
                )


def _read_bounds(properties: dict[str, str]) -> tuple[int, int, int, int] | None:
    names = (
        openslide.PROPERTY_NAME_BOUNDS_X,
        openslide.PROPERTY_NAME_BOUNDS_Y,
        openslide.PROPERTY_NAME_BOUNDS_WIDTH,
        openslide.PROPERTY_NAME_BOUNDS_HEIGHT,
    )
    values = [parse_number(properties.get(name)) for name in names]
    if any(value is None for value in values):
        return None
    x, y, width, height = (int(value) for value in values if value is not None)
    return x, y, width, height
