"""The header of a checkpoint: what a model expects and was trained with, read without torch.

Importing torch takes longer than tiling a slide: `predict` does both at a time.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors

from tiling.contracts import CLASS_NAMES, PatchKind
from tiling.files import check_file, parse_json
from tiling.urls import RemotePath, read_ranges
from wsi_pipeline.contracts import PROVENANCE
from wsi_pipeline.errors import CheckpointError

SCHEMA = "wsi-pipeline/checkpoint/1"

# One key only: the order of several would differ from file to file.
HEADER_KEY = "wsi_pipeline"
HEADER_DIGEST = "header_sha256"  # of everything else in the header's JSON
_LENGTH_BYTES = 8  # of a safetensors file: the length of its JSON header, little-endian
_MOST_HEADER_BYTES = 100 * 10**6  # safetensors reads no longer ones


@dataclass(frozen=True)
class CheckpointMeta:
    """Metadata of a checkpoint."""

    model: str  # name in the registry of models
    options: dict[str, Any]  # how to rebuild it
    patch_px: int  # side of the patches it was trained on
    target_mpp: float  # µm per px of those patches
    class_names: tuple[str, str] = CLASS_NAMES  # by label
    # (height, width, channels) of the single images it was trained on; None: patches of slides
    image_shape: tuple[int, int, int] | None = None
    training: dict[str, Any] = field(default_factory=dict)  # the training settings
    fingerprint: str = ""  # of settings and inputs
    versions: dict[str, str] = field(default_factory=dict)  # of the software it was made with
    train_slides: tuple[str, ...] = ()  # slide ids
    val_slides: tuple[str, ...] = ()
    train_patients: tuple[str, ...] = ()
    val_patients: tuple[str, ...] = ()
    epoch: int = 0  # the epoch the weights are from, 1-based
    metrics: dict[str, float] = field(default_factory=dict)  # of that epoch, on val
    # For the model card: splits (counts), weights (initial), colours (of tissue), temperature;
    # {}: not known
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> PatchKind:
        """What it was trained on, and scores."""
        single = self.image_shape is not None
        side = self.patch_px
        shape = self.image_shape or (side, side, 3)
        return PatchKind(shape, self.target_mpp, self.class_names, single)

    @property
    def temperature(self) -> float | None:
        """What divides its logits for calibrated scores; None: it was not fitted."""
        return self.card.get("temperature")

    def provenance(self) -> dict[str, list[str]]:
        """Slides and patients the model was trained on, by `PROVENANCE`."""
        return {name: list(getattr(self, name)) for name in PROVENANCE}


def require_temperature(meta: CheckpointMeta, source: object) -> float:
    """Return the temperature of a checkpoint.

    Parameters
    ----------
    source : object
        The file, for the message.

    Raises
    ------
    CheckpointError
        If it has none.
    """
    if meta.temperature is None:
        raise CheckpointError(
            f"{source}: predict.calibrated needs a temperature, and this model has none: it was "
            "trained without validation, by an earlier version, or by another program; train it "
            "again with validation patches, or set predict.calibrated=false"
        )
    return meta.temperature


def read_meta(path: Path) -> CheckpointMeta:
    """Read the metadata of a checkpoint, without the weights.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not a checkpoint.
    """
    header = read_header(path)
    if header.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: not a checkpoint of this program (schema {header.get('schema')!r}, wanted "
            f"{SCHEMA!r}); give the checkpoint.safetensors that train wrote"
        )
    try:
        values = dict(header["meta"])
        for name in ("class_names", *PROVENANCE):
            values[name] = tuple(values[name])
        shape = values.get("image_shape")
        values["image_shape"] = None if shape is None else tuple(shape)
        meta = CheckpointMeta(**values)
        _check_types(meta)
        return meta
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged checkpoint header ({error}); train again"
        ) from error


def _check_types(meta: CheckpointMeta) -> None:
    sizes = meta.image_shape or (meta.patch_px,)
    names = (*meta.class_names, *(name for group in meta.provenance().values() for name in group))
    is_right = (
        isinstance(meta.model, str)
        and isinstance(meta.options, dict)
        and isinstance(meta.target_mpp, int | float)
        and isinstance(meta.versions, dict)
        and isinstance(meta.card, dict)
        and _is_temperature(meta.temperature)
        and all(type(size) is int and size > 0 for size in (*sizes, meta.patch_px))
        and all(isinstance(name, str) for name in names)
        and len(meta.class_names) == 2
        and len(meta.kind.shape) == 3
    )
    if not is_right:
        raise TypeError("a value is not of the kind that train writes")


def _is_temperature(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, float) and 0 < value < math.inf


def read_metadata(path: Path) -> dict[str, str]:
    """Read the texts that a safetensors file holds in addition to its tensors.

    Raises
    ------
    OSError, SafetensorError
        If the file is missing or damaged.
    """
    if isinstance(path, RemotePath):  # two requests, not all weights
        try:
            (length,) = read_ranges([(path, 0, _LENGTH_BYTES)])
            n_bytes = min(int.from_bytes(length, "little"), _MOST_HEADER_BYTES)
            (text,) = read_ranges([(path, _LENGTH_BYTES, _LENGTH_BYTES + n_bytes)])
            return dict(parse_json(text).get("__metadata__") or {})
        except (ValueError, AttributeError) as error:
            raise safetensors.SafetensorError(str(error)) from error
    check_file(path)
    with safetensors.safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not written by this program.
    """
    try:
        metadata = read_metadata(path)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; run train first, or check the path"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except safetensors.SafetensorError as error:
        raise damaged(path, error) from error
    if HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this program (no "
            f"{HEADER_KEY!r} in its header); give the checkpoint.safetensors that train wrote, or "
            "name the network of a plain state dict by predict --architecture NAME"
        )
    try:
        header = parse_json(metadata[HEADER_KEY])
    except ValueError as error:
        raise damaged(path, error) from error
    if not isinstance(header, dict):
        raise damaged(path, f"its header is a {type(header).__name__}")
    written = header.pop(HEADER_DIGEST, None)  # checkpoints of earlier versions have none
    if written is not None and written != digest_header(header):
        raise damaged(path, "its header is not the one that was written")
    return header


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """Describe a file that the system does not let us read."""
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")


def damaged(path: Path, reason: object) -> CheckpointError:
    """Describe a damaged file, and the remedy."""
    return CheckpointError(
        f"{path}: damaged, or not a safetensors file ({reason}); copy it again, or train again"
    )


def digest_header(header: Mapping[str, Any]) -> str:
    """Hash a header without its own digest."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
