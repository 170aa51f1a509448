"""One module per way to read slide files, and `READERS`: all of them, in the order of asking.

`READERS` is imported on first use: masks and single images are read without OpenSlide.
"""

from tiling.lazy import lazy_names

__all__ = ["READERS"]

__getattr__, __dir__ = lazy_names(__name__, {"READERS": "tiling.readers.order"})
