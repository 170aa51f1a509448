"""Explanations against masks: curves of each map, PatchNet's filters, one table of all methods."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import OnProgress
from tiling.files import digest_file, move_into, read_json_object, scratch_folder, write_json
from tiling.wording import pluralize
from wsi_pipeline.cohort.stain_view import stain_method
from wsi_pipeline.config.reading import Config, digest_settings
from wsi_pipeline.contracts import Rule
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.errors import StageError
from wsi_pipeline.explain import METHODS
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, StageResult, run_stage
from wsi_pipeline.run.tasks import Done, Job, NetworkTask
from wsi_pipeline.stages.model_sources import load_model
from wsi_pipeline.stages.subjects import Masks, Subject, read_pixels

if TYPE_CHECKING:
    from wsi_pipeline.evaluation.explanations import FilterMaps, MeasuredMethod
    from wsi_pipeline.explain.base import Target
    from wsi_pipeline.models.base import PatchClassifier

CURVES_SCHEMA = "wsi-pipeline/explanation-curves/1"
FILTERS_SCHEMA = "wsi-pipeline/explanation-filters/1"
FILTERS = "patchnet_filters"  # name of their folder, next to those of the methods
CURVE_COLUMNS = ("name", "share", "deletion", "insertion")


def curves_unit(model: str, method: str) -> Unit:
    """Name the curves of a method's maps."""
    return Unit("explain", model=model, variant=f"{method}_curves")


@dataclass(frozen=True)
class TraceCurves(NetworkTask):
    """Trace the deletion and insertion curves of one method's finished maps."""

    noun: ClassVar[str] = "method"
    counted: ClassVar[str] = "map"
    model: str
    method: str
    checkpoint: Path
    subjects: tuple[Subject, ...]
    steps: int
    seed: int
    device: str

    @property
    def unit(self) -> Unit:
        """The model, by the method's curves."""
        return curves_unit(self.model, self.method)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash the maps, the checkpoint and the settings."""
        maps = run.explanations(self.model) / self.method
        if not Unit("explain", model=self.model, variant=self.method).is_marked(run):
            raise StageError(f"{self.model}: its maps by {self.method} are not finished")
        made = [digest_file(maps / f"{one.name}.tif") for one in self.subjects]
        about = [digest_file(maps / "explain.json"), digest_file(self.checkpoint)]
        chosen = [(one.name, one.row) for one in self.subjects]
        return digest_settings(CURVES_SCHEMA, made, about, chosen, self.steps, self.seed)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write ``curves.csv``, and the areas under the curves in ``curves.json``."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.explain.curves import CurveSettings, trace_curves
        from wsi_pipeline.explain.files import read_values
        from wsi_pipeline.models.checkpoint import digest

        network, _ = load_model(self.checkpoint, digest(self.checkpoint))
        network = network.to(resolve_device(self.device))
        maps = job.run.explanations(self.model) / self.method
        about = read_json_object(maps / "explain.json")
        settings = CurveSettings(steps=self.steps)
        rows: list[tuple[Any, ...]] = []
        areas = {}
        for number, one in enumerate(self.subjects):
            pixels = read_pixels(job.run, one, stain=stain_method(network)).values
            target = _choose_target(self.method, network, one, about["target"])
            values = read_values(maps / f"{one.name}.tif", error=StageError, stage="explain")
            found = trace_curves(
                network, pixels, values, target=target, seed=self.seed, config=settings
            )
            columns = (found.share, found.deletion, found.insertion)
            rows += [(one.name, *map(float, row)) for row in zip(*columns, strict=True)]
            areas[one.name] = {
                "target": target,
                "map": digest_file(maps / f"{one.name}.tif"),
                "deletion_auc": found.deletion_auc,
                "insertion_auc": found.insertion_auc,
            }
            on_progress(number + 1, len(self.subjects))
        out = job.run.explanations(self.model) / self.unit.variant
        with scratch_folder(out) as scratch:
            write_csv(scratch / "curves.csv", CURVE_COLUMNS, rows)
            write_json(scratch / "curves.json", {"schema": CURVES_SCHEMA, "areas": areas})
            files = move_into(scratch, out, last="curves.json")
        return files, f"{pluralize(len(areas), 'pair')} of curves of {self.method}"


def _choose_target(
    method: str, network: "PatchClassifier", one: Subject, asked: "Target | None"
) -> "Target":
    """Return the class that a map explains: the one that was asked for, or the method's own."""
    from wsi_pipeline.explain import load_method

    if asked is not None or not load_method(method).of_predicted:
        return 1 if asked is None else asked
    rule = Rule(network.threshold, network.strict)
    return 1 if rule.decide(np.array([one.score]))[0] else 0


