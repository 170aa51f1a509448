"""What a training needs to go on after a kill, in one file that is safe to load.

Tensors as safetensors, numbers as JSON in its header; one file, so one rename makes it whole.
It is written after each epoch: an epoch that was cut short is done again from its start.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsi_pipeline.errors import CheckpointError
from wsi_pipeline.models.checkpoint import read_header, read_tensors, write_tensors
from wsi_pipeline.training.history import EpochRecord

log = logging.getLogger(__name__)

SCHEMA = "wsi-pipeline/resume/1"

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class ResumeState:
    """A training at the end of an epoch. What follows from the history is not kept twice."""

    history: list[EpochRecord]
    sampler: dict[str, Any]  # state of the sampler
    drawn: NDArray[np.int64]  # (n_slides, 2) patches drawn so far, by label
    weights: Tensors  # of the last epoch
    best: Tensors  # of the best epoch
    optimizer: Tensors  # named "<index of the parameter>.<name of the state>"
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16's loss; empty in others


def write_resume(path: Path, state: ResumeState, *, key: str) -> None:
    """Keep a state, whole or not at all; `key` says of which settings and inputs."""
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
    """Give the state to go on from; None, and a line in the log, if there is none that fits."""
    if not path.exists():
        return None
    try:
        header = read_header(path)
        if header.get("schema") != SCHEMA or header.get("key") != key:
            log.warning(
                "%s: made with other settings or inputs; left aside, training starts over", path
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
    """Name what an optimizer has gathered, e.g. ``3.square_avg``."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value)
        for index, values in state.items()
        for name, value in values.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give a fresh optimizer what `optimizer_tensors` named.

    Each tensor takes the memory layout of its parameter, as if it had been gathered here: another
    layout would add up in another order.
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
