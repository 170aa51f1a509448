"""The stage ``export``: scores, or coordinates alone -> other tools' files."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from tiling.contracts import OnProgress
from tiling.files import remove_leftovers
from tiling.urls import is_url
from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.image_folder import ALL
from wsi_pipeline.cohort.kinds import ImageCohort, cohort_of
from wsi_pipeline.cohort.slides import digest_store, entries_in_shard, open_store, slide_bytes
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.exports import COORDS_ONLY, check_format, load_image_format
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import marked_file, read_names, relative_name
from wsi_pipeline.run.runner import Options, StageResult, read_run_json, run_stage
from wsi_pipeline.run.tasks import Done, Job, Task
from wsi_pipeline.stages.inputs import (
    DigestScores,
    choose_scored_models,
    digest_image_scores,
    digest_scores,
    digest_scores_by_origin,
    name_unscored,
    scored,
    scored_before,
    why_unscored,
)


@dataclass(frozen=True)
class ExportSlideFiles(Task):
    """Write one slide's scores in another tool's format."""

    entry: SlideEntry
    model: str  # empty: coordinates alone
    name: str  # of the format
    config: ExportConfig
    out: Path

    @property
    def unit(self) -> Unit:
        """The slide, by the model, in the format."""
        return Unit("export", self.entry.slide_id, self.model, self.name)

    @property
    def weight(self) -> int:
        """Size of the slide's file."""
        return slide_bytes(self.entry)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash scores, store and settings."""
        return self._fingerprint(run, digest_scores)

    def earlier_fingerprint(self, run: RunFolder) -> str:
        """Hash the same with what the scores were made from."""
        return self._fingerprint(run, digest_scores_by_origin)

    def _fingerprint(self, run: RunFolder, digest: DigestScores) -> str:
        """Hash everything but the scores, which `digest` hashes."""
        how = replace(self.config, splits=None, formats=())
        scores = digest(run, self.model, self.entry.slide_id) if self.model else None
        made_from = (scores, digest_store(run, self.entry))
        return digest_settings(*made_from, how, _from_run(run, self.out))

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the slide's files."""
        from wsi_pipeline.exports import load_format
        from wsi_pipeline.exports.base import ExportJob, ExportSlide, leave_unscored
        from wsi_pipeline.inference.scores import read_scores

        entry, model = self.entry, self.model
        with open_store(job.run, entry) as store:
            if model:
                scores = read_scores(job.run.scores(model, entry.slide_id))
            else:
                scores = leave_unscored(store.coords)
            slide = ExportSlide(store.info, store.geometry, model, scores)
        return load_format(self.name)(ExportJob(slide, self.config), self.out)


