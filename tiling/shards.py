"""Patches straight to and from a shard's bytes.

Where a Zarr v3 array is sharded and its chunks have no codec, a chunk is a run of bytes whose place
the shard's index tells. Reading that run into the result costs one copy and no Python per codec,
and writing it one system call, in any order: its place is known beforehand.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tiling.errors import StoreError

CHECKSUM_BYTES = 4  # after the index; zarr's own reader checks it, here the index must make sense


class RawShards:
    """The shards of an array of patches whose chunks are one patch each, stored without codec.

    Only for arrays written with every chunk in place, as `tiling.store` writes them: a chunk or
    shard that is absent is damage here, where plain zarr would read black.

    Parameters
    ----------
    folder : Path
        The array's folder.
    patch_bytes : int
        Bytes of one patch.
    shard_length : int
        Patches per shard.
    """

    def __init__(self, folder: Path, *, patch_bytes: int, shard_length: int) -> None:
        self._folder = folder
        self._patch_bytes = patch_bytes
        self._shard_length = shard_length
        self._offsets_by_shard: dict[int, NDArray[np.uint64]] = {}

    @classmethod
    def open(cls, folder: Path) -> Self | None:
        """Look at the array's metadata; None where its bytes are not plain patches."""
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
        if not _is_raw(metadata):
            return None
        return cls(
            folder,
            patch_bytes=math.prod(metadata["shape"][1:]),
            shard_length=metadata["chunk_grid"]["configuration"]["chunk_shape"][0],
        )

    def read_into(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """Fill `out` (n, P, P, 3) with the patches of `rows` (n,), opening each shard once.

        Raises
        ------
        StoreError
            If a shard is missing or short, or its index makes no sense.
        """
        shards = rows // self._shard_length
        order = np.argsort(rows, kind="stable")
        for shard in np.unique(shards).tolist():
            positions = order[shards[order] == shard]
            self._read_shard(shard, positions, rows[positions] - shard * self._shard_length, out)

    def _read_shard(
        self,
        shard: int,
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        out: NDArray[np.uint8],
    ) -> None:
        try:
            file = (self._folder / "c" / str(shard) / "0" / "0" / "0").open("rb", buffering=0)
        except FileNotFoundError as error:
            raise self._damaged(shard, "its file is missing") from error
        with file:
            offsets = self._offsets(shard, file)
            for position, slot in zip(positions.tolist(), slots.tolist(), strict=True):
                file.seek(self._checked_offset(shard, int(offsets[slot])))
                self._fill(file, memoryview(out[position]).cast("B"), shard)

    def _offsets(self, shard: int, file: Any) -> NDArray[np.uint64]:
        """First byte of each patch of a shard, as the index at its end tells."""
        if shard not in self._offsets_by_shard:
            index_bytes = 16 * self._shard_length  # offset and length of each chunk, 8 bytes each
            start = file.seek(0, 2) - index_bytes - CHECKSUM_BYTES
            if start < 0:
                raise self._damaged(shard, "it is shorter than its index")
            file.seek(start)
            index = np.frombuffer(file.read(index_bytes), "<u8").reshape(-1, 2)
            offsets, lengths = index.T
            fits = (lengths == self._patch_bytes) & (offsets <= start - self._patch_bytes)
            # A slot without a patch: beyond the last patch of the slide, else it is damage.
            self._offsets_by_shard[shard] = np.where(fits, offsets, np.uint64(2**63))
        return self._offsets_by_shard[shard]

    def _checked_offset(self, shard: int, offset: int) -> int:
        if offset % self._patch_bytes or offset == 2**63:
            raise self._damaged(shard, "it was cut off or its index is wrong")
        return offset

    def _fill(self, file: Any, view: memoryview, shard: int) -> None:
        filled = 0
        while filled < len(view):  # an unbuffered read may give less than was asked
            n_read = file.readinto(view[filled:])
            if not n_read:
                raise self._damaged(shard, "it ends too early")
            filled += n_read

    def _damaged(self, shard: int, cause: str) -> StoreError:
        name = self._folder.parent.name
        return StoreError(f"{name}: damaged: shard {shard}: {cause}; delete it and run tile again")


class ShardWriter:
    """Writes the shards that `RawShards` reads, the same bytes as zarr, from any thread.

    Parameters
    ----------
    folder : Path
        The array's folder, its metadata written.
    n_patches, patch_bytes, shard_length : int
    """

    def __init__(
        self, folder: Path, *, n_patches: int, patch_bytes: int, shard_length: int
    ) -> None:
        self._n_patches = n_patches
        self._patch_bytes = patch_bytes
        self._shard_length = shard_length
        self._paths = [
            folder / "c" / str(shard) / "0" / "0" / "0"
            for shard in range(-(-n_patches // shard_length))
        ]
        for path in self._paths:
            path.parent.mkdir(parents=True)

    def write(self, row: int, patch: NDArray[np.uint8]) -> None:
        """Write one patch (P, P, 3) to its place."""
        shard, slot = divmod(row, self._shard_length)
        self._write_at(shard, slot * self._patch_bytes, np.ascontiguousarray(patch))

    def finish(self) -> None:
        """Write each shard's index behind its patches; every patch must be written by then."""
        for shard in range(len(self._paths)):
            first = shard * self._shard_length
            n_here = min(self._shard_length, self._n_patches - first)
            index = np.full((self._shard_length, 2), 2**64 - 1, "<u8")  # zarr: no chunk here
            index[:n_here, 0] = np.arange(n_here, dtype="<u8") * np.uint64(self._patch_bytes)
            index[:n_here, 1] = self._patch_bytes
            body = index.tobytes()
            tail = body + crc32c(body).to_bytes(CHECKSUM_BYTES, "little")
            self._write_at(shard, n_here * self._patch_bytes, np.frombuffer(tail, np.uint8))

    def _write_at(self, shard: int, offset: int, values: NDArray[np.uint8]) -> None:
        # Opened each time: a wide slide has hundreds of shards under way at once.
        file = os.open(self._paths[shard], os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            view = values.data.cast("B")
            while view:
                written = os.pwrite(file, view, offset)
                view, offset = view[written:], offset + written
        finally:
            os.close(file)


def crc32c(data: bytes) -> int:
    """Check sum of a shard's index (Castagnoli's polynomial).

    Examples
    --------
    >>> hex(crc32c(b"123456789"))
    '0xe3069283'

    References
    ----------
    .. [1] RFC 3720, appendix B.4.
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC32C[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC32C = _crc32c_table()


def _is_raw(metadata: dict[str, Any]) -> bool:
    shape, grid = metadata["shape"], metadata["chunk_grid"]
    codecs = metadata["codecs"]
    if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
        return False
    inner = codecs[0]["configuration"]
    return bool(
        metadata["data_type"] == "uint8"
        and len(shape) == 4
        and grid["name"] == "regular"
        and grid["configuration"]["chunk_shape"][1:] == shape[1:]
        and metadata["chunk_key_encoding"]
        == {"name": "default", "configuration": {"separator": "/"}}
        and inner["chunk_shape"] == [1, *shape[1:]]
        and [codec["name"] for codec in inner["codecs"]] == ["bytes"]
        and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        and inner.get("index_location", "end") == "end"
    )
