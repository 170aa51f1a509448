"""Slides through OpenSlide: Aperio, Hamamatsu, Leica, MIRAX, Philips, Ventana, DICOM, tiled TIFF.

After one failed read an OpenSlide handle fails for ever, even for regions that are fine. The reader
therefore opens the file anew after a failure, so that one bad spot costs one region and no more.
"""

import threading
from pathlib import Path
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.common import (
    check_region,
    composite_over_white,
    parse_number,
    positive_mpp,
    usable_mpp,
)
from tiling.threads import check_stopped

LARGEST_TILE_BYTES = 2**30  # decoded, four bytes per pixel: 16,384 x 16,384 px


class OpenSlideReader:
    """A slide read by OpenSlide; reads may come from many threads at once.

    Parameters
    ----------
    path : Path
        The slide, or the one file of it that OpenSlide wants named (``.mrxs``, one ``.dcm``).

    Raises
    ------
    openslide.OpenSlideError
        If OpenSlide cannot open the file; `tiling.slide.open_slide` makes a sentence of it.
    SlideError
        If it says to have tiles so large that OpenSlide would end this process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._handle: openslide.OpenSlide | None = openslide.OpenSlide(path)
        self._lock = threading.Lock()
        properties = dict(self._handle.properties)
        try:
            _check_tiles(path.name, properties)
        except SlideError:
            self._handle.close()
            raise
        self._vendor = properties.get(openslide.PROPERTY_NAME_VENDOR, "unknown")
        self._level_sizes = tuple((int(w), int(h)) for w, h in self._handle.level_dimensions)
        self._level_downsamples = tuple(float(d) for d in self._handle.level_downsamples)
        self._stated_mpp = positive_mpp(
            parse_number(properties.get(openslide.PROPERTY_NAME_MPP_X)),
            parse_number(properties.get(openslide.PROPERTY_NAME_MPP_Y)),
        )
        self._mpp = usable_mpp(self._stated_mpp)
        self._bounds = _read_bounds(properties)
        self._objective_power = parse_number(
            properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)
        )

    @property
    def vendor(self) -> str:
        """Name of the scanner's maker as OpenSlide spells it."""
        return self._vendor

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px."""
        return self._level_sizes[0]

    @property
    def mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px, None where the file does not say."""
        return self._mpp

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each stored level, the finest first."""
        return self._level_sizes

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Level-0 px per px of each stored level."""
        return self._level_downsamples

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """(x, y, width, height) level-0 px of the scanned part, if the file says."""
        return self._bounds

    @property
    def objective_power(self) -> float | None:
        """What the scanner says (40 for 40x), if anything."""
        return self._objective_power

    @property
    def stated_mpp(self) -> tuple[float, float] | None:
        """(x, y) µm per level-0 px as the file states it, even if it cannot be a microscope's."""
        return self._stated_mpp

    @property
    def notes(self) -> tuple[str, ...]:
        """Nothing is decided here: OpenSlide knows which image is the slide."""
        return ()

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read pixels; see `tiling.contracts.Slide.read_region`."""
        check_region(self._path.name, level, len(self._level_sizes), size)
        check_stopped()
        handle = self._handle
        if handle is None:
            raise SlideError(f"{self._path.name}: the slide is closed; open it again")
        try:
            return _read(handle, location, level, size)
        except openslide.OpenSlideError:
            # The fault may be another thread's: judge this region by a handle nobody else has.
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

    def _say(self, error: openslide.OpenSlideError) -> str:
        return str(error).replace(str(self._path), self._path.name)

    def _replace(self, failed: openslide.OpenSlide) -> None:
        # The failed handle is dropped, not closed: another thread may still be inside it, and
        # openslide-python closes it when the last of them lets go.
        with self._lock:
            if self._handle is failed:
                try:
                    self._handle = openslide.OpenSlide(self._path)
                except openslide.OpenSlideError as error:
                    raise SlideError(
                        f"{self._path.name}: cannot be opened again after a failed read: "
                        f"{self._say(error)}; was the file moved or changed?"
                    ) from error

    def close(self) -> None:
        """Release the file."""
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _read(
    handle: openslide.OpenSlide, location: tuple[int, int], level: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    x, y = location
    width, height = size
    # openslide-python hands out straight, not premultiplied, alpha.
    image = handle.read_region((int(x), int(y)), level, (int(width), int(height)))
    return composite_over_white(np.asarray(image))


def _check_tiles(file_name: str, properties: dict[str, str]) -> None:
    # A damaged directory can name tiles of terabytes; OpenSlide, asked for one, aborts the process.
    for key, value in properties.items():
        if key.startswith("openslide.level[") and key.endswith("].tile-width"):
            width = int(value)
            height = int(properties.get(key.replace("tile-width", "tile-height"), 0))
            if 4 * width * height > LARGEST_TILE_BYTES:
                raise SlideError(
                    f"{file_name}: its directory tells of file tiles of {width} x {height} px; "
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
