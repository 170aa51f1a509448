"""After a job array: what failed, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from tiling.wording import pluralize
from wsi_pipeline.config import Stage
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.image_stages import is_image_run
from wsi_pipeline.images.folder import ALL, read_images
from wsi_pipeline.names import find_name_problem
from wsi_pipeline.runfolder import RunFolder, Unit, missing_shards, write_failures
from wsi_pipeline.runner import read_run_json, some
from wsi_pipeline.stages import scored


@dataclass(frozen=True)
class Collected:
    """What a run folder holds and what it misses."""

    lines: tuple[str, ...]
    missing: int
    failed: int


@dataclass(frozen=True)
class _Job:
    """A stage that has begun, and what it should have done."""

    stage: str
    title: str
    units: Sequence[Unit]


def collect(run: RunFolder) -> Collected:
    """Merge the failures of all shards; list what each stage and shard misses.

    Of slides, the label audit is brought up to date too, as no shard sees all of them.
    """
    of_images = is_image_run(run)
    entries = [] if of_images else run.read_manifest()
    jobs = _expect_images(run) if of_images else _expect_slides(run, entries)
    n_failed = write_failures(run)
    lines, n_missing = [], 0
    for job in jobs:
        line, n = _describe(run, job)
        lines.append(line)
        n_missing += n
    for stage in dict.fromkeys(job.stage for job in jobs):
        count, shards = missing_shards(run, stage)
        if shards:
            n_missing += len(shards)
            lines.append(
                f"{stage}: {pluralize(len(shards), 'shard')} of {count} never ended: "
                f"{', '.join(map(str, shards))}"
            )
    if any(Unit("tile", e.slide_id).mark(run, "done").is_file() for e in entries):
        from wsi_pipeline.label_audit import update_audit

        lines.append(update_audit(run))
    lines += [_describe_images(run)] if of_images else []
    lines += [f"{pluralize(n_failed, 'failure')}, listed in {run.failures}"] if n_failed else []
    return Collected(tuple(lines), n_missing, n_failed)


def _describe(run: RunFolder, job: _Job) -> tuple[str, int]:
    done = [u for u in job.units if u.mark(run, "done").is_file()]
    lost = [u for u in job.units if u.mark(run, "failed").is_file()]
    missing = [u for u in job.units if u not in done and u not in lost]
    if [u.slide_id for u in job.units] in ([ALL], [""]):  # all images, a model or the report
        return f"{job.title}: {'done' if done else 'failed' if lost else 'missing'}", len(missing)
    line = f"{job.title}: {len(done)} of {pluralize(len(job.units), 'slide')} done"
    for name, units in (("failed", lost), ("missing", missing)):
        line += f", {len(units)} {name} ({some([u.name for u in units], 20)})" if units else ""
    return line, len(missing)


def _expect_slides(run: RunFolder, entries: Sequence[SlideEntry]) -> list[_Job]:
    def per_slide(stage: str, slides: Sequence[str], model: str = "", variant: str = "") -> _Job:
        title = " ".join(filter(None, (stage, variant, model)))
        return _Job(stage, title, [Unit(stage, s, model, variant) for s in slides])

    tiled = [e for e in entries if Unit("tile", e.slide_id).mark(run, "done").is_file()]
    predicted = [e.slide_id for e in tiled if _is_wanted(run, "predict", e, always=(None,))]
    exported = [e.slide_id for e in tiled if _is_wanted(run, "export", e)]
    jobs = [per_slide("tile", [e.slide_id for e in entries]), *_expect_models(run, "train")]
    jobs += [per_slide("predict", predicted, model) for model in run.models_with("scores")]
    jobs += [
        per_slide("heatmap", scored(run, model, predicted), model)
        for model in run.models_with("heatmaps")
    ]
    jobs += _expect_models(run, "evaluate")
    for variant, model in _find_exports(run):
        expected = scored(run, model, exported) if model else exported
        jobs.append(per_slide("export", expected, model, variant))
    return jobs + _expect_report(run)


def _expect_models(run: RunFolder, stage: Stage) -> list[_Job]:
    """List the models that a stage has begun; a checkpoint that was copied in is none of them."""
    folders = (run.path / ".state" / stage).glob("*/")
    names = (path.name for path in folders if path.name != "shards")
    found = {name for name in names if not find_name_problem(name)}  # others are not ours
    if stage == "train":  # one that was stopped has no mark yet
        found |= {m for m in run.models_with("models") if not run.checkpoint(m).is_file()}
    return [_Job(stage, f"{stage} {model}", [Unit(stage, model=model)]) for model in sorted(found)]


def _expect_report(run: RunFolder) -> list[_Job]:
    begun = any((run.path / ".state/report").glob("run.*.json"))
    return [_Job("report", "report", [Unit("report")])] if begun else []


def _find_exports(run: RunFolder) -> list[tuple[str, str]]:
    """List the formats and models (of coordinates: none) of which an export has begun."""
    state = run.path / ".state/export"
    marks = [path.parent.relative_to(state).parts for path in state.glob("**/*.json")]
    ours = (of for of in marks if of[0] != "shards" and not any(map(find_name_problem, of)))
    found = {(of[0], of[1] if of[1:] else "") for of in ours}
    return sorted(found)


def _is_wanted(
    run: RunFolder, stage: str, entry: SlideEntry, always: Sequence[str | None] = ()
) -> bool:
    """Tell whether a stage was told to work on a slide's split."""
    told = read_run_json(run).get(stage, {}).get("config", {}).get(stage, {})
    splits = told.get("splits")
    return splits is None or entry.split in (*splits, *always)


def _expect_images(run: RunFolder) -> list[_Job]:
    jobs = [_Job("tile", "tile", [Unit("tile", ALL)]), *_expect_models(run, "train")]
    for stage, folder in (("predict", "scores"), ("heatmap", "heatmaps")):
        for model in run.models_with(folder):
            jobs.append(_Job(stage, f"{stage} {model}", [Unit(stage, ALL, model)]))
    return jobs + _expect_models(run, "evaluate") + _expect_report(run)


def _describe_images(run: RunFolder) -> str:
    ids = [e.image_id for e in read_images(run.images)]
    lost = [i for i in ids if Unit("tile", i).mark(run, "failed").is_file()]
    return f"images: {len(ids)}, {len(lost)} unreadable" + (f" ({some(lost, 20)})" if lost else "")
