"""The stage ``evaluate``: scores and what is known of the slides or images -> figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tiling.contracts import OnProgress
from tiling.files import digest_file, move_into, scratch_folder
from tiling.wording import format_number, name_some, pluralize
from wsi_pipeline.cohort.image_folder import ALL, read_images
from wsi_pipeline.cohort.kinds import (
    USED,
    ImageCohort,
    cohort_of,
    require_sound,
    warn_of_unused,
)
from wsi_pipeline.cohort.slides import digest_store, open_store
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import (
    EvaluateConfig,
    EvaluatedSplit,
    HeatmapConfig,
    evaluation_settings,
)
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import (
    DigestScores,
    build_store_heatmap,
    choose_scored_models,
    digest_image_scores,
    digest_scores,
    digest_scores_by_origin,
    scored,
)

if TYPE_CHECKING:
    from tiling.store import PatchStore
    from wsi_pipeline.evaluation.inputs import EvaluationSlide


@dataclass(frozen=True)
class EvaluateSlides(Task):
    """Compare the scores of one model with the reference."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "slide"
    model: str
    entries: Sequence[SlideEntry]
    left_out: Sequence[str]  # ids of slides that failed
    elsewhere: Mapping[str, Sequence[str]]  # outlined slides of other splits
    config: EvaluateConfig
    heatmap: HeatmapConfig

    @property
    def unit(self) -> Unit:
        """The model."""
        return Unit("evaluate", model=self.model)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash scores, stores, annotations and settings."""
        return self._fingerprint(run, digest_scores)

    def earlier_fingerprint(self, run: RunFolder) -> str:
        """Hash the same with what the scores were made from."""
        return self._fingerprint(run, digest_scores_by_origin)

    def _fingerprint(self, run: RunFolder, digest: DigestScores) -> str:
        """Hash everything but the scores, which `digest` hashes."""
        data = [
            (
                e.slide_id,
                e.patient,
                e.split,
                e.label,
                digest_file(e.annotation) if e.annotation else None,
                digest(run, self.model, e.slide_id),
                digest_store(run, e),
            )
            for e in self.entries
        ]
        settings = evaluation_settings(self.config)
        more: list[Any] = [self.elsewhere] if self.elsewhere else []
        if self.config.reviews:
            reviewed = run.reviewed(e.slide_id for e in self.entries)
            more.append({name: digest_file(run.review(name)) for name in reviewed})
        return digest_settings(data, self.left_out, settings, self.heatmap.overlap, *more)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write figures, curves and tables."""
        from wsi_pipeline.evaluation.run_evaluation import evaluate_run

        entries, left_out = self.entries, self.left_out
        out = job.run.evaluation(self.model)
        # Metrics of an earlier evaluation must not remain where this one is refused or interrupted.
        (out / "metrics.json").unlink(missing_ok=True)
        slides = []
        for number, entry in enumerate(entries):
            slides.append(self._evaluation_slide(job.run, entry))
            on_progress(number + 1, len(entries))
        by_id = {entry.slide_id: entry for entry in entries}

        def read_patch(slide_id: str, patch: int) -> Any:
            with open_store(job.run, by_id[slide_id]) as store:
                return store.read([patch])[0]

        with scratch_folder(out) as scratch:
            metrics = evaluate_run(
                slides,
                settings=self.config,
                out=scratch,
                model=self.model,
                read_patch=read_patch,
                left_out=left_out,
                elsewhere=self.elsewhere,
            )
            files = move_into(scratch, out, last="metrics.json")
        lost = (
            f"; WITHOUT {', '.join(left_out)}, which failed in an earlier stage" if left_out else ""
        )
        reviews = metrics.get("reviews", {"n_marks": 0})
        corrected = ", labels corrected by reviews" if reviews["n_marks"] else ""
        return files, _headline(metrics) + corrected + lost

    def _evaluation_slide(self, run: RunFolder, entry: SlideEntry) -> "EvaluationSlide":
        """Put a slide's scores and reference together.

        The heatmap is computed from the scores, not read from its file, which may be older.
        """
        from tiling.annotation.slide_annotation import read_annotation_of_store
        from wsi_pipeline.evaluation.inputs import EvaluationSlide
        from wsi_pipeline.heatmaps.nms import detect, radius_in_px
        from wsi_pipeline.inference.scores import read_scores

        config = self.config
        store = open_store(run, entry)
        scores = read_scores(run.scores(self.model, entry.slide_id))
        heatmap = build_store_heatmap(scores, store, self.heatmap)
        radius_px = radius_in_px(config.detection_radius_um, heatmap, store.info.mpp)
        drawn = entry.annotation
        annotation = None if drawn is None else read_annotation_of_store(drawn, store)
        slide = EvaluationSlide(
            slide_id=entry.slide_id,
            patient=entry.patient,
            split=entry.split,
            label=entry.label,
            scores=scores,
            patch_labels=store.label,
            lesion_pairs=store.lesion_pairs,
            lesion_ids=store.lesion_ids,
            annotation=annotation,
            slide_mpp=store.info.mpp,
            slide_size=store.info.size,
            detections=detect(heatmap, threshold=config.detection_threshold, radius_px=radius_px),
        )
        if config.reviews and run.review(entry.slide_id).is_file():
            slide = _correct(slide, store, run.review(entry.slide_id))
        return replace(slide, localisation=_localise(heatmap, slide.annotation, slide.label))


