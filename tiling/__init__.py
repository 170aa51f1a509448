"""Slides in, patch stores out. Knows nothing of models; never imports torch or wsi_pipeline.

Public names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from tiling.lazy import lazy_names

if TYPE_CHECKING:
    from tiling.build import tile_slide
    from tiling.contracts import TileConfig, TissueConfig
    from tiling.slide import open_slide
    from tiling.store import PatchStore

__all__ = ["PatchStore", "TileConfig", "TissueConfig", "open_slide", "tile_slide"]

MODULE_BY_NAME = {
    "PatchStore": "tiling.store",
    "TileConfig": "tiling.contracts",
    "TissueConfig": "tiling.contracts",
    "open_slide": "tiling.slide",
    "tile_slide": "tiling.build",
}

if not TYPE_CHECKING:  # a type checker sees the imports above, and reports unknown names
    __getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
