"""The stage ``explain``: patches or images -> maps of where a model looks, by several methods."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.files import digest_file, move_into, scratch_folder, write_json
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.kinds import ImageCohort, SlideCohort, cohort_of
from wsi_pipeline.cohort.slides import digest_store, open_store
from wsi_pipeline.config.reading import Config, as_plain, digest_settings
from wsi_pipeline.config.settings import ExplainConfig
from wsi_pipeline.contracts import Rule, SlideEntry
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.explain import METHODS, check_layer, list_methods
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import choose_scored_models, digest_scores, scored
from wsi_pipeline.stages.predict import load_model

if TYPE_CHECKING:
    from wsi_pipeline.explain.base import Method, Settings
    from wsi_pipeline.inference.image_scores import ScoredImage

EXPLAIN_SCHEMA = "wsi-pipeline/explain/1"

Places = Sequence[tuple[str, ...]]  # of patches (slide_id, x, y), or of images (image_id,)


@dataclass(frozen=True)
class Subject:
    """What is explained: one patch of a slide, or one image."""

    row: int  # of the slide's patch store, or of the run's images
    name: str  # the first part of its files' names
    label: int  # 1, 0, or -1: unknown
    score: float
    entry: SlideEntry | None = None  # the slide; None: an image


@dataclass(frozen=True)
class _Pixels:
    """A subject, read."""

    values: NDArray[np.uint8]  # (H, W, C)
    um_per_px: float | None = None
    box_l0: tuple[int, int, int, int] | None = None  # x, y, width, height, level-0 px


@dataclass(frozen=True)
class ExplainSubjects(Task):
    """Explain some patches or images of one model by one method."""

    model: str
    method: str
    checkpoint: Path
    subjects: tuple[Subject, ...]
    inputs: tuple[str, ...]  # digests of what is explained
    config: ExplainConfig
    device: str

    @property
    def unit(self) -> Unit:
        """The model, by the method."""
        return Unit("explain", model=self.model, variant=self.method)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash what is explained, the checkpoint and the settings."""
        how = [
            self.config.target,
            self.config.seed,
            as_plain(_load(self.method, self.config)[1]),
        ]
        chosen = [(one.name, one.row) for one in self.subjects]
        digests = [digest_file(self.checkpoint), *self.inputs]
        return digest_settings(EXPLAIN_SCHEMA, digests, chosen, how)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write each map as values, picture and overlay, and ``explain.json``."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.explain.base import logit_of
        from wsi_pipeline.explain.image_maps import write_explanation
        from wsi_pipeline.explain.pictures import draw_overlay, find_limits
        from wsi_pipeline.models.checkpoint import digest

        found = digest(self.checkpoint)
        network, _ = load_model(self.checkpoint, found)
        network = network.to(resolve_device(self.device))
        method, settings = _load(self.method, self.config)
        how: dict[str, Any] = {"seed": self.config.seed, "config": settings}
        out = job.run.explanations(self.model) / self.method
        with scratch_folder(out) as scratch:  # all files of a method, or none
            maps, pictures, logits = [], [], []
            for number, one in enumerate(self.subjects):
                pixels = _read(job.run, one)
                values = pixels.values[None]
                (made,) = method.explain(network, values, target=self.config.target, **how)
                pictures.append(_crop(pixels, made.values.shape))
                place = _describe_place(pictures[-1])
                write_explanation(scratch, one.name, method, made, place=place)
                maps.append(made.values)
                logits.append(logit_of(network, pixels.values))
                on_progress(number + 1, len(self.subjects))
            signed = method.low < 0
            limits = (0.0, 1.0) if method.is_probability else find_limits(maps, signed=signed)
            for one, shown, values_of in zip(self.subjects, pictures, maps, strict=True):
                draw_overlay(
                    scratch / f"{one.name}_overlay.png",
                    shown.values,
                    values_of,
                    limits=limits,
                    title=f"{one.name}, {self.model}, {self.method}",
                    um_per_px=shown.um_per_px,
                )
            write_json(scratch / "explain.json", self._describe(found, settings, logits))
            files = move_into(scratch, out, last="explain.json")
        return files, f"{pluralize(len(self.subjects), 'map')} by {self.method}"

    def _describe(
        self, checkpoint: str, settings: "Settings", logits: Sequence[float]
    ) -> dict[str, Any]:
        return {
            "schema": EXPLAIN_SCHEMA,
            "model": self.model,
            "checkpoint": checkpoint,
            "method": self.method,
            "settings": as_plain(settings),
            "target": self.config.target,
            "seed": self.config.seed,
            "explained": [
                {
                    "name": one.name,
                    "label": one.label,
                    "score": _finite(one.score),
                    "logit": _finite(logit),
                }
                for one, logit in zip(self.subjects, logits, strict=True)
            ],
        }


