"""The images of a run, decoded once: one array on disk, and views of it by patient.

``tiles/images.npy`` is (N, H, W, C) uint8, read through a memory map; ``tiles/images.json``
describes it and is written last. Masks are in the same folder (`wsi_pipeline.cohort.image_masks`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress, PatchKind, PatchOrigin, PixelArrays
from tiling.files import digest_file, digest_json, read_json_object, write_aside, write_json
from tiling.threads import map_in_threads
from tiling.wording import pluralize
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.cohort.image_masks import prepare_masks
from wsi_pipeline.cohort.image_pixels import fit_image, read_image
from wsi_pipeline.config.reading import as_plain
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ManifestError, StageError

SCHEMA = "wsi-pipeline/images/1"


@dataclass(frozen=True)
class ImageArray:
    """All images of a run, in the order of its ``images.csv``."""

    pixels: NDArray[np.uint8]  # (N, H, W, C), memory map
    unreadable: NDArray[np.bool_]  # (N,)
    kind: PatchKind
    fingerprint: str  # of the settings and files that made it


def prepare_images(
    folder: Path,
    entries: Sequence[ImageEntry],
    classes: Sequence[str],
    config: ImagesConfig,
    *,
    out: Path,
    fingerprint: str,
    threads: int = 2,
    on_progress: OnProgress | None = None,
) -> dict[str, str]:
    """Decode a data set into one array.

    Parameters
    ----------
    folder : Path
        Of the data set.
    entries : sequence of ImageEntry
    classes : names by label
    config : ImagesConfig
    out : Path
        Folder that gets ``images.npy`` and, last, ``images.json``.
    fingerprint : str
        Of the settings and files.
    threads : int
        That decode at once.
    on_progress : function, optional

    Returns
    -------
    problems : dict
        By image_id, why it is unreadable, or its mask. Such an image is zeros, and flagged.

    Raises
    ------
    ManifestError
        If no image can be read, or they differ in size and no size is set.
    """
    (out / "images.json").unlink(missing_ok=True)
    problems: dict[str, str] = {}
    array: NDArray[np.uint8] | None = None
    first = ""
    load = partial(load_image, folder, config)
    with write_aside(out / "images.npy") as scratch:
        for row, (image, problem) in enumerate(map_in_threads(load, entries, threads=threads)):
            entry = entries[row]
            if image is None:
                problems[entry.image_id] = problem
            else:
                if array is None:
                    first, shape = entry.file, (len(entries), *image.shape)
                    array = np.lib.format.open_memmap(scratch, "w+", np.uint8, shape)
                check_size(entry.file, image.shape, first, array.shape[1:])
                array[row] = image
            if on_progress:
                on_progress(row + 1, len(entries))
        if array is None:
            raise none_readable(folder, problems)
        array.flush()  # type: ignore[attr-defined]  # a memory map
        size = array.shape[1:3]
        del array
    lost = frozenset(problems)
    without = prepare_masks(
        folder, entries, config, size, out=out, unreadable=lost, threads=threads
    )
    about = describe_images(classes, config, fingerprint, unreadable=problems, masks=without)
    write_json(out / "images.json", about)
    return problems | without


def describe_images(
    classes: Sequence[str],
    config: ImagesConfig,
    fingerprint: str,
    *,
    unreadable: Iterable[str],
    masks: Iterable[str],
) -> dict[str, Any]:
    """Return the content of ``images.json``; `unreadable` and `masks`: ids of the images lost."""
    return {
        "schema": SCHEMA,
        "classes": list(classes),
        "settings": as_plain(config),
        "fingerprint": fingerprint,
        "unreadable": sorted(unreadable),
        "unreadable_masks": sorted(masks),
    }


def check_size(file: str, shape: tuple[int, ...], first: str, wanted: tuple[int, ...]) -> None:
    """Refuse an image of another size, (height, width, channels), than the first one has."""
    if shape != wanted:
        raise ManifestError(
            f"{file} is {shape[1]} x {shape[0]} px, {first} is {wanted[1]} x {wanted[0]} px; set "
            "images.size: [height, width]"
        )


def none_readable(folder: Path, problems: Mapping[str, str]) -> ManifestError:
    """Say that no image can be decoded; `problems`: why, by image_id."""
    return ManifestError(
        f"{folder}: none of its {pluralize(len(problems), 'image')} can be decoded; the first: "
        f"{next(iter(problems.values()))}"
    )


def load_image(
    folder: Path, config: ImagesConfig, entry: ImageEntry
) -> tuple[NDArray[np.uint8] | None, str]:
    """Decode and fit an image; None where that cannot be, and why."""
    try:
        image = read_image(folder / entry.file, channels=config.channels)
        return fit_image(image, config, entry.file), ""
    except ManifestError as error:
        return None, str(error)


def images_fingerprint(folder: Path, entries: Sequence[ImageEntry], config: ImagesConfig) -> str:
    """Hash the settings, and every file by its bytes."""
    files = [(e.image_id, e.label, _digest(folder / e.file)) for e in entries]
    masks = [(e.image_id, _digest(folder / e.mask)) for e in entries if e.mask]
    return digest_json([SCHEMA, as_plain(config), files, *([masks] if masks else [])])


def _digest(path: Path) -> str:
    try:
        return digest_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def read_about(folder: Path) -> dict[str, Any]:
    """Read ``images.json``: what `prepare_images` prepared.

    Raises
    ------
    StageError
        If it is not there, or damaged.
    """
    path = folder / "images.json"
    try:
        about = read_json_object(path)
        settings = about["settings"]
        is_right = (
            about["schema"] == SCHEMA
            and isinstance(about["fingerprint"], str)
            and all(_is_names(about[key]) for key in ("classes", "unreadable", "unreadable_masks"))
            and len(about["classes"]) == 2
            and isinstance(settings, dict)
            and isinstance(settings["mpp"], int | float | None)
            and settings["equal_classes"] in (False, True, "upsample")
        )
        if not is_right:
            raise ValueError(f"not a description of images by schema {SCHEMA!r}")
    except FileNotFoundError as error:
        raise StageError(f"{folder}: its images are not prepared; run tile") from error
    except (OSError, ValueError, KeyError) as error:
        raise StageError(f"{path}: damaged ({error}); run tile again") from error
    return about


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def open_images(folder: Path, entries: Sequence[ImageEntry]) -> ImageArray:
    """Open what `prepare_images` wrote.

    Raises
    ------
    StageError
        If it is not there, damaged, or of another data set.
    """
    about = read_about(folder)
    try:
        pixels = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"{folder}: no prepared images ({error}); run tile again") from error
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or len(pixels) != len(entries):
        raise StageError(
            f"{folder}: prepared images are {pixels.dtype} {pixels.shape}, expected uint8 "
            f"({len(entries)}, height, width, channels); run tile again"
        )
    lost = set(about["unreadable"])
    return ImageArray(
        pixels=pixels,
        unreadable=np.array([e.image_id in lost for e in entries], np.bool_),
        kind=PatchKind(
            pixels.shape[1:], about["settings"]["mpp"] or 0.0, tuple(about["classes"]), single=True
        ),
        fingerprint=about["fingerprint"],
    )


class ImageGroup:
    """Some images of one patient, as training sees a patch store (`cohort.data.Patches`)."""

    def __init__(
        self,
        images: ImageArray,
        name: str,
        rows: NDArray[np.int64],
        label: NDArray[np.int8],
        ids: Sequence[str],
    ) -> None:
        self._images = images
        self._rows = rows
        self._ids = ids
        self.slide_id = name
        self.kind = images.kind
        self.label = label
        self.unreadable = images.unreadable[rows]
        self.fingerprint = images.fingerprint

    def read_into(self, indices: NDArray[np.int64], out: PixelArrays) -> NDArray[np.bool_]:
        """Read images into n arrays (H, W, C); return which of them could not be decoded, (n,)."""
        rows = self._rows[indices]
        for row, image in zip(rows.tolist(), out, strict=True):
            image[...] = self._images.pixels[row]
        lost: NDArray[np.bool_] = self._images.unreadable[rows]
        return lost

    def locate(self, row: int) -> PatchOrigin:
        """Return which image a row is."""
        return PatchOrigin(self._ids[row], int(self._rows[row]))

    def __len__(self) -> int:
        return len(self._rows)


def group_by_patient(
    images: ImageArray, entries: Sequence[ImageEntry], rows: Sequence[int]
) -> list[ImageGroup]:
    """Make one group of each patient's images, in the order of the patients' first images."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(entries[row].patient, []).append(row)
    return [
        ImageGroup(
            images,
            patient,
            np.array(members, np.int64),
            np.array([entries[row].label for row in members], np.int8),
            [entries[row].image_id for row in members],
        )
        for patient, members in found.items()
    ]


