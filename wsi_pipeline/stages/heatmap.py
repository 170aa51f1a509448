"""The stage ``heatmap``: scores -> heatmaps; of images, maps of where a model looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tiling.contracts import OnProgress
from tiling.files import digest_file, write_json
from tiling.wording import format_number, pluralize
from wsi_pipeline.cohort.image_folder import ALL, ImageEntry
from wsi_pipeline.cohort.kinds import ImageCohort, cohort_of, warn_of_unused
from wsi_pipeline.cohort.slides import open_store
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import EvaluatedSplit, HeatmapConfig, slide_heatmap_settings
from wsi_pipeline.contracts import Scores, SlideEntry
from wsi_pipeline.errors import HeatmapError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.parts import (
    Part,
    merge_parts,
    part_path,
    run_in_parts,
    share_of,
    unit_of_part,
    write_part,
)
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import (
    build_store_heatmap,
    choose_scored_models,
    digest_scores,
    digest_scores_by_origin,
    name_unscored,
    scored,
    slide_bytes,
    why_unscored,
)
from wsi_pipeline.stages.predict import load_model
from wsi_pipeline.stages.tile import check_map_names

if TYPE_CHECKING:
    from tiling.store import PatchStore
    from wsi_pipeline.heatmaps.dense_maps import DenseMap


@dataclass(frozen=True)
class BuildHeatmap(Task):
    """Build the heatmap of one slide."""

    entry: SlideEntry
    model: str
    config: HeatmapConfig
    device: str

    @property
    def unit(self) -> Unit:
        """The slide, by the model."""
        return Unit("heatmap", self.entry.slide_id, self.model)

    @property
    def weight(self) -> int:
        """Size of the slide's file."""
        return slide_bytes(self.entry)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash scores and settings."""
        scores = digest_scores(run, self.model, self.entry.slide_id)
        return digest_settings(scores, slide_heatmap_settings(self.config))

    def earlier_fingerprint(self, run: RunFolder) -> str:
        """Hash what the scores were made from, and the settings."""
        origin = digest_scores_by_origin(run, self.model, self.entry.slide_id)
        return digest_settings(origin, slide_heatmap_settings(self.config))

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the values and a picture; of PatchNet its own map too, where asked for."""
        from wsi_pipeline.heatmaps.files import write_heatmap
        from wsi_pipeline.heatmaps.overlays import draw_overlay
        from wsi_pipeline.inference.scores import read_scores

        entry, config, model = self.entry, self.config, self.model
        scores = read_scores(job.run.scores(model, entry.slide_id))
        values = job.run.heatmap(model, entry.slide_id)
        picture = job.run.overlay(model, entry.slide_id)
        with open_store(job.run, entry) as store:
            heatmap = build_store_heatmap(scores, store, config)
            about: dict[str, Any] = {"mpp": store.info.mpp, "outlines": _outlines(entry, store)}
            thumbnail = _thumbnail(entry, store.info.mpp, config.thumbnail_px)
            write_heatmap(values, heatmap, mpp=store.info.mpp, name=entry.slide_id)
            draw_overlay(picture, heatmap, thumbnail, title=f"{entry.slide_id}, {model}", **about)
            height, width = heatmap.values.shape
            files = [values, picture]
            line = f"{width} x {height} px, highest score {_hottest(scores.scores)}"
            if config.dense_step_px is None:
                return files, line
            dense = self._map_densely(job, store, scores, on_progress)
            values = job.run.dense_map(model, entry.slide_id)
            picture = job.run.dense_overlay(model, entry.slide_id)
            write_heatmap(values, dense.heatmap, mpp=store.info.mpp, name=entry.slide_id)
            title = f"{entry.slide_id}, {model}, Q of each patch"
            draw_overlay(picture, dense.heatmap, thumbnail, title=title, **about)
        lost = f", {dense.n_unreadable} unreadable" if dense.n_unreadable else ""
        line += f"; own map of {pluralize(dense.n_mapped, 'patch')}{lost}"
        return [*files, values, picture], line

    def _map_densely(
        self, job: Job, store: "PatchStore", scores: Scores, on_progress: OnProgress
    ) -> "DenseMap":
        """Map PatchNet around every pixel of the patches."""
        from tiling.slide import open_slide
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.heatmaps.dense_maps import check_mappable, map_slide
        from wsi_pipeline.models.checkpoint import digest
        from wsi_pipeline.run.cluster import worker_number

        entry = self.entry
        checkpoint = job.run.checkpoint(self.model)
        if not checkpoint.is_file():
            raise HeatmapError(
                f"{entry.slide_id}: the map of {self.model} itself (dense_step_px) needs its "
                f"checkpoint in the run; copy the one that predict was given to {checkpoint}"
            )
        found = digest(checkpoint)
        if found != scores.attributes.get("checkpoint"):
            raise HeatmapError(
                f"{entry.slide_id}: its scores were made with another checkpoint than "
                f"{checkpoint}; "
                "run predict again"
            )
        model, _ = load_model(checkpoint, found)
        with open_slide(entry.path) as slide:
            return map_slide(
                check_mappable(model),
                slide,
                store.coords,
                geometry=store.geometry,
                step_px=self.config.dense_step_px or 1,
                device=resolve_device(self.device, worker=worker_number()),
                on_progress=on_progress,
            )


