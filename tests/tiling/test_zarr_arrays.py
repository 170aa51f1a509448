"""Small arrays are Zarr to the letter, read by zarr-python, and written without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from zarr.codecs import Crc32cCodec, GzipCodec

from tiling.store_files import create_patches
from tiling.zarr_arrays import read_array, write_array, write_group

DTYPES = [np.int8, np.uint8, np.int64, np.float32, np.float64, np.bool_]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: of_numpy.arrays(dtype, of_numpy.array_shapes(min_side=0, max_dims=3, max_side=5))
)


@settings(max_examples=60, deadline=None)
@given(values=arrays)
def test_what_is_written_is_read_by_us_and_by_zarr(values, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a")
    write_group(folder, {"a": [1]})
    write_array(folder, "values", values)
    group = zarr.open_group(folder, mode="r")
    assert dict(group.attrs) == {"a": [1]}
    for found in (read_array(folder / "values"), group["values"][...]):
        assert found.dtype == values.dtype
        assert found.shape == values.shape
        assert found.tobytes() == values.tobytes()


@settings(max_examples=30, deadline=None)
@given(values=arrays)
def test_what_zarr_writes_is_read(values, tmp_path_factory):
    """Stores of earlier versions were written by zarr-python with its default, zstd."""
    folder = tmp_path_factory.mktemp("b")
    chunks = tuple(max(1, side) for side in values.shape)
    group = zarr.create_group(folder, zarr_format=3)
    for name, options in {"default": {}, "gzip": {"compressors": GzipCodec(level=5)}}.items():
        array = group.create_array(
            name, shape=values.shape, dtype=values.dtype, chunks=chunks, **options
        )
        array[...] = values
        np.testing.assert_array_equal(read_array(folder / name), values)


def test_metadata_of_patches_is_what_zarr_writes(tmp_path: Path):
    create_patches(tmp_path / "ours", n_patches=30, patch_px=8)
    zarr.create_group(tmp_path / "theirs", zarr_format=3).create_array(
        "patches",
        shape=(30, 8, 8, 3),
        dtype=np.uint8,
        chunks=(1, 8, 8, 3),
        shards=(30, 8, 8, 3),
        compressors=Crc32cCodec(),
        dimension_names=("patch", "y", "x", "channel"),
    )
    for name in ("zarr.json", "patches/zarr.json"):
        ours, theirs = (json.loads((tmp_path / of / name).read_text()) for of in ("ours", "theirs"))
        assert ours == theirs


def test_every_damaged_byte_is_found(tmp_path: Path):
    write_array(tmp_path, "a", np.arange(30))
    chunk = tmp_path / "a/c/0"
    data = chunk.read_bytes()
    for at in range(len(data)):
        chunk.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(ValueError, match="a: the checksum of its chunk does not match"):
            read_array(tmp_path / "a")
    chunk.write_bytes(data[:-9])
    with pytest.raises(ValueError, match="checksum"):
        read_array(tmp_path / "a")


def test_a_chunk_of_another_size_is_refused(tmp_path: Path):
    """A few bytes may unpack to any size: no more is unpacked than the shape allows."""
    write_array(tmp_path, "a", np.arange(30))
    write_array(tmp_path, "b", np.ones(10**6))
    (tmp_path / "a/c/0").write_bytes((tmp_path / "b/c/0").read_bytes())
    with pytest.raises(ValueError, match="a: its chunk does not hold 240 bytes"):
        read_array(tmp_path / "a")
