"""Maps of single images as files, by whatever method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.base import Explanation, Method
from wsi_pipeline.explain.files import as_grey, stretch, write_png, write_values
from wsi_pipeline.explain.pictures import draw_sheet
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.preprocess import crop_centre


def write_image_map(
    folder: Path,
    image_id: str,
    model: PatchClassifier,
    pixels: NDArray[np.uint8],
    method: str,
    *,
    layer: str | None = None,
) -> tuple[list[Path], NDArray[np.uint8], NDArray[np.uint8]]:
    """Explain an image and write what was found.

    Parameters
    ----------
    folder : Path
    image_id : str
        The files' names begin with ``<image_id>.<method>``.
    model : PatchClassifier
    pixels : (H, W, C) uint8
    method : str
        In `METHODS`.
    layer : str, optional
        Of methods that look at one; None: their default.

    Returns
    -------
    files : list of Path
        ``.tif``, the map's values; ``.png``, the map as a picture; and what else the method found.
    picture : (h, w, C) uint8
        The image as the model sees it: cropped, where it crops.
    grey : (h, w) uint8
        The map as a picture, stretched unless it is a probability; white speaks for class 1.
    """
    chosen = load_method(method)
    (found,) = chosen.explain(model, pixels[None], config=chosen.choose_settings(layer))
    files, grey = write_explanation(folder, f"{image_id}.{method}", chosen, found)
    seen = crop_centre(torch.from_numpy(pixels).permute(2, 0, 1), grey.shape)
    return files, seen.permute(1, 2, 0).numpy(), grey


def write_explanation(
    folder: Path,
    stem: str,
    method: Method,
    found: Explanation,
    *,
    place: Mapping[str, Any] | None = None,
) -> tuple[list[Path], NDArray[np.uint8]]:
    """Write a map as values and as a picture, and what else its method found.

    Parameters
    ----------
    folder : Path
    stem : str
        The files' names begin with it.
    method : Method
    found : Explanation
        By that method.
    place : mapping, optional
        As of `write_values`.

    Returns
    -------
    files : list of Path
    grey : (h, w) uint8
        The picture: stretched, unless the map is a probability.
    """
    values, picture = folder / f"{stem}.tif", folder / f"{stem}.png"
    grey = as_grey(found.values if method.is_probability else stretch(found.values))
    write_values(values, found.values, place=place)
    write_png(picture, grey)
    more = found.details.write(folder, stem) if found.details is not None else []
    return [values, picture, *more], grey


def draw_overview(
    path: Path, shown: Sequence[tuple[ImageEntry, NDArray[np.uint8], NDArray[np.uint8]]]
) -> Path:
    """Draw images above their maps, one column each, with class and id as title."""
    titles = [f"{entry.class_name}: {entry.image_id}" for entry, _, _ in shown]
    images, maps = [picture for _, picture, _ in shown], [grey for _, _, grey in shown]
    draw_sheet(path, [(titles, images), ((), maps)])
    return path
