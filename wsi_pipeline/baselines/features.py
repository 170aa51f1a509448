"""Texture features of a folder of images, computed once per image and cached.

The name of a cached file is a hash of the inputs: the bytes of the image and its mask, the settings
that affect its pixels, and the versions of the definitions and of mahotas. The features of a
changed image or setting are therefore computed again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mahotas
import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.files import (
    digest_file,
    digest_json,
    read_json_object,
    remove_leftovers,
    write_json,
)
from wsi_pipeline.baselines.textures import extract_features
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.cohort.image_masks import read_object_mask
from wsi_pipeline.cohort.image_pixels import fit_image, read_image
from wsi_pipeline.config.reading import anchor_paths
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ManifestError, ModelError, StageError
from wsi_pipeline.run.process_pool import map_in_processes

_SCHEMA = "wsi-pipeline/features/1"
_TEXTURES = ("pftas", "haralick", "zernike")  # of every image
_OBJECTS = ("lbp", "shape")  # as well, where it is known which pixels are the object

Features = dict[str, NDArray[np.float64]]  # (n,) by kind


@dataclass(frozen=True)
class ImageFeatures:
    """Features of one image, or the reason why there are none."""

    features: Features = field(default_factory=dict)
    problem: str = ""  # why there are none
    kept: bool = False  # computed by an earlier call
    failure: OSError | None = None  # they could not be kept, e.g. the disk is full


def compute_features(
    folder: Path,
    entries: Sequence[ImageEntry],
    config: ImagesConfig,
    *,
    with_shape: bool,
    keep: Path | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> list[tuple[ImageEntry, ImageFeatures]]:
    """Compute the features of images, or read those cached by an earlier call.

    Parameters
    ----------
    folder : Path
        Of the data set.
    entries : sequence of ImageEntry
    config : ImagesConfig
    with_shape : bool
        Also local binary patterns and the shape of the object: of an image's mask, or without one
        of its pixels above 0. An image with an empty mask has neither.
    keep : Path, optional
        Folder that keeps the features of each image; None: they are not kept.
    workers : int
        Processes.
    on_progress : function, optional
        Called with images done and to do.

    Returns
    -------
    found : list of (entry, features)
        In the order of `entries`.

    Raises
    ------
    OSError
        If features cannot be written to `keep`.
    """
    if keep is not None and keep.is_dir():
        remove_leftovers(keep)
    work = partial(_find, folder, config, with_shape, keep)
    found: list[ImageFeatures] = [ImageFeatures()] * len(entries)
    results: Iterable[tuple[int, ImageFeatures | StageError]] = enumerate(map(work, entries))
    if workers > 1 and len(entries) > 1:
        near, kept_in = anchor_paths((folder, keep), Path.cwd())
        work = partial(_find, near, config, with_shape, kept_in)
        results = map_in_processes(work, entries, workers=workers, preload=(__name__,))
    for done, (number, result) in enumerate(results, start=1):
        if isinstance(result, StageError):  # its worker died
            result = ImageFeatures(problem=f"{entries[number].file}: {result}")
        if result.failure is not None:
            raise result.failure
        found[number] = result
        if on_progress:
            on_progress(done, len(entries))
    return list(zip(entries, found, strict=True))


def _find(
    folder: Path, config: ImagesConfig, with_shape: bool, keep: Path | None, entry: ImageEntry
) -> ImageFeatures:
    """Read an image's cached features, or compute them; a failure is returned."""
    try:
        if keep is None:
            return ImageFeatures(_extract(folder, config, with_shape, entry))
        path = keep / f"{_key(folder, config, with_shape, entry)}.json"
        kept = _read(path)
        if kept is not None:
            return ImageFeatures(kept, kept=True)
        features = _extract(folder, config, with_shape, entry)
    except (ManifestError, ModelError, OSError) as error:
        text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        return ImageFeatures(problem=text if entry.file in text else f"{entry.file}: {text}")
    plain = {name: values.tolist() for name, values in features.items()}
    try:
        write_json(path, {"schema": _SCHEMA, "features": plain, "digest": digest_json(plain)})
    except OSError as error:
        return ImageFeatures(failure=error)
    return ImageFeatures(features)


def _extract(folder: Path, config: ImagesConfig, with_shape: bool, entry: ImageEntry) -> Features:
    image = read_image(folder / entry.file, channels=config.channels)
    fitted = fit_image(image, config, entry.file)
    mask = None
    if with_shape and entry.mask:
        mask = read_object_mask(folder, entry.mask, image.shape, config)
        with_shape = bool(mask.any())  # a mask of the tumour is empty in a normal image
    elif with_shape:
        mask = np.asarray(fitted.any(axis=2))
    features = extract_features(fitted, _names(with_shape), mask=mask)
    odd = [name for name, values in features.items() if not np.isfinite(values).all()]
    if odd:
        raise ModelError(f"its {', '.join(odd)} features are not finite numbers; leave it out")
    return features


def _names(with_shape: bool) -> tuple[str, ...]:
    return (*_TEXTURES, *_OBJECTS) if with_shape else _TEXTURES


def _key(folder: Path, config: ImagesConfig, with_shape: bool, entry: ImageEntry) -> str:
    parts = (
        _SCHEMA,
        mahotas.__version__,
        _names(with_shape),
        (config.channels, config.size, config.fit),
        digest_file(folder / entry.file),
        digest_file(folder / entry.mask) if with_shape and entry.mask else None,
    )
    return digest_json(parts)


def _read(path: Path) -> Features | None:
    """Read cached features; None if there are none, or they are damaged."""
    try:
        about = read_json_object(path)
        plain = about["features"]
        if about["digest"] != digest_json(plain):
            return None
        return {name: np.array(values, np.float64) for name, values in plain.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
