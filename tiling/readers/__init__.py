"""One module per way to read slide files, and `READERS`: all of them, in the order of asking.

`READERS` is imported on first use: masks and single images are read without OpenSlide.
"""

import logging

from tiling.lazy import lazy_names

__all__ = ["READERS"]

# Of damaged files tifffile logs what is raised here with the slide's name and the remedy; a program
# that sets up logging still gets its messages.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

__getattr__, __dir__ = lazy_names(__name__, {"READERS": "tiling.readers.order"})
