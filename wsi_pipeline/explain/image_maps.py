"""Maps of single images: PatchNet's 65, CAM's one, Grad-CAM of the VGGs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tiling.files import write_aside
from wsi_pipeline.cohort.image_folder import ImageEntry
from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.grad_cam import grad_cam
from wsi_pipeline.explain.patchnet_maps import compute_maps, write_maps
from wsi_pipeline.models import MODELS
from wsi_pipeline.models.cam import CAM
from wsi_pipeline.models.patchnet import PatchNet
from wsi_pipeline.models.preprocess import crop_centre
from wsi_pipeline.models.vgg import VGGFeatures

MAPS_SCHEMA = "wsi-pipeline/image-maps/1"
_CELL_PX = 160  # longer side of a picture in the overview
_GAP_PX = 8
_TITLE_PX = 14

# Maps of values that are no probabilities, by the kind of network; the first that fits is taken.
_ACTIVATIONS: dict[type[torch.nn.Module], Callable[[Any, torch.Tensor], torch.Tensor]] = {
    CAM: CAM.activation_map,
    VGGFeatures: grad_cam,
}


def has_maps(name: str) -> bool:
    """Tell whether an architecture shows where it looks."""
    return issubclass(MODELS[name], (PatchNet, *_ACTIVATIONS))


def is_probability(name: str) -> bool:
    """Tell whether a map's values are probabilities, which nothing stretches (papers 1 and 2)."""
    return issubclass(MODELS[name], PatchNet)


def write_image_maps(
    folder: Path, name: str, model: torch.nn.Module, image: torch.Tensor
) -> tuple[list[Path], NDArray[np.uint8], NDArray[np.uint8]]:
    """Write what a model sees in an image.

    Parameters
    ----------
    folder : Path
    name : str
        First part of the files' names.
    model : PatchNet, CAM or another VGG
    image : (C, H, W) float in [0, 1]
        On the device of the model.

    Returns
    -------
    files : list of Path
        PatchNet: see `write_maps`. Others: ``<name>.tif``, the values, and
        ``<name>_global.png``, stretched over the image.
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
    else:
        values = _activation(model, image[None])[0].float().cpu().numpy()
        grey = np.round(stretch(values) * 255).astype(np.uint8)
        files = [folder / f"{name}.tif", folder / f"{name}_global.png"]
        with write_aside(files[0]) as scratch:
            tifffile.imwrite(scratch, values, compression="zlib", metadata=None)
        with write_aside(files[1]) as scratch:
            Image.fromarray(grey).save(scratch, format="PNG")
    height, width = grey.shape
    seen = crop_centre(image, (height, width))
    picture = (seen.permute(1, 2, 0).cpu().numpy() * 255).round().astype(np.uint8)
    return files, picture, grey


def _activation(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    for kind, compute in _ACTIVATIONS.items():
        if isinstance(model, kind):
            return compute(model, images)
    raise ModelError(f"{type(model).__name__} has no map of an image")


def stretch(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Stretch a map over its image, (H, W) -> [0, 1]; one that is constant becomes 0.5.

    Examples
    --------
    >>> stretch(np.array([[-1.0, 0.0, 3.0]])).tolist()
    [[0.0, 0.25, 1.0]]
    """
    exact = np.asarray(values, np.float64)
    span = exact.max() - exact.min()
    if span <= 1e-6 * np.abs(exact).max():  # what is left is rounding of float32
        return np.full(exact.shape, 0.5)
    return np.asarray((exact - exact.min()) / span)


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
