"""The stage ``explain``: patches or images -> maps of where a model looks, by several methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.files import digest_file, move_into, open_file, scratch_folder, write_json
from tiling.wording import pluralize
from wsi_pipeline.cohort.kinds import cohort_of
from wsi_pipeline.cohort.stain_view import stain_method
from wsi_pipeline.config.reading import Config, as_plain, digest_settings
from wsi_pipeline.config.settings import ExplainConfig
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import METHODS, check_layer, list_methods
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import READ_ONLY, Options, StageResult, run_stage
from wsi_pipeline.run.shards import select_shard
from wsi_pipeline.run.tasks import Done, Job, NetworkTask
from wsi_pipeline.stages.candidates import (
    Candidates,
    choose_subjects,
    list_candidates,
    read_places,
)
from wsi_pipeline.stages.explained_masks import (
    FILTERS,
    JudgeFilters,
    TraceCurves,
    trace,
    write_table,
)
from wsi_pipeline.stages.inputs import choose_scored_models
from wsi_pipeline.stages.model_sources import load_model
from wsi_pipeline.stages.subjects import Subject, crop_pixels, describe_place, read_pixels

if TYPE_CHECKING:
    from wsi_pipeline.explain.base import Method, Settings

EXPLAIN_SCHEMA = "wsi-pipeline/explain/1"


@dataclass(frozen=True)
class ExplainSubjects(NetworkTask):
    """Explain some patches or images of one model by one method."""

    noun: ClassVar[str] = "method"
    counted: ClassVar[str] = "map"
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
            maps, pictures, logits, places = [], [], [], []
            for number, one in enumerate(self.subjects):
                pixels = read_pixels(job.run, one, stain=stain_method(network))
                values = pixels.values[None]
                (made,) = method.explain(network, values, target=self.config.target, **how)
                pictures.append(crop_pixels(pixels, made.values.shape))
                place = describe_place(pictures[-1])
                write_explanation(scratch, one.name, method, made, place=place)
                places.append(place)
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
            write_json(scratch / "explain.json", self._describe(found, settings, logits, places))
            files = move_into(scratch, out, last="explain.json")
        return files, f"{pluralize(len(self.subjects), 'map')} by {self.method}"

    def _describe(
        self,
        checkpoint: str,
        settings: "Settings",
        logits: Sequence[float],
        places: Sequence[dict[str, Any] | None],
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
                    "slide_id": None if one.entry is None else one.entry.slide_id,
                    "place": place,
                }
                for one, logit, place in zip(self.subjects, logits, places, strict=True)
            ],
        }


def _finite(score: float) -> float | None:
    return score if np.isfinite(score) else None


def _load(name: str, config: ExplainConfig) -> "tuple[Method, Settings]":
    from wsi_pipeline.explain import load_method

    method = load_method(name)
    return method, method.choose_settings(config.layer)


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
        model: list_candidates(cohort, config, model, named)
        for model in choose_scored_models(run, models)
    }
    chosen = {model: choose_subjects(run, of, config, named) for model, of in found.items()}
    by_mask = named is None and config.explain.masked > 0
    lacking = {
        model: _find_lack(run, model, of, chosen[model], by_mask=by_mask)
        for model, of in found.items()
    }
    results = []
    pairs = {f"{name} {model}": 1 for name in methods for model in found}
    in_shard = select_shard(pairs, options.shard)
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
            if not why and f"{name} {model}" in in_shard
        ]
        result = StageResult("explain", (), (), ())
        if tasks:
            result = run_stage("explain", run, tasks, config, options, of_shard=True)
        results.append(replace(result, stage=f"explain {name}", notes=notes))
        curves = [
            TraceCurves(
                task.model,
                name,
                task.checkpoint,
                task.subjects,
                config.explain.curve_steps,
                config.explain.seed,
                options.device,
            )
            for task in tasks
        ]
        results += trace(run, config, options, curves)
    ready = {model: chosen[model] for model, lack in lacking.items() if not lack}
    if by_mask and "patchnet" in methods:
        results += _judge_filters(run, config, options, found, ready)
    try:
        if by_mask or named is not None:
            lines = [line for model, of in ready.items() for line in write_table(run, model, of)]
            results[-1] = replace(results[-1], notes=(*results[-1].notes, *lines))
        for model, subjects in chosen.items():
            _draw_sheet(run, model, subjects)
    except OSError as error:
        if error.errno not in READ_ONLY or any(result.done for result in results):
            raise  # else all is as it was, in a run folder that cannot be written to
    return results


def _judge_filters(
    run: RunFolder,
    config: Config,
    options: Options,
    found: Mapping[str, Candidates],
    ready: Mapping[str, tuple[Subject, ...]],
) -> list[StageResult]:
    """Choose each PatchNet's best filter on the split val, and measure it on these subjects."""
    cohort = cohort_of(run)
    on_val = replace(config, evaluate=replace(config.evaluate, split="val"))
    tasks, notes = [], []
    for model, subjects in ready.items():
        if _why_not(run, model, "patchnet"):
            continue
        candidates = list_candidates(cohort, on_val, model)
        val = candidates.masked(run, config.explain)
        if not val or {one.name for one in val} & {one.name for one in subjects}:
            why = "it is the split that is evaluated" if val else "nothing scored in it has a mask"
            notes.append(f"no filter of {model} is chosen on the split val: {why}")
            continue
        inputs = (*found[model].inputs, *candidates.inputs)
        tasks.append(
            JudgeFilters(model, run.checkpoint(model), val, subjects, inputs, options.device)
        )
    result = StageResult("explain", (), (), ())
    if tasks:
        result = run_stage("explain", run, tasks, config, options)
    return [replace(result, stage=f"explain {FILTERS}", notes=tuple(notes))]


