"""The patch store: one slide's patches, where they lie and what they are, in one Zarr folder.

`PatchStore.read` fetches just the bytes of a patch and the checksum after it; how they are stored
is written in `tiling.store_files`.
"""

import logging
import os
import threading
from functools import partial
from operator import index as as_index
from pathlib import Path
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tiling.blocks import UNALIGNED_VENDORS
from tiling.contracts import (
    PatchKind,
    PatchOrigin,
    PixelArrays,
    Slide,
    SlideInfo,
    StrPath,
    TileGeometry,
)
from tiling.dataset import PatchDataset
from tiling.errors import PatchIndexError, SlideError, StoreError, of_damage
from tiling.files import read_json_object
from tiling.listing.content import is_made_from
from tiling.open_slides import ReopenedSlide
from tiling.patches import read_patch, stored_level
from tiling.shards import RawShards
from tiling.slide import open_slide
from tiling.store_files import TileTable, damaged, no_array, read_attributes, read_table
from tiling.strips import StripPlan, plan_strips
from tiling.urls import as_path, local_path
from tiling.zarr_arrays import METADATA, open_by_zarr

log = logging.getLogger(__name__)

WHITE = 255


class PatchStore:
    """A finished patch store, open for reading; processes and threads may share it.

    ``len(store)`` is the number of patches; ``store[i]`` is one patch, (P, P, 3) uint8, and
    ``store[a:b]`` some, (n, P, P, 3) uint8, where P is ``store.geometry.patch_px``. Negative
    numbers count from the end, as in a list; `PatchIndexError` where there is none. `read` takes
    any rows, in any order.

    Attributes
    ----------
    info : SlideInfo
    slide_id : str
    kind : PatchKind
        Size and resolution of the patches.
    tiling : dict
        Every setting, resolved.
    geometry : TileGeometry
    fingerprint : str
        Of the settings and inputs that made it.
    slide_label : 1, 0 or None
    lesion_ids : ids of the lesions, ``"1"``, ``"2"``, ...
    coords : (N, 2) int64
        Top-left corners (x, y), level-0 px.
    tissue, tumour : (N,) float32
        Share of the tile that is tissue, of its inner square that is tumour.
    label : (N,) int8
        1 tumour, 0 normal, -1 unlabelled or ignored.
    unreadable : (N,) bool
        Pixels cannot be decoded; of a store without pixels known only after `read`.
    lesion_pairs : (M, 2) int64
        Row of a patch, index into `lesion_ids` of a lesion that its inner square meets.
    """

    def __init__(
        self,
        path: Path,
        *,
        attributes: dict[str, Any],
        table: TileTable,
        slide_path: Path | None,
        content_cache: Path | None = None,
        random: bool = False,
    ) -> None:
        self.path = path
        self.attributes = attributes
        self.info = _slide_info(attributes["slide"])
        self.tiling: dict[str, Any] = attributes["tiling"]
        self.geometry = _geometry(self.tiling)
        self.slide_id = self.info.slide_id
        side = self.geometry.patch_px
        self.kind = PatchKind((side, side, 3), self.geometry.target_mpp)
        self.fingerprint: str = attributes["fingerprint"]
        self.slide_label: int | None = attributes["slide_label"]
        self.lesion_ids: list[str] = [lesion["id"] for lesion in attributes["lesions"]]
        self.coords = table.coords
        self.tissue = table.tissue
        self.label = table.label
        self.tumour = table.tumour
        self.unreadable = table.unreadable
        self.lesion_pairs = table.lesion_pairs
        self._slide_path = slide_path
        self._content_cache = content_cache
        self._random = random
        self._source: _Source | None = None
        self._source_pid = -1
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: StrPath,
        *,
        slide_path: StrPath | None = None,
        content_cache: StrPath | None = None,
        random: bool = False,
    ) -> Self:
        """Open a finished store.

        Parameters
        ----------
        path : str or path
            The store's folder.
        slide_path : str or path, optional
            The slide; only a store without pixels (``store: coords``) reads it, after it has seen
            that it is the one that the store was made from.
        content_cache : str or path, optional
            Where the digest of the slide's files is kept (`tiling.listing.content.digest_content`).
        random : bool
            Patches will be read in random order, so that nothing is gained by keeping the slide's
            decoded file tiles. By default, they are kept for the patches next to them.

        Raises
        ------
        StoreError
            If the store is missing, unfinished, damaged or not ours.
        """
        path = as_path(path)
        attributes = read_attributes(path)
        try:
            table = read_table(path, attributes)
            store = cls(
                path,
                attributes=attributes,
                table=table,
                slide_path=None if slide_path is None else local_path(slide_path, "slides"),
                content_cache=None if content_cache is None else as_path(content_cache),
                random=random,
            )
            store._check_pixels()
            return store
        except StoreError as error:
            of_damage(error, path)
            raise
        except Exception as error:  # zarr fails in as many ways as there are files to damage
            raise of_damage(StoreError(damaged(path, str(error))), path) from error

    def __len__(self) -> int:
        return len(self.coords)

    def __getitem__(self, index: SupportsIndex | slice) -> NDArray[np.uint8]:
        if isinstance(index, slice):
            return self.read(np.arange(len(self))[index])
        try:
            row = as_index(index)
        except TypeError as error:
            raise TypeError(
                f"{self.path.name}: the number of a patch must be an integer or a slice, got "
                f"{type(index).__name__}; for a list of rows use read(rows)"
            ) from error
        if not -len(self) <= row < len(self):
            raise PatchIndexError(
                f"{self.path.name}: no patch {row}; there are {len(self)}, counted from 0"
            )
        patch: NDArray[np.uint8] = self.read([row % len(self)])[0]
        return patch

    def as_dataset(self, *, labelled: bool = False) -> PatchDataset:
        """Return the patches and their labels as a map-style dataset, for torch's ``DataLoader``.

        Item i is (patch, label): the patch (3, P, P) float32 in [0, 1], as training feeds it to a
        model, and the label 1, 0, or -1 (unlabelled or ignored), an int.

        Parameters
        ----------
        labelled : bool
            Keep only the patches that training uses: label 0 or 1, and readable. By default item i
            is patch i of the store.

        Returns
        -------
        dataset : PatchDataset
            Can be pickled, so workers of any start method can read it.
        """
        rows = np.arange(len(self))
        if labelled:
            rows = np.flatnonzero((self.label >= 0) & ~self.unreadable)
        return PatchDataset(self, rows)

    def read(self, indices: ArrayLike) -> NDArray[np.uint8]:
        """Read patches.

        Parameters
        ----------
        indices : (n,) int
            Rows, in any order, also twice.

        Returns
        -------
        patches : (n, P, P, 3) uint8
            Unreadable ones are white; they are marked in `unreadable`.

        Raises
        ------
        StoreError
            If an index is out of range, or the store is damaged.
        """
        return self.read_flagged(indices)[0]

    def read_flagged(self, indices: ArrayLike) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read patches as `read` does, and flag those that cannot be decoded.

        Returns
        -------
        patches : (n, P, P, 3) uint8
        unreadable : (n,) bool
        """
        rows = self._check_rows(indices)
        patches = np.empty((len(rows), *self.kind.shape), np.uint8)
        return patches, self.read_into(rows, patches)

    def read_into(self, indices: ArrayLike, out: PixelArrays) -> NDArray[np.bool_]:
        """Read patches as `read` does, into the caller's memory.

        Parameters
        ----------
        indices : (n,) int
        out : n arrays (P, P, 3) uint8, contiguous
            Filled; an array (n, P, P, 3) will do.

        Returns
        -------
        unreadable : (n,) bool
            Which patches cannot be decoded.
        """
        rows = self._check_rows(indices)
        self._get_source().read_into(rows, out, self.unreadable)
        flagged: NDArray[np.bool_] = self.unreadable[rows]
        return flagged

    def plan_strips(self, indices: ArrayLike) -> StripPlan | None:
        """Plan to read patches as strips of neighbours that share pixels.

        Returns
        -------
        plan : StripPlan or None
            None where each patch is read by itself: pixels are stored patch by patch, or resampled,
            or the level's pixels do not lie on whole pixels of level 0.
        """
        source = self._get_source()
        if isinstance(source, _StoredPatches):
            return None
        return source.plan_strips(self._check_rows(indices))

    def read_strips(
        self, indices: ArrayLike, plan: StripPlan, memory: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Read strips that `plan_strips` planned.

        Parameters
        ----------
        indices : (n,) int
            As planned.
        plan : StripPlan
        memory : (plan.n_bytes,) uint8
            Filled.

        Returns
        -------
        unreadable : (n,) bool
            Which patches cannot be decoded; their pixels are undefined, if they are no others'.
        """
        source = self._get_source()
        assert isinstance(source, _SlidePatches), "planned"
        return source.read_strips(self._check_rows(indices), plan, memory, self.unreadable)

    def locate(self, row: int) -> PatchOrigin:
        """Return where a patch is on its slide.

        Raises
        ------
        StoreError
            If there is no such row.
        """
        (checked,) = self._check_rows([row])
        x, y = self.coords[checked].tolist()
        return PatchOrigin(self.slide_id, row, (x, y), self.geometry.scale)

    def close(self) -> None:
        """Release what reading opened; the store may be read again."""
        with self._lock:
            source, self._source = self._source, None
        if source is not None:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def _check_pixels(self) -> None:
        if self.tiling["store"] != "patches":
            return
        try:
            metadata = read_json_object(self.path / "patches" / METADATA)
        except FileNotFoundError as error:
            raise no_array(self.path, "patches") from error
        side = self.geometry.patch_px
        expected = (len(self), side, side, 3)
        shape, kind = tuple(metadata["shape"]), metadata["data_type"]
        if shape != expected or kind != "uint8":
            raise StoreError(
                damaged(self.path, f"patches are {kind} {shape} where uint8 {expected} is needed")
            )

    def _check_rows(self, indices: ArrayLike) -> NDArray[np.int64]:
        rows = np.atleast_1d(np.asarray(indices))
        if not rows.size:
            return np.zeros(0, np.int64)
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise StoreError(f"{self.path.name}: indices must be one row of integers")
        if rows.min() < 0 or rows.max() >= len(self):
            raise StoreError(
                f"{self.path.name}: no patch {rows[(rows < 0) | (rows >= len(self))][0]}; "
                f"there are {len(self)}, counted from 0"
            )
        return rows.astype(np.int64)

    def _get_source(self) -> "_Source":
        # Opened on first use, and afresh after a fork: handles of slides must not be shared.
        with self._lock:
            if self._source is None or self._source_pid != os.getpid():
                self._source = self._open_source()
                self._source_pid = os.getpid()
            return self._source

    def _open_source(self) -> "_Source":
        if self.tiling["store"] == "patches":
            return _StoredPatches(self.path)
        if self._slide_path is None:
            raise StoreError(
                f"{self.path.name}: holds coordinates only; its pixels are read from the slide, so "
                "open it with slide_path"
            )
        return _SlidePatches(
            ReopenedSlide(partial(self._open_slide, self._slide_path)), self.coords, self.geometry
        )

    def _open_slide(self, path: Path) -> Slide:
        if not is_made_from(self.info.fingerprint, path, cache=self._content_cache):
            raise StoreError(
                f"{self.path.name}: {path.name} is not the slide it was made from, or has changed "
                "since; run tile again"
            )
        return open_slide(path, cache_bytes=0 if self._random else None)


