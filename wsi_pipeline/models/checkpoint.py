"""A trained model in one file: weights, and everything needed to use them.

The file is safetensors; loading it runs no code. Its header contains one JSON text: how to rebuild
the model, the patches it expects, and the settings, slides and patients it was trained with, so
that later stages can refuse to test a model on its training patients.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tiling.contracts import CLASS_NAMES, PatchKind, StrPath
from tiling.files import check_file, digest_file, parse_json, read_bytes, write_aside
from wsi_pipeline.contracts import PROVENANCE
from wsi_pipeline.errors import CheckpointError, ModelError
from wsi_pipeline.models import PatchClassifier, build_model

SCHEMA = "wsi-pipeline/checkpoint/1"

# One key only: the order of several would differ from file to file.
_HEADER_KEY = "wsi_pipeline"
_HEADER_DIGEST = "header_sha256"  # of everything else in the header's JSON


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

    @property
    def kind(self) -> PatchKind:
        """What it was trained on, and scores."""
        single = self.image_shape is not None
        side = self.patch_px
        shape = self.image_shape or (side, side, 3)
        return PatchKind(shape, self.target_mpp, self.class_names, single)

    def provenance(self) -> dict[str, list[str]]:
        """Slides and patients the model was trained on, by `PROVENANCE`."""
        return {name: list(getattr(self, name)) for name in PROVENANCE}


def save_checkpoint(path: Path, model: PatchClassifier, meta: CheckpointMeta) -> None:
    """Write a checkpoint atomically; the same content gives the same bytes."""
    write_tensors(path, model.state_dict(), _describe(meta))


def digest_model(model: PatchClassifier, meta: CheckpointMeta) -> str:
    """Hash a model as `digest` hashes the file that `save_checkpoint` would write of it."""
    return hashlib.sha256(_encode_tensors(model.state_dict(), _describe(meta))).hexdigest()


def _describe(meta: CheckpointMeta) -> dict[str, Any]:
    return {"schema": SCHEMA, "meta": dataclasses.asdict(meta)}


def load_checkpoint(path: StrPath) -> tuple[PatchClassifier, CheckpointMeta]:
    """Rebuild a model from its checkpoint.

    Parameters
    ----------
    path : str or path
        A ``checkpoint.safetensors`` that training wrote.

    Returns
    -------
    model : PatchClassifier
        On the CPU, in evaluation mode; from (B, 3, P, P) float32 in [0, 1] to (B,) logits.
    meta : CheckpointMeta
        Patch size, resolution, training settings, and the slides and patients of the training.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a checkpoint, or of an unknown model.
    """
    path = Path(path)
    meta = read_meta(path)
    tensors, _ = read_tensors(path)
    try:
        model = build_model(meta.model, **meta.options)
        model.load_state_dict(tensors)
    except (ModelError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: its model {meta.model!r} cannot be rebuilt here ({error}); it was made with "
            f"wsi-pipeline {meta.versions.get('wsi-pipeline', 'of unknown version')}: train again"
        ) from error
    return model.eval(), meta


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
        and all(type(size) is int and size > 0 for size in (*sizes, meta.patch_px))
        and all(isinstance(name, str) for name in names)
        and len(meta.class_names) == 2
        and len(meta.kind.shape) == 3
    )
    if not is_right:
        raise TypeError("a value is not of the kind that train writes")


def digest(path: Path) -> str:
    """Hash a checkpoint's bytes: 64 hexadecimal digits of SHA-256.

    Raises
    ------
    CheckpointError
        If there is no such file.
    """
    try:
        return digest_file(path)
    except OSError as error:
        raise _unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header as one safetensors file atomically."""
    data = _encode_tensors(tensors, header)
    with write_aside(path) as scratch:
        scratch.write_bytes(data)  # save_file would write a file that only its owner can read


def _encode_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    whole = {**header, "weights_sha256": _digest_tensors(plain)}
    text = json.dumps({**whole, _HEADER_DIGEST: _digest_header(whole)}, sort_keys=True)
    return safetensors.torch.save(plain, metadata={_HEADER_KEY: text})


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, on the CPU, and check that no bit of it has changed.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not written by this program.
    """
    header = read_header(path)
    try:
        tensors = safetensors.torch.load(read_bytes(path))  # data only: it holds no code
    except OSError as error:
        raise _unreadable(path, error) from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    if _digest_tensors(tensors) != header.get("weights_sha256"):
        raise _damaged(path, "its weights are not those that were written")
    return tensors, header


def read_header(path: Path) -> dict[str, Any]:
    """Read the JSON header of a safetensors file.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, or not written by this program.
    """
    try:
        check_file(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such checkpoint; run train first, or check the path"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except safetensors.SafetensorError as error:
        raise _damaged(path, error) from error
    if _HEADER_KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of this program (no "
            f"{_HEADER_KEY!r} in its header); give the checkpoint.safetensors that train wrote"
        )
    try:
        header = parse_json(metadata[_HEADER_KEY])
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(header, dict):
        raise _damaged(path, f"its header is a {type(header).__name__}")
    written = header.pop(_HEADER_DIGEST, None)  # checkpoints of earlier versions have none
    if written is not None and written != _digest_header(header):
        raise _damaged(path, "its header is not the one that was written")
    return header


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error.strerror or error})")


def _damaged(path: Path, reason: object) -> CheckpointError:
    return CheckpointError(
        f"{path}: damaged, or not a safetensors file ({reason}); copy it again, or train again"
    )


def _digest_header(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
