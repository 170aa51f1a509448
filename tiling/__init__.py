"""Slides in, patch stores out. Knows nothing of models; never imports torch or wsi_pipeline.

Public names are imported when they are first used.
"""

from tiling.lazy import lazy_names

__all__ = ["PatchStore", "TileConfig", "TissueConfig", "open_slide", "tile_slide"]

MODULE_BY_NAME = {
    "PatchStore": "tiling.store",
    "TileConfig": "tiling.contracts",
    "TissueConfig": "tiling.contracts",
    "open_slide": "tiling.slide",
    "tile_slide": "tiling.build",
}

__getattr__, __dir__ = lazy_names(__name__, MODULE_BY_NAME)