def _finite(score: float) -> float | None:
    return score if np.isfinite(score) else None


def _load(name: str, config: ExplainConfig) -> "tuple[Method, Settings]":
    from wsi_pipeline.explain import load_method

    method = load_method(name)
    return method, method.choose_settings(config.layer)


def _read(run: RunFolder, one: Subject) -> _Pixels:
    """Read the pixels of a patch or an image."""
    if one.entry is None:
        return _Pixels(np.array(ImageCohort(run).array().pixels[one.row]))
    with open_store(run, one.entry) as store:
        pixels, unreadable = store.read_flagged(np.array([one.row]))
        if unreadable[0]:
            raise StageError(f"{one.entry.slide_id}: the patch {one.name} cannot be read")
        geometry = store.geometry
        x, y = (int(v) for v in store.coords[one.row])
        box = (x, y, geometry.patch_l0, geometry.patch_l0_y)
        return _Pixels(np.asarray(pixels[0]), geometry.target_mpp, box)


def _crop(pixels: _Pixels, shape: tuple[int, ...]) -> _Pixels:
    """Cut out the centre that a model sees, with its place."""
    height, width = pixels.values.shape[:2]
    top, left = (height - shape[0]) // 2, (width - shape[1]) // 2
    cut = pixels.values[top : top + shape[0], left : left + shape[1]]
    if pixels.box_l0 is None:
        return replace(pixels, values=cut)
    x, y, wide, high = pixels.box_l0
    across, down = wide / width, high / height  # level-0 px per px
    box = (x + left * across, y + top * down, shape[1] * across, shape[0] * down)
    return replace(pixels, values=cut, box_l0=tuple(round(v) for v in box))


def _describe_place(pixels: _Pixels) -> dict[str, Any] | None:
    if pixels.box_l0 is None or pixels.um_per_px is None:
        return None
    names = ("x_l0", "y_l0", "width_l0", "height_l0")
    return {**dict(zip(names, pixels.box_l0, strict=True)), "um_per_px": pixels.um_per_px}


# ------------------------------------------------------------ which are explained


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


@dataclass(frozen=True)
class _SlidePart(_Part):
    entry: SlideEntry
    coords: NDArray[np.int64]  # (N, 2) x, y, level-0 px
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


@dataclass(frozen=True)
class _Candidates:
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


def _list_patches(
    cohort: SlideCohort, config: Config, model: str, named: Places | None
) -> _Candidates:
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
        parts.append(_SlidePart(entry, scores.coords, scores.scores, labels))
        inputs += [digest_scores(run, model, entry.slide_id), digest_store(run, entry)]
        checkpoints.add(str(scores.attributes.get("checkpoint")))
    return _Candidates(tuple(parts), Rule(config.evaluate.threshold), tuple(inputs), checkpoints)


def _list_images(
    cohort: ImageCohort, config: Config, model: str, named: Places | None
) -> _Candidates:
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
    return _Candidates((part,), rule, inputs, {about["checkpoint"]})


def _evaluated(entries: Sequence[Any], config: Config) -> list[Any]:
    """Choose those of the split that is evaluated: test, else val, else all."""
    splits = {e.split for e in entries}
    name = config.evaluate.split or next((s for s in ("test", "val") if s in splits), "all")
    return [e for e in entries if name in (e.split, "all")]


def _choose(
    run: RunFolder, candidates: _Candidates, config: Config, named: Places | None
) -> tuple[Subject, ...]:
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


# ------------------------------------------------------------ the stage


