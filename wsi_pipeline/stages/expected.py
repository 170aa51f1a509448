"""The units of work that a run has begun: what `collect` checks, and what `status` counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wsi_pipeline.cohort.image_folder import ALL
from wsi_pipeline.cohort.kinds import Cohort
from wsi_pipeline.config.stages import STAGES, Stage
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.mark_index import MarkIndex, index_marks
from wsi_pipeline.run.state import read_splits


@dataclass(frozen=True)
class Expected:
    """A stage that has begun, by one model and of one variant, and its units."""

    stage: str
    units: Sequence[Unit]
    variant: str = ""
    model: str = ""

    @property
    def title(self) -> str:
        """Name for messages."""
        return " ".join(filter(None, (self.stage, self.variant, self.model)))

    @property
    def is_one(self) -> bool:
        """Whether it is one piece of work: all images, a model or the report."""
        return [unit.slide_id for unit in self.units] in ([ALL], [""])


def index_stages(run: RunFolder) -> MarkIndex:
    """List the marks of all stages, in one pass."""
    return index_marks(run, tuple(stage.name for stage in STAGES))


def list_expected(
    run: RunFolder, cohort: Cohort, stages: Mapping[str, Any], marks: MarkIndex
) -> list[Expected]:
    """List the stages that have begun, according to files and marks.

    Parameters
    ----------
    run, cohort
    stages : mapping
        Settings of each stage, as recorded in ``run.json``.
    marks : MarkIndex
    """
    found: list[Expected] = []
    for stage in STAGES:
        if stage.unit == "slide":
            found.append(Expected(stage.name, [Unit(stage.name, s) for s in cohort.units]))
        elif stage.unit == "model":
            found += _expect_models(run, stage, marks)
        elif stage.unit == "run":
            begun = any(unit == "run" for unit in _names(marks, stage.name))
            found += [Expected(stage.name, [Unit(stage.name)])] if begun else []
        else:
            for variant, model in _find_begun(run, stage, marks):
                config = stages.get(stage.name, {}).get("config", {}).get(stage.name) or {}
                asked = read_splits(run, stage.name, variant, model, config.get("splits"))
                slides = _wanted(cohort, stage, asked, model, marks)
                units = [Unit(stage.name, s, model, variant) for s in slides]
                found.append(Expected(stage.name, units, variant, model))
    return found


def _names(marks: MarkIndex, stage: str) -> set[str]:
    folder = marks.of(stage)
    return folder.done | folder.failed | folder.earlier


def _wanted(
    cohort: Cohort, stage: Stage, asked: Sequence[str] | None, model: str, marks: MarkIndex
) -> list[str]:
    """List the units that a stage was last asked to work on, and can."""
    always = () if stage.reads_scores else (None,)
    splits = None if asked is None else (*asked, *always)
    scored_by = model if stage.reads_scores else ""
    return cohort.ready_units(splits, marks, scored_by=scored_by)


def _find_begun(run: RunFolder, stage: Stage, marks: MarkIndex) -> list[tuple[str, str]]:
    """List the variants and models that a stage of slides and models has begun."""
    if stage.variants:
        return _find_variants(stage.name, marks)
    # Its files may have been purged, or its marks.
    marked = {names[0] for names, _ in marks.below(stage.name)}
    with_files = run.models_with(stage.folder) if stage.folder else []
    return [("", model) for model in sorted({*with_files, *marked})]


def _find_variants(stage: str, marks: MarkIndex) -> list[tuple[str, str]]:
    """List the variants and models (of an export of coordinates: none) that were begun."""
    return [
        (names[0], names[1] if names[1:] else "")
        for names, folder in marks.below(stage)
        if folder.has_files
    ]


def _expect_models(run: RunFolder, of: Stage, marks: MarkIndex) -> list[Expected]:
    """List the models that a stage has begun; a checkpoint that was copied in is none of them."""
    stage = of.name
    if of.variants:
        return [
            Expected(stage, [Unit(stage, "", model, variant)], variant, model)
            for variant, model in _find_variants(stage, marks)
        ]
    found = {names[0] for names, _ in marks.below(stage)}
    if stage == "train":  # one that was stopped has no mark yet
        found |= {m for m in run.models_with("models") if not run.checkpoint(m).is_file()}
    return [Expected(stage, [Unit(stage, model=m)], model=m) for m in sorted(found)]
