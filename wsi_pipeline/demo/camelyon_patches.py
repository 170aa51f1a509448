"""CAMELYON16 patches as a folder of images, one slide held out at a time.

Patches are named after their slide and place (``tumor_064_68097_138955.png``). Copies of them come
with a table per slide (``without_<slide>.csv``) in which that slide is the test and all others
train. Whole slides are held out, since patches of one slide share stain and tissue. Two of the
three slides of DIDSR's sample contain only one class. Metrics of such a slide alone are undefined,
so the held-out scores of all slides are pooled
(``python -m wsi_pipeline.evaluation.pooled_scores``).

``python -m wsi_pipeline.demo.camelyon_patches PATCHES DIR`` creates the folder. With
``--annotations FOLDER`` (a file per slide, ``Tumor_064.json`` or in another format that is read)
each patch of an annotated slide gets a mask, which the tables name.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from PIL import Image

from tiling.annotation.raster import draw_area
from tiling.annotation.reading import read_annotation
from tiling.errors import AnnotationError
from tiling.files import write_aside
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.demo.mosaic import PATCH_NAME
from wsi_pipeline.errors import ManifestError

CLASSES = ("normal", "tumor")


def write_patches(patches: Path, out: Path, *, annotations: Path | None = None) -> list[str]:
    """Copy the patches; write a table for each slide held out.

    Parameters
    ----------
    patches : Path
        Folder with ``normal/*.png`` and ``tumor/*.png``.
    out : Path
        A new folder.
    annotations : Path, optional
        Folder with the slides' outlines in level-0 px, each file named after its slide in capital
        or small letters. Patches of a slide with a file get masks, ``masks/<name>.png``.

    Returns
    -------
    slides : list of str
        Sorted; ``without_<slide>.csv`` tests on it.

    Raises
    ------
    ManifestError
        If `out` exists, a class has no patch, a file name lacks its slide, or no slide has an
        annotation in the folder given.
    """
    if out.exists():
        raise ManifestError(f"{out} exists already; name a folder that does not")
    found = {name: sorted((patches / name).glob("*.png")) for name in CLASSES}
    for name, paths in found.items():
        if not paths:
            raise ManifestError(f"{patches / name}: no *.png; PATCHES must have {CLASSES}")
    rows = [(name, path, _slide_of(path)) for name, paths in found.items() for path in paths]
    slides = sorted({slide for _, _, slide in rows})
    outlines = {} if annotations is None else _read_outlines(annotations, slides)
    with write_aside(out) as scratch:
        masks = {}
        for name, path, slide in rows:
            (scratch / name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, scratch / name / path.name)
            if slide in outlines:
                masks[path] = f"masks/{path.name}"
                _draw_mask(scratch / masks[path], path, outlines[slide])
        for held_out in slides:
            table = [
                (
                    f"{name}/{path.name}",
                    name,
                    slide,
                    "test" if slide == held_out else "train",
                    *([masks.get(path, "")] if masks else []),
                )
                for name, path, slide in rows
            ]
            target = scratch / f"without_{held_out}.csv"
            columns = ("file", "class", "patient", "split", *(["mask"] if masks else []))
            write_csv(target, columns, table)
    return slides


def _slide_of(path: Path) -> str:
    match = PATCH_NAME.fullmatch(path.stem)
    if match is None:
        raise ManifestError(f"{path}: expected a name like SLIDE_X_Y.png (slide and position)")
    return match["origin"]


def _read_outlines(folder: Path, slides: Sequence[str]) -> dict[str, Any]:
    """Read what is outlined on each slide that has a file: MultiPolygons, level-0 px."""
    files = {path.name.split(".")[0].lower(): path for path in sorted(folder.glob("*.*"))}
    found = {s: read_annotation(files[s.lower()]).tumour for s in slides if s.lower() in files}
    if not found:
        raise ManifestError(
            f"{folder}: no annotation of {', '.join(slides)}; name files after them"
        )
    return found


def _draw_mask(target: Path, patch: Path, outlines: Any) -> None:
    """Draw a slide's outlines on a patch: 255 inside."""
    corner = np.array([int(v) for v in patch.stem.split("_")[-2:]])
    with Image.open(patch) as picture:
        width, height = picture.size
    there = shapely.transform(outlines, lambda points: points - corner)
    mask = draw_area(there, shape=(height, width), pixel_l0=(1, 1))
    target.parent.mkdir(exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(target)


def main(argv: Sequence[str] | None = None) -> int:
    """Create the folder and print its tables."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.camelyon_patches")
    parser.add_argument("patches", type=Path, help="has normal/ and tumor/")
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--annotations", type=Path, help="has each slide's outlines, for masks")
    args = parser.parse_args(argv)
    try:
        slides = write_patches(args.patches, args.out, annotations=args.annotations)
    except (ManifestError, AnnotationError) as error:
        parser.error(str(error))
    for slide in slides:
        sys.stdout.write(f"{args.out / f'without_{slide}.csv'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
