"""Crops of the error gallery: the patches' own pixels, as PNG."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.errors import TilingError
from tiling.files import write_aside
from wsi_pipeline.evaluation.cases import ErrorCase

ReadPatch = Callable[[str, int], NDArray[np.uint8]]


def write_crops(
    folder: Path, cases: Sequence[ErrorCase], read_patch: ReadPatch, notes: list[str]
) -> dict[ErrorCase, str]:
    """Write the patch of each case.

    Parameters
    ----------
    folder : Path
        Folder for the crops; named ``errors``, next to ``errors.csv``.
    notes : list of str
        Gets a note for each patch that cannot be read; its crop is skipped.

    Returns
    -------
    files : case -> path relative to the folder's parent

    Raises
    ------
    StoreError
        If a patch store is damaged.
    """
    files: dict[ErrorCase, str] = {}
    for case in cases:
        if case.patch is None:
            continue
        try:
            pixels = read_patch(case.slide_id, case.patch)
        except TilingError as error:
            if error.damaged is not None:
                raise
            notes.append(f"no crop of {case.slide_id} in the error gallery: {error}")
            continue
        with write_aside(folder / case.file_name) as scratch:
            Image.fromarray(pixels).save(scratch, format="png")
        files[case] = f"{folder.name}/{case.file_name}"
    return files
