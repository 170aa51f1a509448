"""Patch classifiers, one architecture per file, listed here and nowhere else."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from wsi_pipeline.config.settings import ModelConfig, PreprocessConfig, preprocess_settings
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.base import BlockClassifier, PatchClassifier
from wsi_pipeline.models.cam import CAM
from wsi_pipeline.models.patchnet import PatchNet, PrecisionPatchNet
from wsi_pipeline.models.plugins import load_plugin
from wsi_pipeline.models.preprocess import Preprocess
from wsi_pipeline.models.protopnet import ProtoPNet
from wsi_pipeline.models.resnet import ResNet18, ResNet34, ResNet50
from wsi_pipeline.models.vgg import VGG11, VGG16, VGG19, VGG11Pooled

__all__ = [
    "MODELS",
    "BlockClassifier",
    "PatchClassifier",
    "build_model",
    "check_image_size",
    "find_architecture",
]

MODELS: dict[str, type[PatchClassifier]] = {
    "cam": CAM,
    "patchnet": PatchNet,
    "precision_patchnet": PrecisionPatchNet,
    "protopnet": ProtoPNet,
    "resnet18": ResNet18,
    "resnet34": ResNet34,
    "resnet50": ResNet50,
    "vgg11": VGG11,
    "vgg11_pooled": VGG11Pooled,
    "vgg16": VGG16,
    "vgg19": VGG19,
}


def find_architecture(name: str) -> type[PatchClassifier]:
    """Return the class of a model: in `MODELS`, or of an installed package.

    Packages name theirs in the entry point group ``wsi_pipeline.models``.

    Raises
    ------
    ModelError
        If there is none of this name, or it is no `PatchClassifier`.
    """
    if name in MODELS:
        return MODELS[name]
    found = load_plugin(name, known=sorted(MODELS))
    if not isinstance(found, type) or not issubclass(found, PatchClassifier):
        raise ModelError(
            f"the entry point {name!r} is no subclass of wsi_pipeline.models.PatchClassifier, "
            "which training and checkpoints need; a state dict of it can be used by predict "
            f"--checkpoint FILE --architecture {name}"
        )
    return found


def build_model(
    name: str, *, preprocess: Mapping[str, Any] | None = None, **options: Any
) -> PatchClassifier:
    """Build a model by name.

    Parameters
    ----------
    name : str
        In `MODELS`, or of an installed package (see `find_architecture`).
    preprocess : mapping, optional
        Fields of `PreprocessConfig`, applied to images before the network.
    **options
        Options of that model.

    Raises
    ------
    ModelError
        If the model or an option is unknown, or the value of an option is invalid.
    """
    architecture = find_architecture(name)
    known = inspect.signature(architecture).parameters
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has: {', '.join(known)}"
            raise ModelError(f"{name} has no option {option!r}; {hint}")
    try:
        model = architecture(**options)
        chosen = _read_preprocess(preprocess or {})
    except TypeError as error:
        given = options | ({"preprocess": dict(preprocess)} if preprocess else {})
        raise ModelError(f"{name} cannot be built with {given}: {error}") from error
    if chosen != PreprocessConfig():
        model.preprocess = Preprocess(chosen)
        model.options = {**model.options, "preprocess": preprocess_settings(chosen)}
    return model


def check_image_size(model: ModelConfig, size: tuple[int, int]) -> None:
    """Refuse to train a model on images that its options do not fit.

    Parameters
    ----------
    model : ModelConfig
    size : (height, width), px
        Of patches or images, before a crop.

    Raises
    ------
    ModelError
    """
    find_architecture(model.name).check_size(model.preprocess.crop or size, **model.options)


def _read_preprocess(values: Mapping[str, Any]) -> PreprocessConfig:
    crop = values.get("crop")  # a list, where JSON held it
    return PreprocessConfig(**{**values, "crop": None if crop is None else tuple(crop)})
