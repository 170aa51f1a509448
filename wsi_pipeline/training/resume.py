"""State of an unfinished training, in one file that is safe to load.

Tensors are stored as safetensors, numbers as JSON in its header. It is a single file, so that it is
replaced atomically. It is written after each epoch; an interrupted epoch is repeated.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tiling.files import digest_json
from wsi_pipeline.cohort.data import Patches
from wsi_pipeline.config.reading import as_plain
from wsi_pipeline.config.settings import TrainConfig, result_settings
from wsi_pipeline.errors import CheckpointError
from wsi_pipeline.models.checkpoint import read_header, read_tensors, write_tensors
from wsi_pipeline.training.history import EpochRecord

log = logging.getLogger(__name__)

SCHEMA = "wsi-pipeline/resume/1"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ResumeState:
    """State of a training at the end of an epoch, without what follows from the history."""

    history: list[EpochRecord]
    sampler: dict[str, Any]  # state of the sampler
    drawn: NDArray[np.int64]  # (n_slides, 2) patches drawn so far, by label
    weights: Tensors  # of the last epoch
    best: Tensors  # of the best epoch
    optimizer: Tensors  # named "<index of the parameter>.<name of the state>"
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16's loss; empty in others


def resume_key(
    config: TrainConfig,
    train: Sequence[Patches],
    val: Sequence[Patches],
    hard: Mapping[str, NDArray[np.bool_]],
    fingerprint: str,
) -> str:
    """Hash what a training depends on, the patches of its stores and its settings.

    Parameters
    ----------
    config : TrainConfig
    train, val : sequence of Patches
    hard : mapping
        Patches that are drawn more often, by slide_id.
    fingerprint : str
        Of what the caller knows besides.
    """
    stores = [[(s.slide_id, s.fingerprint) for s in split] for split in (train, val)]
    rows = {slide_id: np.flatnonzero(found).tolist() for slide_id, found in sorted(hard.items())}
    more = [rows] if config.hard_share else []
    return digest_json([as_plain(result_settings(config)), stores, fingerprint, *more])


def write_resume(path: Path, state: ResumeState, *, key: str) -> None:
    """Write a state atomically; `key` identifies settings and inputs."""
    header = {
        "schema": SCHEMA,
        "key": key,
        "history": [dataclasses.asdict(record) for record in state.history],
        "sampler": state.sampler,
        "drawn": state.drawn.tolist(),
        "scaler": state.scaler,
    }
    tensors = {
        f"{group}/{name}": tensor
        for group in ("weights", "best", "optimizer")
        for name, tensor in getattr(state, group).items()
    }
    write_tensors(path, tensors, header)


def read_resume(path: Path, *, key: str) -> ResumeState | None:
    """Return the state to continue from; None, with a log message, if there is none that fits."""
    if not path.exists():
        return None
    try:
        header = read_header(path)
        if header.get("schema") != SCHEMA or header.get("key") != key:
            log.warning(
                "%s: made with other settings or inputs; ignored, training starts over", path
            )
            return None
        tensors, header = read_tensors(path)
        return _from_parts(header, tensors)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: cannot be used (%s); training starts over", path, error)
        return None


def _from_parts(header: dict[str, Any], tensors: Tensors) -> ResumeState:
    groups: dict[str, Tensors] = {"weights": {}, "best": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        group, _, inner = name.partition("/")
        groups[group][inner] = tensor
    return ResumeState(
        history=[EpochRecord(**record) for record in header["history"]],
        sampler=header["sampler"],
        drawn=np.array(header["drawn"], np.int64),
        weights=groups["weights"],
        best=groups["best"],
        optimizer=groups["optimizer"],
        scaler=header["scaler"],
    )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """Name the state tensors of an optimizer, e.g. ``3.square_avg``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Restore the state of an optimizer from `optimizer_tensors`.

    Each tensor gets the memory layout of its parameter, as in an uninterrupted training: another
    layout would change the order of summation.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, inner = name.partition(".")
        like = parameters[int(index)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like).copy_(tensor)
        state.setdefault(int(index), {})[inner] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
