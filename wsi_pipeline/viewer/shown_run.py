"""A run as the viewer shows it: its slides, models and scores, read again when files change."""

import contextlib
import math
import re
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tiling.errors import TilingError
from tiling.files import read_bytes
from tiling.open_slides import ReopenedSlide
from tiling.slide import open_slide
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.errors import PipelineError, ViewError
from wsi_pipeline.explain import METHODS
from wsi_pipeline.inference.scores import read_highest_score
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.names import find_name_problem
from wsi_pipeline.report.gather import known_models, read_json, read_rows
from wsi_pipeline.viewer.explained import explain_patch
from wsi_pipeline.viewer.memory import Kept
from wsi_pipeline.viewer.pyramid import count_zooms
from wsi_pipeline.viewer.shown_slide import ShownSlide, Stores

DEFAULT_BUDGET = 512 << 20  # bytes of tiles, maps and pictures


class ShownRun:
    """What the viewer shows of a run.

    Parameters
    ----------
    run : RunFolder
    budget : bytes
        For what is kept: tiles as JPEG, pixels of tiles, heatmaps. The decoded file tiles of open
        slides have a budget of their own (docs/readers.md), which `view` sets.

    Raises
    ------
    StageError
        If this is no run on slides.
    """

    def __init__(self, run: RunFolder, *, budget: int = DEFAULT_BUDGET) -> None:
        self.run = run
        self.entries = {entry.slide_id: entry for entry in read_run_manifest(run)}
        self._longer = _find_longer(self.entries)
        self._stores = Stores(run)
        self._tiles: Kept[bytes] = Kept(budget // 4, len)
        self._pixels: Kept[Any] = Kept(budget // 4, lambda pixels: pixels.nbytes)
        self._maps: Kept[Any] = Kept(budget // 2, lambda found: found.n_bytes)
        self._slides: dict[str, ShownSlide] = {}
        self._lock = threading.Lock()
        self._explaining = threading.Lock()  # one model at a time in memory

    def check(self, slide_id: str) -> str:
        """Refuse the name of a slide that the run does not have, and all once the run is gone.

        Raises
        ------
        ViewError
        """
        if slide_id not in self.entries:
            raise ViewError(f"{slide_id!r}: this run has no such slide")
        if not self.run.path.is_dir():
            raise ViewError(
                f"the folder {self.run.path.name} of this run is not there any more; put it back, "
                "or end the viewer"
            )
        return slide_id

    def slide(self, slide_id: str) -> ShownSlide:
        """Return a slide of the run, opened when it is first shown.

        Raises
        ------
        ViewError
            If the run has no such slide.
        """
        entry = self.entries[self.check(slide_id)]
        with self._lock:
            if slide_id not in self._slides:
                self._slides[slide_id] = ShownSlide(
                    self.run,
                    entry,
                    ReopenedSlide(lambda: open_slide(entry.path)),
                    stores=self._stores,
                    tiles=self._tiles,
                    pixels=self._pixels,
                    maps=self._maps,
                    longer_ids=self._longer[slide_id],
                )
            return self._slides[slide_id]

    def open_first(self) -> None:
        """Open the slide that the page begins with, so that the page does not wait for it."""
        with contextlib.suppress(PipelineError, TilingError):  # the page will say it
            first = self.slide(next(iter(self.entries)))
            first.tile(count_zooms(first.size) - 1, 0, 0)

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            for slide in self._slides.values():
                slide.close()
        self._stores.close()

    def describe(self) -> dict[str, Any]:
        """Describe the run: its models, and for each slide what a list is sorted by."""
        models = known_models(self.run)
        problems: list[str] = []
        evaluated = {model: self._try_evaluation(model, problems) for model in models}
        return {
            "name": self.run.path.resolve().name,
            "has_report": self.run.report.is_file(),
            "problems": problems,
            "models": [
                {
                    "name": model,
                    "threshold": evaluated[model].threshold,
                    "methods": list(METHODS) if self.run.checkpoint(model).is_file() else [],
                }
                for model in models
            ],
            "slides": [
                {
                    "id": entry.slide_id,
                    "label": entry.label,
                    "split": entry.split,
                    "is_there": entry.path.exists(),
                    "scores": {
                        model: self._score_of(model, entry.slide_id, evaluated[model].scores)
                        for model in models
                    },
                    "missed": {
                        model: evaluated[model].missed.get(entry.slide_id) for model in models
                    },
                    "n_errors": {
                        model: evaluated[model].errors.get(entry.slide_id, 0) for model in models
                    },
                }
                for entry in self.entries.values()
            ],
        }

    @cached_property
    def _folders(self) -> list[str]:
        """Folders of the run, its slides and its annotations, and those above; longest first."""
        folders = {self.run.path.absolute(), self.run.path.resolve()}
        for entry in self.entries.values():
            folders |= {path.parent for path in (entry.path, entry.annotation) if path is not None}
        names = {
            str(parent)
            for folder in folders
            for parent in (folder, *folder.parents)
            if len(parent.parts) > (1 if parent == folder else 2)  # not /home, which says nothing
        }
        return sorted(names, key=len, reverse=True)

    def hide_folders(self, text: str) -> str:
        """Leave the folders of the run, its slides and its annotations out of a message."""
        for name in self._folders:
            if name not in text:
                continue
            start = rf"(?<![\w.-]){re.escape(name)}"  # not the end of another path
            text = re.sub(rf"{start}(?![\w.-])", "the folder", re.sub(f"{start}/", "", text))
        return text

    def report(self) -> bytes:
        """Return the run's report.

        Raises
        ------
        ViewError
            If there is none.
        """
        if not self.run.report.is_file():
            raise ViewError("this run has no report yet; wsi-pipeline report writes it")
        return read_bytes(self.run.report)

    def heatmap_picture(self, model: str, name: str) -> bytes:
        """Return a picture of a heatmap, ``heatmaps/<model>/<name>``, as PNG.

        Raises
        ------
        ViewError
            If there is none.
        """
        if find_name_problem(model) or find_name_problem(name) or not name.endswith(".png"):
            raise ViewError(f"{name!r} is no picture of a heatmap")
        path = self.run.image_maps(model) / name
        if not path.is_file():
            raise ViewError(f"{name}: this run has no such picture")
        return read_bytes(path)

    def _score_of(self, model: str, slide_id: str, known: Mapping[str, float]) -> float | None:
        """The slide's score as evaluated, else its highest patch score."""
        if slide_id in known:
            return known[slide_id]
        return _highest(*_stamped(self.run.scores(model, slide_id)))

    def _try_evaluation(self, model: str, problems: list[str]) -> "_Evaluation":
        """Read what `evaluate` found; where it is damaged, nothing, and a sentence more."""
        try:
            return self._read_evaluation(model)
        except (PipelineError, KeyError, ValueError) as error:
            problems.append(
                f"evaluation/{model} is damaged ({error}); run wsi-pipeline evaluate again"
            )
            return _Evaluation()

    def _read_evaluation(self, model: str) -> "_Evaluation":
        folder = self.run.evaluation(model)
        scores = {
            row["slide_id"]: float(row["score"])
            for name in ("validation.csv", "slides.csv")
            for row in read_rows(folder / name)
            if row.get("score")
        }
        missed = Counter[str]()
        for row in read_rows(folder / "lesions_camelyon16.csv"):
            missed[row["slide_id"]] += row["status"] == "missed"
        return _Evaluation(
            scores,
            missed,
            errors=Counter(row["slide_id"] for row in read_rows(folder / "errors.csv")),
            threshold=find_threshold(read_json(folder / "metrics.json") or {}),
        )

    def explain(self, slide_id: str, row: int, model: str, method: str) -> bytes:
        """Explain a patch by a method: a PNG of its map over it.

        Raises
        ------
        ViewError
            If the run has no checkpoint of the model, or no such patch.
        ConfigError, ModelError
            If there is no such method, or it does not explain the model.
        """
        entry = self.entries[self.check(slide_id)]
        self.slide(slide_id).check_patch(row)
        if model not in known_models(self.run):
            raise ViewError(f"{model!r}: this run has no such model")
        with self._explaining:
            return explain_patch(self.run, entry, row, model, method)


@dataclass(frozen=True)
class _Evaluation:
    """What `evaluate` found of a model; empty where it has not run."""

    scores: Mapping[str, float] = field(default_factory=dict)  # by slide
    missed: Mapping[str, int] = field(default_factory=dict)  # lesions, by slide
    errors: Mapping[str, int] = field(default_factory=dict)  # listed, by slide
    threshold: float = EvaluateConfig.threshold  # of patches


def find_threshold(metrics: Mapping[str, Any]) -> float:
    """Find the threshold of patches that `evaluate` used; its default where it has not run.

    Examples
    --------
    >>> find_threshold({"threshold": 0.25}), find_threshold({})
    (0.25, 0.75)
    """
    value = metrics.get("threshold")
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return EvaluateConfig.threshold


def _find_longer(slide_ids: Collection[str]) -> dict[str, list[str]]:
    """Find the ids that begin with a slide's id and a dot, by slide.

    Examples
    --------
    >>> _find_longer(["a", "a.b", "a.b.c", "ab"])
    {'a': ['a.b', 'a.b.c'], 'a.b': ['a.b.c'], 'a.b.c': [], 'ab': []}
    """
    found: dict[str, list[str]] = {slide_id: [] for slide_id in slide_ids}
    for slide_id in slide_ids:
        for dot in re.finditer(r"\.", slide_id):
            if (shorter := slide_id[: dot.start()]) in found:
                found[shorter].append(slide_id)
    return found


def _stamped(path: Path) -> tuple[Path, int]:
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return path, 0


@lru_cache(maxsize=1 << 16)
def _highest(path: Path, stamp: int) -> float | None:
    return read_highest_score(path) if stamp else None
