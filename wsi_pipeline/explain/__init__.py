"""Visual explanations: where in an image a network looks, one method per file.

A method is a module here, named as in `METHODS`, with a `Method` called ``METHOD``. To add one:
write that file and add a line to `METHODS`. docs/explain.md describes what each shows, and when it
misleads.
"""

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, cast

from wsi_pipeline.errors import ConfigError
from wsi_pipeline.names import check_listed

if TYPE_CHECKING:
    from wsi_pipeline.explain.base import Method
    from wsi_pipeline.models import PatchClassifier

__all__ = ["METHODS", "check_layer", "check_method", "choose_method", "list_methods", "load_method"]

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


ALL = "all"  # stands for all methods


def check_method(name: str) -> None:
    """Refuse a method that is not listed.

    Raises
    ------
    ConfigError
        Naming those that are.
    """
    check_listed(name, METHODS, "explanation method")


def list_methods(names: Iterable[str]) -> list[str]:
    """Return methods without repetition; `ALL` stands for every one.

    Raises
    ------
    ConfigError
        Naming those there are, if one is not listed.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name != ALL:
            check_method(name)
    return list(METHODS) if ALL in chosen else chosen


def load_method(name: str) -> "Method":
    """Import a method."""
    check_method(name)
    module = import_module(f"{__name__}.{name}")
    return cast("Method", module.METHOD)


def check_layer(setting: str, layer: str | None, methods: Iterable[str]) -> None:
    """Refuse a layer where no method has one.

    Parameters
    ----------
    setting : str
        Its name, for the message.
    layer : str, optional
    methods : iterable of str

    Raises
    ------
    ConfigError
    """
    chosen = list(methods)
    if layer is not None and not any(load_method(name).has_layer for name in chosen):
        known = ", ".join(name for name in METHODS if load_method(name).has_layer)
        raise ConfigError(
            f"{setting} is {layer}, but {', '.join(chosen)} "
            f"{'has' if len(chosen) == 1 else 'have'} no layer; those with one: {known}"
        )


def choose_method(architecture: "type[PatchClassifier]") -> str:
    """Choose the method of a model's own map: the first in `METHODS` that explains it.

    Returns
    -------
    name : str
        Empty where none does.
    """
    return next((name for name in METHODS if load_method(name).explains(architecture)), "")
