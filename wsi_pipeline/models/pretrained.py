"""Initial weights: a VGG's state dict in torchvision's layout.

Files are read without running code (``weights_only=True``, or safetensors). A state dict may be
stored in a training's checkpoint (under ``state_dict``, ``model``, ...), and its names may have a
prefix (``module.``, ``backbone.``, ...) from a wrapper around the network.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tiling.wording import name_some
from wsi_pipeline.errors import ModelError

log = logging.getLogger(__name__)

# Keys of the weights in a checkpoint; the first that exists is used.
CONTAINERS = ("state_dict", "model_state_dict", "model")
_FIRST = "features.0.weight"  # the layer of each VGG by which a prefix is found


@runtime_checkable
class ImageNetModel(Protocol):
    """A model that loads torchvision's file of its own network."""

    def load_imagenet(self, path: Path) -> None:
        """Load everything but the last layer."""


def load_imagenet_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict in torchvision's layout into a model.

    Parameters
    ----------
    model : nn.Module
        With ``features`` as `wsi_pipeline.models.vgg.make_features` builds them, and perhaps a
        ``classifier``; or an `ImageNetModel`.
    path : Path
        ``.safetensors``, or ``.pth`` and ``.pt`` as torch saves them. The convolutions are taken,
        and the hidden linear layers where the model has them; the last layer, of 1000 classes, is
        not.

    Raises
    ------
    ModelError
        With the file, and the layer that is missing, of another shape, or not finite, or the
        layers that the model does not have.
    """
    if isinstance(model, ImageNetModel):
        model.load_imagenet(path)
        return
    stored = read_state_dict(path)
    found = _strip_prefix(path, stored)
    wanted = {k: v for k, v in model.state_dict().items() if _is_pretrained(k, model)}
    _check_names(path, found, wanted, stored)
    ready = {name: _fit(path, name, found[name], like) for name, like in wanted.items()}
    model.load_state_dict(ready, strict=False)


def check_weights_file(path: Path) -> None:
    """Refuse initial weights whose file does not exist.

    Raises
    ------
    ModelError
        With the file and the setting.
    """
    if not path.is_file():
        raise ModelError(
            f"{path}: no such weights file; give it by --weights or train.<model>.model.weights"
        )


def _is_pretrained(name: str, model: nn.Module) -> bool:
    part, _, rest = name.partition(".")
    if part == "classifier" and isinstance(model.classifier, nn.Sequential):
        return int(rest.partition(".")[0]) < len(model.classifier) - 1
    return part == "features"


# ------------------------------------------------------------ what the file holds


def read_state_dict(path: Path) -> dict[str, Any]:
    """Read the state dict of a file, at the top level or under one of `CONTAINERS`.

    No code of the file runs.

    Raises
    ------
    ModelError
        If the file is missing, or holds no plain tensors by name.
    """
    import safetensors
    import safetensors.torch

    check_weights_file(path)
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds; each means: no weights
        raise ModelError(
            f"{path.name}: not a file of weights ({type(error).__name__}); give a .safetensors, or "
            "a .pth or .pt that holds plain tensors: torch.save(model.state_dict(), FILE)"
        ) from error
    return _unwrap(path, found)


def _unwrap(path: Path, content: Any) -> dict[str, Any]:
    found = content
    while isinstance(found, Mapping):
        inner = [name for name in CONTAINERS if isinstance(found.get(name), Mapping)]
        if not inner:
            break
        found = found[inner[0]]
    if isinstance(found, Mapping) and any(isinstance(v, Tensor) for v in found.values()):
        return {str(name): value for name, value in found.items()}
    if isinstance(content, Mapping):
        holds = f"its keys are {_quote(map(str, content))}" if content else "it is empty"
    else:
        holds = f"it is a {type(content).__name__}"
    raise ModelError(
        f"{path.name}: no state dict of plain tensors in the file ({holds}), nor under "
        f"{', '.join(CONTAINERS)}; save one with torch.save(model.state_dict(), FILE)"
    )


def _strip_prefix(path: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Take the prefix of a wrapper (``module.backbone.``) from all names that have it."""
    prefixes = [name.removesuffix(_FIRST) for name in stored if name.endswith(_FIRST)]
    prefixes = [p for p in prefixes if not p or p.endswith(".")]
    if not prefixes or "" in prefixes:
        return dict(stored)
    if len(prefixes) > 1:
        raise ModelError(
            f"{path.name}: weights of several networks, under {_quote(sorted(prefixes))}; save the "
            "one to start from in a file of its own"
        )
    (prefix,) = prefixes
    return {
        name.removeprefix(prefix): value
        for name, value in stored.items()
        if name.startswith(prefix)
    }


# ------------------------------------------------------------ whether it fits


def _check_names(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Tensor], stored: Mapping[str, Any]
) -> None:
    missing = [name for name in wanted if name not in found]
    foreign = [name for name in found if name.startswith("features.") and name not in wanted]
    if missing:
        others = foreign or [name for name in stored if name not in wanted]
        has = f"; the file has {_quote(others)}" if others else ""
        raise ModelError(
            f"{path.name}: no layer {_quote(missing)}{has}; give weights of the same VGG (without "
            "batch normalisation), in torchvision's layout"
        )
    if foreign:
        raise ModelError(
            f"{path.name}: the model has no layer {_quote(foreign)}; give weights of the same VGG "
            "(without batch normalisation)"
        )
    tops = ("classifier.", "output.")  # last layers, of other classes
    unused = [name for name in found if name not in wanted and not name.startswith(tops)]
    if unused:
        log.warning("%s: not used, as the model has no such layer: %s", path.name, _quote(unused))


def _fit(path: Path, name: str, value: Any, like: Tensor) -> Tensor:
    """Bring a layer's weights to the model's type, if they are numbers of its shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_sparse:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(
            f"{path.name}: layer '{name}' is {kind}; give weights of floating point numbers "
            "(quantised ones cannot be trained)"
        )
    if value.shape != like.shape:
        raise ModelError(
            f"{path.name}: layer '{name}' is {tuple(value.shape)}, the model's is "
            f"{tuple(like.shape)}; give weights of the same VGG, or set width to 1"
        )
    ready = value.to(like.dtype)
    odd = int((~torch.isfinite(ready)).sum())
    if odd:
        raise ModelError(
            f"{path.name}: layer '{name}' holds NaN or infinity ({odd} of {value.numel()} "
            "values); the training that wrote it diverged, or the file is damaged: take another"
        )
    return ready


def _quote(names: Iterable[str]) -> str:
    """List some names, each in quotation marks."""
    return name_some(f"'{name}'" for name in names)