def choose_equal(labels: NDArray[np.int8], *, seed: int) -> NDArray[np.int64]:
    """Choose as many of each class as the smaller one has (PatchNet paper 2): rows, ascending.

    Examples
    --------
    >>> len(choose_equal(np.array([0, 0, 0, 1, -1], np.int8), seed=0))
    2
    """
    random = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
    n = min(len(rows) for rows in of_class)
    return np.sort(np.concatenate([random.permutation(rows)[:n] for rows in of_class]))


def raise_to_parity(labels: NDArray[np.int8], *, seed: int) -> NDArray[np.int64]:
    """Repeat the smaller class until both are equally many (PatchNet paper 1): rows, ascending.

    Every image of it comes equally often, but for a remainder that is drawn.

    Examples
    --------
    >>> raise_to_parity(np.array([0, 0, 0, 0, 1, 1], np.int8), seed=0).tolist()
    [0, 1, 2, 3, 4, 4, 5, 5]
    """
    random = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in (0, 1)]
    most = max(len(rows) for rows in of_class)
    raised = []
    for rows in of_class:
        whole, rest = divmod(most, len(rows)) if len(rows) else (0, 0)
        raised += [np.repeat(rows, whole), random.permutation(rows)[:rest]]
    return np.sort(np.concatenate(raised))
