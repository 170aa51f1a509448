"""The ``plan`` command: what a run would do, found by the code that does it; nothing is written.

Patches, labels, files and bytes of the patch stores are counted as tiling counts them. Times come
from a short probe of this machine, and what the models will say is not known yet, so score files
and heatmaps are estimates.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tiling.contracts import Footprint, TileConfig
from tiling.errors import ExpectedError, SlideError
from tiling.wording import pluralize
from wsi_pipeline.cohort.splits import advise_missing_split
from wsi_pipeline.config.reading import Config, anchor_paths
from wsi_pipeline.config.settings import TrainConfig
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import ConfigError, PipelineError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.planning.around import NOTHING, plan_around
from wsi_pipeline.planning.lookers import look_at_each
from wsi_pipeline.run.cluster import Shard, select_shard
from wsi_pipeline.run.progress import StageProgress
from wsi_pipeline.run.slide_contents import TileInputs, old_tile_fingerprint, tile_inputs
from wsi_pipeline.run.state import State, unit_state
from wsi_pipeline.stages.inputs import slide_bytes
from wsi_pipeline.stages.label_audit import Audited, audit_slide
from wsi_pipeline.stages.tile import list_entries

if TYPE_CHECKING:
    from torch import Tensor

    from tiling.contracts import Slide
    from tiling.tile_plan import TilePlan
    from wsi_pipeline.models import PatchClassifier

PROBE_PATCHES, PROBE_S = 8, 1.0  # per slide: read so many patches, no longer than that
MODEL_PROBE_S = 5.0  # per model
BACKWARD = 3  # a training step costs about three forward passes (forward, and two products back)
# From the files of the demo: the frame of a score file and of a heatmap; the largest overlay.
SCORES_BYTES, BYTES_PER_SCORE, HEATMAP_BYTES, OVERLAY_BYTES = 9_000, 20, 2_300, 2_000_000
PYRAMID = 4 / 3  # a pyramid's levels together, of its first


@dataclass(frozen=True)
class PlanTask:
    """One slide to plan, with all that is needed."""

    entry: SlideEntry
    config: TileConfig
    run: Path | None


@dataclass(frozen=True)
class SlidePlan:
    """What would become of one slide."""

    slide_id: str
    split: str | None = None
    state: State = "missing"
    problem: str = ""  # why it would fail; empty if it would not
    patches: int = 0
    positive: int = 0
    negative: int = 0
    ignored: int = 0
    unlabelled: int = 0
    bytes: int = 0  # patch store and picture
    files: int = 0
    heatmap_bytes: int = 0  # at most, of one model's values
    seconds: float = 0.0  # to tile it; 0 where it is finished
    unreadable_probes: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelPlan:
    """What a model would cost."""

    name: str
    seconds_per_patch: float | None  # a forward pass here; None: could not be probed
    train_patches: int  # at most, over all epochs
    predict_patches: int
    problem: str = ""

    @property
    def train_seconds(self) -> float | None:
        """At most: training may stop early."""
        each = self.seconds_per_patch
        return None if each is None else BACKWARD * each * self.train_patches

    @property
    def predict_seconds(self) -> float | None:
        """For all slides."""
        return (
            None
            if self.seconds_per_patch is None
            else (self.seconds_per_patch * self.predict_patches)
        )


@dataclass(frozen=True)
class RunPlan:
    """What a whole run would do."""

    slides: tuple[SlidePlan, ...]
    around: Footprint = NOTHING  # what tile writes besides: the label audit, run.json, ...
    models: tuple[ModelPlan, ...] = ()
    estimates: dict[str, tuple[int, int]] = field(default_factory=dict)  # stage -> files, bytes
    free_bytes: int | None = None
    problems: tuple[str, ...] = ()  # of the run as a whole
    shard_bytes: tuple[int, ...] = ()  # of slide files in each shard
    workers: int = 1

    @property
    def new(self) -> list[SlidePlan]:
        """Slides that would be tiled."""
        return [s for s in self.slides if not s.problem and s.state != "finished"]

    @property
    def need_bytes(self) -> int:
        """Room that would be taken, estimates included."""
        return self.new_bytes + sum(size for _, size in self.estimates.values())

    @property
    def new_bytes(self) -> int:
        """Bytes that `tile` would write."""
        return sum(s.bytes for s in self.new) + self.around.bytes

    @property
    def new_files(self) -> int:
        """Files that `tile` would write."""
        return sum(s.files for s in self.new) + self.around.files

    @property
    def exit_code(self) -> int:
        """0 all would work, 3 some would fail, 1 nothing could be done."""
        failing = sum(bool(s.problem) for s in self.slides)
        if failing == len(self.slides):
            return 1
        return 3 if failing or self.problems or any(m.problem for m in self.models) else 0

    def as_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "slides": [asdict(s) for s in self.slides],
            "totals": {
                "slides": len(self.slides),
                "failing": sum(bool(s.problem) for s in self.slides),
                "patches": sum(s.patches for s in self.slides),
                "files": sum(s.files for s in self.slides) + self.around.files,
                "bytes": sum(s.bytes for s in self.slides) + self.around.bytes,
                "new_files": self.new_files,
                "new_bytes": self.new_bytes,
                "seconds": sum(s.seconds for s in self.new) / self.workers,
            },
            "estimates": {
                stage: {"files": files, "bytes": size}
                for stage, (files, size) in self.estimates.items()
            },
            "models": [
                asdict(m) | {"train_seconds": m.train_seconds, "predict_seconds": m.predict_seconds}
                for m in self.models
            ],
            "need_bytes": self.need_bytes,
            "free_bytes": self.free_bytes,
            "problems": list(self.problems),
            "shard_bytes": list(self.shard_bytes),
        }


# --- one slide -------------------------------------------------------------------------------


def plan_slide(task: PlanTask) -> tuple[SlidePlan, Audited | None]:
    """Plan one slide, and look its labels over; why it would fail is part of the answer."""
    entry = task.entry
    try:
        return _plan_slide(task)
    except (ExpectedError, OSError) as error:
        return SlidePlan(entry.slide_id, entry.split, problem=str(error)), None
    except Exception as error:  # a reader's bug must not lose the other slides
        problem = f"{entry.slide_id}: unexpected {type(error).__name__}: {error}"
        return SlidePlan(entry.slide_id, entry.split, problem=problem), None


def _plan_slide(task: PlanTask) -> tuple[SlidePlan, Audited]:
    from tiling.footprint import picture_footprint, store_footprint
    from tiling.slide import open_slide
    from tiling.tile_plan import check_has_tiles, plan_tiles

    entry, started = task.entry, time.monotonic()
    known = tile_inputs(entry, task.config)
    state, fingerprint = _look_up(task, known)
    with open_slide(entry.path) as slide:
        plan = plan_tiles(slide, entry.path, **known)
        check_has_tiles(plan, task.config)
        takes = store_footprint(plan, task.config, fingerprint) + picture_footprint(slide, plan)
        seconds = time.monotonic() - started
        n_bad = 0
        if state != "finished":
            each, n_bad, n_read = _probe(slide, plan)
            seconds += each * len(plan.table.coords) if task.config.store == "patches" else 0.0
            _check_probe(n_bad, n_read, task)
    audited = audit_slide(
        entry,
        plan.table,
        geometry=plan.geometry,
        n_lesions=len(plan.annotation.lesions) if plan.annotation else 0,
        label_rule=task.config.label_rule,
        bounds=(task.config.negative_fraction, task.config.positive_fraction),
    )
    counts = audited.counts
    planned = SlidePlan(
        slide_id=entry.slide_id,
        split=entry.split,
        state=state,
        patches=counts.patches,
        positive=counts.positive,
        negative=counts.negative,
        ignored=counts.ignored,
        unlabelled=counts.unlabelled,
        bytes=takes.bytes,
        files=takes.files,
        heatmap_bytes=_heatmap_bytes(plan),
        seconds=0.0 if state == "finished" else seconds,
        unreadable_probes=n_bad,
        notes=plan.notes,
    )
    return planned, audited


def _look_up(task: PlanTask, known: TileInputs) -> tuple[State, str]:
    """Look up what there is of a slide's store; the slide is read only where that decides."""
    from tiling.build import tile_fingerprint
    from tiling.listing.content import UNREAD, digest_content, find_digest

    entry, run = task.entry, None if task.run is None else RunFolder(task.run)
    unit = Unit("tile", entry.slide_id)
    if run is None or not unit.is_marked(run):
        return "missing", tile_fingerprint(entry.path, content=UNREAD, **known)
    content = find_digest(entry.path, cache=run.content(entry.slide_id))
    if content is None:
        content = digest_content(entry.path)  # kept in memory: nothing is written here
    fingerprint = tile_fingerprint(entry.path, content=content, **known)
    state = unit_state(run, unit, fingerprint)
    if state == "stale":  # the mark may be an earlier version's
        state = unit_state(run, unit, old_tile_fingerprint(entry, task.config))
    return state, fingerprint


