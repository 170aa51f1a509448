"""Visual explanations: where in an image a network looks, one method per file.

A method is a module here, named as in `METHODS`, with a `Method` called ``METHOD``. To add one:
write that file and add a line to `METHODS`. docs/explain.md describes what each shows, and when it
misleads.
"""

from importlib import import_module
from typing import TYPE_CHECKING, cast

from wsi_pipeline.names import check_listed

if TYPE_CHECKING:
    from wsi_pipeline.explain.base import Method
    from wsi_pipeline.models import PatchClassifier

__all__ = ["METHODS", "check_method", "choose_method", "load_method"]

# What each method's map is; the modules are imported when they are used. Those of single
# architectures come first: a model's own map is by the first one that explains it.
METHODS = {
    "patchnet": "PatchNet's own probability of the patch around each pixel",
    "cam": "class activation map of a network that averages its last maps",
    "prototypes": "similarities to a ProtoPNet's prototypes, weighted as in its logit",
    "grad_cam": "a layer's maps, weighted by the mean of their gradients",
    "saliency": "size of the logit's gradient at each pixel",
    "smoothgrad": "saliency of many noisy copies, averaged",
    "guided_backprop": "size of a gradient that passes ReLUs only where it raises the logit",
    "guided_smoothgrad": "guided backpropagation of many noisy copies, averaged",
    "occlusion": "what the logit loses where a window is covered",
    "lime": "weight of each superpixel in a linear model of the logit",
    "feature_maps": "mean size of a layer's maps",
    "unveiling": "regions found round by round, each covered before the next",
}


def check_method(name: str) -> None:
    """Refuse a method that is not listed.

    Raises
    ------
    ConfigError
        Naming those that are.
    """
    check_listed(name, METHODS, "explanation method")


def load_method(name: str) -> "Method":
    """Import a method."""
    check_method(name)
    module = import_module(f"{__name__}.{name}")
    return cast("Method", module.METHOD)


def choose_method(architecture: "type[PatchClassifier]") -> str:
    """Choose the method of a model's own map: the first in `METHODS` that explains it.

    Returns
    -------
    name : str
        Empty where none does.
    """
    return next((name for name in METHODS if load_method(name).explains(architecture)), "")
