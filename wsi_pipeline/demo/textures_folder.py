"""The textures of scikit-image, cut into a folder of images.

Brick, grass and gravel are grey photographs of 512 x 512 px, shipped with scikit-image itself. One
photograph per class: a model learns only these three photographs. The pieces of training,
validation and test come from bands of the photograph that share no pixel: the upper half, the third
and the last quarter.

``python -m wsi_pipeline.demo.textures_folder DIR --side 64`` cuts them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

from tiling.files import write_aside
from wsi_pipeline.contracts import Split
from wsi_pipeline.errors import ManifestError

TEXTURES = ("brick", "grass", "gravel")
# Shares of the photograph's height.
BANDS: dict[Split, tuple[float, float]] = {"train": (0, 0.5), "val": (0.5, 0.75), "test": (0.75, 1)}


def cut_pieces(
    picture: NDArray[np.uint8], *, side: int
) -> Iterator[tuple[Split, int, int, NDArray[np.uint8]]]:
    """Cut a photograph into squares that neither overlap nor leave their split's band.

    Parameters
    ----------
    picture : (H, W)
        A photograph.
    side : int
        Of a piece, px.

    Yields
    ------
    split, row, column : of the piece's upper left corner, px
    piece : (side, side)

    Raises
    ------
    ManifestError
        If a band holds no piece.
    """
    height, width = picture.shape
    for split, (top, bottom) in BANDS.items():
        first, end = int(top * height), int(bottom * height)
        if side < 1 or side > min(end - first, width):
            raise ManifestError(
                f"a piece of {side} px does not fit the {end - first} px high band of '{split}'; "
                f"take a side of 1 to {min(end - first, width)} px"
            )
        for row in range(first, end - side + 1, side):
            for column in range(0, width - side + 1, side):
                yield split, row, column, picture[row : row + side, column : column + side]


def write_textures(out: Path, *, side: int) -> int:
    """Write ``<split>/<texture>/<row>_<column>.png``.

    Parameters
    ----------
    out : Path
        A new folder.
    side : int
        Of a piece, px.

    Returns
    -------
    n_pieces : int

    Raises
    ------
    ManifestError
        If `out` exists, or `side` does not fit.
    """
    if out.exists():
        raise ManifestError(f"{out} exists already; name a folder that does not")
    source = Path(skimage.__file__).parent / "data"
    n_pieces = 0
    with write_aside(out) as scratch:
        for name in TEXTURES:
            with Image.open(source / f"{name}.png") as image:
                picture = np.asarray(image.convert("L"))
            for split, row, column, piece in cut_pieces(picture, side=side):
                path = scratch / split / name / f"{row:03d}_{column:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(piece).save(path)
                n_pieces += 1
    return n_pieces


def main(argv: Sequence[str] | None = None) -> int:
    """Cut the pieces and print their number."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.textures_folder")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--side", type=int, default=128, help="of a piece, px")
    args = parser.parse_args(argv)
    try:
        n_pieces = write_textures(args.out, side=args.side)
    except ManifestError as error:
        parser.error(str(error))
    sys.stdout.write(f"{args.out}: {n_pieces} pieces\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
