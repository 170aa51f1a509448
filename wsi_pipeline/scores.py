"""Score files: what a model said of one slide's patches (contract 4.2).

HDF5 with `coords` and `scores`. `coords` carries the attributes that CLAM's readers look for.
The same scores give the same bytes: no dates and no paths are kept.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SlideInfo, TileGeometry
from tiling.files import write_aside
from wsi_pipeline.contracts import Scores
from wsi_pipeline.errors import ScoresError

if TYPE_CHECKING:  # reading scores must not cost an import of torch
    from tiling.store import PatchStore
    from wsi_pipeline.checkpoint import CheckpointMeta

SCHEMA = "wsi-pipeline/scores/1"

TRAINED_ON = (
    "trained_on"  # a data set of JSON: names of a large cohort outgrow an attribute's 64 KiB
)

_JSON_NAMES = "json_attributes"  # attribute that lists which of its neighbours are JSON text


def clam_attributes(info: SlideInfo, geometry: TileGeometry) -> dict[str, Any]:
    """Describe how to read the patches again, in CLAM's terms.

    CLAM reads a square of `patch_size` px at `patch_level`. Patches here are at an exact mpp that
    need not be a stored level, so they are described at level 0, where `patch_size` is the tile's
    width; `exact_attributes` keep what CLAM has no term for.
    """
    width, height = info.size
    return {
        "patch_size": geometry.patch_l0,
        "patch_level": 0,
        "downsample": [1.0, 1.0],
        "downsampled_level_dim": [width, height],
        "level_dim": [width, height],
        "name": info.slide_id,
        **exact_attributes(geometry),
    }


def exact_attributes(geometry: TileGeometry) -> dict[str, Any]:
    """Describe patches beyond the terms of other tools, which know squares only; x before y."""
    return {
        "patch_l0": [geometry.patch_l0, geometry.patch_l0_y],
        "stride_l0": [geometry.stride_l0, geometry.stride_l0_y],
        "patch_px": geometry.patch_px,
        "target_mpp": geometry.target_mpp,
    }


def make_scores(
    store: "PatchStore",
    scores: NDArray[np.float32],
    meta: "CheckpointMeta",
    checkpoint_digest: str,
    *,
    precision: str,
    precision_check: dict[str, Any] | None,
    fingerprint: str,
) -> Scores:
    """Put a slide's scores together with where they are and what made them.

    Parameters
    ----------
    store : PatchStore
        The slide's patches.
    scores : (N,) in [0, 1], NaN = unreadable
        In the order of the store.
    meta : CheckpointMeta
        Of the model that gave them.
    checkpoint_digest : str
        SHA-256 of the checkpoint file.
    precision : str
        fp32, bf16 or fp16.
    precision_check : dict, optional
        How far a faster precision was from fp32 on the slide's first patches; None: it is fp32.
    fingerprint : str
        Of the settings and inputs of this prediction.
    """
    attributes = {
        "slide_id": store.info.slide_id,
        "model": meta.model,
        "checkpoint": checkpoint_digest,
        "precision": precision,
        "precision_check": precision_check,
        "settings": {"tiling": store.tiling, "model_options": meta.options},
        "fingerprint": fingerprint,
        # So that the evaluation can refuse to test a model on its own training patients.
        TRAINED_ON: meta.provenance(),
    }
    return Scores(
        coords=np.asarray(store.coords, np.int64),
        scores=scores,
        attributes=attributes,
        coords_attributes=clam_attributes(store.info, store.geometry),
    )


def write_scores(path: Path, scores: Scores) -> None:
    """Write a score file, whole or not at all.

    Attributes that HDF5 has no plain type for (nested settings, None) are written as JSON.

    Raises
    ------
    ScoresError
        If coordinates and scores do not fit together, or a score lies outside [0, 1].
    """
    _check(path, scores.coords, scores.scores)
    with write_aside(path) as scratch, h5py.File(scratch, "w") as file:
        file.attrs["schema"] = SCHEMA
        short = {k: v for k, v in scores.attributes.items() if k != TRAINED_ON}
        _write_attributes(file, short)
        if TRAINED_ON in scores.attributes:
            text = json.dumps(scores.attributes[TRAINED_ON], sort_keys=True)
            _add(file, TRAINED_ON, np.array(text.encode()))
        coords = _add(file, "coords", scores.coords.astype(np.int64))
        _write_attributes(coords, scores.coords_attributes)
        _add(file, "scores", scores.scores.astype(np.float32))


def read_scores(path: Path) -> Scores:
    """Read a score file.

    Raises
    ------
    ScoresError
        If the file is missing, damaged, or not a score file.
    """
    if not path.is_file():
        raise ScoresError(f"{path}: no such score file; run predict first")
    try:
        with h5py.File(path, "r") as file:
            schema = file.attrs.get("schema")
            if schema != SCHEMA:
                raise ScoresError(
                    f"{path}: not a score file of this program (schema {schema!r}, wanted "
                    f"{SCHEMA!r}); run predict again"
                )
            coords = np.asarray(file["coords"][()])
            values = np.asarray(file["scores"][()])
            attributes = _read_attributes(file)
            if TRAINED_ON in file:
                attributes[TRAINED_ON] = json.loads(bytes(file[TRAINED_ON][()]))
            coords_attributes = _read_attributes(file["coords"])
    except ScoresError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise ScoresError(
            f"{path}: damaged score file ({error}); delete it and run predict again"
        ) from error
    _check(path, coords, values)
    return Scores(
        coords=coords.astype(np.int64),
        scores=values.astype(np.float32),
        attributes=attributes,
        coords_attributes=coords_attributes,
    )


def _check(path: Path, coords: NDArray[Any], scores: NDArray[Any]) -> None:
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.issubdtype(coords.dtype, np.integer):
        raise ScoresError(
            f"{path}: coords must be (N, 2) whole numbers, got {coords.shape} {coords.dtype}"
        )
    if scores.shape != (len(coords),) or not np.issubdtype(scores.dtype, np.floating):
        raise ScoresError(
            f"{path}: scores must be ({len(coords)},) floats, one per row of coords, "
            f"got {scores.shape} {scores.dtype}"
        )
    outside = (scores < 0) | (scores > 1)  # NaN is neither: an unreadable patch
    if outside.any():
        raise ScoresError(
            f"{path}: {int(outside.sum())} scores lie outside [0, 1], "
            f"for example {float(scores[outside][0])!r}"
        )


def _add(file: h5py.File, name: str, data: NDArray[Any]) -> Any:
    return file.create_dataset(name, data=data, track_times=False)  # times would change the bytes


def _write_attributes(target: Any, attributes: dict[str, Any]) -> None:
    as_json = sorted(name for name, value in attributes.items() if not _is_plain(value))
    for name, value in attributes.items():
        target.attrs[name] = json.dumps(value) if name in as_json else value
    if as_json:
        target.attrs[_JSON_NAMES] = ",".join(as_json)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(item, int | float) for item in value)
    return isinstance(value, str | int | float)


def _read_attributes(source: Any) -> dict[str, Any]:
    as_json = str(source.attrs.get(_JSON_NAMES, "")).split(",")
    return {
        name: json.loads(value) if name in as_json else _plain(value)
        for name, value in source.attrs.items()
        if name not in ("schema", _JSON_NAMES)
    }


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value
