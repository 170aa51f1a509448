"""Pictures as data: a report is one file, so what it shows is inside it."""

import base64
import io
from pathlib import Path

from PIL import Image

from tiling.files import open_file
from wsi_pipeline.errors import ReportError

LONGEST_PX = 900  # side of an embedded picture; sharp on a phone and on paper, some 60 kB
_JPEG_QUALITY = 82


def embed_picture(path: Path, *, longest_px: int = LONGEST_PX) -> str:
    """Turn a picture into a data URI, shrunk if it is large.

    Parameters
    ----------
    path : Path
        A PNG.
    longest_px : px
        Neither side is longer than this afterwards.

    Returns
    -------
    uri : str
        ``data:image/jpeg;base64,...``

    Raises
    ------
    ReportError
        If the file is no picture.
    """
    try:
        with open_file(path, "rb") as file, Image.open(file) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise ReportError(
            f"{path.parent.name}/{path.name}: not a picture ({error}); delete it and run "
            "its stage again"
        ) from error
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return embed_image(small)


def embed_image(picture: Image.Image) -> str:
    """Turn an RGB picture into a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
