"""Small fake data sets in the layouts of those that the papers' configs are for.

What is drawn means nothing: stripes along or across are the two classes.
"""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers import tiny_cohort
from wsi_pipeline.demo import camelyon_patches

SMALL = (28, 36)  # height, width of a fake image, px


def draw_image(path: Path, label: int, channels: int, size: tuple[int, int] = SMALL) -> None:
    """Stripes along or across, a black border as of a padded nucleus, noise."""
    random = np.random.default_rng([label, *path.as_posix().encode()[-40:]])
    wave = np.sin(np.indices(size)[label] * 0.9)
    values = np.clip(130 + 80 * wave + random.normal(0, 12, size), 1, 255).astype(np.uint8)
    values[:3] = values[-3:] = values[:, :3] = values[:, -3:] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values if channels == 1 else np.dstack([values] * 3)).save(path)


def draw_folders(
    folder: Path, classes: Iterable[str], splits: Iterable[str], channels: int
) -> None:
    """``FOLDER/<split>/<class>/<n>.png``."""
    for split in splits:
        for label, name in enumerate(classes):
            for number in range(4 if split == "train" else 2):
                draw_image(folder / split / name / f"{number}.png", label, channels)


def draw_table(
    folder: Path,
    classes: tuple[str, str],
    splits: dict[str, tuple[int, ...]],
    masked: str,
    *,
    channels: int = 1,
) -> None:
    """Images of the given classes in each split, and a table with masks for one split."""
    rows = ["file,class,split,mask"]
    for split, labels in splits.items():
        for number, label in enumerate(labels):
            name = f"{split}/{number}.png"
            draw_image(folder / name, label, channels)
            mask = f"masks/{split}_{number}.png" if split == masked else ""
            if mask:  # the first has no feature, as 60 of P2's 150
                values = np.zeros(SMALL, np.uint8)
                values[8:20, 10:25] = 255 * (number > 0)
                (folder / "masks").mkdir(exist_ok=True)
                Image.fromarray(values).save(folder / mask)
            rows.append(f"{name},{classes[label]},{split},{mask}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def draw_isic2017(configs: Path) -> None:
    splits = {"train": (0, 0, 0, 0, 1, 1), "val": (0, 1, 0), "test": (0, 1, 0, 1)}
    draw_table(configs / "isic2017", ("benign", "melanoma"), splits, "val", channels=3)


def draw_cenpa(configs: Path) -> None:
    splits = {"train": (0, 1, 0, 1), "val": (0, 1), "test": (0, 0, 0)}
    draw_table(configs / "nuclei_cenpa", ("BJ", "MCF10A"), splits, "test")


def draw_patients(
    folder: Path, classes: tuple[str, str], *, channels: int = 1, masked: bool = False
) -> None:
    """Eight patients with two images of each class, and a table without splits."""
    rows = [f"file,class,patient{',mask' * masked}"]
    for number, label in product(range(16), (0, 1)):
        name = f"{label}_{number}.png"
        draw_image(folder / name, label, channels)
        if masked:
            values = np.zeros(SMALL, np.uint8)
            values[8:20, 10:25] = 3  # the number of an object
            Image.fromarray(values).save(folder / f"mask_{name}")
        rows.append(f"{name},{classes[label]},p{number // 2}{f',mask_{name}' * masked}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")


def draw_isic2016(configs: Path) -> None:
    splits = {"train": (0, 0, 0, 1, 1), "test": (0, 1, 0, 1)}
    draw_table(configs / "isic2016", ("benign", "malignant"), splits, "", channels=3)


def draw_public_nuclei(configs: Path) -> None:
    draw_patients(configs / "nuclei", ("U2OS", "NIH3T3"))


def draw_glas(configs: Path) -> None:
    draw_patients(configs / "glas", ("benign", "malignant"), channels=3, masked=True)


SLIDES_OF_PATCHES = ("tumor_001", "tumor_004", "tumor_064")


def draw_camelyon_patches(folder: Path) -> None:
    """Patches named after slide and place; each of three slides has both classes."""
    for label, name in enumerate(camelyon_patches.CLASSES):
        for number in range(6):
            file = f"{SLIDES_OF_PATCHES[number % 3]}_{512 * number}_{256 * label}.png"
            draw_image(folder / name / file, label, 3)


def draw_camelyon_tables(configs: Path) -> None:
    draw_camelyon_patches(configs / "PATCHES")
    camelyon_patches.write_patches(configs / "PATCHES", configs / "camelyon")


def draw_slides(folder: Path, splits: str) -> None:
    """The six slides of the tiny cohort at 4 µm per px, where their tumours are 0.5 mm across.

    `splits` names a split for each slide; empty: the manifest has no such column.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tiny_cohort.draw_cohort(folder / "drawn")
    lines = (folder / "drawn" / "manifest.csv").read_text().splitlines()
    names = splits.split() or [""] * 6
    rows = [f"{line.rpartition(',')[0]},{s},4" for line, s in zip(lines[1:], names, strict=True)]
    header = "slide,label,annotation,split,mpp"
    if not splits:
        rows, header = [row.replace(",,4", ",4") for row in rows], header.replace("split,", "")
    for path in (folder / "drawn").iterdir():
        path.rename(folder / path.name)
    (folder / "manifest.csv").write_text("\n".join([header, *rows]) + "\n")
