"""A plan in words, for the terminal."""

from wsi_pipeline.planning.plan import ModelPlan, RunPlan, SlidePlan

STATE = {
    "missing": "new",
    "stale": "stale, rebuilt",
    "damaged": "damaged, rebuilt",
    "finished": "finished, kept",
}


def describe(plan: RunPlan) -> list[str]:
    """Lay out one line per slide, then the totals, the models, and what would go wrong."""
    rows: list[tuple[str, ...]] = [
        ("slide", "patches", "pos.", "neg.", "ign.", "unl.", "size", "files", "time", "")
    ]
    rows += [_slide_row(s) for s in plan.slides]
    widths = [max(len(row[column]) for row in rows) for column in range(9)]
    table = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [text.rjust(w) for text, w in zip(row[1:9], widths[1:], strict=True)]
        table.append("  ".join([*cells, row[9]]).rstrip())
    return [*table, "", *summarise(plan)]


def _slide_row(s: SlidePlan) -> tuple[str, ...]:
    if s.problem:
        return (s.slide_id, *[""] * 8, f"WOULD FAIL: {s.problem}")
    said = [STATE[s.state], *s.notes]
    if s.unreadable_probes:
        said.append(f"{s.unreadable_probes} of the patches tried cannot be decoded")
    counts = [str(n) for n in (s.patches, s.positive, s.negative, s.ignored, s.unlabelled)]
    size, seconds = size_text(s.bytes), time_text(s.seconds)
    return (s.slide_id, *counts, size, str(s.files), seconds, "; ".join(said))


def summarise(plan: RunPlan) -> list[str]:
    """Say the totals and what would go wrong."""
    failing = [s for s in plan.slides if s.problem]
    by_state = {
        state: [s for s in plan.slides if not s.problem and s.state == state] for state in STATE
    }
    damaged = f"{len(by_state['damaged'])} damaged, " if by_state["damaged"] else ""
    lines = [
        f"{len(plan.slides)} slides: {len(by_state['missing'])} new, {len(by_state['stale'])} "
        f"stale, {damaged}{len(by_state['finished'])} finished, {len(failing)} would fail",
        f"tile: {sum(s.patches for s in plan.new)} patches, "
        f"{size_text(plan.new_bytes)} in {plan.new_files} files, "
        f"about {time_text(sum(s.seconds for s in plan.new) / plan.workers)} with "
        f"{plan.workers} worker{'s' if plan.workers > 1 else ''}",
    ]
    lines += [
        f"{stage}: about {size_text(size)} in {files} files (an estimate)"
        for stage, (files, size) in plan.estimates.items()
    ]
    lines += [_model_line(model) for model in plan.models]
    if plan.shard_bytes:
        low, high = size_text(min(plan.shard_bytes)), size_text(max(plan.shard_bytes))
        lines.append(f"shards: {len(plan.shard_bytes)}, of {low} to {high} of slide files each")
    lines += [f"WOULD FAIL: {problem}" for problem in plan.problems]
    if plan.free_bytes is not None:
        lines.append(_room_line(plan.need_bytes, plan.free_bytes))
    return lines


def _room_line(need: int, free: int) -> str:
    if need > free:
        return (
            f"TOO LITTLE ROOM: {size_text(need)} needed, {size_text(free)} free where out lies; "
            "free some, write elsewhere, or use store: coords"
        )
    return f"room: {size_text(need)} needed, {size_text(free)} free"


def _model_line(model: ModelPlan) -> str:
    if model.problem:
        return f"{model.name}: WOULD FAIL: {model.problem}"
    parts = []
    if model.train_patches:
        took = time_text(model.train_seconds or 0)
        parts.append(f"train at most {model.train_patches} patches, {took}")
    if model.predict_patches:
        took = time_text(model.predict_seconds or 0)
        parts.append(f"predict {model.predict_patches} patches, about {took}")
    return f"{model.name}: {'; '.join(parts)} (by a probe of this machine)"


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


def time_text(seconds: float) -> str:
    """Write a time in a person's units.

    Examples
    --------
    >>> time_text(7300)
    '2.0 h'
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
