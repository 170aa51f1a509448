"""What `wsi_pipeline.stages.status` has found, in words and as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, get_args

from tiling.wording import format_duration, name_some, pluralize
from wsi_pipeline.stages.status import Doing, JobArray, Progress, State, Status, Working

SCHEMA = "wsi-pipeline/status/1"
MOST_SHOWN = 10  # processes, unless all of them are asked for
MOST_NAMES = 5


def as_plain(status: Status) -> dict[str, Any]:
    """Describe a run for a program; docs/status.md has every key."""
    return {
        "schema": SCHEMA,
        "time": _iso(status.time),
        "stages": [_plain_progress(one) for one in status.stages],
        "arrays": [asdict(one) for one in status.arrays],
        "processes": [_plain_working(one) for one in status.processes],
    }


def describe(status: Status, *, every: bool = False) -> list[str]:
    """Describe a run for a reader; `every`: all processes and all names."""
    lines = [f"{status.cohort}; {_show(status.time)}", "", *_table(status.stages, status.time)]
    for one in status.stages:
        for state in ("failed", "out_of_date"):
            if names := one.ids[state]:
                some = name_some(names, len(names) if every else MOST_NAMES)
                lines.append(f"{one.expected.title}: {_WORDS[state]}: {some}")
    lines += [_describe_array(one) for one in status.arrays]
    for doing in get_args(Doing):
        found = [one for one in status.processes if one.doing == doing]
        if not found:
            continue
        title = "running" if doing == "running" else "stopped without finishing"
        hosts = len({one.process.host for one in found})
        on = f" on {hosts} machines" if hosts > 1 else ""
        lines += ["", f"{title}: {pluralize(len(found), 'process')}{on}"]
        most = len(found) if every else MOST_SHOWN
        lines += [f"  {_describe_working(one, status.time)}" for one in found[:most]]
        if len(found) > most:
            lines.append(f"  and {len(found) - most} more (--all lists them)")
    return lines


_WORDS: dict[State, str] = {state: state.replace("_", " ") for state in get_args(State)}


def _show(at: float) -> str:
    """Write a time for a reader, in UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S}Z"


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _plain_progress(one: Progress) -> dict[str, Any]:
    job = one.expected
    return {
        "stage": job.stage,
        "variant": job.variant or None,
        "model": job.model or None,
        "n": len(job.units),
        **{f"n_{state}": len(names) for state, names in one.ids.items()},
        **{state: list(names) for state, names in one.ids.items() if state != "done"},
        "parts": None if one.parts is None else dict(zip(("done", "of"), one.parts, strict=True)),
        "seconds_per_unit": _rounded(one.seconds),
        "units_per_hour": _rounded(one.per_hour),
        "begun": _iso(one.begun),
        "last_ended": _iso(one.last),
        "expected_end": _iso(one.end),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _plain_working(one: Working) -> dict[str, Any]:
    process = one.process
    return {
        "state": one.doing,
        "stage": process.stage,
        "host": process.host,
        "pid": process.pid,
        "job": process.about.get("job"),
        "array_task": process.about.get("array_task"),
        "shard": process.shard or None,
        "is_worker": process.command != process.name,
        "begun": _iso(process.begun),
        "last_seen": _iso(process.seen),
        "n": one.n_units,
        "n_ended": one.n_ended,
        "working_on": [{**asdict(unit), "since": _iso(at)} for unit, at in one.units.items()],
        "log": f"logs/{process.name}",
    }


def _table(stages: Sequence[Progress], now: float) -> list[str]:
    """Lay the stages out in columns."""
    states = [state for state in get_args(State) if state in ("done", "missing")]
    states += [s for s in get_args(State) if s not in states and any(p.ids[s] for p in stages)]
    rows = [["", *(_WORDS[state] for state in states), "each", "per hour", "expected end"]]
    for one in stages:
        end = "" if one.end is None else f"{_show(one.end)}, in {format_duration(one.end - now)}"
        each = "" if one.seconds is None else format_duration(one.seconds)
        rate = "" if one.per_hour is None or one.expected.is_one else _rate(one.per_hour)
        counts = [str(len(one.ids[state])) for state in states]
        parts = f" ({one.parts[0]} of {one.parts[1]} parts)" if one.parts else ""
        rows.append([one.expected.title + parts, *counts, each, rate, end])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    ]


def _describe_array(one: JobArray) -> str:
    parts = [f"{one.n_ended} ended", f"{len(one.running)} running"]
    for what, tasks in (("stopped", one.stopped), ("not begun", one.not_begun)):
        parts += [f"{len(tasks)} {what} ({write_ranges(tasks)})"] if tasks else []
    return f"{one.stage}: array of {pluralize(one.count, 'task')}: {', '.join(parts)}"


def write_ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as schedulers take them.

    Examples
    --------
    >>> write_ranges([3, 7, 8, 9])
    '3,7-9'
    """
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1][1:] = [number]
        else:
            ranges.append([number])
    return ",".join("-".join(map(str, one)) for one in ranges)


def _rate(per_hour: float) -> str:
    return f"{per_hour:,.0f}" if per_hour >= 10 else f"{per_hour:.2g}"


def _describe_working(one: Working, now: float) -> str:
    process = one.process
    place = [process.stage, process.shard, process.host, f"process {process.pid}"]
    if job := process.about.get("job"):
        task = process.about.get("array_task")
        place.append(f"job {job}" + (f" task {task}" if task else ""))
    if process.command != process.name:
        place.append("worker")
    line = ", ".join(filter(None, place))
    if one.n_units is not None:
        line += f": {one.n_ended} of {one.n_units} ended"
    names = [
        f"{' by '.join(filter(None, (unit.slide_id, unit.model))) or 'run'}"
        + (f" ({format_duration(max(0.0, now - at))})" if one.doing == "running" else "")
        for unit, at in one.units.items()
    ]
    if one.doing == "stopped":
        seen = f"; last seen {_show(process.seen)}"
        return f"{line}{seen}" + (f", working on {name_some(names, MOST_NAMES)}" if names else "")
    return f"{line}; working on {name_some(names, MOST_NAMES)}" if names else line