def _correct(slide: "EvaluationSlide", store: "PatchStore", review: Path) -> "EvaluationSlide":
    """Correct what is known of a slide by its review."""
    from wsi_pipeline.cohort.reviews import correct_labels, read_corrections
    from wsi_pipeline.evaluation.inputs import ReviewOfSlide

    digest = digest_file(review)
    known: dict[str, Any] = {"slide_label": slide.label, "annotation": slide.annotation}
    corrections = read_corrections(review, store, **known)
    found = correct_labels(store, **known, corrections=corrections)
    return replace(
        slide,
        label=found.slide_label,
        patch_labels=found.patch_labels,
        lesion_pairs=found.lesion_pairs,
        lesion_ids=found.lesion_ids,
        annotation=found.annotation,
        review=ReviewOfSlide(
            digest,
            corrections.n_marks,
            corrections.n_without_truth,
            n_changed=int((found.patch_labels != slide.patch_labels).sum()),
        ),
    )


def _localise(heatmap: Any, annotation: Any, label: int | None) -> Any:
    """Compare a heatmap with the outlines; None where a tumour slide has none."""
    from shapely import MultiPolygon

    from wsi_pipeline.evaluation.localisation import draw_mask, localise

    outlined = annotation is not None and (annotation.lesions or label != 1)
    if not outlined and label != 0:
        return None
    tumour = MultiPolygon() if annotation is None else annotation.tumour
    return localise(heatmap.values, draw_mask(tumour, heatmap))


def _headline(metrics: Mapping[str, Any]) -> str:
    return _list_figures(
        {
            "patch ROC AUC": metrics["patch"]["roc_auc"],
            "slide ROC AUC": metrics["slide"]["roc_auc"],
            "FROC score": metrics["froc"]["score"],
        }
    )


def _list_figures(figures: Mapping[str, float | None]) -> str:
    return ", ".join(
        f"{name} {'undefined' if v is None else format_number(v)}" for name, v in figures.items()
    )


IMAGE_METRICS = "wsi-pipeline/image-metrics/3"  # what metrics.json holds


@dataclass(frozen=True)
class EvaluateImages(Task):
    """Compare the scores of one model with the classes of the images."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "image"
    model: str
    config: EvaluateConfig

    @property
    def unit(self) -> Unit:
        """The model."""
        return Unit("evaluate", model=self.model)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash scores, masks, maps and settings."""
        digests = digest_image_scores(run, self.model)
        require_sound(run, Unit("heatmap", ALL, self.model))  # compared with the masks
        compared = [run.tiles / "masks.npy", run.image_maps(self.model) / "maps.json"]
        on_masks = [digest_file(path) for path in compared if path.is_file()]
        settings = {key: getattr(self.config, key) for key in USED["evaluate"]}
        return digest_settings(digests, settings, IMAGE_METRICS, on_masks)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write figures, curves and tables."""
        from wsi_pipeline.cohort.image_masks import read_masks
        from wsi_pipeline.evaluation.image_evaluation import evaluate_images, rule_of
        from wsi_pipeline.inference.image_scores import read_scores

        run, config, model = job.run, self.config, self.model
        entries = read_images(run.images)
        images, about = read_scores(run.image_scores(model))
        out = run.evaluation(model)
        rule = rule_of(about, config.image_threshold)
        (out / "metrics.json").unlink(missing_ok=True)
        with scratch_folder(out) as scratch:
            metrics = evaluate_images(
                images,
                about,
                rule=rule,
                model=model,
                out=scratch,
                settings=config,
                masks=read_masks(run.tiles, entries),
                mask_splits={e.image_id: e.split for e in entries},
                maps=run.image_maps(model),
            )
            files = move_into(scratch, out, last="metrics.json")
        figures = {"accuracy": "accuracy", "ROC AUC": "roc_auc", "loss": "loss"}
        line = _list_figures({name: metrics["patch"][key] for name, key in figures.items()})
        if n := metrics["localisation"]["n"]:
            line += f", maps compared with {pluralize(n, 'mask')}"
        return files, f"{metrics['evaluated']}: {line}"


def evaluate(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Scores + reference -> figures, for each model."""
    from wsi_pipeline.evaluation.froc import check_rates

    cohort = cohort_of(run)
    if isinstance(cohort, ImageCohort):
        named = choose_scored_models(run, models)
        return _evaluate_images(run, config, options, models=named)
    check_rates(config.evaluate.rates)
    entries = cohort.entries
    tasks = []
    for model in choose_scored_models(run, models):
        chosen, left_out = _to_evaluate(run, model, entries, config)
        elsewhere = _outlined_elsewhere(entries, chosen, config.evaluate.split)
        tasks.append(
            EvaluateSlides(model, chosen, left_out, elsewhere, config.evaluate, config.heatmap)
        )
    result = run_stage("evaluate", run, tasks, config, options)
    evaluated = dict.fromkeys(e.slide_id for task in tasks for e in task.entries)
    if not config.evaluate.reviews and (unused := run.reviewed(evaluated)):
        line = (
            f"evaluate: reviews of {pluralize(len(unused), 'slide')} not used; --reviews uses them"
        )
        result = replace(result, notes=(*result.notes, line))
    return result


