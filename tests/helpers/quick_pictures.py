"""Figures whose content is written instead of drawn: rendering takes most of the time of a run.

A file is a valid picture of one pixel, with a digest of everything that the figure shows. So files
are equal iff the figures are, and tests that compare the bytes of two runs prove what they did.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.artist import Artist
from matplotlib.collections import Collection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo


@contextmanager
def quick_pictures() -> Iterator[None]:
    """Replace `Figure.savefig` of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _save_digest)
        yield


def _save_digest(self: Figure, path: Any, *, format: str = "png", **options: Any) -> None:
    digest = hashlib.sha256(f"{format} {self.get_size_inches()} {sorted(options)}".encode())
    for artist in self.findobj():
        digest.update(_content(artist))
    if format == "png":
        info = PngInfo()
        info.add_text("Comment", 32 * digest.hexdigest())  # long enough to damage it
        Image.new("L", (1, 1)).save(path, format="PNG", pnginfo=info)
    else:
        assert format == "svg"
        Path(path).write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg"><desc>{digest.hexdigest()}</desc></svg>'
        )


def _content(artist: Artist) -> bytes:
    """What an artist shows: its kind, numbers and texts."""
    parts: list[Any] = [type(artist).__name__, artist.get_visible(), artist.get_alpha()]
    if isinstance(artist, Text):
        parts += [artist.get_text(), artist.get_position(), artist.get_color()]
    elif isinstance(artist, Line2D):
        parts += [_bytes(artist.get_xydata()), artist.get_color(), artist.get_linestyle()]
    elif isinstance(artist, Patch):
        parts += [_bytes(artist.get_path().vertices), artist.get_facecolor()]
    elif isinstance(artist, AxesImage):
        parts += [_bytes(artist.get_array()), artist.get_clim(), artist.cmap.name]
    elif isinstance(artist, Collection):
        parts += [_bytes(artist.get_offsets()), _bytes(artist.get_facecolor())]
        parts += [_bytes(path.vertices) for path in artist.get_paths()]
    return repr(parts).encode()


def _bytes(values: Any) -> bytes:
    if np.ma.isMaskedArray(values):
        values = values.astype(np.float64).filled(np.nan)
    return np.asarray(values).tobytes()
