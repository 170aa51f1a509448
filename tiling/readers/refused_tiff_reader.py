"""TIFF of a maker that OpenSlide knows, in a variant that it refuses to open."""

from pathlib import Path

from tiling.errors import SlideError
from tiling.readers.tiff_reader import TiffReader
from tiling.readers.tiff_structure import is_tiff


class RefusedTiffReader(TiffReader):
    """A slide that OpenSlide passed on, read by tifffile.

    It is asked after OpenSlide, so that no slide is opened a second time to see whether OpenSlide
    opens it: for a file of one level that takes OpenSlide some 10 ms, which it spends on hashing.

    Parameters
    ----------
    path, cache_bytes
        See `TiffReader`.

    Raises
    ------
    UnsupportedSlideError
        If the file is sound but not one 8-bit RGB or grey picture.
    SlideError
        If the file is damaged or cut off.
    """

    title = "TIFF that OpenSlide refuses"

    def __init__(self, path: Path, *, cache_bytes: int | None = None) -> None:
        super().__init__(path, cache_bytes=cache_bytes)
        if self.n_beyond_end:
            self.close()
            raise SlideError(
                f"{path.name}: the file is cut off: {self.n_beyond_end} of its file tiles lie "
                "beyond its end; copy it again from its source"
            )

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Whether a file is a TIFF."""
        return is_tiff(path)
