"""The files of a patch store: written, read back, and checked.

Pixels are stored as they are, one patch per chunk, many chunks per shard (a shard is one file):
lossless compression saves at most 8 % of H&E and halves the speed of reading (docs/store.md), so
where room is short only coordinates are stored (``store: coords``) and the slide is read.
Uncompressed, a patch is a run of bytes at a known place in its shard, and the checksum after it
(`tiling.shards`). Everything else in a store is covered by the attribute ``sha256``.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import SCHEMA
from tiling.errors import StoreError, of_damage
from tiling.files import digest_files, read_json_object
from tiling.shards import RawShards
from tiling.urls import RemotePath
from tiling.zarr_arrays import (
    METADATA,
    Target,
    bytes_codec,
    describe_array,
    put_json,
    read_array,
    write_array,
    write_group,
)

SHARD_BYTES = 48 * 2**20  # one file
PATCHES = "patches"  # the array of pixels
_DIGEST = "sha256"  # of all attributes but these two, and of all arrays but the patches
_FINISHED = "finished"

DTYPE_BY_ARRAY = {
    "coords": np.int64,
    "tissue": np.float32,
    "label": np.int8,
    "tumour": np.float32,
    "unreadable": np.bool_,
    "lesion_pairs": np.int64,
}
SHAPE_BY_ARRAY = {
    "coords": (None, 2),
    "tissue": (None,),
    "label": (None,),
    "tumour": (None,),
    "unreadable": (None,),
}


@dataclass(frozen=True)
class TileTable:
    """What is known of each patch besides its pixels; N rows."""

    coords: NDArray[np.int64]  # (N, 2) x, y, level-0 px
    tissue: NDArray[np.float32]  # (N,) share of the tile that is tissue
    label: NDArray[np.int8]  # (N,) 1, 0, -1
    tumour: NDArray[np.float32]  # (N,) share of the inner square inside the annotation
    unreadable: NDArray[np.bool_]  # (N,) pixels could not be decoded: white in the store
    lesion_pairs: NDArray[np.int64]  # (M, 2) row, index of the lesion


def is_store_folder(path: Path) -> bool:
    """Whether a folder holds what a store holds, complete or damaged, and nothing else."""
    return {entry.name for entry in path.iterdir()} <= {METADATA, PATCHES, *DTYPE_BY_ARRAY}


# --- writing ---------------------------------------------------------------------------------


def shard_length(n_patches: int, patch_px: int) -> int:
    """How many patches one shard holds: about `SHARD_BYTES`, never more than there are."""
    return max(1, min(n_patches, SHARD_BYTES // (3 * patch_px**2)))


def create_patches(target: Target, *, n_patches: int, patch_px: int) -> None:
    """Begin a store with an empty array of patches; fill it with a `ShardWriter`."""
    chunk = [1, patch_px, patch_px, 3]
    crc32c = {"name": "crc32c"}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk,
            "codecs": [bytes_codec(np.uint8), crc32c],
            "index_codecs": [bytes_codec(np.uint64), crc32c],
            "index_location": "end",
        },
    }
    write_group(target, {})
    described = describe_array(
        (n_patches, *chunk[1:]),
        np.uint8,
        chunk_shape=[shard_length(n_patches, patch_px), *chunk[1:]],
        codecs=[sharding],
        dimension_names=("patch", "y", "x", "channel"),
    )
    put_json(target, f"{PATCHES}/{METADATA}", described)


def write_table(target: Target, table: TileTable) -> None:
    """Write everything but pixels, each array as one chunk."""
    for name, values in _arrays(table).items():
        write_array(target, name, values)


def finish_store(target: Target, attributes: dict[str, Any], table: TileTable) -> None:
    """Write the attributes, with the mark that the store is whole; `table` is written."""
    described = {"schema": SCHEMA, **attributes}
    digest = _digest_contents(described, _arrays(table))
    write_group(target, {**described, _DIGEST: digest, _FINISHED: True})


def _arrays(table: TileTable) -> dict[str, NDArray[Any]]:
    return {
        name: np.ascontiguousarray(getattr(table, name), dtype=dtype)
        for name, dtype in DTYPE_BY_ARRAY.items()
    }


def _digest_contents(attributes: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> str:
    """Hash a store's attributes and its table, however they are encoded."""
    plain = {key: attributes[key] for key in attributes if key not in (_DIGEST, _FINISHED)}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for name in DTYPE_BY_ARRAY:
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


