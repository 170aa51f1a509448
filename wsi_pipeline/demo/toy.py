"""The toy images of PatchNet paper 1, appendix A, as a folder of images.

Class 0 is a black image of 128 x 128 px, class 1 the same with a white square of 64 x 64 px in its
upper left corner. There is nothing else to learn from, so training, validation and test hold the
same two pictures: the experiment asks where the loss ends, not how a model generalises.

``python -m wsi_pipeline.demo.toy DIR`` writes them, for ``configs/patchnet_convergence.yaml``.

References
----------
.. [1] Radhakrishnan, Durham, Soylemezoglu, Uhler, "PatchNet: Interpretable Neural Networks for
   Image Classification", section 3.3 and appendix A.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.files import write_aside
from wsi_pipeline.contracts import SPLITS
from wsi_pipeline.errors import ManifestError

SIDE, SQUARE = 128, 64  # px (paper 1, appendix A)
CLASSES = ("0_black", "1_corner")  # in alphabetical order: class 0, class 1


def toy_image(label: int, *, side: int = SIDE, square: int = SQUARE) -> NDArray[np.uint8]:
    """Draw the image of a class.

    Parameters
    ----------
    label : {0, 1}
        0 is black, 1 has the white square.
    side, square : int
        Of the image and of the square, px.

    Returns
    -------
    image : (side, side) uint8
        0 or 255.
    """
    image = np.zeros((side, side), np.uint8)
    if label:
        image[:square, :square] = 255
    return image


def write_toy(out: Path) -> None:
    """Write ``<split>/<class>/image.png`` for train, val and test.

    Parameters
    ----------
    out : Path
        A new folder.

    Raises
    ------
    ManifestError
        If `out` exists.
    """
    if out.exists():
        raise ManifestError(f"{out} exists already; name a folder that does not")
    with write_aside(out) as scratch:
        for split in SPLITS:
            for label, name in enumerate(CLASSES):
                folder = scratch / split / name
                folder.mkdir(parents=True)
                Image.fromarray(toy_image(label)).save(folder / "image.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the folder and print its path."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.toy")
    parser.add_argument("out", type=Path, help="folder to make")
    out: Path = parser.parse_args(argv).out
    try:
        write_toy(out)
    except ManifestError as error:
        parser.error(str(error))
    sys.stdout.write(f"{out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
