"""All readers of slides, in the order in which they are asked; each has a row in docs/readers.md.

The TIFF reader takes only what OpenSlide does not know, or does not show as it is. The tiled TIFF
reader goes before OpenSlide because it is faster and gives the same pixels.
"""

from tiling.readers.base import Reader
from tiling.readers.openslide_reader import OpenSlideReader
from tiling.readers.refused_tiff_reader import RefusedTiffReader
from tiling.readers.tiff_reader import TiffReader
from tiling.readers.tiled_tiff_reader import TiledTiffReader

READERS: tuple[type[Reader], ...] = (
    TiffReader,
    TiledTiffReader,
    OpenSlideReader,
    RefusedTiffReader,
)