def _find_lack(
    run: RunFolder,
    model: str,
    candidates: Candidates,
    subjects: Sequence[Subject],
    *,
    by_mask: bool,
) -> str:
    """Say why a model is not explained by any method; empty: it can be."""
    checkpoint = run.checkpoint(model)
    if not subjects and by_mask:
        return "nothing scored in the evaluated split has a mask with object and background"
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
    from wsi_pipeline.models import find_architecture
    from wsi_pipeline.models.checkpoint import read_meta

    architecture = read_meta(run.checkpoint(model)).model
    explains = load_method(name).explains(find_architecture(architecture))
    return "" if explains else f"the method does not explain the architecture {architecture}"


def _draw_sheet(run: RunFolder, model: str, subjects: Sequence[Subject]) -> None:
    """Draw the maps of all methods that explained these patches or images, side by side."""
    from PIL import Image

    from wsi_pipeline.explain.files import SHEET_ROWS
    from wsi_pipeline.explain.pictures import draw_sheet

    def read_grey(path: Path) -> NDArray[np.uint8] | None:
        if not path.is_file():
            return None
        with open_file(path, "rb") as file, Image.open(file) as picture:
            return np.asarray(picture)

    folder = run.explanations(model)
    names = [n for n in METHODS if Unit("explain", model=model, variant=n).is_marked(run)]
    rows: list[tuple[Sequence[str], Sequence[NDArray[np.uint8] | None]]] = [(["", *names], [])]
    if len(subjects) > SHEET_ROWS:
        rows.append(([f"the first {SHEET_ROWS} of {len(subjects)}"], []))
    for one in subjects[:SHEET_ROWS]:
        maps = [read_grey(folder / name / f"{one.name}.png") for name in names]
        image, shapes = read_pixels(run, one), [of.shape for of in maps if of is not None]
        seen = crop_pixels(image, shapes[0]) if shapes else image
        rows.append(([_title(one)], [seen.values, *maps]))
    if names and subjects:
        draw_sheet(folder / "sheet.png", rows)


def _title(one: Subject) -> str:
    label = "unknown" if one.label < 0 else str(one.label)
    return f"{one.name}: class {label}, score {one.score:.3f}"