def _probe(slide: "Slide", plan: "TilePlan") -> tuple[float, int, int]:
    """Read some patches; returns seconds per patch, how many were unreadable, how many read."""
    import numpy as np

    from tiling.patches import read_patch

    n_patches = len(plan.table.coords)
    rows = np.unique(np.linspace(0, n_patches - 1, min(PROBE_PATCHES, n_patches)).astype(int))
    started, n_bad, n_read = time.monotonic(), 0, 0
    for row in rows:
        x, y = plan.table.coords[row].tolist()
        try:
            read_patch(slide, (x, y), geometry=plan.geometry)
        except SlideError:
            n_bad += 1
        n_read += 1
        if time.monotonic() - started > PROBE_S:
            break
    return (time.monotonic() - started) / n_read, n_bad, n_read


def _check_probe(n_bad: int, n_read: int, task: PlanTask) -> None:
    if n_bad == n_read and task.config.max_unreadable < 1:
        raise SlideError(
            f"{task.entry.path.name}: none of {pluralize(n_read, 'sampled patch')} can be decoded; "
            "copy the file again from its source"
        )


def _heatmap_bytes(plan: "TilePlan") -> int:
    """Uncompressed values and pyramid: scores of a trained model hardly compress."""
    width, height = plan.info.size
    columns = -(-width // plan.geometry.stride_l0)
    rows = -(-height // plan.geometry.stride_l0_y)
    scored = min(columns * rows, len(plan.table.coords))  # NaN takes next to nothing
    return HEATMAP_BYTES + int(4 * scored * PYRAMID)


# --- the whole run ---------------------------------------------------------------------------


def plan_run(
    config: Config,
    *,
    workers: int,
    device: str = "auto",
    shard: Shard | None = None,
    quiet: bool = False,
) -> RunPlan:
    """Plan every stage that a config names; writes nothing.

    Raises
    ------
    ConfigError, ManifestError
        If not even the list of slides can be made.
    """
    if config.images is not None:
        raise ConfigError("images: plan is for slides; a folder of images is tiled at once")
    entries = list_entries(config)
    weights = {entry.slide_id: slide_bytes(entry) for entry in entries}
    chosen = select_shard(weights, shard)
    mine = [entry for entry in entries if entry.slide_id in chosen]
    slides, audited = _plan_slides(mine, config, workers=workers, quiet=quiet)
    models = _plan_models(slides, config, device) if shard is None else []
    return RunPlan(
        slides=tuple(slides),
        around=plan_around(slides, audited, config, entries, workers=workers),
        models=tuple(models),
        estimates=_estimate(slides, config),
        free_bytes=_free_bytes(config.out),
        problems=tuple(_find_problems(slides, entries, config)) if shard is None else (),
        shard_bytes=_shard_bytes(weights, shard),
        workers=max(1, min(workers, len(mine))),
    )


def _shard_bytes(weights: dict[str, int], shard: Shard | None) -> tuple[int, ...]:
    if shard is None:
        return ()
    parts = [select_shard(weights, Shard(index, shard.count)) for index in range(shard.count)]
    return tuple(sum(weights[slide_id] for slide_id in part) for part in parts)


def _plan_slides(
    entries: Sequence[SlideEntry], config: Config, *, workers: int, quiet: bool
) -> tuple[list[SlidePlan], list[Audited]]:
    near, run = anchor_paths((list(entries), config.out), Path.cwd())
    tasks = [PlanTask(entry, entry.tile_config(config.tile), run) for entry in near]
    plans: dict[int, SlidePlan] = {}
    audited: dict[int, Audited] = {}
    with StageProgress("plan", len(tasks), quiet=quiet) as progress:
        for number, found in look_at_each(plan_slide, tasks, workers=workers):
            entry = entries[number]
            if isinstance(found, StageError):
                problem = f"{entry.path.name}: {found}"
                found = SlidePlan(entry.slide_id, entry.split, problem=problem), None
            plans[number], labels = found
            if labels is not None:
                audited[number] = labels
            progress.end(entry.slide_id, "would fail" if plans[number].problem else "planned")
    return [plans[number] for number in sorted(plans)], [audited[n] for n in sorted(audited)]


def _free_bytes(run: Path | None) -> int | None:
    if run is None:
        return None
    folder = next(parent for parent in (run.absolute(), *run.absolute().parents) if parent.exists())
    return shutil.disk_usage(folder).free


def _to_predict(slides: Sequence[SlidePlan], config: Config) -> list[SlidePlan]:
    wanted = config.predict.splits
    return [
        s
        for s in slides
        if not s.problem and (wanted is None or s.split is None or s.split in wanted)
    ]


def _estimate(slides: Sequence[SlidePlan], config: Config) -> dict[str, tuple[int, int]]:
    """Tell files and bytes of what the models will leave: estimates, their scores are unknown."""
    scored = _to_predict(slides, config)
    n_models = len(config.train)
    n_files = n_models * len(scored)
    found = {}
    if "predict" in config.stages and n_files:
        n_scores = sum(s.patches for s in scored)
        found["predict"] = (n_files, n_models * BYTES_PER_SCORE * n_scores + n_files * SCORES_BYTES)
    if "heatmap" in config.stages and n_files:
        values = n_models * sum(s.heatmap_bytes for s in scored)
        found["heatmap"] = (2 * n_files, values + n_files * OVERLAY_BYTES)
    return found


def _find_problems(
    slides: Sequence[SlidePlan], entries: Sequence[SlideEntry], config: Config
) -> list[str]:
    if "train" not in config.stages:
        return []
    if not config.train:
        return ["train: the config names no model under train; name one, or leave train out"]
    found = []
    validated = any(settings.monitor != "none" for settings in config.train.values())
    needed: list[Split] = ["train", "val"] if validated else ["train"]
    for split in needed:
        inside = [s for s in slides if s.split == split and not s.problem]
        if not inside and any(s.split == split for s in slides):
            found.append(f"train: no readable slide in split {split}")
            continue
        if not inside:
            advice = advise_missing_split(entries, split, made=config.splits)
            found.append(f"train: no slide in split {split}: {advice}")
            continue
        counts = {
            "positive": sum(s.positive for s in inside),
            "negative": sum(s.negative for s in inside),
        }
        missing = [kind for kind, count in counts.items() if not count]
        found += [
            f"train: split {split} has no {kind} patch in its "
            f"{pluralize(len(inside), 'slide')}; check labels, annotations and tile.label_rule"
            for kind in missing
        ]
    return found


# --- models ----------------------------------------------------------------------------------


def _plan_models(slides: Sequence[SlidePlan], config: Config, device: str) -> list[ModelPlan]:
    n_predicted = sum(s.patches for s in _to_predict(slides, config))
    stages = set(config.stages)
    if not stages & {"train", "predict"} or not n_predicted:
        return []
    found = []
    for name, settings in config.train.items():
        steps = settings.max_epochs * settings.steps_per_epoch * settings.batch_size
        n_trained = steps if "train" in stages else 0
        try:
            each, problem = _time_model(settings, config.tile.patch_px, device), ""
        except (PipelineError, RuntimeError) as error:
            each, problem = None, str(error)
        n_scored = n_predicted if "predict" in stages else 0
        found.append(ModelPlan(name, each, n_trained, n_scored, problem))
    return found


def _time_model(settings: TrainConfig, patch_px: int, device: str) -> float:
    """Time a model's forward pass on noise: seconds per patch."""
    import torch

    from wsi_pipeline.config.reading import as_plain
    from wsi_pipeline.models import build_model
    from wsi_pipeline.models.devices import resolve_device

    place = resolve_device(device)
    model = build_model(
        settings.model.name,
        preprocess=as_plain(settings.model.preprocess),
        **settings.model.options,
    )
    model = model.to(place).eval()
    n_patches = 8 if place.type == "cuda" else 1
    batch = torch.rand(n_patches, 3, patch_px, patch_px, device=place)
    with torch.inference_mode():
        # The first pass also sets up the kernels; it counts only where there is time for no other.
        times = [_time_pass(model, batch)]
        while len(times) < 6 and sum(times) + times[-1] < MODEL_PROBE_S:
            times.append(_time_pass(model, batch))
    return min(times) / n_patches


def _time_pass(model: "PatchClassifier", batch: "Tensor") -> float:
    started = time.monotonic()
    float(model.score(batch).sum())  # waits for the device
    return time.monotonic() - started
