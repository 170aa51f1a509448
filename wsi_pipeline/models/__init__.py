"""Patch classifiers, one architecture per file, listed here and nowhere else."""

import difflib
import inspect
from typing import Any

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import PatchClassifier
from wsi_pipeline.models.patchnet import PatchNet, PrecisionPatchNet
from wsi_pipeline.models.vgg import VGG11, VGG16, VGG19

__all__ = ["MODELS", "PatchClassifier", "build_model"]

MODELS: dict[str, type[PatchClassifier]] = {
    "patchnet": PatchNet,
    "precision_patchnet": PrecisionPatchNet,
    "vgg11": VGG11,
    "vgg16": VGG16,
    "vgg19": VGG19,
}


def build_model(name: str, **options: Any) -> PatchClassifier:
    """Build a model by name.

    Raises
    ------
    ModelError
        If there is no such model, or it has no such option, or not with such a value.
    """
    if name not in MODELS:
        raise ModelError(f"no model is called {name!r}; known: {', '.join(sorted(MODELS))}")
    known = inspect.signature(MODELS[name]).parameters
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
            raise ModelError(f"{name} has no option {option!r}; {hint}")
    try:
        return MODELS[name](**options)
    except TypeError as error:
        raise ModelError(f"{name} cannot be built with {options}: {error}") from error
