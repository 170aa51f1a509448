"""What could be explained of a model, and the choice among it."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.files import digest_file
from tiling.wording import name_some
from wsi_pipeline.cohort.kinds import ImageCohort, SlideCohort
from wsi_pipeline.cohort.slides import digest_store, open_store
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import ExplainConfig
from wsi_pipeline.contracts import Rule, SlideEntry
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.stages.inputs import digest_scores, scored
from wsi_pipeline.stages.subjects import Masks, Subject, choose_masked, find_crossed

if TYPE_CHECKING:
    from wsi_pipeline.inference.image_scores import ScoredImage

Places = Sequence[tuple[str, ...]]  # of patches (slide_id, x, y), or of images (image_id,)


def choose_extremes(
    scores: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    *,
    top: int,
    errors: int,
    rule: Rule,
) -> list[int]:
    """Choose the best hits and the worst errors.

    Parameters
    ----------
    scores : (N,)
        NaN: not scored.
    labels : (N,) 1, 0, or -1: unknown
    top, errors : int
        How many: the highest scores that are not errors, then the errors furthest from their label.
    rule : Rule
        Which scores are positive.

    Returns
    -------
    rows : list of int
        Without repetition.

    Examples
    --------
    >>> choose_extremes(np.array([0.9, 0.8, 0.1, 0.2]), np.array([1, 0, 1, 0]), top=1, errors=1,
    ...     rule=Rule(0.5))
    [0, 2]
    """
    known = ~np.isnan(scores)
    wrong = known & (labels >= 0) & (rule.decide(scores) != (labels == 1))
    hits = np.flatnonzero(known & ~wrong)
    hits = hits[np.argsort(-scores[hits], kind="stable")][:top]
    misses = np.flatnonzero(wrong)
    misses = misses[np.argsort(-np.abs(scores - labels)[misses], kind="stable")][:errors]
    return [int(row) for row in (*hits, *misses)]


class _Part(ABC):
    """Patches of one slide, or the images of a run, scored by one model."""

    scores: NDArray[Any]  # (N,) floats; NaN: not scored
    labels: NDArray[Any]  # (N,) integers: 1, 0, or -1: unknown

    @abstractmethod
    def subject(self, number: int) -> Subject:
        """Describe one of them."""

    @abstractmethod
    def find(self, place: tuple[str, ...]) -> int | None:
        """Find one by what a CSV names it by; None: it is not among them."""

    @abstractmethod
    def list_masked(self, masks: Masks) -> Sequence[int]:
        """List those that may have a mask with both object and background."""


@dataclass(frozen=True)
class _SlidePart(_Part):
    entry: SlideEntry
    coords: NDArray[np.int64]  # (N, 2) x, y, level-0 px
    size_l0: tuple[int, int]  # (width, height) of each
    scores: NDArray[Any]
    labels: NDArray[Any]

    def subject(self, number: int) -> Subject:
        x, y = self.coords[number]
        name = f"{self.entry.slide_id}_x{x}_y{y}"
        label, score = int(self.labels[number]), float(self.scores[number])
        return Subject(number, name, label, score, self.entry)

    def find(self, place: tuple[str, ...]) -> int | None:
        slide_id, *corner = place
        if slide_id != self.entry.slide_id or not all(re.fullmatch(r"-?\d+", v) for v in corner):
            return None
        rows = np.flatnonzero((self.coords == [int(v) for v in corner]).all(axis=1))
        return int(rows[0]) if len(rows) else None

    def list_masked(self, masks: Masks) -> Sequence[int]:
        outlines = masks.outlines_of(self.entry)
        if outlines is None:
            return []
        return [int(n) for n in find_crossed(outlines, self.coords, self.size_l0)]


@dataclass(frozen=True)
class _ImagePart(_Part):
    images: "Sequence[ScoredImage]"
    rows: Mapping[str, int]  # of the run's images, by id
    scores: NDArray[Any]
    labels: NDArray[Any]

    def subject(self, number: int) -> Subject:
        image = self.images[number]
        return Subject(self.rows[image.image_id], image.image_id, image.label, image.score)

    def find(self, place: tuple[str, ...]) -> int | None:
        ids = [image.image_id for image in self.images]
        return ids.index(place[0]) if place[0] in ids else None

    def list_masked(self, masks: Masks) -> Sequence[int]:
        return range(len(self.images))


@dataclass(frozen=True)
class Candidates:
    """All that could be explained of one model."""

    parts: tuple[_Part, ...]
    rule: Rule
    inputs: tuple[str, ...]
    checkpoints: set[str]  # digests of those that the scores are by

    def name(self, place: tuple[str, ...]) -> Subject | None:
        """Find what a row of a CSV names."""
        for part in self.parts:
            if (number := part.find(place)) is not None:
                return part.subject(number)
        return None

    def masked(self, run: RunFolder, config: ExplainConfig) -> tuple[Subject, ...]:
        """Draw some that have a mask."""
        masks = Masks(run)
        found = [
            part.subject(number)
            for part in self.parts
            for number in part.list_masked(masks)
            if np.isfinite(part.scores[number])
        ]
        return choose_masked(found, masks, config.masked, config.seed)

    def extremes(self, config: ExplainConfig) -> tuple[Subject, ...]:
        """Choose the best hits and the worst errors of all parts."""
        if not self.parts:
            return ()
        scores = np.concatenate([part.scores for part in self.parts])
        labels = np.concatenate([part.labels for part in self.parts])
        chosen = choose_extremes(
            scores, labels, top=config.top, errors=config.errors, rule=self.rule
        )
        starts = np.cumsum([0, *(len(part.scores) for part in self.parts)])
        found = np.searchsorted(starts, chosen, side="right") - 1
        return tuple(
            self.parts[part].subject(row - int(starts[part]))
            for row, part in zip(chosen, found.tolist(), strict=True)
        )


def list_candidates(
    cohort: SlideCohort | ImageCohort, config: Config, model: str, named: Places | None = None
) -> Candidates:
    """List what could be explained of a model.

    Parameters
    ----------
    cohort : SlideCohort or ImageCohort
    config : Config
        `evaluate` has the split.
    model : str
    named : places, optional
        Of any split. None: of the evaluated one.
    """
    if isinstance(cohort, ImageCohort):
        return _list_images(cohort, config, model, named)
    return _list_patches(cohort, config, model, named)


def _list_patches(
    cohort: SlideCohort, config: Config, model: str, named: Places | None
) -> Candidates:
    from wsi_pipeline.inference.scores import read_scores

    run, by_id = cohort.run, {e.slide_id: e for e in cohort.entries}
    ready = [by_id[slide_id] for slide_id in scored(run, model, by_id)]
    parts: list[_Part] = []
    inputs: list[str] = []
    checkpoints: set[str] = set()
    slides = {place[0] for place in named or ()}
    chosen = [e for e in ready if e.slide_id in slides] if slides else _evaluated(ready, config)
    for entry in chosen:
        scores = read_scores(run.scores(model, entry.slide_id))
        with open_store(run, entry) as store:
            labels = np.asarray(store.label)
            if not np.array_equal(store.coords, scores.coords):
                raise StageError(f"{entry.slide_id}: its scores are of other patches; run predict")
            size_l0 = (store.geometry.patch_l0, store.geometry.patch_l0_y)
        parts.append(_SlidePart(entry, scores.coords, size_l0, scores.scores, labels))
        inputs += [digest_scores(run, model, entry.slide_id), digest_store(run, entry)]
        checkpoints.add(str(scores.attributes.get("checkpoint")))
    return Candidates(tuple(parts), Rule(config.evaluate.threshold), tuple(inputs), checkpoints)


def _list_images(
    cohort: ImageCohort, config: Config, model: str, named: Places | None
) -> Candidates:
    from wsi_pipeline.evaluation.image_evaluation import rule_of
    from wsi_pipeline.inference.image_scores import read_scores

    folder = cohort.run.image_scores(model)
    images, about = read_scores(folder)
    rows = {entry.image_id: row for row, entry in enumerate(cohort.entries)}
    chosen = images if named else _evaluated(images, config)
    scores, labels = np.array([i.score for i in chosen]), np.array([i.label for i in chosen])
    part = _ImagePart(chosen, rows, scores, labels)
    inputs = (cohort.prepared().digest(), digest_file(folder / "images.csv"))
    rule = rule_of(about, config.evaluate.image_threshold)
    return Candidates((part,), rule, inputs, {about["checkpoint"]})


def _evaluated(entries: Sequence[Any], config: Config) -> list[Any]:
    """Choose those of the split that is evaluated: test, else val, else all."""
    splits = {e.split for e in entries}
    name = config.evaluate.split or next((s for s in ("test", "val") if s in splits), "all")
    return [e for e in entries if name in (e.split, "all")]


def choose_subjects(
    run: RunFolder, candidates: Candidates, config: Config, named: Places | None
) -> tuple[Subject, ...]:
    """Choose what a command names, or else the masked ones or the extremes.

    Raises
    ------
    StageError
        Naming what is not among the candidates.
    """
    if named is None and config.explain.masked:
        return candidates.masked(run, config.explain)
    if named is None:
        return candidates.extremes(config.explain)
    found = {place: candidates.name(place) for place in dict.fromkeys(named)}
    if missing := [" ".join(place) for place, subject in found.items() if subject is None]:
        raise StageError(
            f"{run.path}: not among the scored patches or images: {name_some(missing)}; "
            "use ids and level-0 coordinates as in the scores"
        )
    return tuple(subject for subject in found.values() if subject is not None)


def read_places(path: Path, *, of_images: bool) -> Places:
    """Read a CSV of what to explain: ``slide_id,x,y`` (level-0 px), or ``image_id``.

    Raises
    ------
    ConfigError
        If a column is missing, or there are no rows.
    """
    columns = ("image_id",) if of_images else ("slide_id", "x", "y")
    rows = read_csv(path, error=ConfigError)
    if not rows or not set(columns) <= set(rows[0]):
        got = f"the columns {', '.join(rows[0])}" if rows else "no rows"
        raise ConfigError(f"{path}: needs rows with the columns {', '.join(columns)}, has {got}")
    return [tuple(row[column] for column in columns) for row in rows]
