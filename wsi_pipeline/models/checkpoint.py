"""A trained model in one file: weights, and everything needed to use them.

The file is safetensors; loading it runs no code. Its header contains one JSON text: how to rebuild
the model, the patches it expects, and the settings, slides and patients it was trained with, so
that later stages can refuse to test a model on its training patients.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tiling.contracts import StrPath
from tiling.files import digest_file, make_durable, read_bytes, write_aside
from tiling.urls import as_path
from wsi_pipeline.config.checkpoint_header import (
    HEADER_DIGEST,
    HEADER_KEY,
    SCHEMA,
    CheckpointMeta,
    damaged,
    digest_header,
    read_header,
    read_meta,
    unreadable,
)
from wsi_pipeline.errors import CheckpointError, ModelError
from wsi_pipeline.models import PatchClassifier, build_model

__all__ = [
    "CheckpointMeta",
    "digest",
    "digest_model",
    "load_checkpoint",
    "read_header",
    "read_meta",
    "read_tensors",
    "save_checkpoint",
    "write_tensors",
]


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
    path = as_path(path)
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
        raise unreadable(path, error) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write named tensors and a JSON header as one safetensors file atomically.

    The earlier file is replaced after the new one is on the disk: a power loss leaves one of them.
    """
    data = _encode_tensors(tensors, header)
    with write_aside(path) as scratch:
        scratch.write_bytes(data)  # save_file would write a file that only its owner can read
        make_durable([scratch], root=path.parent)
    make_durable([path], root=path.parent)


def _encode_tensors(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    whole = {**header, "weights_sha256": _digest_tensors(plain)}
    text = json.dumps({**whole, HEADER_DIGEST: digest_header(whole)}, sort_keys=True)
    return safetensors.torch.save(plain, metadata={HEADER_KEY: text})


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
        raise unreadable(path, error) from error
    except safetensors.SafetensorError as error:
        raise damaged(path, error) from error
    if _digest_tensors(tensors) != header.get("weights_sha256"):
        raise damaged(path, "its weights are not those that were written")
    return tensors, header


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
