"""After a job array: what failed, what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass

from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.runfolder import RunFolder, Unit, missing_shards, write_failures
from wsi_pipeline.runner import read_run_json, some
from wsi_pipeline.stages import scored


@dataclass(frozen=True)
class Collected:
    """What a run folder holds and what it misses."""

    lines: tuple[str, ...]
    missing: int
    failed: int


def collect(run: RunFolder) -> Collected:
    """Merge the failures of all shards; list the slides and shards that each stage misses.

    The label audit is brought up to date too, as no shard sees all slides.
    """
    from wsi_pipeline.label_audit import update_audit

    entries = run.read_manifest()
    n_failed = write_failures(run)
    lines, n_missing = [], 0
    for stage, model, expected in _expected(run, entries):
        done = [s for s in expected if Unit(stage, s, model).mark(run, "done").is_file()]
        lost = [s for s in expected if Unit(stage, s, model).mark(run, "failed").is_file()]
        missing = [s for s in expected if s not in done and s not in lost]
        n_missing += len(missing)
        line = f"{f'{stage} {model}'.strip()}: {len(done)} of {len(expected)} slides done"
        line += f", {len(lost)} failed ({some(lost, 20)})" if lost else ""
        line += f", {len(missing)} missing ({some(missing, 20)})" if missing else ""
        lines.append(line)
    for stage in dict.fromkeys(stage for stage, _, _ in _expected(run, entries)):
        count, shards = missing_shards(run, stage)
        if shards:
            n_missing += len(shards)
            lines.append(
                f"{stage}: of {count} shards these never ended: {', '.join(map(str, shards))}"
            )
    if any(Unit("tile", e.slide_id).mark(run, "done").is_file() for e in entries):
        lines.append(update_audit(run))
    lines += [f"{n_failed} failures are listed in {run.failures}"] if n_failed else []
    return Collected(tuple(lines), n_missing, n_failed)


def _expected(run: RunFolder, entries: Sequence[SlideEntry]) -> list[tuple[str, str, list[str]]]:
    """Stages that have begun, and the slides that each should have done."""
    tiled = [e for e in entries if Unit("tile", e.slide_id).mark(run, "done").is_file()]
    splits = read_run_json(run).get("predict", {}).get("config", {}).get("predict", {})
    wanted = splits.get("splits")
    predicted = [e.slide_id for e in tiled if wanted is None or e.split in (*wanted, None)]
    jobs = [("tile", "", [e.slide_id for e in entries])]
    jobs += [("predict", model, predicted) for model in run.models_with("scores")]
    jobs += [
        ("heatmap", model, scored(run, model, predicted)) for model in run.models_with("heatmaps")
    ]
    return jobs
