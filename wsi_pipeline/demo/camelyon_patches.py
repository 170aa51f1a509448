"""CAMELYON16 patches as a folder of images, one slide held out at a time.

Patches are named after their slide and place (``tumor_064_68097_138955.png``). Copies of them come
with a table per slide (``without_<slide>.csv``) in which that slide is the test and all others
train. Whole slides are held out, since patches of one slide share stain and tissue. Two of the
three slides of DIDSR's sample contain only one class. Metrics of such a slide alone are undefined,
so the held-out scores of all slides are pooled
(``python -m wsi_pipeline.evaluation.pooled_scores``).

``python -m wsi_pipeline.demo.camelyon_patches PATCHES DIR`` creates the folder.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tiling.files import write_aside
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.demo.mosaic import PATCH_NAME
from wsi_pipeline.errors import ManifestError

CLASSES = ("normal", "tumor")


def write_patches(patches: Path, out: Path) -> list[str]:
    """Copy the patches; write a table for each slide held out.

    Parameters
    ----------
    patches : Path
        Folder with ``normal/*.png`` and ``tumor/*.png``.
    out : Path
        A new folder.

    Returns
    -------
    slides : list of str
        Sorted; ``without_<slide>.csv`` tests on it.

    Raises
    ------
    ManifestError
        If `out` exists, a class has no patch, or a file name lacks its slide.
    """
    if out.exists():
        raise ManifestError(f"{out} exists already; name a folder that does not")
    found = {name: sorted((patches / name).glob("*.png")) for name in CLASSES}
    for name, paths in found.items():
        if not paths:
            raise ManifestError(f"{patches / name}: no *.png; PATCHES must have {CLASSES}")
    rows = [(name, path, _slide_of(path)) for name, paths in found.items() for path in paths]
    slides = sorted({slide for _, _, slide in rows})
    with write_aside(out) as scratch:
        for name, path, _ in rows:
            (scratch / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, scratch / name / path.name)
        for held_out in slides:
            table = [
                (f"{name}/{path.name}", name, slide, "test" if slide == held_out else "train")
                for name, path, slide in rows
            ]
            target = scratch / f"without_{held_out}.csv"
            write_csv(target, ("file", "class", "patient", "split"), table)
    return slides


def _slide_of(path: Path) -> str:
    match = PATCH_NAME.fullmatch(path.stem)
    if match is None:
        raise ManifestError(f"{path}: expected a name like SLIDE_X_Y.png (slide and position)")
    return match["origin"]


def main(argv: Sequence[str] | None = None) -> int:
    """Create the folder and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.camelyon_patches")
    parser.add_argument("patches", type=Path, help="has normal/ and tumor/")
    parser.add_argument("out", type=Path, help="folder to make")
    args = parser.parse_args(argv)
    try:
        slides = write_patches(args.patches, args.out)
    except ManifestError as error:
        parser.error(str(error))
    for slide in slides:
        sys.stdout.write(f"{args.out / f'without_{slide}.csv'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