def explain(
    run: RunFolder,
    config: Config,
    options: Options,
    *,
    names: Sequence[str],
    models: Sequence[str] = (),
    patches: Path | None = None,
    images: Sequence[str] = (),
) -> list[StageResult]:
    """Explain by several methods, one after the other, and draw all side by side.

    Parameters
    ----------
    run : RunFolder
    config : Config
        `explain` has how many, and of which layer.
    options : Options
    names : sequence of str
        In `wsi_pipeline.explain.METHODS`; ``all`` stands for every one.
    models : sequence of str
        Default: all that have scores.
    patches : Path, optional
        CSV of what to explain, see `read_places`. Default: best hits and worst errors.
    images : sequence of str
        Ids of what to explain in a folder of images, in place of a CSV.

    Raises
    ------
    ConfigError
        If there is no such method, none of them has a layer, or the CSV has not the columns.
    StageError
        If there are no scores, or none of what the CSV names.
    """
    methods = list_methods(names)
    check_layer("explain.layer", config.explain.layer, methods)
    cohort = cohort_of(run)
    if images and not cohort.of_images:
        raise ConfigError(f"{run.path}: --images is for folders of images; use --patches of slides")
    named = None if patches is None else read_places(patches, of_images=cohort.of_images)
    if images:
        named = [*(named or ()), *((image_id,) for image_id in images)]
    found = {
        model: _list_images(cohort, config, model, named)
        if isinstance(cohort, ImageCohort)
        else _list_patches(cohort, config, model, named)
        for model in choose_scored_models(run, models)
    }
    chosen = {model: _choose(run, of, config, named) for model, of in found.items()}
    lacking = {model: _find_lack(run, model, of, chosen[model]) for model, of in found.items()}
    results = []
    for name in methods:
        reasons = {model: lack or _why_not(run, model, name) for model, lack in lacking.items()}
        notes = tuple(f"no {name} of {model}: {why}" for model, why in reasons.items() if why)
        tasks = [
            ExplainSubjects(
                model,
                name,
                run.checkpoint(model),
                chosen[model],
                found[model].inputs,
                config.explain,
                options.device,
            )
            for model, why in reasons.items()
            if not why
        ]
        result = StageResult("explain", (), (), ())
        if tasks:
            result = run_stage("explain", run, tasks, config, options)
        results.append(replace(result, stage=f"explain {name}", notes=notes))
    for model, subjects in chosen.items():
        _draw_sheet(run, model, subjects)
    return results


def _find_lack(
    run: RunFolder, model: str, candidates: _Candidates, subjects: Sequence[Subject]
) -> str:
    """Say why a model is not explained by any method; empty: it can be."""
    checkpoint = run.checkpoint(model)
    if not subjects:
        return "nothing is scored in the evaluated split"
    if not checkpoint.is_file():
        return f"its checkpoint is not in the run; copy it to models/{model}/{checkpoint.name}"
    if candidates.checkpoints != {digest_file(checkpoint)}:
        return f"its scores are by another checkpoint than models/{model}; run predict again"
    return ""


def _why_not(run: RunFolder, model: str, name: str) -> str:
    """Say why a model is not explained by a method; empty: it is."""
    from wsi_pipeline.explain import load_method
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.models.checkpoint import read_meta

    architecture = read_meta(run.checkpoint(model)).model
    explains = load_method(name).explains(MODELS[architecture])
    return "" if explains else f"the method does not explain the architecture {architecture}"


def _draw_sheet(run: RunFolder, model: str, subjects: Sequence[Subject]) -> None:
    """Draw the maps of all methods that explained these patches or images, side by side."""
    from PIL import Image

    from wsi_pipeline.explain.pictures import draw_sheet

    def read_grey(path: Path) -> NDArray[np.uint8] | None:
        if not path.is_file():
            return None
        with Image.open(path) as file:
            return np.asarray(file)

    folder = run.explanations(model)
    names = [n for n in METHODS if Unit("explain", model=model, variant=n).is_marked(run)]
    rows: list[tuple[Sequence[str], Sequence[NDArray[np.uint8] | None]]] = [(["", *names], [])]
    for one in subjects:
        maps = [read_grey(folder / name / f"{one.name}.png") for name in names]
        image, shapes = _read(run, one), [of.shape for of in maps if of is not None]
        seen = _crop(image, shapes[0]) if shapes else image
        rows.append(([_title(one)], [seen.values, *maps]))
    if names and subjects:
        draw_sheet(folder / "sheet.png", rows)


def _title(one: Subject) -> str:
    label = "unknown" if one.label < 0 else str(one.label)
    return f"{one.name}: class {label}, score {one.score:.3f}"