# --- reading ---------------------------------------------------------------------------------


def read_attributes(path: Path) -> dict[str, Any]:
    """Read the attributes of a finished store.

    Raises
    ------
    StoreError
        If the store is missing, unfinished, damaged or not ours.
    """
    if not path.is_dir():
        raise StoreError(f"{path.name}: there is no patch store in {path.parent}; run tile first")
    try:
        metadata = read_json_object(path / "zarr.json")
        attributes = metadata["attributes"]
        schema = attributes.get("schema")
    except FileNotFoundError as error:
        raise of_damage(
            StoreError(f"{path.name}: not a patch store (no zarr.json in it)"), path
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        cause = f"its zarr.json cannot be read ({error})"
        raise of_damage(StoreError(damaged(path, cause)), path) from error
    if schema != SCHEMA and "schema" in attributes:
        raise StoreError(f"{path.name}: schema {schema!r} where {SCHEMA!r} is read; run tile again")
    if attributes.get("finished") is not True:
        if schema is None and not (path / "patches").exists():
            raise StoreError(f"{path.name}: not a patch store (its zarr.json has no schema)")
        raise StoreError(
            f"{path.name}: its build was interrupted (no finished mark); delete it and run tile "
            "again"
        )
    return dict(attributes)


def read_table(path: Path, attributes: dict[str, Any]) -> TileTable:
    """Read everything but pixels of a store with these attributes.

    Raises
    ------
    StoreError
        If an array is missing, has another dtype or shape, or is not as it was written.
    """
    arrays = {name: _read_array(path, name) for name in DTYPE_BY_ARRAY}
    n_patches = len(arrays["coords"])
    for name, dtype in DTYPE_BY_ARRAY.items():
        if arrays[name].dtype != dtype:
            raise StoreError(
                damaged(path, f"{name} is {arrays[name].dtype} where {np.dtype(dtype)} is needed")
            )
    for name, shape in SHAPE_BY_ARRAY.items():
        expected = tuple(n_patches if side is None else side for side in shape)
        if arrays[name].shape != expected:
            raise StoreError(
                damaged(path, f"{name} has shape {arrays[name].shape} where {expected} is needed")
            )
    if _DIGEST in attributes and attributes[_DIGEST] != _digest_contents(attributes, arrays):
        raise StoreError(damaged(path, "its attributes or arrays are not those that were written"))
    return TileTable(**arrays)


def _read_array(path: Path, name: str) -> NDArray[Any]:
    try:
        return read_array(path / name)
    except FileNotFoundError as error:
        raise no_array(path, name) from error


def no_array(path: Path, name: str) -> StoreError:
    """Describe that an array of a store is missing."""
    return StoreError(damaged(path, f"it has no array {name}"))


def stored_fingerprint(path: Path) -> str | None:
    """Read what a finished store was made from; None where no finished store of ours is."""
    try:
        return str(read_attributes(path)["fingerprint"])
    except (StoreError, KeyError):
        return None


def digest_table_files(path: Path) -> str:
    """Hash every file of a store but its shards of pixels, which hold checksums of their own."""
    pixels = path / "patches" / "c"
    if isinstance(path, RemotePath):
        files: Iterable[Path] = path.rglob("*")
    else:
        files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return digest_files(path, (file for file in files if not file.is_relative_to(pixels)))


def find_damaged_pixels(path: Path, *, changed_since: int | None = None) -> str | None:
    """Read shards of pixels and describe the first damage; None: there is none.

    Parameters
    ----------
    path : Path
        A finished store. Without pixels, or without checksums, nothing can be found.
    changed_since : ns
        Read only the shards whose files have changed since this time; None: all.
    """
    try:
        raw = RawShards.open(path / "patches") if (path / "patches").is_dir() else None
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        return damaged(path, f"patches/zarr.json cannot be read ({error})")
    if raw is None or not raw.checked:
        return None
    if changed_since is None:
        return raw.find_damage()
    return raw.find_damage(shard for shard in raw if _changed(raw.shard_path(shard), changed_since))


def _changed(path: Path, since: int) -> bool:
    return not path.is_file() or path.stat().st_mtime_ns > since


def damaged(path: Path, cause: str) -> str:
    """Describe the damage of a store, and the remedy."""
    return f"{path.name}: damaged: {cause}; run tile again"
