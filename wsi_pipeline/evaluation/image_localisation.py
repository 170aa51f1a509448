"""How well the maps of single images lie on their masks (PatchNet paper 2, tables 2 and 7).

PatchNet's map is taken as it is, a probability around every pixel. Activation maps (CAM, Grad-CAM)
have no scale of their own: each is stretched to [0, 1] over its image first.

References
----------
.. [1] PatchNet paper 2, appendix E.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import read_json_object
from tiling.wording import pluralize
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.figures import Figures
from wsi_pipeline.evaluation.localisation import ImageLocalisation, localise
from wsi_pipeline.evaluation.sections import average_section, describe_elsewhere
from wsi_pipeline.explain import METHODS
from wsi_pipeline.explain.files import MAPS_SCHEMA, read_values, stretch

_REASONS = {
    "average_exact_match": "no evaluated image has both a mask and a map",
    "average_recall": "no such mask has an object",
    "average_roc_auc": "no such mask has both object and background",
}


def localise_image(
    values: NDArray[np.floating[Any]], mask: NDArray[np.bool_], *, probability: bool
) -> ImageLocalisation:
    """Compare an image's map with its mask.

    Parameters
    ----------
    values : (h, w)
        PatchNet's Q, or an activation map of any scale.
    mask : (H, W) bool
        Of the whole image; a model that crops maps the centre.
    probability : bool
        The map is a probability and taken as it is, else stretched over its image.
    """
    return localise(values if probability else stretch(values), crop_mask(mask, values.shape))


def crop_mask(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Cut out the centre that a model's map is of: (H, W) -> (h, w)."""
    (height, width), (h, w) = mask.shape, shape
    top, left = (height - h) // 2, (width - w) // 2  # as `models.preprocess.crop_centre`
    return mask[top : top + h, left : left + w]


def localisation_of(
    ids: Sequence[str],
    masks: Mapping[str, NDArray[np.uint8]],
    folder: Path,
    checkpoint: str,
    *,
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, ImageLocalisation], Figures, list[str]]:
    """Compare the maps in a folder with masks.

    Parameters
    ----------
    ids : sequence of str
        Images that are evaluated.
    masks : mapping
        By image_id, (H, W) uint8: 1 on the object.
    folder : Path
        Of the maps, ``heatmaps/<model>``.
    checkpoint : str
        Digest of the one whose scores are evaluated.
    elsewhere : mapping, optional
        Images with a mask that are not evaluated, by their split.

    Returns
    -------
    known : by image_id
    section : Figures
        ``skipped`` counts images that have a mask and no map, ``elsewhere`` the masks of images
        that are not evaluated, by split.
    notes : list of str

    Raises
    ------
    EvaluationError
        If a map that was made cannot be read.
    """
    wanted = [i for i in ids if i in masks]
    about = _read_about(folder)
    notes = []
    if wanted and about and about["checkpoint"] != checkpoint:
        notes.append("the maps are of another checkpoint than the scores; run heatmap again")
        about = {}
    mapped = set(about.get("images", ()))
    known = {
        i: localise_image(
            read_values(
                folder / f"{i}.{about['method']}.tif", error=EvaluationError, stage="heatmap"
            ),
            masks[i] == 1,
            probability=about["probability"],
        )
        for i in wanted
        if i in mapped
    }
    skipped = len(wanted) - len(known)
    if skipped and not notes:
        notes.append(
            f"no map of {skipped} of {pluralize(len(wanted), 'evaluated image')} with a mask; run "
            "heatmap again (with --set maps_per_class=null for all of them), then evaluate"
        )
    others = elsewhere or {}
    notes += describe_elsewhere("mask", others)
    section = average_section(known, skipped=skipped, reasons=_REASONS, elsewhere=others)
    return known, section, notes


def _read_about(folder: Path) -> dict[str, Any]:
    path = folder / "maps.json"
    try:
        found = read_json_object(path)
        if found["schema"] != MAPS_SCHEMA:  # by an earlier version, or a later one
            return {}
        is_right = (
            isinstance(found["checkpoint"], str)
            and found["method"] in METHODS
            and isinstance(found["probability"], bool)
            and isinstance(found["images"], list)
        )
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path}: damaged ({error}); run heatmap again") from error
    if not is_right:
        raise EvaluationError(f"{path}: damaged (values of other types); run heatmap again")
    return found
