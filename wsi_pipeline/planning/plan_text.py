"""A plan in words, for the terminal."""

from tiling.wording import format_duration, pluralize
from wsi_pipeline.planning.figures import ModelPlan, RunPlan, SlidePlan

STATE = {
    "missing": "new",
    "stale": "out of date, to be rebuilt",
    "damaged": "damaged, to be rebuilt",
    "finished": "finished, kept",
}


def describe(plan: RunPlan) -> list[str]:
    """Format one line per slide, then the totals, the models, and the failures."""
    rows: list[tuple[str, ...]] = [
        (plan.of, "patches", "pos.", "neg.", "ign.", "unl.", "size", "files", "time", "")
    ]
    # Of thousands of images, those to look at.
    shown = [s for s in plan.slides if plan.of == "slide" or s.problem]
    rows += [_slide_row(s) for s in shown]
    widths = [max(len(row[column]) for row in rows) for column in range(9)]
    table = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(w) for text, w in zip(row[1:9], widths[1:], strict=True)]
        table.append("  ".join([*cells, row[9]]).rstrip())
    return [*(table if shown else []), *([""] if shown else []), *summarise(plan)]


def _slide_row(s: SlidePlan) -> tuple[str, ...]:
    if s.problem:
        return (s.slide_id, *[""] * 8, f"WOULD FAIL: {s.problem}")
    notes = [STATE[s.state], *s.notes]
    if s.unreadable_probes:
        notes.append(f"{pluralize(s.unreadable_probes, 'sampled patch')} cannot be decoded")
    counts = [str(n) for n in (s.patches, s.positive, s.negative, s.ignored, s.unlabelled)]
    size, seconds = size_text(s.bytes), format_duration(s.seconds)
    return (s.slide_id, *counts, size, str(s.files), seconds, "; ".join(notes))


def summarise(plan: RunPlan) -> list[str]:
    """Return the totals and what would go wrong."""
    failing = [s for s in plan.slides if s.problem]
    by_state = {
        state: [s for s in plan.slides if not s.problem and s.state == state] for state in STATE
    }
    damaged = f"{len(by_state['damaged'])} damaged, " if by_state["damaged"] else ""
    what = "patch" if plan.of == "slide" else plan.of
    lines = [
        f"{pluralize(len(plan.slides), plan.of)}: {len(by_state['missing'])} new, "
        f"{len(by_state['stale'])} out of date, {damaged}{len(by_state['finished'])} finished, "
        f"{len(failing)} would fail",
        f"tile: {pluralize(sum(s.patches for s in plan.new), what)}, "
        f"{size_text(plan.new_bytes)} in {pluralize(plan.new_files, 'file')}, about "
        f"{format_duration(sum(s.seconds for s in plan.new) / plan.workers)} with "
        f"{pluralize(plan.workers, 'worker')}",
    ]
    if n_guessed := sum(s.is_picture_estimated for s in plan.new):
        lines.append(
            f"tile: of these, the sizes of {pluralize(n_guessed, 'picture')} are estimated from a "
            f"sample: the total is within {size_text(plan.picture_error)} (two standard errors)"
        )
    lines += [
        f"{stage}: about {size_text(size)} in {pluralize(files, 'file')} (an estimate)"
        for stage, (files, size) in plan.estimates.items()
    ]
    lines += [_model_line(model, what) for model in plan.models]
    if plan.shard_bytes:
        low, high = size_text(min(plan.shard_bytes)), size_text(max(plan.shard_bytes))
        lines.append(f"shards: {len(plan.shard_bytes)}, each with {low} to {high} of slide files")
    lines += [f"WOULD FAIL: {problem}" for problem in plan.problems]
    if plan.free_bytes is not None:
        lines.append(_room_line(plan.need_bytes, plan.free_bytes))
    return lines


def _room_line(need: int, free: int) -> str:
    if need > free:
        return (
            f"NOT ENOUGH SPACE: {size_text(need)} needed, {size_text(free)} free in the run "
            "folder's file system; free some, choose another out, or use tile.store=coords"
        )
    return f"disk space: {size_text(need)} needed, {size_text(free)} free"


def _model_line(model: ModelPlan, what: str) -> str:
    if model.problem:
        return f"{model.name}: WOULD FAIL: {model.problem}"
    parts = []
    if model.train_patches:
        took = format_duration(model.train_seconds or 0)
        parts.append(f"train on at most {pluralize(model.train_patches, what)}, {took}")
    if model.predict_patches:
        took = format_duration(model.predict_seconds or 0)
        parts.append(f"predict {pluralize(model.predict_patches, what)}, about {took}")
    return f"{model.name}: {'; '.join(parts)} (timed on this machine)"


def size_text(n_bytes: float) -> str:
    """Write a number of bytes with its unit.

    Examples
    --------
    >>> size_text(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} B" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"
