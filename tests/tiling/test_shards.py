"""Shards of patches: every byte of them is covered by a checksum."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiling.errors import StoreError
from tiling.shards import RawShards, ShardWriter, crc32c
from tiling.store_files import create_patches

N, SIDE, LENGTH = 7, 4, 3
PATCHES = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 3), np.uint8)


def write_shards(folder: Path, **options) -> Path:
    array = zarr.create_group(folder).create_array(
        "patches",
        shape=PATCHES.shape,
        dtype="u1",
        chunks=(1, *PATCHES.shape[1:]),
        shards=(LENGTH, *PATCHES.shape[1:]),
        **options,
    )
    array[...] = PATCHES
    return folder / "patches"


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> Path:
    from zarr.codecs import Crc32cCodec

    folder = tmp_path_factory.mktemp("checked") / "a.zarr"
    return write_shards(folder, compressors=Crc32cCodec())


def read_all(folder: Path) -> np.ndarray:
    raw = RawShards.open(folder)
    assert raw is not None
    out = np.empty_like(PATCHES)
    raw.read_into(np.arange(N), out)
    return out


def shards_of(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "c").rglob("*") if path.is_file())


def test_what_zarr_writes_is_read_and_what_is_written_zarr_reads(checked, tmp_path, monkeypatch):
    np.testing.assert_array_equal(read_all(checked), PATCHES)
    monkeypatch.setattr("tiling.store_files.SHARD_BYTES", LENGTH * 3 * SIDE**2)
    create_patches(tmp_path / "b.zarr", n_patches=N, patch_px=SIDE)
    writer = ShardWriter(
        tmp_path / "b.zarr/patches", n_patches=N, patch_bytes=3 * SIDE**2, shard_length=LENGTH
    )
    for row in reversed(range(N)):
        writer.write(row, PATCHES[row])
    writer.finish()
    ours, theirs = shards_of(tmp_path / "b.zarr/patches"), shards_of(checked)
    assert [p.read_bytes() for p in ours] == [p.read_bytes() for p in theirs]
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "b.zarr")["patches"][...], PATCHES)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_flipped_bit_anywhere_in_a_shard_is_noticed(checked, tmp_path_factory, data):
    """29 of 91 scores changed silently."""
    folder = tmp_path_factory.mktemp("flipped") / "patches"
    shutil.copytree(checked, folder)
    path = data.draw(st.sampled_from(shards_of(folder)))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged: shard .*; run tile again") as caught:
        read_all(folder)
    assert caught.value.damaged == folder.parent
    raw = RawShards.open(folder)
    assert raw is not None
    assert raw.find_damage() == str(caught.value)


def test_an_index_that_makes_sense_but_is_not_the_one_written_is_refused(tmp_path):
    """Two patches that change places were read as each other: the index had no checksum here."""
    folder = write_shards(tmp_path / "a.zarr", compressors=None)
    path = shards_of(folder)[0]
    content = bytearray(path.read_bytes())
    index = slice(len(content) - 4 - 16 * LENGTH, len(content) - 4)
    entries = np.frombuffer(bytes(content[index]), "<u8").reshape(-1, 2)
    content[index] = entries[[1, 0, 2]].tobytes()
    path.write_bytes(content)
    with pytest.raises(StoreError, match="its index is wrong"):
        read_all(folder)


def test_shards_of_earlier_versions_have_no_checksums_and_are_read(tmp_path):
    folder = write_shards(
        tmp_path / "a.zarr", compressors=None, config={"write_empty_chunks": True}
    )
    raw = RawShards.open(folder)
    assert raw is not None
    assert not raw.checked
    np.testing.assert_array_equal(read_all(folder), PATCHES)


def test_other_codecs_are_left_to_zarr(tmp_path):
    assert RawShards.open(write_shards(tmp_path / "a.zarr")) is None


def test_the_checksum_is_that_of_zarr(checked):
    metadata = json.loads((checked / "zarr.json").read_text())
    assert [c["name"] for c in metadata["codecs"][0]["configuration"]["codecs"]] == [
        "bytes",
        "crc32c",
    ]
    first = shards_of(checked)[0].read_bytes()
    stored = int.from_bytes(first[3 * SIDE**2 : 3 * SIDE**2 + 4], "little")
    assert stored == crc32c(PATCHES[0])
