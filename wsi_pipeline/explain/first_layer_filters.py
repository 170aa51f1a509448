"""First-layer filters: the small patterns that a network's first convolution looks for.

Of the model alone; no image is needed. The lecture shows AlexNet's ([lecture] in
docs/references.md).
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain.files import as_grey, lay_out_pictures, stretch, write_arrays, write_png
from wsi_pipeline.models.base import PatchClassifier


def first_layer_filters(model: PatchClassifier) -> NDArray[np.float32]:
    """Return the weights of a model's first convolution.

    Returns
    -------
    filters : (f, k, k, C) float32
        As they are; C is 3 (RGB) or 1.

    Raises
    ------
    ModelError
        If the model has no convolution of 1 or 3 channels.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or first.weight.shape[1] not in (1, 3):
        raise ModelError(f"{type(model).__name__} does not begin with a convolution of an image")
    filters: NDArray[np.float32] = first.weight.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    return filters


def write_filters(folder: Path, stem: str, filters: NDArray[np.float32]) -> list[Path]:
    """Write ``.npz`` with ``filters``, and ``.png``, each stretched to [0, 1] by itself."""
    arrays, sheet = folder / f"{stem}.npz", folder / f"{stem}.png"
    write_arrays(arrays, {"filters": filters})
    pictures = [as_grey(stretch(one)) for one in filters]
    is_grey = filters.shape[3] == 1
    write_png(sheet, lay_out_pictures([one[..., 0] if is_grey else one for one in pictures]))
    return [arrays, sheet]