def _evaluate_images(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str]
) -> StageResult:
    """Scores + classes -> figures."""
    warn_of_unused(config, "evaluate")
    tasks = [EvaluateImages(model, config.evaluate) for model in models]
    return run_stage("evaluate", run, tasks, config, options)


def _to_evaluate(
    run: RunFolder, model: str, entries: Sequence[SlideEntry], config: Config
) -> tuple[tuple[SlideEntry, ...], tuple[str, ...]]:
    """Choose what figures are made of: the split that is evaluated, and val for the threshold.

    Without any split, all slides with a reference. A slide that could not be tiled or scored is
    skipped, with a note; one that was not predicted yet is an error, since metrics of half a test
    set look like those of the whole.

    Returns
    -------
    chosen : slides
    left_out : slide ids
    """
    split = config.evaluate.split
    has_splits = any(e.split in {"val", "test"} for e in entries)
    everything = split == "all" or (split is None and not has_splits)
    named = {"val", split or "test"}
    wanted = [
        e
        for e in entries
        if (everything or e.split in named) and (e.label is not None or e.annotation is not None)
    ]
    if not wanted:
        if not any(e.label is not None or e.annotation is not None for e in entries):
            raise StageError(
                f"{run.path}: nothing to compare the scores of {model} with: no slide has a label "
                "or an annotation. wsi-pipeline slides SLIDES --annotations DIR --csv manifest.csv "
                "writes a manifest with both; pass it to the command that made this run (apply or "
                "tile) in place of the slides, then evaluate again (heatmap, export and report "
                "need no labels)"
            )
        among = "in the manifest" if everything else f"in the splits {' and '.join(sorted(named))}"
        raise StageError(
            f"{run.path}: nothing to compare the scores of {model} with: no slide {among} has a "
            "label or an annotation; fill these columns in and run tile again (heatmap, export and "
            "report need none)"
        )
    done = set(scored(run, model, [e.slide_id for e in wanted]))
    units = {
        e.slide_id: (Unit("tile", e.slide_id), Unit("predict", e.slide_id, model)) for e in wanted
    }
    failed = {s for s, both in units.items() if any(u.mark(run, "failed").is_file() for u in both)}
    ended = done | failed
    waiting = [e for e in wanted if e.slide_id not in ended]
    if waiting:
        raise StageError(
            f"no scores of {model} yet for {len(waiting)} of {pluralize(len(wanted), 'slide')}: "
            f"{name_some([e.slide_id for e in waiting])}; run: wsi-pipeline predict {run.path}"
            f"{_also_splits(waiting, config.predict.splits)}"
        )
    left_out = tuple(e.slide_id for e in wanted if e.slide_id not in done)  # they failed
    return tuple(e for e in wanted if e.slide_id in done), left_out


def _also_splits(waiting: Sequence[SlideEntry], splits: Sequence[str] | None) -> str:
    """Write the option by which predict scores slides that its setting leaves out."""
    missing = {e.split for e in waiting if e.split} - set(splits or ())
    if splits is None or not missing:
        return ""
    return f" --set 'predict.splits=[{', '.join([*splits, *sorted(missing)])}]'"


def _outlined_elsewhere(
    entries: Sequence[SlideEntry], chosen: Sequence[SlideEntry], split: EvaluatedSplit | None
) -> dict[str, list[str]]:
    """List outlined slides by their split, where none of those evaluated is outlined.

    Their outlines are what heatmaps would be compared with.
    """
    has_splits = any(e.split for e in chosen)
    tested = {
        e.slide_id
        for e in chosen
        if split == "all" or not has_splits or e.split == (split or "test")
    }
    outlined = [e for e in entries if e.annotation is not None]
    if any(e.slide_id in tested for e in outlined):
        return {}
    found: dict[str, list[str]] = {}
    for e in outlined:
        found.setdefault(e.split or "(none)", []).append(e.slide_id)
    return found
