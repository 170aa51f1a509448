"""Small Zarr arrays, written and read without zarr-python.

Importing zarr-python takes longer than most commands' work on one slide. An array of one chunk is
a file of metadata and a file of bytes [1]_; these are written here (codecs ``bytes``, ``gzip`` and
``crc32c``), so that any program that reads Zarr 3 reads them. Arrays in another form, as earlier
versions or other programs wrote them, are read by zarr-python.

References
----------
.. [1] Zarr core specification, version 3.1, https://zarr-specs.readthedocs.io
"""

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from tiling.files import read_bytes, read_json_object
from tiling.urls import RemotePath

GZIP_LEVEL = 4  # a table of 350,000 patches in 0.1 s
GZIP_BITS = 31  # zlib's window for a stream with gzip's header
CHECKSUM_BYTES = 4  # CRC-32C, little-endian
METADATA = "zarr.json"

Target = Path | dict[str, bytes]  # a folder, or files in memory, by their path in the folder
Codecs = list[dict[str, Any]]
COMPRESSED: Codecs = [
    {"name": "gzip", "configuration": {"level": GZIP_LEVEL}},
    {"name": "crc32c"},
]


def write_group(target: Target, attributes: dict[str, Any]) -> None:
    """Write the metadata of a group, in place of what is there."""
    put_json(target, METADATA, {"attributes": attributes, "zarr_format": 3, "node_type": "group"})


def write_array(target: Target, name: str, values: NDArray[Any]) -> None:
    """Write an array as one chunk.

    Parameters
    ----------
    target : folder or dict
        The group.
    name : str
        Folder of the array in the group.
    values : array of integers, floats or booleans
        Not written where all are zero: such a chunk is absent.
    """
    chunk_shape = [max(1, side) for side in values.shape]
    codecs = [bytes_codec(values.dtype), *COMPRESSED]
    described = describe_array(values.shape, values.dtype, chunk_shape=chunk_shape, codecs=codecs)
    put_json(target, f"{name}/{METADATA}", described)
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    if data.strip(b"\0"):
        compressed = gzip.compress(data, GZIP_LEVEL, mtime=0)
        _put(target, _chunk_key(name, values.ndim), compressed + _checksum(compressed))


def read_array(folder: Path) -> NDArray[Any]:
    """Read an array; (any shape, any dtype).

    Raises
    ------
    OSError, ValueError
        If a file is missing or damaged; zarr-python, which reads arrays in other forms, raises
        other errors, too.
    """
    metadata = read_json_object(folder / METADATA)
    if not _is_plain(metadata):
        return np.asarray(open_by_zarr(folder)[...])
    shape = tuple(metadata["shape"])
    dtype = np.dtype(metadata["data_type"]).newbyteorder("<")
    n_bytes = math.prod(shape) * dtype.itemsize
    chunk = folder / _chunk_key("", len(shape))
    try:
        compressed = read_bytes(chunk)
    except FileNotFoundError:
        return np.zeros(shape, dtype.newbyteorder("="))
    compressed, checksum = compressed[:-CHECKSUM_BYTES], compressed[-CHECKSUM_BYTES:]
    if _checksum(compressed) != checksum:
        raise ValueError(f"{folder.name}: the checksum of its chunk does not match")
    stream = zlib.decompressobj(GZIP_BITS)
    data = stream.decompress(compressed, n_bytes + 1)
    if len(data) != n_bytes or not stream.eof:
        raise ValueError(f"{folder.name}: its chunk does not hold {n_bytes} bytes")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def open_by_zarr(folder: Path) -> Any:
    """Open an array in any form with zarr-python, for reading."""
    import zarr

    if not isinstance(folder, RemotePath):
        return zarr.open_array(folder, mode="r", zarr_format=3)
    store = zarr.storage.FsspecStore.from_url(str(folder), read_only=True)
    return zarr.open_array(store, mode="r", zarr_format=3)


def describe_array(
    shape: Sequence[int],
    dtype: DTypeLike,
    *,
    chunk_shape: Sequence[int],
    codecs: Codecs,
    dimension_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the metadata of an array whose absent chunks are zero."""
    dtype = np.dtype(dtype)
    names = {"dimension_names": list(dimension_names)} if dimension_names else {}
    return {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": dtype.type(0).item(),
        "codecs": codecs,
        "attributes": {},
        **names,
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }


def bytes_codec(dtype: DTypeLike) -> dict[str, Any]:
    """Describe values as little-endian bytes."""
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def put_json(target: Target, key: str, value: dict[str, Any]) -> None:
    """Write a file of metadata."""
    _put(target, key, json.dumps(value, indent=2).encode())


def _put(target: Target, key: str, data: bytes) -> None:
    if isinstance(target, dict):
        target[key] = data
        return
    path = target / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _chunk_key(name: str, n_axes: int) -> str:
    """Path of the only chunk: number 0 along every axis."""
    return "/".join([*([name] if name else []), "c", *["0"] * n_axes])


def _is_plain(metadata: dict[str, Any]) -> bool:
    """Whether an array is in the form that `write_array` writes."""
    try:
        shape, dtype = metadata["shape"], np.dtype(metadata["data_type"])
        expected = describe_array(
            shape,
            dtype,
            chunk_shape=[max(1, side) for side in shape],
            codecs=[bytes_codec(dtype), *COMPRESSED],
        )
    except (KeyError, TypeError, ValueError):
        return False
    return metadata == expected


def _checksum(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CHECKSUM_BYTES, "little")