@dataclass(frozen=True)
class ExportImages(Task):
    """Write the scores of single images in another tool's format, a file for each."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "image"
    cohort: ImageCohort
    model: str
    name: str  # of the format
    config: ExportConfig
    out: Path

    @property
    def unit(self) -> Unit:
        """All images, by the model, in the format."""
        return Unit("export", ALL, self.model, self.name)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, scores and settings."""
        scores = digest_image_scores(run, self.model)
        how = replace(self.config, formats=())
        return digest_settings(self.cohort.digest(), scores, how, _from_run(run, self.out))

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the files of the images of the splits asked for."""
        import numpy as np

        from wsi_pipeline.contracts import Scores
        from wsi_pipeline.exports.base import ExportImage
        from wsi_pipeline.inference.image_scores import read_scores

        write, kind = load_image_format(self.name), self.cohort.array().kind
        height, width, _ = kind.shape
        config = self.config
        if config.class_name == ExportConfig.class_name:
            config = replace(config, class_name=kind.class_names[1])
        scored, _ = read_scores(job.run.image_scores(self.model))
        images = [i for i in scored if config.splits is None or i.split in config.splits]
        if not images:
            raise StageError("no image is in the splits named by export.splits; null takes all")
        files: list[Path] = []
        for number, image in enumerate(images):
            score, corner = np.array([image.score], np.float32), np.zeros((1, 2), np.int64)
            known = Scores(corner, score, {}, {})
            one = ExportImage(image.image_id, width, height, self.model, known)
            files += write(one, config, self.out)
            on_progress(number + 1, len(images))
        lost = sum(np.isnan(image.score) for image in images)
        line = pluralize(len(images), "image") + (f", {lost} without a score" if lost else "")
        return files, line


def _export_format(
    run: RunFolder,
    config: Config,
    options: Options,
    *,
    name: str,
    models: Sequence[str],
    out: Path | None,
) -> StageResult:
    cohort = cohort_of(run)
    if isinstance(cohort, ImageCohort):
        _check_images(cohort, name)
        cohort = cohort.prepared()
    chosen = _choose_models(run, name, models, options)
    settings = _fill_in(run, config, name)
    check_export(settings)
    by_id = {e.slide_id: e for e in cohort.slides if _is_wanted(e, settings)}
    mine = [e.slide_id for e in entries_in_shard(cohort.slides, options.shard)]
    mine = [slide_id for slide_id in mine if slide_id in by_id]

    def ready(model: str, slide_ids: Iterable[str]) -> list[str]:
        return scored(run, model, slide_ids) if model else _tiled(run, slide_ids)

    tasks: list[Task] = []
    for model in chosen:
        folder = _folder(run, name, model, out, several=len(chosen) > 1)
        if out is not None:
            _refuse_shared(run, name, model, folder)
        if out is not None and options.shard is None and folder.is_dir():
            remove_leftovers(folder)
        if isinstance(cohort, ImageCohort):
            tasks.append(ExportImages(cohort, model, name, settings, folder))
        for slide_id in ready(model, mine):
            tasks.append(ExportSlideFiles(by_id[slide_id], model, name, settings, folder))
    if not (tasks or scored_before(run, options) or any(ready(m, by_id) for m in chosen)):
        raise StageError(f"{run.path}: nothing to export: {_why_nothing(run, chosen, by_id)}")
    of_slides = not isinstance(cohort, ImageCohort)  # images are one unit
    result = run_stage("export", run, tasks, config, options, of_shard=of_slides)
    notes = name_unscored(run, [m for m in chosen if m], mine)
    return replace(result, notes=notes, output=out or run.path / "exports" / name)


def export(
    run: RunFolder,
    config: Config,
    options: Options,
    *,
    names: Sequence[str],
    models: Sequence[str] = (),
    out: Path | None = None,
) -> list[StageResult]:
    """Scores (or, of `COORDS_ONLY`, patch stores alone) -> files of formats, one after the other.

    Parameters
    ----------
    run : RunFolder
    config : Config
    options : Options
    names : sequence of str
        Formats of `wsi_pipeline.exports.FORMATS`.
    models : sequence of str
        Default: all that have scores. Of several formats, for those that hold scores.
    out : Path, optional
        Folder for the files; of several formats and models, each has its own in it. Default: in
        the run.

    Raises
    ------
    ConfigError
        If a format or a setting is unknown or senseless.
    StageError
        If there are no scores.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        check_format(name)
    of_scores = [name for name in names if name not in COORDS_ONLY] or names
    results = []
    for name in names:
        result = _export_format(
            run,
            config,
            options,
            name=name,
            models=models if name in of_scores else (),
            out=out / name if out is not None and len(names) > 1 else out,
        )
        results.append(replace(result, stage=f"export {name}"))
    return results


def _check_images(cohort: ImageCohort, name: str) -> None:
    """Refuse formats that say nothing of single images, and images that are not as in their files.

    Raises
    ------
    ConfigError
        Naming the formats there are, or the setting.
    """
    from wsi_pipeline.cohort.image_store import read_about

    load_image_format(name)
    size = read_about(cohort.run.tiles)["settings"].get("size")
    if size is not None:
        raise ConfigError(
            f"{name} counts pixels of the image files, and these were brought to {size[1]} x "
            f"{size[0]} px (images.size); tile without images.size, or use scores/<model>/"
            "images.csv as it is"
        )


