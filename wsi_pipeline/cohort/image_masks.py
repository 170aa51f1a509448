"""Which pixels of an image are the object: the masks that a table names, on the images' own grid.

``tiles/masks.npy`` is (N, H, W) uint8 in the order of the images: 1 on the object, 0 elsewhere, 255
where there is no mask. It is there only where a table names masks.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tiling.errors import MaskError
from tiling.files import write_aside
from tiling.readers.mask_picture import SUFFIXES, read_drawn
from tiling.threads import map_in_threads
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.cohort.image_pixels import fit_image, read_image
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ManifestError, StageError

NO_MASK = 255


def read_object_mask(
    folder: Path, file: str, size: tuple[int, ...], config: ImagesConfig
) -> NDArray[np.bool_]:
    """Read a mask and fit it as its image is fitted.

    Parameters
    ----------
    folder : Path
        Of the data set.
    file : str
        Path of the mask in it; non-zero is the object.
    size : (height, width), px
        Of the image as it lies in its file.
    config : ImagesConfig

    Returns
    -------
    mask : (H, W) bool

    Raises
    ------
    ManifestError
        If the mask cannot be decoded, or is of another size than its image.
    """
    mask = _read_object(folder / file)
    if mask.shape[:2] != size[:2]:
        raise ManifestError(
            f"{file}: a mask of {mask.shape[1]} x {mask.shape[0]} px for an image of "
            f"{size[1]} x {size[0]} px"
        )
    fitted = fit_image(mask[..., None].astype(np.uint8) * np.uint8(255), config, file)
    return np.asarray(fitted[..., 0] > 127)


def _read_object(path: Path) -> NDArray[np.bool_]:
    """Read which pixels are the object: (H, W)."""
    if path.suffix.lower() not in SUFFIXES:
        return read_image(path, channels=1)[..., 0] > 0
    try:
        return read_drawn(path)
    except MaskError as error:
        raise ManifestError(f"{path.name}: {error}") from error


def prepare_masks(
    folder: Path,
    entries: Sequence[ImageEntry],
    config: ImagesConfig,
    size: tuple[int, ...],
    *,
    out: Path,
    unreadable: frozenset[str],
    threads: int = 2,
) -> dict[str, str]:
    """Write ``masks.npy`` where a table names masks; take away that of an earlier table.

    Parameters
    ----------
    folder : Path
        Of the data set.
    entries : sequence of ImageEntry
    config : ImagesConfig
    size : (H, W), px
        Of the prepared images.
    out : Path
        Folder of the prepared images.
    unreadable : ids
        Of images that cannot be read: their masks are left alone.
    threads : int
        That decode at once.

    Returns
    -------
    problems : dict
        By image_id, why its mask cannot be used.
    """
    path = out / "masks.npy"
    path.unlink(missing_ok=True)
    rows = [r for r, e in enumerate(entries) if e.mask and e.image_id not in unreadable]
    if not rows:
        return {}
    problems: dict[str, str] = {}
    load = partial(load_mask, folder, config)
    wanted = [entries[row] for row in rows]
    with write_aside(path) as scratch:
        masks = np.lib.format.open_memmap(scratch, "w+", np.uint8, (len(entries), *size))
        masks[:] = NO_MASK
        for row, (mask, problem) in zip(
            rows, map_in_threads(load, wanted, threads=threads), strict=True
        ):
            if mask is None:
                problems[entries[row].image_id] = problem
            else:
                masks[row] = mask
        masks.flush()
        del masks
    return problems


def load_mask(
    folder: Path, config: ImagesConfig, entry: ImageEntry
) -> tuple[NDArray[np.bool_] | None, str]:
    """Read the mask of an image; None where that cannot be, and why."""
    size = read_image(folder / entry.file, channels=config.channels).shape
    try:
        return read_object_mask(folder, entry.mask or "", size, config), ""
    except ManifestError as error:
        return None, str(error)


def read_masks(folder: Path, entries: Sequence[ImageEntry]) -> dict[str, NDArray[np.uint8]]:
    """Open what `prepare_masks` wrote: by image_id (H, W) uint8, views of a memory map.

    Images without a usable mask are not among them.
    """
    path = folder / "masks.npy"
    if not path.is_file():
        return {}
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StageError(f"{path}: no prepared masks ({error}); run tile again") from error
    if found.ndim != 3 or found.dtype != np.uint8 or len(found) != len(entries):
        raise StageError(f"{path}: {found.dtype} {found.shape} are no masks; run tile again")
    return {
        e.image_id: mask
        for e, mask in zip(entries, found, strict=True)
        if e.mask and mask.flat[0] != NO_MASK
    }