def _hottest(scores: Any) -> str:
    import numpy as np

    return format_number(np.nanmax(scores)) if np.isfinite(scores).any() else "not scored"


def _thumbnail(entry: SlideEntry, mpp: tuple[float, float], longest_px: int) -> Any:
    from tiling.overview import read_thumbnail
    from tiling.slide import open_slide

    with open_slide(entry.path) as slide:
        longest_um = max(side * axis for side, axis in zip(slide.size, mpp, strict=True))
        thumbnail, _ = read_thumbnail(slide, mpp=mpp, target_mpp=longest_um / longest_px)
    return thumbnail


def _outlines(entry: SlideEntry, store: "PatchStore") -> list[Any]:
    """Rings of the annotated tumour, (n, 2) level-0 px each."""
    import numpy as np
    from shapely import get_parts

    from tiling.annotation.slide_annotation import read_annotation_of_store

    if entry.annotation is None:
        return []
    parts = get_parts(read_annotation_of_store(entry.annotation, store).tumour)
    rings = [ring for part in parts for ring in (part.exterior, *part.interiors)]
    return [np.asarray(ring.coords) for ring in rings]


@dataclass(frozen=True)
class MapImages(Task):
    """Draw where one model looks in some images."""

    model: str
    cohort: ImageCohort
    checkpoint: Path
    method: str
    most: int | None  # of each class
    split: EvaluatedSplit | None
    device: str
    part: Shard | None = None  # of one task of a job array

    @property
    def unit(self) -> Unit:
        """All images, by the model; or a part of them."""
        return unit_of_part(Unit("heatmap", ALL, self.model), self.part)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, checkpoint, and which images are shown."""
        from wsi_pipeline.explain.image_maps import MAPS_SCHEMA

        return digest_settings(
            self.cohort.digest(),
            digest_file(self.checkpoint),
            self.most,
            MAPS_SCHEMA,
            self.method,
            *([self.split] if self.split else []),
            *([self.part] if self.part else []),
        )

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the maps of each image and an overview."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.explain import load_method
        from wsi_pipeline.explain.image_maps import MAPS_SCHEMA, write_image_map
        from wsi_pipeline.models.checkpoint import digest, load_checkpoint

        run = job.run
        entries, images = self.cohort.entries, self.cohort.array()
        network, _ = load_checkpoint(self.checkpoint)
        network = network.to(resolve_device(self.device))
        every = choose_shown(entries, images.unreadable, self.most, split=self.split)
        rows = share_of(every, self.part)
        folder = run.image_maps(self.model)
        (folder / "maps.json").unlink(missing_ok=True)  # it speaks of maps that are about to go
        files: list[Path] = []
        shown = []
        try:
            for number, row in enumerate(rows):
                pixels = np.array(images.pixels[row])
                made, picture, grey = write_image_map(
                    folder, entries[row].image_id, network, pixels, self.method
                )
                files += made
                shown.append((entries[row], picture, grey))
                on_progress(number + 1, len(rows))
        except BaseException:  # no mark will list them
            _remove(files)
            raise
        about = {
            "schema": MAPS_SCHEMA,
            "checkpoint": digest(self.checkpoint),
            "method": self.method,
            "probability": load_method(self.method).is_probability,
            "images": [entries[row].image_id for row in every],
        }
        if self.part is None:
            files += _finish_maps(folder, shown, about)
        else:
            whole = replace(self, part=None)
            found = {"fingerprint": whole.fingerprint(run), "data": self.cohort.digest()}
            arrays = {f"picture_{n}": picture for n, (_, picture, _) in enumerate(shown)}
            arrays |= {f"map_{n}": grey for n, (_, _, grey) in enumerate(shown)}
            names = [path.relative_to(run.path).as_posix() for path in files]
            files.append(part_path(run, whole.unit, self.part))
            write_part(
                files[-1], self.part.count, about | found, arrays | {"files": np.array(names, "U")}
            )
        return files, f"maps of {pluralize(len(rows), 'image')}"


def _finish_maps(folder: Path, shown: Sequence[Any], about: Mapping[str, Any]) -> list[Path]:
    """Draw the overview of all maps and, last, write what they are."""
    from wsi_pipeline.explain.image_maps import draw_overview

    files = [draw_overview(folder / "overview.png", shown), folder / "maps.json"]
    write_json(files[1], about)
    return files


def merge_maps(run: RunFolder, model: str) -> bool:
    """Finish the maps that the tasks of a job array have drawn, if they are all there."""
    cohort = ImageCohort(run)

    def write(parts: list[Part]) -> list[Path]:
        by_id = {e.image_id: e for e in cohort.entries}
        about = {k: v for k, v in parts[0].about.items() if k not in ("fingerprint", "data")}
        drawn = [
            (part.arrays[f"picture_{n}"], part.arrays[f"map_{n}"])
            for part in parts
            for n in range((len(part.arrays) - 1) // 2)
        ]
        shown = [(by_id[i], *both) for i, both in zip(about["images"], drawn, strict=True)]
        files = [run.path / name for part in parts for name in part.arrays["files"].tolist()]
        return files + _finish_maps(run.image_maps(model), shown, about)

    return merge_parts(run, Unit("heatmap", ALL, model), write, is_current=cohort.is_still)


def _remove(files: Sequence[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def choose_shown(
    entries: Sequence[ImageEntry],
    unreadable: Any,
    most: int | None,
    *,
    split: EvaluatedSplit | None = None,
) -> list[int]:
    """Choose the first `most` readable images of each class, of the split that is evaluated.

    Not set: of the test split where there is one, else of val, else of all.
    """
    splits = {e.split for e in entries}
    name = split or next((s for s in ("test", "val") if s in splits), "all")
    rows = [
        row for row, e in enumerate(entries) if name in (e.split, "all") and not unreadable[row]
    ]
    chosen: list[int] = []
    for label in (0, 1, -1):
        of_class = [row for row in rows if entries[row].label == label]
        chosen += of_class if most is None else of_class[:most]
    return chosen


def heatmap(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Scores -> heatmaps; of images, maps of those models that have any."""
    cohort = cohort_of(run)
    if isinstance(cohort, ImageCohort):
        named = choose_scored_models(run, models)
        return _map_images(cohort.prepared(), config, options, models=named)
    entries = cohort.entries
    check_map_names(config, entries)
    by_id = {e.slide_id: e for e in entries}
    chosen = choose_scored_models(run, models)
    tasks = [
        BuildHeatmap(by_id[slide_id], model, config.heatmap, options.device)
        for model in chosen
        for slide_id in scored(run, model, by_id)
    ]
    if not tasks:
        raise StageError(f"{run.path}: nothing to heatmap: {why_unscored(run, chosen, by_id)}")
    result = run_stage("heatmap", run, tasks, config, options)
    return replace(result, notes=name_unscored(run, chosen, by_id))


