"""State dicts of other programs: their names brought to those of an architecture, and checked."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tiling.wording import name_some
from wsi_pipeline.errors import ModelError

# DenseNets saved before torchvision 0.3 have `norm.1`, later ones `norm1`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
_COUNTER = "num_batches_tracked"  # of batch normalisation; absent from older files, used by none


def fit_state_dict(
    path: Path,
    stored: Mapping[str, Any],
    wanted: Mapping[str, Tensor],
    *,
    architecture: str,
    unused: tuple[str, ...] = (),
    remedy: str,
) -> dict[str, Tensor]:
    """Choose the tensors of a network from a file's, with the prefix of a wrapper removed.

    Parameters
    ----------
    path : Path
        For messages.
    stored : mapping
        As read from the file.
    wanted : mapping
        The network's own state dict; its tensors may be on the meta device.
    architecture : str
        For messages.
    unused : tuple of str
        Beginnings of names that the file may have in addition.
    remedy : str
        What to do if the file is of another network.

    Raises
    ------
    ModelError
        Naming layers that are missing, of another shape, not known to the network, or not finite.
    """
    found = _strip_prefix({_OLD_DENSENET.sub(r"\1\2", k): v for k, v in stored.items()}, wanted)
    needed = [name for name in wanted if not name.endswith(_COUNTER)]
    missing = [name for name in needed if name not in found]
    foreign = [name for name in found if name not in wanted and not name.startswith(unused)]
    if missing or foreign:
        parts = [f"it has no {_quote(missing)}"] if missing else []
        parts += [f"{architecture} has no {_quote(foreign)}"] if foreign else []
        raise ModelError(
            f"{path}: not a state dict of {architecture}: {'; '.join(parts)}; {remedy}"
        )
    ready = {}
    for name, like in wanted.items():
        if name.endswith(_COUNTER) and name not in found:
            ready[name] = torch.zeros(like.shape, dtype=like.dtype)
            continue
        value = found[name]
        if not isinstance(value, Tensor) or value.is_sparse or value.is_quantized:
            raise ModelError(f"{path}: '{name}' is not a plain tensor; save the weights again")
        if value.shape != like.shape:
            raise ModelError(
                f"{path}: '{name}' is {tuple(value.shape)}, in {architecture} it is "
                f"{tuple(like.shape)}; {remedy}"
            )
        ready[name] = value.to(like.dtype)
        if not torch.isfinite(ready[name]).all():
            raise ModelError(f"{path}: '{name}' holds NaN or infinity; the file is of no use")
    return ready


def _strip_prefix(stored: dict[str, Any], wanted: Mapping[str, Tensor]) -> dict[str, Any]:
    """Take the one prefix (``module.``, ``model.``) from names under which all layers are."""
    needed = [name for name in wanted if not name.endswith(_COUNTER)]
    first = needed[0]
    prefixes = [name.removesuffix(first) for name in stored if name.endswith(f".{first}")]
    for prefix in prefixes:
        if all(prefix + name in stored for name in needed):
            return {
                name.removeprefix(prefix): value
                for name, value in stored.items()
                if name.startswith(prefix)
            }
    return stored


def _quote(names: list[str]) -> str:
    return name_some((f"'{name}'" for name in names), 3)
