"""One module per way to read slide files, and `READERS`: all of them, in the order of asking.

`READERS` is imported when it is first used: other modules here are read without OpenSlide.
"""

from typing import TYPE_CHECKING

from tiling.lazy import lazy_names

if TYPE_CHECKING:
    from tiling.readers.order import READERS

__all__ = ["READERS"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, {"READERS": "tiling.readers.order"})