def _map_images(
    cohort: ImageCohort, config: Config, options: Options, *, models: Sequence[str]
) -> StageResult:
    """Checkpoints -> maps of some images, of the models that have any."""
    from wsi_pipeline.explain import check_method

    warn_of_unused(config, "heatmap")
    if config.heatmap.method is not None:
        check_method(config.heatmap.method)
    run = cohort.run
    reasons = {model: _why_no_maps(run, model, config) for model in models}
    notes = tuple(f"no maps of {model}: {reason}" for model, reason in reasons.items() if reason)
    mapped = [model for model, reason in reasons.items() if not reason]
    if not mapped:
        return StageResult("heatmap", (), (), (), notes)
    most, split = config.heatmap.maps_per_class, config.evaluate.split
    tasks = [
        MapImages(model, cohort, path, _method_of(path, config), most, split, options.device)
        for model, path in ((model, run.checkpoint(model)) for model in mapped)
    ]
    result = run_in_parts("heatmap", run, tasks, config, options, merge=merge_maps)
    return replace(result, notes=(*notes, *result.notes))


def _method_of(checkpoint: Path, config: Config) -> str:
    """Return the method that maps a model's images: the config's, else the architecture's own."""
    from wsi_pipeline.explain import choose_method
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.models.checkpoint import read_meta

    return config.heatmap.method or choose_method(MODELS[read_meta(checkpoint).model])


def _why_no_maps(run: RunFolder, model: str, config: Config) -> str:
    """Describe why a model with scores gets no maps; empty if it does."""
    from wsi_pipeline.explain import load_method
    from wsi_pipeline.inference.image_scores import read_scores
    from wsi_pipeline.models import MODELS
    from wsi_pipeline.models.checkpoint import read_meta

    path = run.checkpoint(model)
    if not path.is_file():
        return (
            "its scores are by a checkpoint outside the run; copy that file to "
            f"models/{model}/{path.name} and run heatmap again"
        )
    name = read_meta(path).model
    method = _method_of(path, config)
    if not load_method(method).explains(MODELS[name]):
        return f"{method} does not explain the architecture {name}; set another heatmap.method"
    _, about = read_scores(run.image_scores(model))
    if about["checkpoint"] != digest_file(path):
        return f"its scores are by another checkpoint than models/{model}; run predict again"
    return ""