class _StoredPatches:
    """Pixels from the store: straight from the shards where they are plain bytes, else by zarr."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = RawShards.open(path / "patches")
        self._array: Any = None if self._raw else open_by_zarr(path / "patches")

    def read_into(
        self,
        rows: NDArray[np.int64],
        out: PixelArrays,
        unreadable: NDArray[np.bool_],
    ) -> None:
        try:
            if self._raw is not None:
                self._raw.read_into(rows, out)
            else:
                for position, row in enumerate(rows):
                    out[position][...] = self._array[int(row)]
        except StoreError:
            raise
        except Exception as error:
            raise of_damage(StoreError(damaged(self._path, str(error))), self._path) from error

    def close(self) -> None:
        """Nothing stays open between reads."""


class _SlidePatches:
    """Pixels from the slide itself."""

    def __init__(
        self, slide: ReopenedSlide, coords: NDArray[np.int64], geometry: TileGeometry
    ) -> None:
        self._slide = slide
        self._coords = coords
        self._geometry = geometry

    def read_into(
        self,
        rows: NDArray[np.int64],
        out: PixelArrays,
        unreadable: NDArray[np.bool_],
    ) -> None:
        with self._slide.reading() as slide:
            for position, row in enumerate(rows):
                x, y = self._coords[row].tolist()
                try:
                    read_patch(slide, (x, y), geometry=self._geometry, out=out[position])
                except SlideError as error:
                    log.debug("%s", error)
                    out[position].fill(WHITE)
                    unreadable[row] = True

    def plan_strips(self, rows: NDArray[np.int64]) -> StripPlan | None:
        with self._slide.reading() as slide:
            level = stored_level(slide, self._geometry)
            if level is None or slide.vendor in UNALIGNED_VENDORS:
                return None
            downsample = slide.level_downsamples[level]
        coords = self._coords[rows]
        if not float(downsample).is_integer() or (coords % int(downsample)).any():
            return None
        return plan_strips(coords // int(downsample), self._geometry.patch_px)

    def read_strips(
        self,
        rows: NDArray[np.int64],
        plan: StripPlan,
        memory: NDArray[np.uint8],
        unreadable: NDArray[np.bool_],
    ) -> NDArray[np.bool_]:
        side = self._geometry.patch_px
        lost = np.zeros(len(rows), np.bool_)
        with self._slide.reading() as slide:
            level = stored_level(slide, self._geometry)
            assert level is not None, "planned"
            for strip in plan.strips:
                pixels = strip.view(memory, side)
                x, y = self._coords[rows[strip.start]].tolist()
                try:
                    slide.read_into(pixels, (x, y), level)
                except SlideError as error:
                    log.debug("%s; reading its patches one by one", error)
                    own = rows[strip.start : strip.stop]
                    downsample = int(slide.level_downsamples[level])
                    lost[strip.start : strip.stop] = self._read_each(slide, own, pixels, downsample)
        unreadable[rows[lost]] = True
        return lost

    def _read_each(
        self, slide: Slide, rows: NDArray[np.int64], pixels: NDArray[np.uint8], downsample: int
    ) -> NDArray[np.bool_]:
        """Read a strip's patches to their places, those that cannot be decoded left out."""
        side = self._geometry.patch_px
        lost = np.zeros(len(rows), np.bool_)
        left = self._coords[rows[0], 0]
        for number, row in enumerate(rows.tolist()):
            x, y = self._coords[row].tolist()
            try:
                patch = read_patch(slide, (x, y), geometry=self._geometry)
            except SlideError as error:
                log.debug("%s", error)
                lost[number] = True
            else:
                start = int(x - left) // downsample
                pixels[:, start : start + side] = patch
        return lost

    def close(self) -> None:
        self._slide.rest()


_Source = _StoredPatches | _SlidePatches


def _slide_info(value: dict[str, Any]) -> SlideInfo:
    return SlideInfo(
        **{
            **value,
            "size": tuple(value["size"]),
            "mpp": tuple(value["mpp"]),
            "level_sizes": tuple(tuple(size) for size in value["level_sizes"]),
            "level_downsamples": tuple(value["level_downsamples"]),
            "bounds": None if value["bounds"] is None else tuple(value["bounds"]),
        }
    )


def _geometry(tiling: dict[str, Any]) -> TileGeometry:
    names = TileGeometry.__dataclass_fields__
    values = {name: tiling[name] for name in names}
    return TileGeometry(**{**values, "scale": tuple(values["scale"])})