def _choose_models(run: RunFolder, name: str, models: Sequence[str], options: Options) -> list[str]:
    if name in COORDS_ONLY:
        if models:
            raise ConfigError(f"{name} holds no scores: leave out --model {models[0]}")
        return [""]
    try:
        return choose_scored_models(run, models, options)
    except StageError as error:
        raise StageError(
            f"{error} (without any, where the patches lie: --format {' or '.join(COORDS_ONLY)})"
        ) from error


def _tiled(run: RunFolder, slide_ids: Iterable[str]) -> list[str]:
    return [s for s in slide_ids if Unit("tile", s).is_marked(run)]


def _why_nothing(run: RunFolder, models: Sequence[str], slide_ids: Collection[str]) -> str:
    if not slide_ids:
        return "no slide is in the splits named by export.splits; null takes all"
    if models == [""]:
        return f"no slide's patches are whole ({name_some(list(slide_ids))}); run tile again"
    return why_unscored(run, models, slide_ids)


def _is_wanted(entry: SlideEntry, settings: ExportConfig) -> bool:
    return settings.splits is None or entry.split in settings.splits


def _folder(run: RunFolder, name: str, model: str, out: Path | None, *, several: bool) -> Path:
    if out is None:
        return run.exports(name, model)
    if is_url(run.path):
        raise ConfigError(f"{run.path}: exports of a run at a URL are written to it; omit --out")
    return out / model if several else out


def _refuse_shared(run: RunFolder, name: str, model: str, folder: Path) -> None:
    """See that no other format or model has its files in a folder: names would clash."""
    own = Unit("export", model=model, variant=name).mark(run, "done").parent
    where = _from_run(run, folder)
    for mark in sorted((run.path / ".state" / "export").rglob("*.done.json")):
        if mark.parent == own:
            continue
        for file in read_names(mark):
            if Path(file).parent.as_posix() == where and marked_file(run.path, file).exists():
                of = " of ".join(mark.parent.relative_to(run.path / ".state/export").parts)
                raise ConfigError(
                    f"--out {folder} holds the export {of} ({Path(file).name}); name another folder"
                )


def _from_run(run: RunFolder, path: Path) -> str:
    return relative_name(path, run.path)


def _fill_in(run: RunFolder, config: Config, name: str) -> ExportConfig:
    """Take from the run what the settings leave to it, so that its figures can be found again."""
    # Heatmaps as they were written; detections as they were evaluated.
    stages = ("evaluate", "heatmap") if name == "camelyon16" else ("heatmap", "evaluate")
    recorded = read_run_json(run)

    def recorded_value(section: str, key: str, default: Any, stages: Sequence[str]) -> Any:
        for stage in stages:
            found = recorded.get(stage, {}).get("config", {}).get(section, {})
            if key in found:
                return found[key]
        return default

    asked, evaluate = config.export, config.evaluate
    values: dict[str, Any] = {
        "overlap": recorded_value("heatmap", "overlap", config.heatmap.overlap, stages),
        "detection_threshold": recorded_value(
            "evaluate", "detection_threshold", evaluate.detection_threshold, ["evaluate"]
        ),
        "detection_radius_um": recorded_value(
            "evaluate", "detection_radius_um", evaluate.detection_radius_um, ["evaluate"]
        ),
    }
    missing = {key: value for key, value in values.items() if getattr(asked, key) is None}
    return replace(asked, **missing)


def check_export(settings: ExportConfig) -> None:
    """Refuse settings by which nothing could be written."""
    if not settings.thresholds:
        raise ConfigError("export.thresholds: name at least one score in [0, 1], e.g. [0.5]")
    if not settings.class_name or not settings.class_name.isprintable():
        raise ConfigError(f"export.class_name: {settings.class_name!r} is no name")
