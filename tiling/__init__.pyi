"""Public names, for type checkers; `__init__.py` imports them on first use."""

from tiling.build import tile_slide as tile_slide
from tiling.contracts import TileConfig as TileConfig
from tiling.contracts import TissueConfig as TissueConfig
from tiling.slide import open_slide as open_slide
from tiling.store import PatchStore as PatchStore

__all__: list[str]
MODULE_BY_NAME: dict[str, str]
