"""Maps of single images, for the models that have any: PatchNet's 65, CAM's one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiling.files import write_aside
from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.patchnet_maps import compute_maps, rescale_filters, write_maps
from wsi_pipeline.images.folder import ImageEntry
from wsi_pipeline.models.cam import CAM
from wsi_pipeline.models.patchnet import PatchNet

_CELL_PX = 160  # longer side of a picture in the overview
_GAP_PX = 8
_TITLE_PX = 14


def has_maps(name: str) -> bool:
    """Tell whether an architecture shows where it looks."""
    return name in {"patchnet", "precision_patchnet", "cam"}


def write_image_maps(
    folder: Path, name: str, model: torch.nn.Module, image: torch.Tensor
) -> tuple[list[Path], NDArray[np.uint8], NDArray[np.uint8]]:
    """Write what a model sees in an image.

    Parameters
    ----------
    folder : Path
    name : str
        First part of the files' names.
    model : PatchNet or CAM
    image : (C, H, W) float in [0, 1]
        On the device of the model.

    Returns
    -------
    files : list of Path
        PatchNet: see `write_maps`. CAM: ``<name>.tif``, its values, and ``<name>_global.png``,
        stretched over the image.
    picture : (h, w, C) uint8
        The image as the model sees it: cropped, where it crops.
    grey : (h, w) uint8
        The map as a picture; white speaks for class 1.
    """
    model.eval()
    if isinstance(model, PatchNet):
        maps = compute_maps(model, image)
        files = write_maps(folder, name, maps)
        grey = np.round(maps.heatmap * 255).astype(np.uint8)
    elif isinstance(model, CAM):
        values = model.activation_map(image[None])[0].float().cpu().numpy()
        grey = np.round(rescale_filters(values[None])[0] * 255).astype(np.uint8)
        files = [folder / f"{name}.tif", folder / f"{name}_global.png"]
        with write_aside(files[0]) as scratch:
            tifffile.imwrite(scratch, values, compression="zlib", metadata=None)
        with write_aside(files[1]) as scratch:
            Image.fromarray(grey).save(scratch, format="PNG")
    else:
        raise ModelError(f"{type(model).__name__} has no map of an image")
    height, width = grey.shape
    top, left = (image.shape[1] - height) // 2, (image.shape[2] - width) // 2
    seen = image[:, top : top + height, left : left + width]
    picture = (seen.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return files, picture, grey


def draw_overview(
    path: Path, shown: Sequence[tuple[ImageEntry, NDArray[np.uint8], NDArray[np.uint8]]]
) -> Path:
    """Draw images above their maps, one column each: titles say class and id."""
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
