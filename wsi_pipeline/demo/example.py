"""Small example data for the tutorials: slides, the detections of teams, single images.

All is drawn from a seed. The folders look like a user's own: no manifest, no splits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.files import write_aside
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.demo.painting import Drawn, paint_slide, seed_rng
from wsi_pipeline.demo.pyramid import shrink, write_pyramid
from wsi_pipeline.demo.specs import MPP, SlideSpec, TumourSpec
from wsi_pipeline.demo.textures import blob_outline, fill_polygon
from wsi_pipeline.errors import ManifestError
from wsi_pipeline.run.cluster import map_tasks

PATIENTS = 8
SLIDE_SIZE = (1500, 1400)  # px at 0.5 µm
IMAGE_SIZE = (1060, 1060)  # px of the slides that images are cut from
IMAGE_PX, IMAGE_SHRINK = 128, 2  # side of an image; slide px per px
MIN_TISSUE, MIN_TUMOUR = 0.7, 0.3  # shares of an image

CHALLENGE_SIZE = 40_000  # px, both sides of a challenge slide, at 0.25 µm
CHALLENGE_TUMOUR, CHALLENGE_NORMAL = 15, 15  # slides
# Of each team: chance that a lesion is found, mean false positives of a slide, and how much higher
# its scores of lesions are than those of false positives, in standard deviations.
TEAMS = {"team_a": (0.9, 2.0, 1.8), "team_b": (0.8, 1.0, 2.2), "team_c": (0.6, 4.0, 1.0)}


def write_example(kind: str, out: Path, *, seed: int = 0, workers: int = 1) -> list[str]:
    """Draw example data into a new folder.

    Parameters
    ----------
    kind : {"slides", "teams", "images"}
    out : Path
        A new folder.
    seed : int, >= 0
        The same seed gives the same bytes.
    workers : int
        Processes that draw.

    Returns
    -------
    lines : list of str
        What each folder or file contains.

    Raises
    ------
    ManifestError
        If `out` exists.
    """
    if out.exists():
        raise ManifestError(f"{out} exists already; name a new folder")
    with write_aside(out) as scratch:
        scratch.mkdir()
        return EXAMPLES[kind](scratch, seed=seed, workers=workers)


def _draw_slides(out: Path, *, seed: int, workers: int) -> list[str]:
    specs = _slide_specs(SLIDE_SIZE, diameters=(260, 330, 300, 220), seed=seed)
    (out / "slides").mkdir()
    (out / "annotations").mkdir()
    _draw_each(partial(_write_slide, out=out, seed=seed), specs, workers)
    n_tumour = sum(bool(spec.tumours) for spec in specs)
    return [
        f"slides/: {len(specs)} slides of {PATIENTS} patients, TIFF, {MPP} µm per pixel",
        f"annotations/: {n_tumour} ASAP XML files, of the slides with tumour",
    ]


def _slide_specs(size: tuple[int, int], *, diameters: Sequence[int], seed: int) -> list[SlideSpec]:
    # Two slides of each patient, one with a tumour and one without. Each seed has patients of its
    # own, so that the slides of two seeds can be in training and test.
    specs = []
    for number in range(PATIENTS):
        patient = f"p{seed * PATIENTS + number + 1:02d}"
        diameter = diameters[number % len(diameters)]
        at = (0.42 + 0.04 * (number % 5), 0.56 - 0.04 * (number % 4))
        for name, tumours in (("a", (TumourSpec(at, diameter),)), ("b", ())):
            specs.append(
                SlideSpec(
                    f"{patient}_{name}",
                    patient,
                    "train",
                    size,
                    tumours,
                    lymphoid=0.2 + 0.05 * (number % 5),
                    n_glands=5,
                    n_vessels=3,
                    n_fat=1,
                )
            )
    return specs


def _draw_each(draw: Callable[[SlideSpec], None], specs: Sequence[SlideSpec], workers: int) -> None:
    for _, result in map_tasks(draw, specs, workers=workers):
        if isinstance(result, Exception):
            raise result


def _write_slide(spec: SlideSpec, *, out: Path, seed: int) -> None:
    drawn = paint_slide(spec, seed=seed)
    write_pyramid(out / "slides" / f"{spec.slide_id}.tif", drawn.image, mpp=MPP)
    if drawn.polygons:
        write_asap_xml(out / "annotations" / f"{spec.slide_id}.xml", drawn.polygons, ["Tumor"])


def _draw_images(out: Path, *, seed: int, workers: int) -> list[str]:
    for name in ("normal", "tumour", "masks"):
        (out / name).mkdir()
    specs = _slide_specs(IMAGE_SIZE, diameters=(280, 250, 270, 240), seed=seed)
    _draw_each(partial(_cut_images, out=out, seed=seed), specs, workers)
    files = sorted(path.relative_to(out) for path in out.glob("[nt]*/*.png"))
    rows = [
        (
            path.as_posix(),
            path.parent.name,
            path.name.partition("_")[0],
            f"masks/{path.name}" if path.parent.name == "tumour" else None,
        )
        for path in files
    ]
    write_csv(out / "table.csv", ["file", "class", "patient", "mask"], rows)
    counts = {name: len(list((out / name).glob("*.png"))) for name in ("normal", "tumour")}
    return [
        *(f"{name}/: {count} images of {IMAGE_PX} px" for name, count in counts.items()),
        "masks/: the tumour in each image of tumour, white",
        "table.csv: class, patient and mask of each image",
    ]


def _cut_images(spec: SlideSpec, *, out: Path, seed: int) -> None:
    drawn = paint_slide(spec, seed=seed)
    picture = shrink(drawn.image, IMAGE_SHRINK)
    tumour = _mask_tumour(drawn, picture.shape[1::-1])
    is_tissue = picture.min(axis=-1) < 215
    last_row, last_column = (length - IMAGE_PX for length in tumour.shape)
    for row, column in product(
        range(0, last_row + 1, IMAGE_PX), range(0, last_column + 1, IMAGE_PX)
    ):
        window = slice(row, row + IMAGE_PX), slice(column, column + IMAGE_PX)
        share = tumour[window].mean()
        if is_tissue[window].mean() < MIN_TISSUE or 0 < share < MIN_TUMOUR:
            continue
        if not share and spec.tumours:
            continue  # normal images are of normal slides
        name = f"{spec.slide_id}_{row:03d}_{column:03d}.png"
        Image.fromarray(picture[window]).save(out / ("tumour" if share else "normal") / name)
        if share:
            Image.fromarray(tumour[window].astype(np.uint8) * 255).save(out / "masks" / name)


def _mask_tumour(drawn: Drawn, size: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size[::-1], bool)
    for _, _, vertices in drawn.polygons:
        mask |= fill_polygon(size, vertices / IMAGE_SHRINK)
    return mask


def _draw_teams(out: Path, *, seed: int, workers: int) -> list[str]:
    del workers  # takes no time
    n_cases = CHALLENGE_TUMOUR + CHALLENGE_NORMAL
    names = [f"case_{seed * n_cases + n + 1:03d}" for n in range(n_cases)]
    lesions = {name: _place_lesions(seed_rng(seed, name)) for name in names[:CHALLENGE_TUMOUR]}
    for folder in ("reference", *TEAMS):
        (out / folder).mkdir()
    for name, outlines in lesions.items():
        polygons = [(f"lesion {n}", "Tumor", outline) for n, outline in enumerate(outlines)]
        write_asap_xml(out / "reference" / f"{name}.xml", polygons, ["Tumor"])
    rows = [(name, int(name in lesions)) for name in names]
    write_csv(out / "slides.csv", ["slide_id", "label"], rows)
    for team in TEAMS:
        for name in names:
            _write_detections(
                out / team / f"{name}.csv", team, lesions.get(name, []), seed_rng(seed, team, name)
            )
    n_lesions = sum(map(len, lesions.values()))
    return [
        f"reference/: ASAP XML of {len(lesions)} slides with {n_lesions} lesions",
        f"slides.csv: the label of all {len(names)} slides",
        *(f"{team}/: a CSV of each slide, prob,x,y" for team in TEAMS),
    ]


def _place_lesions(rng: np.random.Generator) -> list[NDArray[np.float64]]:
    # In the cells of a grid, so that none meets another.
    cell = CHALLENGE_SIZE / 4
    chosen = rng.choice(16, rng.integers(1, 5), replace=False)
    centres = np.stack([chosen % 4, chosen // 4], axis=-1) * cell + cell / 2
    diameters = np.exp(rng.uniform(np.log(1200), np.log(6000), len(chosen)))
    return [
        blob_outline(rng, (float(x), float(y)), diameter).round(1)
        for (x, y), diameter in zip(centres, diameters, strict=True)
    ]


def _write_detections(
    path: Path, team: str, lesions: Sequence[NDArray[np.float64]], rng: np.random.Generator
) -> None:
    found_share, false_positives, distance = TEAMS[team]
    found = [lesion.mean(axis=0) for lesion in lesions if rng.random() < found_share]
    others = list(rng.uniform(0, CHALLENGE_SIZE, (rng.poisson(false_positives), 2)))
    logits = rng.normal(0, 1, len(found) + len(others)) - 0.5
    logits[: len(found)] += distance
    rows = [
        (round(float(1 / (1 + np.exp(-logit))), 4), int(x), int(y))
        for logit, (x, y) in zip(logits, [*found, *others], strict=True)
    ]
    write_csv(path, ["prob", "x", "y"], sorted(rows, reverse=True))


EXAMPLES: dict[str, Callable[..., list[str]]] = {
    "slides": _draw_slides,
    "teams": _draw_teams,
    "images": _draw_images,
}