def trace(
    run: RunFolder, config: Config, options: Options, tasks: Sequence[TraceCurves]
) -> list[StageResult]:
    """Trace the curves of one method's maps, of the models of a shard; none if not asked for."""
    if not tasks or not config.explain.curve_steps:
        return []
    result = run_stage("explain", run, tasks, config, options, of_shard=True)
    return [replace(result, stage=f"explain {tasks[0].method} curves")]


@dataclass(frozen=True)
class JudgeFilters(NetworkTask):
    """Choose PatchNet's best filter on images of val, and measure it on those evaluated."""

    noun: ClassVar[str] = "model"
    counted: ClassVar[str] = "map"
    model: str
    checkpoint: Path
    val: tuple[Subject, ...]
    subjects: tuple[Subject, ...]
    inputs: tuple[str, ...]  # digests of what both are read from
    device: str

    @property
    def unit(self) -> Unit:
        """The model, by its filters."""
        return Unit("explain", model=self.model, variant=FILTERS)

    def fingerprint(self, run: RunFolder) -> str:
        """Hash images, masks and the checkpoint."""
        chosen = [[(one.name, one.row) for one in part] for part in (self.val, self.subjects)]
        on_masks = digest_masks(run, (*self.val, *self.subjects))
        digests = [digest_file(self.checkpoint), *self.inputs, *on_masks]
        return digest_settings(FILTERS_SCHEMA, digests, chosen)

    def __call__(self, job: Job, on_progress: OnProgress) -> Done:
        """Write ``filters.csv``, and the maps' figures of the chosen filter in ``filters.json``."""
        from wsi_pipeline.config.devices import resolve_device
        from wsi_pipeline.evaluation.explanations import judge_filters
        from wsi_pipeline.models.checkpoint import digest

        checkpoint = digest(self.checkpoint)
        network, _ = load_model(self.checkpoint, checkpoint)
        network = network.to(resolve_device(self.device))
        masks = Masks(job.run)
        both = (*self.val, *self.subjects)
        found = []
        for number, one in enumerate(both):
            found.append(self._localise(network, one, job.run, masks))
            on_progress(number + 1, len(both))
        on_val, on_test = found[: len(self.val)], found[len(self.val) :]
        judged = judge_filters(on_val, on_test)
        out = job.run.explanations(self.model) / FILTERS
        with scratch_folder(out) as scratch:
            judged.write(scratch / "filters.csv")
            about: dict[str, Any] = {
                "schema": FILTERS_SCHEMA,
                "val": [one.name for one in self.val],
                "test": [one.name for one in self.subjects],
                "checkpoint": checkpoint,
                "chosen": None,
            }
            line = f"{len(judged.test) // 2} filters of both signs"
            if (best := judged.chosen) is not None:
                auc = judged.test[best].roc_auc
                about["chosen"] = {"filter": best[0], "sign": best[1]}
                names = [one.name for one in self.subjects]
                of_best = [asdict(image[best]) for image in on_test]
                about["chosen_on_test"] = dict(zip(names, of_best, strict=True))
                line += f"; chosen on val: filter {best[0]} ({'+' if best[1] > 0 else '-'})"
                line += "" if auc is None else f", ROC AUC {auc:.3f} where it was not chosen"
            write_json(scratch / "filters.json", about)
            files = move_into(scratch, out, last="filters.json")
        return files, line

    def _localise(
        self, network: "PatchClassifier", one: Subject, run: RunFolder, masks: Masks
    ) -> "FilterMaps":
        from wsi_pipeline.evaluation.explanations import localise_filters
        from wsi_pipeline.evaluation.image_localisation import crop_mask
        from wsi_pipeline.explain import load_method

        mask = masks.read(one)
        if mask is None:
            raise StageError(f"{one.name}: its mask is no longer there; run explain again")
        pixels = read_pixels(run, one, stain=stain_method(network)).values
        (made,) = load_method("patchnet").explain(network, pixels[None])
        raw = getattr(made.details, "raw")  # noqa: B009  PatchNet's own details
        return localise_filters(raw, crop_mask(mask, raw.shape[1:]))


def digest_masks(run: RunFolder, subjects: Sequence[Subject]) -> list[str]:
    """Hash the files that subjects' masks are read from."""
    of_images = [run.tiles / "masks.npy"] if any(one.entry is None for one in subjects) else []
    annotations = {one.entry.annotation for one in subjects if one.entry is not None}
    files = [*of_images, *sorted(path for path in annotations if path is not None)]
    return [digest_file(path) for path in files]


