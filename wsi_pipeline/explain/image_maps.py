"""Maps of single images as files, by whatever method."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiling.files import write_aside
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.files import as_grey, stretch, write_png, write_values
from wsi_pipeline.models import PatchClassifier
from wsi_pipeline.models.preprocess import crop_centre

MAPS_SCHEMA = "wsi-pipeline/image-maps/2"
_CELL_PX = 160  # longer side of a picture in the overview
_GAP_PX = 8
_TITLE_PX = 14


def write_image_map(
    folder: Path, image_id: str, model: PatchClassifier, pixels: NDArray[np.uint8], method: str
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

    Returns
    -------
    files : list of Path
        ``.tif``, the map's values; ``.png``, the map as a picture; and what else the method found.
    picture : (h, w, C) uint8
        The image as the model sees it: cropped, where it crops.
    grey : (h, w) uint8
        The map as a picture, stretched unless it is a probability; white speaks for class 1.
    """
    chosen, stem = load_method(method), f"{image_id}.{method}"
    (found,) = chosen.explain(model, pixels[None])
    values = found.values
    grey = as_grey(values if chosen.is_probability else stretch(values))
    files = [folder / f"{stem}.tif", folder / f"{stem}.png"]
    write_values(files[0], values)
    write_png(files[1], grey)
    if found.details is not None:
        files += found.details.write(folder, stem)
    seen = crop_centre(torch.from_numpy(pixels).permute(2, 0, 1), values.shape)
    return files, seen.permute(1, 2, 0).numpy(), grey


def draw_overview(
    path: Path, shown: Sequence[tuple[ImageEntry, NDArray[np.uint8], NDArray[np.uint8]]]
) -> Path:
    """Draw images above their maps, one column each, with class and id as title."""
    columns = []
    for entry, picture, grey in shown:
        scale = _CELL_PX / max(grey.shape)
        size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
        both = [picture[..., 0] if picture.shape[2] == 1 else picture, grey]
        columns.append(
            (
                f"{entry.class_name}: {entry.image_id}"[: _CELL_PX // 6],
                [Image.fromarray(p).resize(size, Image.Resampling.NEAREST) for p in both],
            )
        )
    side = _CELL_PX + _GAP_PX
    sheet = Image.new("RGB", (max(1, len(columns)) * side, _TITLE_PX + 2 * side), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, pair) in enumerate(columns):
        draw.text((number * side, 0), title, fill="black")
        for row, small in enumerate(pair):
            sheet.paste(small.convert("RGB"), (number * side, _TITLE_PX + row * side))
    with write_aside(path) as scratch:
        sheet.save(scratch, format="PNG")
    return path
