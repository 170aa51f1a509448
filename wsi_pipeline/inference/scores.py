"""Score files: the scores of one slide's patches by one model.

HDF5 with `coords` and `scores`. `coords` carries the attributes that CLAM's readers look for.
The same scores give the same bytes: no dates and no paths are kept. `coords` and `scores` carry
HDF5's own checksum; the attribute `attributes_sha256` covers everything else.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SlideInfo, TileGeometry
from tiling.errors import of_damage
from tiling.files import parse_json, write_aside
from tiling.hdf5 import READ_ERRORS, add_array, create_hdf5, get_dataset, open_hdf5, read_array
from wsi_pipeline.contracts import Scores
from wsi_pipeline.errors import ScoresError

if TYPE_CHECKING:  # reading scores must not cost an import of torch
    from tiling.store import PatchStore
    from wsi_pipeline.models.checkpoint import CheckpointMeta

SCHEMA = "wsi-pipeline/scores/1"

TRAINED_ON = (
    "trained_on"  # a data set of JSON: names of a large cohort outgrow an attribute's 64 KiB
)

PROBABILITIES = "probabilities"  # of each class, of a model with several
TEMPERATURE = "temperature"  # attribute of calibrated scores: what divided the logits
FAR_FROM_TRAINING = "far_from_training"  # attribute of slides unlike those of the training
_JSON_NAMES = "json_attributes"  # attribute that lists which of its neighbours are JSON text
_DIGEST = "attributes_sha256"
_EXAMINE_S = 60  # HDF5 may crash or hang on a damaged file, so such a file is opened elsewhere


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
    classes: Sequence[str] = (),
    positive: Sequence[str] = (),
    temperature: float | None = None,
    far_from_training: str = "",
) -> Scores:
    """Put a slide's scores together with where they are and what made them.

    Parameters
    ----------
    store : PatchStore
        The slide's patches.
    scores : (N,) in [0, 1], NaN = unreadable
        In the order of the store; with `classes` (N, 1 + C), the score and each class.
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
    classes, positive : sequence of str
        Of a model of another program: its classes, and those that add up to the score. The slides
        that it was trained on are not known.
    temperature : float, optional
        By which the scores are calibrated; None: they are not.
    far_from_training : str
        How the slide differs from those that the model was trained on; empty: it does not.
    """
    attributes: dict[str, Any] = {
        "slide_id": store.info.slide_id,
        "model": meta.model,
        "checkpoint": checkpoint_digest,
        "precision": precision,
        "precision_check": precision_check,
        "settings": {"tiling": store.tiling, "model_options": meta.options},
        "fingerprint": fingerprint,
    }
    probabilities = None
    if classes:
        attributes |= {"classes": list(classes), "positive": list(positive)}
        scores, probabilities = scores[:, 0], scores[:, 1:]
    else:
        # So that the evaluation can refuse to test a model on its own training patients.
        attributes[TRAINED_ON] = meta.provenance()
    if temperature is not None:
        attributes[TEMPERATURE] = temperature
    if far_from_training:
        attributes[FAR_FROM_TRAINING] = far_from_training
    return Scores(
        coords=np.asarray(store.coords, np.int64),
        scores=scores,
        attributes=attributes,
        coords_attributes=clam_attributes(store.info, store.geometry),
        probabilities=probabilities,
    )


def write_scores(path: Path, scores: Scores) -> None:
    """Write a score file atomically.

    Attributes that HDF5 has no plain type for (nested settings, None) are written as JSON.

    Raises
    ------
    ScoresError
        If coordinates and scores do not fit together, or a score lies outside [0, 1].
    """
    _check(path, scores.coords, scores.scores)
    _check_classes(path, scores)
    short = {k: v for k, v in scores.attributes.items() if k != TRAINED_ON}
    with write_aside(path) as scratch, create_hdf5(scratch) as file:
        file.attrs["schema"] = SCHEMA
        _write_attributes(file, short)
        if TRAINED_ON in scores.attributes:
            text = json.dumps(scores.attributes[TRAINED_ON], sort_keys=True)
            add_array(file, TRAINED_ON, np.array(text.encode()))
        coords = add_array(file, "coords", scores.coords.astype(np.int64))
        _write_attributes(coords, scores.coords_attributes)
        add_array(file, "scores", scores.scores.astype(np.float32))
        if scores.probabilities is not None:
            add_array(file, PROBABILITIES, scores.probabilities.astype(np.float32))
        file.attrs[_DIGEST] = _digest_attributes(file)


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
        with open_hdf5(path) as file:
            schema = file.attrs.get("schema")
            if schema != SCHEMA:
                raise ScoresError(
                    f"{path}: not a score file of this program (schema {schema!r}, expected "
                    f"{SCHEMA!r}); run predict again"
                )
            coords, values = read_array(file, "coords"), read_array(file, "scores")
            if _DIGEST in file.attrs and file.attrs[_DIGEST] != _digest_attributes(file):
                raise ValueError("its attributes are not those that were written")
            attributes = _read_attributes(file)
            if TRAINED_ON in file:
                attributes[TRAINED_ON] = _read_json(bytes(read_array(file, TRAINED_ON)), dict)
            coords_attributes = _read_attributes(file["coords"])
            probabilities = read_array(file, PROBABILITIES) if PROBABILITIES in file else None
            _require(attributes)
        _check(path, coords, values)
    except ScoresError as error:
        raise of_damage(error, path) from error
    except READ_ERRORS as error:
        raise of_damage(
            ScoresError(f"{path}: damaged score file ({error}); run predict again"), path
        ) from error
    found = Scores(
        coords=coords.astype(np.int64),
        scores=values.astype(np.float32),
        attributes=attributes,
        coords_attributes=coords_attributes,
        probabilities=probabilities,
    )
    _check_classes(path, found)
    return found


def read_far_from_training(path: Path) -> str:
    """Read how a slide differs from those that its model was trained on; empty: it does not.

    Also empty of files that are missing or damaged: other functions report these.
    """
    try:
        with open_hdf5(path) as file:
            return str(file.attrs.get(FAR_FROM_TRAINING, ""))
    except READ_ERRORS:
        return ""


def read_highest_score(path: Path) -> float | None:
    """Read the highest score of a slide's patches; None where no patch has one.

    Also None of files that are missing or damaged: other functions report these.
    """
    try:
        with open_hdf5(path) as file:
            values = read_array(file, "scores")
    except READ_ERRORS:
        return None
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else None


def find_damage(path: Path) -> str | None:
    """Check a score file whose bytes are not those that were written; None: it is consistent.

    A file that another program has edited through HDF5 has right checksums; one that was damaged
    has not, and may crash the HDF5 library or let it run for ever: it is opened in a process of its
    own.
    """
    command = [sys.executable, "-P", "-m", "wsi_pipeline.inference.scores", str(path)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_EXAMINE_S
        )
    except subprocess.TimeoutExpired:
        return f"{path}: damaged score file (HDF5 does not finish reading it); run predict again"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    known = lines and lines[-1].startswith(f"{path}: ")
    cause = f"HDF5 cannot read it, exit code {done.returncode}"
    return lines[-1] if known else f"{path}: damaged score file ({cause}); run predict again"


def _require_checksums(path: Path) -> None:
    read_scores(path)
    with open_hdf5(path) as file:
        names = [n for n in ("coords", "scores", PROBABILITIES) if n in file]
        bare = [n for n in names if file[n].size and not file[n].fletcher32]
        if bare or _DIGEST not in file.attrs:
            raise ScoresError(f"{path}: damaged score file (it lost checksums); run predict again")


def _require(attributes: Mapping[str, Any]) -> None:
    """Check the types of what other stages read."""
    kinds = {"fingerprint": str, "checkpoint": str, "model": str, "slide_id": str}
    for name, kind in kinds.items():
        if name in attributes and not isinstance(attributes[name], kind):
            raise ValueError(f"its attribute {name} is {attributes[name]!r}, expected text")


def _digest_attributes(file: Any) -> str:
    """Hash everything in a score file but coordinates and scores."""
    digest = hashlib.sha256()
    for source in (file, get_dataset(file, "coords")):
        for name in sorted(name for name in source.attrs if name != _DIGEST):
            value = source.attrs[name]
            plain = value if isinstance(value, str) else np.asarray(value).tolist()
            digest.update(f"{name}={plain!r}\n".encode("utf-8", "surrogateescape"))
    if TRAINED_ON in file:
        digest.update(bytes(read_array(file, TRAINED_ON)))
    return digest.hexdigest()


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


def _check_classes(path: Path, scores: Scores) -> None:
    found, classes = scores.probabilities, scores.attributes.get("classes")
    if found is None:
        return
    n_classes = len(classes) if isinstance(classes, list) else 0
    if found.shape != (len(scores.coords), n_classes) or not n_classes:
        raise ScoresError(
            f"{path}: {PROBABILITIES} must be ({len(scores.coords)}, {n_classes}), a column for "
            f"each of the classes {classes}, got {found.shape}; run predict again"
        )


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
        name: _read_json(value) if name in as_json else _plain(value)
        for name, value in source.attrs.items()
        if name not in ("schema", _JSON_NAMES, _DIGEST)
    }


def _read_json(text: str | bytes, kind: type[Any] = object) -> Any:
    value = parse_json(text)
    if not isinstance(value, kind):
        raise ValueError(f"expected a JSON {kind.__name__}, got {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


if __name__ == "__main__":  # see find_damage
    try:
        _require_checksums(Path(sys.argv[1]))
    except ScoresError as error:
        sys.exit(str(error))
