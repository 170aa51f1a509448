"""What every reader of slides has: which files it takes, what it knows of a slide, an end."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from tiling.errors import SlideError
from tiling.readers.common import check_region, usable_mpp


class Reader(ABC):
    """One way to read slide files; an instance is an open slide (`tiling.contracts.Slide`).

    Reads may come from many threads at once. A subclass is listed in `tiling.readers.READERS`.

    Parameters
    ----------
    path : Path
        The slide, or the one file of it that represents the others.
    cache_bytes : int, optional
        The most that is kept of decoded file tiles, where the reader decodes them itself; 0:
        nothing. None: what all open slides of the process share (`tiling.readers.memory`).

    Raises
    ------
    PassedOnError
        If it turns out, after `accepts`, that the next reader should read this file.
    SlideError
        If the slide cannot be read by any reader; the message names the file.
    """

    title: ClassVar[str]  # its name in docs/readers.md
    suffixes: ClassVar[frozenset[str]]  # of files that may be its slides, in lower case

    @abstractmethod
    def __init__(self, path: Path, *, cache_bytes: int | None = None) -> None: ...

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this reader should read a file, judged without its pixels.

        Parameters
        ----------
        path : Path
            A regular file that can be read and is not empty.
        """

    def _describe(
        self,
        path: Path,
        *,
        vendor: str,
        level_sizes: tuple[tuple[int, int], ...],
        level_downsamples: tuple[float, ...],
        stated_mpp: tuple[float, float] | None,
        bounds: tuple[int, int, int, int] | None = None,
        objective_power: float | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Keep what the file states of its slide, as `tiling.contracts.Slide` has it."""
        self._path = path
        self.vendor = vendor
        self.size = level_sizes[0]
        self.level_sizes = level_sizes
        self.level_downsamples = level_downsamples
        self.stated_mpp = stated_mpp
        self.mpp = usable_mpp(stated_mpp)
        self.bounds = bounds
        self.objective_power = objective_power
        self.notes = notes

    def read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read pixels; see `tiling.contracts.Slide.read_region`."""
        check_region(self._path.name, level, len(self.level_sizes), size)
        return self._read_region(location, level, size)

    @abstractmethod
    def _read_region(
        self, location: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]: ...

    def read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        """Read pixels into the caller's memory; see `tiling.contracts.Slide.read_into`."""
        size = (out.shape[1], out.shape[0])
        check_region(self._path.name, level, len(self.level_sizes), size)
        self._read_into(out, location, level)

    def _read_into(self, out: NDArray[np.uint8], location: tuple[int, int], level: int) -> None:
        out[...] = self._read_region(location, level, (out.shape[1], out.shape[0]))

    def read_level(
        self, corner: tuple[int, int], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Read a level's own pixels, if the reader can; see `tiling.contracts.Slide.read_level`."""
        raise SlideError(f"{self._path.name}: level {level} is read by level-0 positions only")

    @abstractmethod
    def close(self) -> None:
        """Release the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
