"""The description of a model in the form of WSInfer's model zoo: ``config.json`` next to a model.

References
----------
.. [1] Kaczmarzyk et al., "Open and reusable deep learning for pathology with WSInfer and QuPath",
   npj Precision Oncology 8, 2024.
.. [2] SBU-BMI/wsinfer-zoo (Apache-2.0), ``wsinfer_zoo/schemas/model-config.schema.json``,
   spec version 1.0.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiling.files import parse_json, read_text
from wsi_pipeline.errors import CheckpointError

SPEC_VERSION = "1.0"
REQUIRED = ("num_classes", "class_names", "patch_size_pixels", "spacing_um_px", "transform")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic")


@dataclass(frozen=True)
class Resize:
    """Resize an image; torchvision's ``Resize``, with the filters of Pillow."""

    size: tuple[int, int] | int  # (height, width), px; one number: of the shorter side
    interpolation: str = "bilinear"  # in `INTERPOLATIONS`


@dataclass(frozen=True)
class ToTensor:
    """Convert 8-bit values to [0, 1]."""


@dataclass(frozen=True)
class Normalize:
    """Subtract a mean and divide by a standard deviation, by channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


Step = Resize | ToTensor | Normalize

# Of torchvision's weights, RGB in [0, 1].
IMAGENET: tuple[Step, ...] = (
    ToTensor(),
    Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)


@dataclass(frozen=True)
class ZooConfig:
    """What a model expects and returns."""

    class_names: tuple[str, ...]  # in the order of its outputs
    patch_px: int  # side of its patches, before its transform
    mpp: float  # µm per px of those patches
    transform: tuple[Step, ...] = IMAGENET
    architecture: str | None = None


def read_zoo_config(path: Path) -> ZooConfig:
    """Read a ``config.json`` of the zoo.

    Keys that the form does not have are ignored.

    Raises
    ------
    CheckpointError
        With the file, the key, its value and what would be right.
    """
    try:
        values = parse_json(read_text(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # also for text that is not UTF-8
        raise CheckpointError(
            f"{path}: not JSON ({error}); download it again, or correct it"
        ) from error
    if not isinstance(values, dict):
        raise _wrong(path, f"it is a {type(values).__name__}, not an object with named values")
    missing = [key for key in REQUIRED if key not in values]
    if missing:
        raise _wrong(path, f"it has no {', '.join(missing)}")
    if values.get("spec_version", SPEC_VERSION) != SPEC_VERSION:
        raise _wrong(path, f"spec_version must be {SPEC_VERSION!r}, got {values['spec_version']!r}")
    architecture = values.get("architecture")
    if not isinstance(architecture, str | None):
        raise _wrong(path, f"architecture must be text, got {architecture!r}")
    patch_px, mpp = values["patch_size_pixels"], values["spacing_um_px"]
    if type(patch_px) is not int or patch_px < 1:
        raise _wrong(path, f"patch_size_pixels must be a positive whole number, got {patch_px!r}")
    if not _is_number(mpp) or mpp <= 0:
        raise _wrong(path, f"spacing_um_px must be a positive number of µm per px, got {mpp!r}")
    return ZooConfig(
        class_names=_read_classes(path, values["num_classes"], values["class_names"]),
        patch_px=patch_px,
        mpp=float(mpp),
        transform=_read_transform(path, values["transform"]),
        architecture=architecture,
    )


def _wrong(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {problem}; correct the file (WSInfer's model-config form is described in "
        "docs/other_models.md)"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read_classes(path: Path, count: Any, names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise _wrong(path, f"class_names must be a list of names, got {names!r}")
    if type(count) is not int or count != len(names) or not names:
        raise _wrong(
            path, f"num_classes is {count!r}, but class_names has {len(names)}: they must agree"
        )
    if len(set(names)) != len(names):
        raise _wrong(path, f"class_names has the same name twice: {', '.join(names)}")
    return tuple(names)


def _read_transform(path: Path, steps: Any) -> tuple[Step, ...]:
    if not isinstance(steps, list):
        raise _wrong(path, f"transform must be a list of steps, got {steps!r}")
    found = tuple(_read_step(path, step) for step in steps)
    at = [number for number, step in enumerate(found) if isinstance(step, ToTensor)]
    if len(at) != 1:
        raise _wrong(path, f"transform must have ToTensor once, got {len(at)} times")
    if any(isinstance(step, Normalize) for step in found[: at[0]]):
        raise _wrong(path, "transform has Normalize before ToTensor; it works on the tensor")
    return found


def _read_step(path: Path, step: Any) -> Step:
    if not isinstance(step, dict) or not isinstance(step.get("arguments") or {}, dict):
        raise _wrong(path, f"a step of transform is {step!r}, not a name with arguments")
    name, arguments = step.get("name"), step.get("arguments") or {}
    allowed = {
        "Resize": {"size", "interpolation", "antialias", "max_size"},
        "ToTensor": set(),
        "Normalize": {"mean", "std", "inplace"},
    }
    if name not in allowed:
        raise _wrong(
            path, f"transform has the step {name!r}; Resize, ToTensor and Normalize are known"
        )
    unknown = sorted(set(arguments) - allowed[name])
    if unknown:
        raise _wrong(path, f"transform: {name} has no argument {', '.join(unknown)}")
    if name == "ToTensor":
        return ToTensor()
    return _read_resize(path, arguments) if name == "Resize" else _read_normalize(path, arguments)


def _read_resize(path: Path, arguments: Mapping[str, Any]) -> Resize:
    size, given = arguments.get("size"), arguments.get("interpolation", "bilinear")
    sizes: list[Any] = size if isinstance(size, list) else [size]
    if len(sizes) not in (1, 2) or not all(type(side) is int and side > 0 for side in sizes):
        raise _wrong(path, f"transform: Resize needs a size in px, one or two, got {size!r}")
    if arguments.get("max_size") is not None:
        raise _wrong(path, f"transform: Resize with max_size={arguments['max_size']} is not known")
    interpolation = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(given, given)
    if interpolation not in INTERPOLATIONS:
        raise _wrong(
            path,
            f"transform: Resize knows interpolation {', '.join(INTERPOLATIONS)}, got {given!r}",
        )
    if len(sizes) == 1:
        return Resize(sizes[0], interpolation)
    return Resize((sizes[0], sizes[1]), interpolation)


def _read_normalize(path: Path, arguments: Mapping[str, Any]) -> Normalize:
    found = []
    for name in ("mean", "std"):
        values = arguments.get(name)
        if not isinstance(values, list) or len(values) != 3 or not all(map(_is_number, values)):
            raise _wrong(
                path, f"transform: Normalize needs three numbers as {name}, got {values!r}"
            )
        found.append((float(values[0]), float(values[1]), float(values[2])))
    if min(found[1]) <= 0:
        raise _wrong(path, f"transform: Normalize needs a positive std, got {list(found[1])}")
    return Normalize(found[0], found[1])
