"""The stage ``report``: everything in the run folder -> one HTML file."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tiling.contracts import OnProgress
from tiling.files import json_text, read_json_object
from tiling.wording import pluralize
from wsi_pipeline.cohort.kinds import cohort_of, warn_of_unused
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.config.settings import ReportConfig
from wsi_pipeline.errors import ReportError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import find_problems, read_mark
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.state import SPLITS_FILE
from wsi_pipeline.run.tasks import Done, Job, Task

NOT_REPORTED = (".ome.tif", ".h5", ".npy")  # files that a report is not made from


@dataclass(frozen=True)
class ReportRun(Task):
    """Write the report of a run."""

    noun: ClassVar[str] = "report"
    models: Sequence[str]
    config: ReportConfig
    of_images: bool

    @property
    def unit(self) -> Unit:
        """The run."""
        return Unit("report")

    def fingerprint(self, run: RunFolder) -> str:
        """Hash the marks of all stages that a report shows; it covers the whole run folder."""
        _check_reported(run, self.models)
        state = run.path / ".state"
        found = {path.relative_to(state): path for path in sorted(state.rglob("*.json"))}
        marks = {
            name.as_posix(): _read_plain(path)
            for name, path in found.items()
            if name.parts[0] not in ("report", "export")
            and not name.match("*.earlier.json")
            and name.name != SPLITS_FILE
        }
        return digest_settings(marks, list(self.models), self.config)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write the page, and of slides the figures."""
        from wsi_pipeline.report.build import build_report
        from wsi_pipeline.report.images import build_image_report

        if self.of_images:
            path = build_image_report(
                job.run.path, models=self.models, n_pictures=self.config.slide_pictures
            )
            return [path], f"{path.stat().st_size / 2**20:.1f} MiB"
        figures: list[Path] = []
        path = build_report(
            job.run.path,
            models=self.models,
            context=self.config.context,
            n_pictures=self.config.slide_pictures,
            figures=figures,
        )
        size = f"{path.stat().st_size / 2**20:.1f} MiB"
        return [path, *figures], f"{size}, {pluralize(len(figures), 'figure file')}"


def report(
    run: RunFolder, config: Config, options: Options, *, models: Sequence[str] = ()
) -> StageResult:
    """Everything in the run folder -> one HTML file."""
    of_images = cohort_of(run).of_images
    if of_images:
        warn_of_unused(config, "report")
    found = list(dict.fromkeys(run.models_with("models") + run.models_with("scores")))
    unknown = [name for name in models if name not in found]
    if unknown:
        raise StageError(f"{run.path}: no files of the model {', '.join(unknown)} to report on")
    task = ReportRun(tuple(models) or tuple(found), config.report, of_images)
    return run_stage("report", run, [task], config, options)


def _read_plain(path: Path) -> str:
    """Return the text of a mark as its stage wrote it; empty where it is damaged."""
    try:
        value = read_json_object(path)
    except (OSError, ValueError):
        return ""
    value.pop("damaged", None)
    return json_text(value)


def _check_reported(run: RunFolder, models: Sequence[str]) -> None:
    """Refuse to report on damaged files; parts that are missing are named in the report.

    Raises
    ------
    ReportError
        Naming a file and its stage.
    """
    state = run.path / ".state"
    shown = [*state.glob("tile/*.done.json"), *state.glob("label_audit/*.done.json")]
    for stage in ("train", "predict", "heatmap", "evaluate"):
        shown += [mark for model in models for mark in (state / stage / model).glob("*.done.json")]
    for path in sorted(shown):
        mark = read_mark(path)
        if mark is None:
            continue
        names = [name for name in mark.files if not name.endswith(NOT_REPORTED)]
        for problem in find_problems(run.path, path, replace(mark, damaged=()), names):
            if not problem.is_missing:
                stage = path.relative_to(state).parts[0]
                command = "tile" if stage == "label_audit" else stage
                raise ReportError(f"{problem}; run {command} again")
