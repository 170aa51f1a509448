"""A cohort of real tissue: slides composed of CAMELYON16 patches.

Each patch is a square of a level-0 slide at 0.243 µm/px, named after its slide of origin and
its place there (``tumor_064_68097_138955.png``). A composed slide holds patches of one origin
only: its tumour patches side by side as compact lesions, its normal patches around them, on
white, each patch once. The outline of a lesion's patches is its annotation. Patches lie on
multiples of their own side, so that a grid of that patch size and stride cuts them out again.

Splits. The slide of origin is the patient, and a patient is in one split. The test patient must
have both classes, or a model could succeed by distinguishing the stains of two laboratories instead
of tumour from normal; the rest must still have both classes for training. Of the three
origins in DIDSR's sample (tumor_001: tumour only; tumor_004: normal only; tumor_064: both) that
leaves one valid choice: train on tumor_001 and tumor_004, test on tumor_064. No patient remains
for validation, and sharing one would be a leak, so there is no ``val``: train a number of epochs
fixed beforehand, keep the last weights, and evaluate at a threshold fixed beforehand. In that
training set class and stain coincide, so the result depends on stain as much as on tumours; perturb
colours, and treat it as a check that real tissue can be processed, not as a measure of the method.
With more origins, a patient of both classes is set aside for validation where training keeps
both classes.

``python -m wsi_pipeline.demo.mosaic --patches DIR --out DIR`` composes it.

References
----------
.. [1] Bejnordi et al., "Diagnostic Assessment of Deep Learning Algorithms for Detection of Lymph
   Node Metastases in Women With Breast Cancer", JAMA 2017;318:2199 (CAMELYON16).
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image

from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.files import check_file
from wsi_pipeline.cohort.manifest import write_manifest
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.demo.pyramid import write_pyramid
from wsi_pipeline.errors import ManifestError

MPP = 0.243  # µm per px of CAMELYON16's level 0
CLASSES = ("tumor", "normal")  # folders of the patches
LESION_PATCHES = 12  # about so many patches make a lesion: 4 x 3, 250 µm x 190 µm
MARGIN = 2  # patches of white all round
QUALITY = 95  # the patches were JPEG once; lose little more
PATCH_NAME = re.compile(r"(?P<origin>.+)_\d+_\d+")

Cell = tuple[int, int]  # (column, row) of a grid of patches


@dataclass(frozen=True)
class Patches:
    """The patches of one slide of origin."""

    tumour: tuple[Path, ...]
    normal: tuple[Path, ...]


@dataclass(frozen=True)
class Layout:
    """Positions of the patches of a composed slide."""

    lesions: tuple[tuple[Cell, ...], ...]  # a cell per tumour patch, by lesion
    normal: tuple[Cell, ...]  # a cell per normal patch
    size: tuple[int, int]  # (columns, rows)


def compose_cohort(patches: Path, out: Path, *, seed: int = 0) -> Path:
    """Compose slides of patches; write slides, annotations and a manifest with splits.

    Parameters
    ----------
    patches : Path
        Folder with ``tumor/*.png`` and ``normal/*.png``, all of one size.
    out : Path
        Gets ``manifest.csv``, ``slides/`` and ``annotations/``.
    seed : int
        Decides which patch lies where; the same seed gives the same bytes.

    Returns
    -------
    manifest : Path

    Raises
    ------
    ManifestError
        If there are no patches, a name or size is not as above, or the patients do not allow a
        valid split.
    """
    found = find_patches(patches)
    splits = choose_splits({name: (len(p.tumour), len(p.normal)) for name, p in found.items()})
    side = _check_sizes(found)
    rng = np.random.default_rng(seed)
    entries = []
    for patient, of_patient in found.items():
        for number, of_slide in enumerate(_share_out(rng, of_patient), start=1):
            slide_id = f"{patient}_mosaic_{number}"
            entries.append(
                SlideEntry(
                    slide_id=slide_id,
                    path=out / "slides" / f"{slide_id}.tif",
                    patient=patient,
                    label=int(bool(of_slide.tumour)),
                    annotation=(
                        out / "annotations" / f"{slide_id}.xml" if of_slide.tumour else None
                    ),
                    split=splits[patient],
                )
            )
            _compose_slide(entries[-1], of_slide, side=side)
    manifest = out / "manifest.csv"
    write_manifest(manifest, entries)
    return manifest


def find_patches(folder: Path) -> dict[str, Patches]:
    """Find patches and group them by slide of origin, both in order of their names."""
    by_origin: dict[str, dict[str, list[Path]]] = {}
    for name in CLASSES:
        for path in sorted((folder / name).glob("*.png")):
            match = PATCH_NAME.fullmatch(path.stem)
            if match is None:
                raise ManifestError(f"{path}: expected a name like <slide>_<x>_<y>.png")
            kinds = by_origin.setdefault(match["origin"], {kind: [] for kind in CLASSES})
            kinds[name].append(path)
    if not by_origin:
        raise ManifestError(f"{folder}: no patches; it must hold tumor/*.png and normal/*.png")
    return {
        origin: Patches(tuple(kinds["tumor"]), tuple(kinds["normal"]))
        for origin, kinds in sorted(by_origin.items())
    }


def _check_sizes(found: Mapping[str, Patches]) -> int:
    # One size for all slides, or no one grid cuts every slide's patches out again.
    side = 0
    for path in (path for patches in found.values() for path in _all(patches)):
        try:
            check_file(path)
            with Image.open(path) as picture:
                size = picture.size
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read as a picture ({error})") from error
        side = side or size[0]
        if size != (side, side):
            raise ManifestError(
                f"{path}: patches must be squares of one size, {side} px here, got {size}"
            )
    return side


def choose_splits(counts: Mapping[str, tuple[int, int]]) -> dict[str, Split]:
    """Choose splits by patient so that the test has both classes in one patient.

    Parameters
    ----------
    counts : patient -> (tumour patches, normal patches)

    Returns
    -------
    splits : patient -> split
        No patient is in ``val`` unless all three splits can have both classes.

    Raises
    ------
    ManifestError
        If no patient with both classes can be left out.

    Examples
    --------
    >>> choose_splits({"a": (24, 0), "b": (0, 7), "c": (4, 22)})
    {'a': 'train', 'b': 'train', 'c': 'test'}
    """
    splits: dict[str, Split] = dict.fromkeys(counts, "train")
    held_out: tuple[Split, ...] = ("test", "val")
    for split in held_out:
        patient = _patient_to_leave_out(counts, splits)
        if patient is not None:
            splits[patient] = split
    if "test" not in splits.values():
        raise ManifestError(
            "no patient with tumour and normal patches can be left out so that both classes "
            f"remain to train on; got (tumour, normal) patches {dict(counts)}"
        )
    return splits


def _patient_to_leave_out(
    counts: Mapping[str, tuple[int, int]], splits: Mapping[str, Split]
) -> str | None:
    training = [patient for patient, split in splits.items() if split == "train"]
    best = None
    for patient in training:
        rest = [counts[p] for p in training if p != patient]
        rest_has_both = all(any(count[k] for count in rest) for k in (0, 1))
        smaller_class = min(counts[patient])
        if rest_has_both and smaller_class and (best is None or smaller_class > best[0]):
            best = (smaller_class, patient)
    return best[1] if best else None


def _share_out(rng: np.random.Generator, patches: Patches) -> list[Patches]:
    # A patient with both classes gets a tumour slide and a normal one, half of the normal each:
    # slide-level metrics and FROC need normal slides.
    tumour, normal = (
        tuple(paths[i] for i in rng.permutation(len(paths)))
        for paths in (patches.tumour, patches.normal)
    )
    half = len(normal) // 2 if tumour else 0
    return [p for p in (Patches(tumour, normal[half:]), Patches((), normal[:half])) if any(_all(p))]


def _all(patches: Patches) -> tuple[Path, ...]:
    return patches.tumour + patches.normal


# ---------------------------------------------------------------- one slide


def plan_layout(n_tumour: int, n_normal: int) -> Layout:
    """Place lesions side by side, a patch apart, and the normal patches around them.

    Returns
    -------
    layout : Layout
        No cell is used twice; MARGIN cells at each edge are empty.
    """
    n_lesions = max(1, round(n_tumour / LESION_PATCHES)) if n_tumour else 0
    lesions: list[list[Cell]] = []
    left = 0
    for part in np.array_split(np.arange(n_tumour), n_lesions) if n_lesions else []:
        width = int(np.ceil(np.sqrt(len(part))))
        lesions.append([(left + i % width, i // width) for i in range(len(part))])
        left += width + 1
    taken = {cell for lesion in lesions for cell in lesion}
    normal = _nearest_free(taken, n_normal)
    columns, rows = zip(*(taken | set(normal)), strict=True)
    dx, dy = MARGIN - min(columns), MARGIN - min(rows)
    size = (max(columns) + dx + 1 + MARGIN, max(rows) + dy + 1 + MARGIN)
    return Layout(
        tuple(tuple((x + dx, y + dy) for x, y in lesion) for lesion in lesions),
        tuple((x + dx, y + dy) for x, y in normal),
        size,
    )


def _nearest_free(taken: set[Cell], n: int) -> list[Cell]:
    # The free cells nearest to the middle of what is taken.
    columns, rows = zip(*taken, strict=True) if taken else ((0,), (0,))
    cx, cy = (min(columns) + max(columns)) / 2, (min(rows) + max(rows)) / 2
    reach = int(np.ceil(np.sqrt(n + len(taken)))) + max(columns) + max(rows)
    free = [
        (x, y)
        for x in range(-reach, reach + max(columns) + 1)
        for y in range(-reach, reach + max(rows) + 1)
        if (x, y) not in taken
    ]
    return sorted(free, key=lambda cell: ((cell[0] - cx) ** 2 + (cell[1] - cy) ** 2, cell))[:n]


def _compose_slide(entry: SlideEntry, patches: Patches, *, side: int) -> None:
    layout = plan_layout(len(patches.tumour), len(patches.normal))
    cells = [cell for lesion in layout.lesions for cell in lesion] + list(layout.normal)
    columns, rows = layout.size
    image = np.full((rows * side, columns * side, 3), 255, np.uint8)
    for path, (x, y) in zip(_all(patches), cells, strict=True):
        image[y * side : (y + 1) * side, x * side : (x + 1) * side] = _read_patch(path)
    write_pyramid(entry.path, image, mpp=MPP, quality=QUALITY)
    if entry.annotation:
        entry.annotation.parent.mkdir(parents=True, exist_ok=True)
        outlines = [_outline(lesion, side) for lesion in layout.lesions]
        polygons = [(f"Annotation {i}", "Tumor", outline) for i, outline in enumerate(outlines)]
        write_asap_xml(entry.annotation, polygons, ["Tumor"])


def _read_patch(path: Path) -> NDArray[np.uint8]:
    try:
        check_file(path)
        with Image.open(path) as picture:
            rgba = picture.convert("RGBA")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read as a picture ({error})") from error
    white = Image.new("RGBA", rgba.size, "white")  # transparent pixels are white
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"), np.uint8)


def _outline(cells: Sequence[Cell], side: int) -> NDArray[np.float64]:
    # The corners of the cells' common outline, level-0 px; a lesion's cells have no hole.
    squares = shapely.box(*(np.array(cells).T * side), *((np.array(cells).T + 1) * side))
    outline = shapely.union_all(squares).simplify(0).exterior
    corners: NDArray[np.float64] = np.asarray(outline.coords, np.float64)[:-1]
    return corners


def main(argv: Sequence[str] | None = None) -> int:
    """Compose the cohort and print the manifest's path."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.mosaic")
    parser.add_argument("--patches", type=Path, required=True, help="has tumor/ and normal/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cohort")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same bytes")
    args = parser.parse_args(argv)
    try:
        manifest = compose_cohort(args.patches, args.out, seed=args.seed)
    except ManifestError as error:
        parser.error(str(error))
    sys.stdout.write(f"{manifest}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
