"""Patches straight to and from a shard's bytes.

Where a Zarr v3 array is sharded and its chunks are not compressed, a chunk is a run of bytes at a
place that the shard's index gives. Reading that run into the result costs one system call and no
Python per codec, and so does writing it, in any order: its place is known beforehand.
Each patch is followed by its CRC-32C (Zarr's codec ``crc32c``), verified at every read. Stores of
earlier versions have none; they are read as they are.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from tiling.contracts import PixelArrays
from tiling.errors import StoreError, of_damage
from tiling.files import read_json_object
from tiling.urls import RemotePath, read_ranges

CHECKSUM_BYTES = 4  # CRC-32C, little-endian: behind each patch, and behind the index
INDEX_ENTRY_BYTES = 16  # offset and length of a chunk, 8 bytes each
NOWHERE = 2**63  # offset of a patch that is not in its shard
# At a URL, patches this near to each other are one request: the bytes between them take no longer
# than another request would (10 ms at 100 MB/s). A request is not longer than the second.
GAP_BYTES = 2**20
REQUEST_BYTES = 32 * 2**20


class RawShards:
    """The shards of an array of patches whose chunks are one patch each, not compressed.

    Only for arrays written with every chunk in place, as `tiling.store` writes them: a chunk or
    shard that is absent is damage here, where plain zarr would read black.

    Parameters
    ----------
    folder : Path
        The array's folder.
    n_patches : int
    patch_bytes : int
        Bytes of one patch.
    shard_length : int
        Patches per shard.
    checked : bool
        Whether a checksum follows each patch.
    """

    _verified_at_once = 1  # patches

    def __init__(
        self,
        folder: Path,
        *,
        n_patches: int,
        patch_bytes: int,
        shard_length: int,
        checked: bool = True,
    ) -> None:
        self._folder = folder
        self._n_patches = n_patches
        self._patch_bytes = patch_bytes
        self._shard_length = shard_length
        self._chunk_bytes = patch_bytes + CHECKSUM_BYTES * checked
        self.checked = checked
        self._offsets_by_shard: dict[int, NDArray[np.uint64]] = {}

    @classmethod
    def open(cls, folder: Path) -> "RawShards | None":
        """Look at the array's metadata; None where its bytes are not plain patches."""
        metadata = read_json_object(folder / "zarr.json")
        if not _is_raw(metadata):
            return None
        kind = RemoteShards if isinstance(folder, RemotePath) else cls
        return kind(
            folder,
            n_patches=metadata["shape"][0],
            patch_bytes=math.prod(metadata["shape"][1:]),
            shard_length=metadata["chunk_grid"]["configuration"]["chunk_shape"][0],
            checked=_chunk_codecs(metadata) == ["bytes", "crc32c"],
        )

    def read_into(self, rows: NDArray[np.int64], out: PixelArrays) -> None:
        """Fill n arrays (P, P, 3) with the patches of `rows` (n,), opening each shard once.

        Raises
        ------
        StoreError
            If a shard is missing or short, its index makes no sense, or a checksum does not match.
        """
        shards = rows // self._shard_length
        order = np.argsort(rows, kind="stable")
        for shard in np.unique(shards).tolist():
            positions = order[shards[order] == shard]
            self._read_shard(shard, positions, rows[positions] - shard * self._shard_length, out)

    def find_damage(self, shards: Iterable[int] | None = None) -> str | None:
        """Read shards, all by default, and describe the first damage; None: there is none."""
        n = self._verified_at_once
        patches = np.empty((n, self._patch_bytes), np.uint8)
        for shard in self if shards is None else shards:
            first = shard * self._shard_length
            end = min(first + self._shard_length, self._n_patches)
            for start in range(first, end, n):
                try:
                    self.read_into(np.arange(start, min(start + n, end)), patches)
                except StoreError as error:
                    return str(error)
        return None

    def __iter__(self) -> Iterator[int]:
        return iter(range(-(-self._n_patches // self._shard_length)))

    def shard_path(self, shard: int) -> Path:
        """File of a shard."""
        return _shard_path(self._folder, shard)

    def _read_shard(
        self,
        shard: int,
        positions: NDArray[np.int64],
        slots: NDArray[np.int64],
        out: PixelArrays,
    ) -> None:
        try:
            file = os.open(self.shard_path(shard), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise self._damaged(shard, "its file is missing") from error
        try:
            offsets = self._offsets(shard, file)
            for position, slot in zip(positions.tolist(), slots.tolist(), strict=True):
                offset = int(offsets[slot])
                if offset == NOWHERE:
                    raise self._damaged(shard, "it was cut off or its index is wrong")
                self._fill(file, offset, out[position], shard, slot)
        finally:
            os.close(file)

    def _offsets(self, shard: int, file: int) -> NDArray[np.uint64]:
        """First byte of each patch of a shard, from the index at its end."""
        if shard not in self._offsets_by_shard:
            index_bytes = INDEX_ENTRY_BYTES * self._shard_length
            start = os.fstat(file).st_size - index_bytes - CHECKSUM_BYTES
            if start < 0:
                raise self._damaged(shard, "it is shorter than its index")
            tail = np.empty(index_bytes + CHECKSUM_BYTES, np.uint8)
            self._read_at(file, start, [tail.data], shard)
            self._keep_offsets(shard, tail, start)
        return self._offsets_by_shard[shard]

    def _keep_offsets(self, shard: int, tail: NDArray[np.uint8], start: int) -> None:
        """Parse the index at the end of a shard, which begins at `start`."""
        index_bytes = len(tail) - CHECKSUM_BYTES
        if crc32c(tail[:index_bytes]) != tail[index_bytes:].view("<u4")[0]:
            raise self._damaged(shard, "it was cut off or its index is wrong")
        offsets, lengths = tail[:index_bytes].view("<u8").reshape(-1, 2).T
        length = self._chunk_bytes
        fits = (lengths == length) & (offsets <= start - length)
        # A slot without a patch: beyond the last patch of the slide, else it is damage.
        self._offsets_by_shard[shard] = np.where(fits, offsets, np.uint64(NOWHERE))

    def _fill(
        self, file: int, offset: int, patch: NDArray[np.uint8], shard: int, slot: int
    ) -> None:
        buffers = [patch.data.cast("B")]
        if not self.checked:
            self._read_at(file, offset, buffers, shard)
            return
        checksum = np.empty(CHECKSUM_BYTES, np.uint8)
        self._read_at(file, offset, [*buffers, checksum.data], shard)
        if crc32c(patch) != checksum.view("<u4")[0]:
            row = shard * self._shard_length + slot
            raise self._damaged(shard, f"the checksum of patch {row} does not match")

    def _read_at(self, file: int, offset: int, buffers: list[memoryview], shard: int) -> None:
        while buffers:
            n_read = os.preadv(file, buffers, offset)  # it may give less than was asked
            if not n_read:
                raise self._damaged(shard, "it ends too early")
            offset += n_read
            while buffers and n_read >= len(buffers[0]):
                n_read -= len(buffers.pop(0))
            if n_read:
                buffers[0] = buffers[0][n_read:]

    def _damaged(self, shard: int, cause: str) -> StoreError:
        store = self._folder.parent
        return of_damage(
            StoreError(f"{store.name}: damaged: shard {shard}: {cause}; run tile again"), store
        )


class RemoteShards(RawShards):
    """The same at a URL: few requests, and all of a call at a time."""

    _verified_at_once = 64

    def read_into(self, rows: NDArray[np.int64], out: PixelArrays) -> None:
        """Fill n arrays (P, P, 3) with the patches of `rows` (n,).

        Raises
        ------
        StoreError
            As of `RawShards`.
        """
        shards, slots = np.divmod(rows, self._shard_length)
        self._fetch_offsets(np.unique(shards).tolist())
        spans: list[_Span] = []
        for position in np.argsort(rows, kind="stable").tolist():
            shard = int(shards[position])
            start = int(self._offsets_by_shard[shard][slots[position]])
            if start == NOWHERE:
                raise self._damaged(shard, "it was cut off or its index is wrong")
            end = start + self._chunk_bytes
            last = spans[-1] if spans else None
            if last is None or not last.takes(shard, start, end):
                last = _Span(shard, start, end, [])
                spans.append(last)
            last.end = max(last.end, end)
            last.places.append((position, start))
        requests = [(span.shard, span.start, span.end) for span in spans]
        for span, content in zip(spans, self._request(requests), strict=True):
            self._take(span, content, rows, out)

    def _fetch_offsets(self, shards: list[int]) -> None:
        wanted = [shard for shard in shards if shard not in self._offsets_by_shard]
        n_bytes = INDEX_ENTRY_BYTES * self._shard_length + CHECKSUM_BYTES
        tails = self._request([(shard, -n_bytes, None) for shard in wanted])
        for shard, tail in zip(wanted, tails, strict=True):
            if len(tail) < n_bytes:
                raise self._damaged(shard, "it is shorter than its index")
            self._keep_offsets(shard, np.frombuffer(tail, np.uint8), NOWHERE)

    def _take(
        self,
        span: "_Span",
        content: bytes,
        rows: NDArray[np.int64],
        out: PixelArrays,
    ) -> None:
        """Copy the patches of a request to their places, verified."""
        if len(content) != span.end - span.start:
            raise self._damaged(span.shard, "it ends too early")
        found = np.frombuffer(content, np.uint8)
        for position, start in span.places:
            chunk = found[start - span.start :][: self._chunk_bytes]
            patch, checksum = chunk[: self._patch_bytes], chunk[self._patch_bytes :]
            if self.checked and crc32c(patch) != int.from_bytes(checksum, "little"):
                row = rows[position]
                raise self._damaged(span.shard, f"the checksum of patch {row} does not match")
            out[position][...] = patch.reshape(out[position].shape)

    def _request(self, wanted: Sequence[tuple[int, int, int | None]]) -> list[bytes]:
        """Read bytes of shards: shard, start, end as of `read_ranges`."""
        paths = [self.shard_path(shard) for shard, _, _ in wanted]
        ranges = [
            (path, start, end)
            for path, (_, start, end) in zip(paths, wanted, strict=True)
            if isinstance(path, RemotePath)
        ]
        try:
            return read_ranges(ranges)
        except FileNotFoundError as error:
            missing = next(i for i, path in enumerate(paths) if str(path) == error.filename)
            raise self._damaged(wanted[missing][0], "its file is missing") from error


@dataclass
class _Span:
    """Bytes of a shard that are one request."""

    shard: int
    start: int
    end: int
    places: list[tuple[int, int]]  # of each patch in it: its place in the result, its first byte

    def takes(self, shard: int, start: int, end: int) -> bool:
        """Whether a patch further on belongs to the same request."""
        near = start - self.end <= GAP_BYTES and end - self.start <= REQUEST_BYTES
        return shard == self.shard and self.start <= start and near


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
        self._chunk_bytes = patch_bytes + CHECKSUM_BYTES
        self._shard_length = shard_length
        self._paths = [_shard_path(folder, shard) for shard in range(-(-n_patches // shard_length))]
        for path in self._paths:
            path.parent.mkdir(parents=True)

    def write(self, row: int, patch: NDArray[np.uint8]) -> None:
        """Write one patch (P, P, 3), and its checksum, to its place."""
        shard, slot = divmod(row, self._shard_length)
        patch = np.ascontiguousarray(patch)
        checksum = crc32c(patch).to_bytes(CHECKSUM_BYTES, "little")
        parts = [patch.data.cast("B"), memoryview(checksum)]
        self._write_at(shard, slot * self._chunk_bytes, parts)

    def finish(self) -> None:
        """Write each shard's index behind its patches; every patch must be written by then."""
        for shard in range(len(self._paths)):
            first = shard * self._shard_length
            n_here = min(self._shard_length, self._n_patches - first)
            index = np.full((self._shard_length, 2), 2**64 - 1, "<u8")  # zarr: no chunk here
            index[:n_here, 0] = np.arange(n_here, dtype="<u8") * np.uint64(self._chunk_bytes)
            index[:n_here, 1] = self._chunk_bytes
            body = index.tobytes()
            tail = body + crc32c(index).to_bytes(CHECKSUM_BYTES, "little")
            self._write_at(shard, n_here * self._chunk_bytes, [memoryview(tail)])

    def _write_at(self, shard: int, offset: int, parts: list[memoryview]) -> None:
        # Opened each time: a wide slide has hundreds of shards under way at once.
        file = os.open(self._paths[shard], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while parts:
                written = os.pwritev(file, parts, offset)
                offset += written
                while parts and written >= len(parts[0]):
                    written -= len(parts.pop(0))
                if written:
                    parts[0] = parts[0][written:]
        finally:
            os.close(file)


def crc32c(data: NDArray[Any]) -> int:
    """CRC-32C (Castagnoli's polynomial) of a contiguous array's bytes.

    Examples
    --------
    >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8)))
    '0xe3069283'

    References
    ----------
    .. [1] RFC 3720, appendix B.4.
    """
    view = data.view()
    view.flags.writeable = False  # the library takes nothing else without a copy
    return int(google_crc32c.value(view))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / "c" / str(shard) / "0" / "0" / "0"


def _chunk_codecs(metadata: dict[str, Any]) -> list[str]:
    return [codec["name"] for codec in metadata["codecs"][0]["configuration"]["codecs"]]


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
        and _chunk_codecs(metadata) in (["bytes"], ["bytes", "crc32c"])
        and [codec["name"] for codec in inner["index_codecs"]] == ["bytes", "crc32c"]
        and inner.get("index_location", "end") == "end"
    )
