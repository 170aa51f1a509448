"""A slide as the viewer shows it: pixels, maps, patches, outlines, and what models found on it."""

import io
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tiling.annotation.slide_annotation import read_annotation_of_store, read_slide_annotation
from tiling.contracts import TileConfig
from tiling.open_slides import ReopenedSlide
from tiling.overview import read_thumbnail
from tiling.slide import describe_slide
from tiling.store import PatchStore
from tiling.threads import count_cores
from wsi_pipeline.cohort.slides import open_store
from wsi_pipeline.contracts import Heatmap, SlideEntry
from wsi_pipeline.errors import PipelineError, ViewError
from wsi_pipeline.evaluation.detections import read_detection_file
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.names import find_name_problem
from wsi_pipeline.report.gather import read_json, read_rows
from wsi_pipeline.viewer.maps import cut_tile, read_levels, stamp_of, value_at
from wsi_pipeline.viewer.memory import Kept
from wsi_pipeline.viewer.pyramid import TILE_PX, Pixels, SlidePyramid, count_zooms

THUMBNAIL_PX = 192  # longer side
# Tiles made at once. More threads than cores take turns at each of many, so that all come late.
_AT_ONCE = threading.BoundedSemaphore(count_cores())
OWN_MAP = "scores"  # the name of the heatmap of a model's scores, among those of methods
# One patch of `ShownSlide.patches`, little-endian.
PATCH = np.dtype(
    [
        ("x", "<i4"),
        ("y", "<i4"),
        ("score", "<f4"),
        ("label", "i1"),
        ("unreadable", "u1"),
        ("", "V2"),
    ]
)