# ------------------------------------------------------------ the table


def write_table(run: RunFolder, model: str, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Measure all finished methods that explained these subjects, on those that have a mask.

    Writes ``explanations/<model>/methods.csv`` and ``methods_images.csv``.

    Returns
    -------
    lines : tuple of str
        The table, to be printed; or why there is none.
    """
    from wsi_pipeline.evaluation.explanations import measure_constants, write_methods

    masks = Masks(run)
    read = {one.name: masks.read(one) for one in subjects}
    known = {name: mask for name, mask in read.items() if mask is not None}
    if not known:
        return (f"{model}: nothing that was explained has a mask, so maps are not measured",)
    checkpoint = digest_file(run.checkpoint(model))
    found = [_measure(run, model, name, known, checkpoint) for name in METHODS]
    measured = [one for one in found if one is not None]
    if (best := _measure_filter(run, model, known, checkpoint)) is not None:
        measured.append(best)
    measured += measure_constants(known)
    path = write_methods(run.explanations(model), measured)
    title = f"{model}: {pluralize(len(known), 'map')} of each method on masks, in {path}"
    return (title, *_print_rows(measured))


def _measure(
    run: RunFolder,
    model: str,
    method: str,
    masks: dict[str, NDArray[np.bool_]],
    checkpoint: str,
) -> "MeasuredMethod | None":
    """Measure one method; None where it has not explained all of these by this checkpoint."""
    from wsi_pipeline.evaluation.explanations import MeasuredMap, MeasuredMethod
    from wsi_pipeline.evaluation.image_localisation import localise_image
    from wsi_pipeline.explain import load_method
    from wsi_pipeline.explain.files import is_constant, read_values

    folder = run.explanations(model) / method
    about = _read_about(run, model, method, "explain.json")
    if about is None or about["checkpoint"] != checkpoint:
        return None
    if not set(masks) <= {one["name"] for one in about["explained"]}:
        return None
    probability = load_method(method).is_probability
    areas = _read_areas(run, model, method)
    maps = []
    for name, mask in masks.items():
        path = folder / f"{name}.tif"
        values = read_values(path, error=StageError, stage="explain")
        traced = areas.get(name, {})
        # Saliency maps of both classes may be the same, and their curves are not.
        of_another = about["target"] not in (None, traced.get("target"))
        if traced and (of_another or traced["map"] != digest_file(path)):
            traced = {}  # of an earlier map
        on_mask = localise_image(values, mask, probability=probability)
        areas_of = (traced.get("deletion_auc"), traced.get("insertion_auc"))
        maps.append(MeasuredMap(name, on_mask, is_constant(values), *areas_of))
    return MeasuredMethod(method, tuple(maps), about["target"])


def _read_areas(run: RunFolder, model: str, method: str) -> dict[str, Any]:
    """Read the areas under the curves of a method's maps, if they were traced, by name."""
    about = _read_about(run, model, curves_unit(model, method).variant, "curves.json")
    return {} if about is None else dict(about["areas"])


def _read_about(run: RunFolder, model: str, name: str, file: str) -> dict[str, Any] | None:
    """Read what a finished unit wrote last; None: it is not finished, or its files were removed."""
    path = run.explanations(model) / name / file
    if not Unit("explain", model=model, variant=name).is_marked(run) or not path.is_file():
        return None
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: damaged ({error}); run explain again") from error


def _measure_filter(
    run: RunFolder, model: str, masks: dict[str, NDArray[np.bool_]], checkpoint: str
) -> "MeasuredMethod | None":
    """Take the figures of PatchNet's filter that was chosen on val, if they are of these images."""
    from wsi_pipeline.evaluation.explanations import MeasuredMap, MeasuredMethod
    from wsi_pipeline.evaluation.localisation import ImageLocalisation

    about = _read_about(run, model, FILTERS, "filters.json")
    if about is None or about["checkpoint"] != checkpoint or about["chosen"] is None:
        return None
    if not set(masks) <= set(about["test"]):
        return None
    figures = about["chosen_on_test"]
    maps = tuple(MeasuredMap(name, ImageLocalisation(**figures[name])) for name in masks)
    sign = "+" if about["chosen"]["sign"] > 0 else "-"
    return MeasuredMethod(f"patchnet filter {about['chosen']['filter']} ({sign})", maps, 1)


def _print_rows(measured: Sequence["MeasuredMethod"]) -> list[str]:
    """Lay the table out for the terminal."""
    from wsi_pipeline.evaluation.explanations import METHOD_COLUMNS

    cells = [[_short(v) for v in row] for row in (METHOD_COLUMNS, *(m.row() for m in measured))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