class Stores:
    """The patch stores of a run, opened again when they change."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._open: dict[str, tuple[int, PatchStore]] = {}
        self._lock = threading.Lock()

    def get(self, entry: SlideEntry) -> PatchStore | None:
        """Return the store of a slide; None where it is not tiled.

        Raises
        ------
        StoreError
            If it is damaged, or being written.
        """
        path = self._run.store(entry.slide_id)
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            return None
        with self._lock:
            kept = self._open.get(entry.slide_id)
            if kept is None or kept[0] != stamp:
                kept = (stamp, open_store(self._run, entry))
                self._open[entry.slide_id] = kept
            return kept[1]

    def close(self) -> None:
        """Close them all."""
        with self._lock:
            for _, store in self._open.values():
                store.close()
            self._open.clear()


@dataclass(frozen=True)
class _Levels:
    heatmap: Heatmap
    levels: list[NDArray[np.float32]]

    @property
    def n_bytes(self) -> int:
        return sum(level.nbytes for level in self.levels)


class ShownSlide:
    """One slide of the run.

    Parameters
    ----------
    run : RunFolder
    entry : SlideEntry
    slide : ReopenedSlide
    stores : Stores
    tiles, pixels, maps : Kept
        Shared by the slides: tiles as JPEG, pixels of coarse tiles, heatmaps.
    longer_ids : sequence of str
        Ids of other slides that begin with this one's and a dot, whose maps are not this slide's.
    """

    def __init__(
        self,
        run: RunFolder,
        entry: SlideEntry,
        slide: ReopenedSlide,
        *,
        stores: Stores,
        tiles: "Kept[bytes]",
        pixels: "Kept[Pixels]",
        maps: "Kept[_Levels]",
        longer_ids: Sequence[str] = (),
    ) -> None:
        self.slide_id = entry.slide_id
        self._run = run
        self._entry = entry
        self._slide = slide
        self._stores = stores
        self._tiles = tiles
        self._pixels = pixels
        self._maps = maps
        self._longer = tuple(f"{one}." for one in longer_ids)
        self._size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), level-0 px.

        Raises
        ------
        ViewError
            If the slide's file is not there.
        SlideError
            If it cannot be read.
        """
        if self._size is None:
            if not self._entry.path.exists():
                raise ViewError(
                    f"{self.slide_id}: its file {self._entry.path.name} is not where the run's "
                    "slides.csv says; connect its folder, or correct the path there"
                )
            with self._slide.reading() as slide:
                self._size = slide.size
        return self._size

    @property
    def pyramid(self) -> SlidePyramid:
        """Its tiles; raises what `size` raises."""
        return SlidePyramid(self._slide, self.size, self.slide_id, self._pixels)

    def describe(self) -> dict[str, Any]:
        """Describe the slide's frame, and which maps there are."""
        size = self.size
        with self._slide.reading() as slide:
            mpp = (self._entry.mpp,) * 2 if self._entry.mpp else slide.mpp
            power, bounds = slide.objective_power, slide.bounds
        store = self._stores.get(self._entry)
        geometry = None if store is None else store.geometry
        return {
            "id": self.slide_id,
            "size": size,
            "mpp": mpp,
            "objective_power": power,
            "bounds": bounds,
            "tile_px": TILE_PX,
            "n_zooms": count_zooms(size),
            "label": self._entry.label,
            "patch_l0": None if geometry is None else [geometry.patch_l0, geometry.patch_l0_y],
            "n_patches": None if store is None else len(store),
            "n_unreadable": None if store is None else int(store.unreadable.sum()),
            "maps": self._list_maps(),
        }

    def _list_maps(self) -> dict[str, list[str]]:
        """Names of the maps by model; the heatmap of its scores first."""
        found = {}
        for model in self._run.models_with("heatmaps"):
            start, end = f"{self.slide_id}.", ".ome.tif"
            names = sorted(
                path.name[len(start) : -len(end)]
                for path in self._run.image_maps(model).glob(f"*{end}")
                if path.name.startswith(start)
                and not path.name.startswith(self._longer)
                and len(path.name) > len(start) + len(end) - 1
            )
            own = [OWN_MAP] if self._run.heatmap(model, self.slide_id).is_file() else []
            found[model] = own + [name for name in names if name]
        return found

    def close(self) -> None:
        """Close the slide's file until it is read again."""
        self._slide.rest()

    # ------------------------------------------------------------ pixels

    def tile(self, zoom: int, column: int, row: int) -> bytes:
        """Return a tile as JPEG.

        Raises
        ------
        ViewError
            If there is no such tile.
        SlideError
            If the slide cannot be read there.
        """
        pyramid = self.pyramid
        if not pyramid.has(zoom, column, row):
            raise ViewError(f"{self.slide_id}: no tile {column}, {row} at zoom {zoom}")
        key = (self.slide_id, zoom, column, row)

        def make() -> bytes:
            with _AT_ONCE:
                return pyramid.encode(zoom, column, row)

        return self._tiles.get(key, make)

    def thumbnail(self) -> bytes:
        """Return the whole slide as JPEG, `THUMBNAIL_PX` at its longer side."""

        def draw() -> bytes:
            width, height = self.size
            mpp = (1.0, 1.0)  # only their ratio matters here
            with self._slide.reading() as slide:
                rgb, _ = read_thumbnail(
                    slide, mpp=mpp, target_mpp=max(1.0, max(width, height) / THUMBNAIL_PX)
                )
            return _as_jpeg(rgb)

        return self._tiles.get((self.slide_id, "thumbnail"), draw)

    # ------------------------------------------------------------ maps

    def _read_map(self, model: str, name: str) -> _Levels:
        for part in (model, name):
            if find_name_problem(part):
                raise ViewError(f"{part!r} is no name of a model or a map")
        run, slide_id = self._run, self.slide_id
        is_own = name == OWN_MAP
        path = run.heatmap(model, slide_id) if is_own else run.method_map(model, slide_id, name)
        key = (path, *stamp_of(path))
        return self._maps.get(key, lambda: _Levels(*read_levels(path)))

    def describe_map(self, model: str, name: str) -> dict[str, Any]:
        """Describe a map: the size of its pixels, its levels, and the range of its values."""
        found = self._read_map(model, name)
        values = found.heatmap.values
        known = values[~np.isnan(values)]
        return {
            "pixel_l0": found.heatmap.pixel_l0,
            "levels": [level.shape[::-1] for level in found.levels],
            "low": float(known.min()) if known.size else None,
            "high": float(known.max()) if known.size else None,
        }

    def map_tile(self, model: str, name: str, level: int, column: int, row: int) -> bytes:
        """Return values of a map, float32 (`wsi_pipeline.viewer.maps.cut_tile`).

        Raises
        ------
        ViewError
            If there is no such level.
        HeatmapError
            If the map is missing or damaged.
        """
        levels = self._read_map(model, name).levels
        if level >= len(levels):
            raise ViewError(f"{self.slide_id}: the map {name} has {len(levels)} levels")
        return cut_tile(levels[level], column, row)

    # ------------------------------------------------------------ patches

    def check_patch(self, row: int) -> PatchStore:
        """Return the store, which has this patch.

        Raises
        ------
        ViewError
            If it has not.
        """
        store = self._stores.get(self._entry)
        if store is None or row >= len(store):
            n = 0 if store is None else len(store)
            raise ViewError(f"{self.slide_id}: no patch {row}; it has {n}")
        return store

    def patch(self, row: int) -> bytes:
        """Return the pixels of a patch as JPEG, as the models see them before preprocessing.

        Raises
        ------
        ViewError
            If there is no such patch, or it cannot be read.
        """
        pixels, unreadable = self.check_patch(row).read_flagged(np.array([row]))
        if unreadable[0]:
            raise ViewError(f"{self.slide_id}: the pixels of patch {row} cannot be read")
        return _as_jpeg(np.asarray(pixels[0]), quality=95)

    def patches(self, model: str) -> bytes:
        """Return all patches as `PATCH` records; scores NaN where `model` has none."""
        store = self._stores.get(self._entry)
        if store is None:
            return b""
        records = np.zeros(len(store), PATCH)
        records["x"], records["y"] = store.coords.T
        records["label"], records["unreadable"] = store.label, store.unreadable
        records["score"] = np.nan
        scores = self._scores(model, store) if model else None
        if scores is not None:
            records["score"] = scores
        return records.tobytes()

    def _scores(self, model: str, store: PatchStore) -> NDArray[np.float32] | None:
        """Scores of the store's patches; None where there are none, or of other patches."""
        if find_name_problem(model):
            raise ViewError(f"{model!r} is no name of a model")
        path = self._run.scores(model, self.slide_id)
        if not path.is_file():
            return None
        found = read_scores(path)
        return found.scores if np.array_equal(found.coords, store.coords) else None

    def describe_place(self, x: float, y: float) -> dict[str, Any]:
        """Describe what is at a level-0 position: patches, their scores, and the maps' values."""
        store = self._stores.get(self._entry)
        problems: list[str] = []  # a damaged file leaves the others as they are
        patches = []
        if store is not None:
            scores = {}
            for model in self._run.models_with("scores"):
                with _noting(problems):
                    if (found := self._scores(model, store)) is not None:
                        scores[model] = found
            patches = [_describe_patch(store, row, scores) for row in find_patches(store, x, y)]
        values: dict[str, dict[str, float | None]] = {}
        for model, names in self._list_maps().items():
            values[model] = {}
            for name in names:
                with _noting(problems):
                    values[model][name] = value_at(self._read_map(model, name).heatmap, x, y)
        return {"x": x, "y": y, "patches": patches, "values": values, "problems": problems}

    # ------------------------------------------------------------ drawn and found

    def outlines(self) -> dict[str, Any]:
        """Return the outlines of the annotation: rings of (x, y), level-0 px, by lesion."""
        if self._entry.annotation is None:
            return {"lesions": [], "notes": []}
        store = self._stores.get(self._entry)
        if store is not None:
            annotation = read_annotation_of_store(self._entry.annotation, store)
            notes = annotation.notes
        else:
            with self._slide.reading() as slide:
                info = describe_slide(
                    slide,
                    path=self._entry.path,
                    slide_id=self.slide_id,
                    mpp=self._entry.mpp,
                    content="not needed here",
                )
            found, notes = read_slide_annotation(self._entry.annotation, info, TileConfig())
            assert found is not None
            annotation = found
        return {"lesions": [_rings(lesion) for lesion in annotation.lesions], "notes": notes}

    def describe_model(self, model: str) -> dict[str, Any]:
        """Return a model's detections on this slide, and which lesions it hit and missed.

        Raises
        ------
        ViewError
            If a table of its evaluation is damaged.
        """
        if find_name_problem(model):
            raise ViewError(f"{model!r} is no name of a model")
        folder = self._run.evaluation(model)
        path = folder / "detections" / f"{self.slide_id}.csv"
        found = read_detection_file(path).detections if path.is_file() else None
        try:
            return {
                "detections": []
                if found is None
                else [
                    {"x": float(x), "y": float(y), "score": float(score)}
                    for x, y, score in zip(found.x, found.y, found.scores, strict=True)
                ],
                "lesions": [
                    {
                        "lesion": row["lesion"],
                        "status": row["status"],
                        "best_score": _number(row.get("best_score", "")),
                        "x": _number(row["x"]),
                        "y": _number(row["y"]),
                        "major_axis_um": _number(row.get("major_axis_um", "")),
                    }
                    for row in read_rows(folder / "lesions_camelyon16.csv")
                    if row["slide_id"] == self.slide_id
                ],
                "errors": self._list_errors(folder),
            }
        except (KeyError, ValueError) as error:
            raise ViewError(
                f"evaluation/{model} is damaged ({error}); run wsi-pipeline evaluate again"
            ) from error

    def _list_errors(self, folder: Path) -> list[dict[str, Any]]:
        """Errors that an evaluation lists: centres of patches, or of lesions without a patch.

        Lesions of annotations that reviews have corrected, or that have changed since, are left
        out: where they are is not known.
        """
        store = self._stores.get(self._entry)
        side = (0, 0) if store is None else (store.geometry.patch_l0, store.geometry.patch_l0_y)
        is_corrected = bool((read_json(folder / "metrics.json") or {}).get("reviews"))
        found = []
        for row in read_rows(folder / "errors.csv"):
            if row["slide_id"] != self.slide_id:
                continue
            if row["x"]:
                place = (float(row["x"]) + side[0] / 2, float(row["y"]) + side[1] / 2)
            elif (centre := None if is_corrected else self._centre_of(row["lesion"])) is not None:
                place = centre  # no patch of the lesion was scored
            else:
                continue
            found.append({"kind": row["kind"], "x": place[0], "y": place[1]})
        return found

    def _centre_of(self, lesion: str) -> tuple[float, float] | None:
        """A point on a lesion of the store's annotation, level-0 px; None: it has no such one."""
        store, path = self._stores.get(self._entry), self._entry.annotation
        if store is None or path is None or lesion not in store.lesion_ids:
            return None
        lesions = read_annotation_of_store(path, store).lesions
        point = lesions[store.lesion_ids.index(lesion)].representative_point()
        return point.x, point.y


@contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except PipelineError as error:
        problems.append(str(error))


def _describe_patch(
    store: PatchStore, row: int, scores: Mapping[str, NDArray[np.float32]]
) -> dict[str, Any]:
    x, y = store.coords[row].tolist()
    return {
        "row": row,
        "x": x,
        "y": y,
        "label": int(store.label[row]),
        "tumour": float(store.tumour[row]),
        "tissue": float(store.tissue[row]),
        "unreadable": bool(store.unreadable[row]),
        "scores": {model: float(one[row]) for model, one in scores.items()},
    }


def find_patches(store: PatchStore, x: float, y: float) -> list[int]:
    """Rows of the patches that cover a level-0 position, the one whose centre is nearest first."""
    side = np.array([store.geometry.patch_l0, store.geometry.patch_l0_y])
    from_corner = np.array([x, y]) - store.coords
    rows = np.flatnonzero(((from_corner >= 0) & (from_corner < side)).all(axis=1))
    distance = np.abs(from_corner[rows] - side / 2).sum(axis=1)
    return [int(row) for row in rows[np.argsort(distance, kind="stable")]]


def _rings(lesion: Any) -> list[list[list[float]]]:
    parts = getattr(lesion, "geoms", [lesion])
    return [
        [[round(x, 2), round(y, 2)] for x, y in ring.coords]
        for part in parts
        for ring in (part.exterior, *part.interiors)
    ]


def _number(text: str) -> float | None:
    return float(text) if text else None


def _as_jpeg(rgb: NDArray[np.uint8], *, quality: int = 85) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()
