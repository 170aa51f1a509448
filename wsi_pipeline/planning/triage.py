"""The ``slides`` command: checks at each slide, and writes a manifest to edit.

Values of a manifest are kept; missing ones are proposed from the files if possible.
Nothing that could identify a patient is written: no date, no label image, no folder of this
machine.
"""

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from tiling.contracts import Slide, Unclassified
from tiling.errors import AnnotationError, SlideError, TilingError
from tiling.files import json_text, update_text
from tiling.readers.common import is_square
from tiling.wording import pluralize
from wsi_pipeline.cohort.listing import list_input
from wsi_pipeline.cohort.manifest import COLUMNS, FACTS, manifest_rows
from wsi_pipeline.config.reading import anchor_paths
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.csv_files import as_mapping, iterate_csv, write_csv
from wsi_pipeline.errors import ManifestError, StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.names import find_name_problem, name_key, printable, propose_name
from wsi_pipeline.planning.corrected import check_reviews, correct_slides
from wsi_pipeline.planning.proposals import (
    Proposals,
    find_annotations,
    propose_label,
    propose_patients,
    propose_splits,
    summarise,
)
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.run.progress import StageProgress

PROBE_PX = 64  # side of a probed region, px at its level


@dataclass(frozen=True)
class SlideCheck:
    """What was seen of one slide."""

    problem: str = ""  # why it cannot be opened or described; empty if it can
    notes: tuple[str, ...] = ()
    vendor: str = ""
    size: tuple[int, int] | None = None  # (width, height), level-0 px
    level_downsamples: tuple[float, ...] = ()
    mpp: tuple[float, float] | None = None  # (x, y) from the file, µm per level-0 px
    objective_power: float | None = None
    bounds: tuple[int, int, int, int] | None = None  # x, y, width, height, level-0 px
    n_probed: int = 0  # regions read
    n_unreadable: int = 0  # of them
    n_bytes: int = 0  # of the file
    annotation: Path | None = None
    is_tumour_outlined: bool | None = None  # in the annotation; None: there is none to read


@dataclass(frozen=True)
class Triage:
    """Checks of all slides of a data set."""

    entries: tuple[SlideEntry, ...]
    checks: tuple[SlideCheck, ...]
    duplicate_of: tuple[str, ...]  # slide id; empty: of none
    listed: tuple[str, ...] = ()  # notes on the listing: skipped files
    annotations: Mapping[Path, dict[str, Any]] = field(default_factory=dict)  # GeoJSON to write

    @property
    def n_readable(self) -> int:
        """Slides that can be opened and of which not every probe failed."""
        return sum(not look.problem for look in self.checks)

    @property
    def exit_code(self) -> int:
        """0 all readable, 3 some not, 1 none."""
        if self.n_readable == len(self.checks):
            return 0
        return 3 if self.n_readable else 1


# --- one slide -------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckTask:
    """One slide to look at."""

    entry: SlideEntry
    propose: bool  # look for an annotation in the slide's folder


def check_slide(task: CheckTask) -> SlideCheck:
    """Look at one slide; what is wrong with it is part of the answer."""
    try:
        return _check(task)
    except (TilingError, OSError) as error:
        return SlideCheck(problem=_without_folder(str(error), task.entry.path), n_bytes=_size(task))
    except Exception as error:  # a reader's bug must not lose the other slides
        return SlideCheck(
            problem=f"unexpected {type(error).__name__} in reading it", n_bytes=_size(task)
        )


def _size(task: CheckTask) -> int:
    return task.entry.path.stat().st_size if task.entry.path.is_file() else 0


def _without_folder(text: str, path: Path) -> str:
    return text.replace(f" in {path.parent}", "").replace(f"{path.parent}/", "")


def _check(task: CheckTask) -> SlideCheck:
    from tiling.slide import note_slide, open_slide

    entry = task.entry
    with open_slide(entry.path) as slide:
        failures, n_probed = _probe(slide)
        annotation, is_tumour_outlined, notes = _find_annotation(task, slide)
        if failures:
            notes += (f"{len(failures)} of {n_probed} sampled regions unreadable: {failures[0]}",)
        if slide.mpp is None and entry.mpp is None:
            notes += ("no microns-per-pixel in the file: fill the mpp column",)
        elif slide.mpp is not None and not is_square(slide.mpp) and entry.mpp is None:
            notes += ("x and y resolution differ; an mpp here would be used for both",)
        notes += note_slide(slide, mpp=entry.mpp)
        all_failed = len(failures) == n_probed
        return SlideCheck(
            problem=f"none of {n_probed} sampled regions can be decoded: {failures[0]}"
            if all_failed
            else "",
            notes=() if all_failed else notes,
            vendor=slide.vendor,
            size=slide.size,
            level_downsamples=slide.level_downsamples,
            mpp=slide.mpp,
            objective_power=slide.objective_power,
            bounds=slide.bounds,
            n_probed=n_probed,
            n_unreadable=len(failures),
            n_bytes=_size(task),
            annotation=annotation,
            is_tumour_outlined=is_tumour_outlined,
        )


def _probe(slide: Slide) -> tuple[list[str], int]:
    """Read a small region in each corner and the centre of each level; list failures."""
    x0, y0, width, height = slide.bounds or (0, 0, *slide.size)
    failures: list[str] = []
    places = [*product((0.0, 1.0), (0.0, 1.0)), (0.5, 0.5)]
    for level, downsample in enumerate(slide.level_downsamples):
        columns, rows = slide.level_sizes[level]
        side = (min(PROBE_PX, columns), min(PROBE_PX, rows))
        for right, down in places:
            x = x0 + int(right * max(0, width - side[0] * downsample))
            y = y0 + int(down * max(0, height - side[1] * downsample))
            try:
                slide.read_region((x, y), level, side)
            except SlideError:
                failures.append(f"level {level} at ({x}, {y})")
    return failures, len(slide.level_downsamples) * len(places)


def _find_annotation(
    task: CheckTask, slide: Slide
) -> tuple[Path | None, bool | None, tuple[str, ...]]:
    """Check the annotation in the manifest, or one with the slide's name in its folder.

    Returns
    -------
    annotation : Path or None
    is_tumour_outlined : bool or None
        None if it cannot be read.
    notes : tuple of str
    """
    from tiling.annotation.formats import SUFFIXES

    path = task.entry.path
    candidates = [path.with_name(path.stem + suffix) for suffix in SUFFIXES]
    found = [task.entry.annotation] if task.entry.annotation else []
    if task.propose and not found:
        found = [candidate for candidate in candidates if candidate.is_file()]
    notes: tuple[str, ...] = ()
    for candidate in found:
        try:
            is_outlined, own = _check_annotation(
                candidate, slide, task.entry.unclassified or "auto"
            )
        except (TilingError, OSError) as error:
            notes += (f"annotation: {_without_folder(str(error), candidate)}",)
            continue
        others = tuple(
            f"another annotation of this name: {o.name}" for o in found if o != candidate
        )
        return candidate, is_outlined, notes + own + others
    return task.entry.annotation, None, notes


def _check_annotation(
    path: Path, slide: Slide, unclassified: Unclassified = "auto"
) -> tuple[bool, tuple[str, ...]]:
    """Check that an annotation is on the slide, in either frame.

    Returns
    -------
    is_tumour_outlined : bool
    notes : tuple of str
    """
    from tiling.annotation.reading import check_annotation_fits, read_annotation

    annotation = read_annotation(path, unclassified=unclassified)
    is_outlined = bool(annotation.lesions)
    try:
        return is_outlined, annotation.notes + check_annotation_fits(annotation, slide.size)
    except AnnotationError:
        if slide.bounds is None or slide.bounds[:2] == (0, 0):
            raise
        moved = read_annotation(
            path, origin="bounds", bounds=slide.bounds, unclassified=unclassified
        )
        with contextlib.suppress(AnnotationError):
            notes = moved.notes + check_annotation_fits(moved, slide.size)
            remedy = "the annotation fits only if counted from the slide's bounds: tile it with "
            return is_outlined, (*notes, f"{remedy}tile.annotation_origin=bounds")
        raise


# --- the data set ----------------------------------------------------------------------------


def triage(
    path: Path,
    proposals: Proposals | None = None,
    *,
    workers: int,
    dask: str | None = None,
    quiet: bool = False,
) -> Triage:
    """Look at each slide of a slide, folder or manifest, here or on Dask.

    Raises
    ------
    ManifestError
        If there is no slide, the manifest cannot be read, or it cannot be filled in as wanted.
    ConfigError
        If the shares of the splits leave nothing to train on.
    """
    proposals = proposals or Proposals()
    listing = list_input(path)
    entries: Sequence[SlideEntry] = listing.entries
    notes = list(listing.notes)
    if proposals.annotations is not None:
        are_normal = proposals.unannotated == "normal"
        entries, unmatched = find_annotations(
            entries, proposals.annotations, others_are_normal=are_normal
        )
        notes += unmatched
    named = _propose_ids(entries)
    if proposals.patient_pattern is not None:
        named = propose_patients(named, listing.same_as, proposals.patient_pattern)
    # What is impossible is refused before the slides are read.
    propose_splits(named, proposals)
    if proposals.reviews is not None:
        check_reviews(RunFolder(proposals.reviews), named, proposals.corrected)
    propose = path.suffix.lower() != ".csv"
    tasks = [CheckTask(entry, propose) for entry in anchor_paths(entries, Path.cwd())]
    checks: list[SlideCheck] = [SlideCheck()] * len(tasks)
    with StageProgress("slides", len(tasks), quiet=quiet) as progress:
        for number, found in map_tasks(check_slide, tasks, workers=workers, apart=True, dask=dask):
            seen = SlideCheck(problem=str(found)) if isinstance(found, StageError) else found
            checks[number] = seen
            progress.end(printable(entries[number].path.name), seen.problem or "checked")
    checks = [
        replace(seen, notes=seen.notes + _renamed(before, after))
        for seen, before, after in zip(checks, entries, named, strict=True)
    ]
    same = ["" if first is None else named[first].slide_id for first in listing.same_as]
    filled = [_fill(entry, seen) for entry, seen in zip(named, checks, strict=True)]
    for number, (entry, seen) in enumerate(zip(filled, checks, strict=True)):
        label, more = propose_label(entry, seen.is_tumour_outlined, proposals)
        filled[number] = replace(entry, label=label)
        checks[number] = replace(seen, notes=seen.notes + more)
    files: dict[Path, dict[str, Any]] = {}
    if proposals.reviews is not None:
        corrected, others = correct_slides(
            RunFolder(proposals.reviews), filled, proposals.corrected
        )
        notes += others
        filled = [one.entry for one in corrected]
        for number, one in enumerate(corrected):
            if one.note:
                checks[number] = replace(checks[number], notes=(*checks[number].notes, one.note))
            if one.geojson is not None and one.entry.annotation is not None:
                files[one.entry.annotation] = one.geojson
    filled = propose_splits(filled, proposals)
    return Triage(tuple(filled), tuple(checks), tuple(same), tuple(notes), files)


def _propose_ids(entries: Sequence[SlideEntry]) -> list[SlideEntry]:
    """Propose ids for slides whose own is not valid, and for those that share one.

    That is with the file's suffix, its folder, or a number.
    """
    valid = {
        entry.slide_id: propose_name(entry.slide_id)
        if find_name_problem(entry.slide_id)
        else entry.slide_id
        for entry in entries
    }
    rivals: dict[str, list[SlideEntry]] = defaultdict(list)
    for entry in entries:
        rivals[name_key(valid[entry.slide_id])].append(entry)
    taken = {key for key, found in rivals.items() if len(found) == 1}
    result = []
    for entry in entries:
        slide_id = valid[entry.slide_id]
        others = rivals[name_key(slide_id)]
        if len(others) > 1:
            slide_id = _free_id(slide_id, entry, others, taken)
            taken.add(name_key(slide_id))
        patient = valid.get(entry.patient, entry.patient)  # its own id, or that of its original
        result.append(replace(entry, slide_id=slide_id, patient=patient))
    return result


def _free_id(base: str, entry: SlideEntry, rivals: Sequence[SlideEntry], taken: set[str]) -> str:
    suffixes = {rival.path.suffix.lower() for rival in rivals}
    tried = []
    if len(suffixes) == len(rivals):
        tried.append(f"{base}_{entry.path.suffix.lower().lstrip('.')}")
    elif len({rival.path.parent for rival in rivals}) == len(rivals):
        tried.append(f"{entry.path.parent.name}_{base}")
    tried += [f"{base}_{number}" for number in range(1, len(taken) + len(rivals) + 2)]
    return next(n for n in map(propose_name, tried) if name_key(n) not in taken)


def _renamed(before: SlideEntry, after: SlideEntry) -> tuple[str, ...]:
    if before.slide_id == after.slide_id:
        return ()
    reason = find_name_problem(before.slide_id)
    if reason:
        return (f"the file name cannot be the id, as {reason}: this id is a proposal",)
    return (f"several slides have the id '{before.slide_id}': this id is a proposal",)


def _fill(entry: SlideEntry, seen: SlideCheck) -> SlideEntry:
    """Fill in values of the file that the manifest lacks."""
    square = seen.mpp is not None and seen.mpp[0] == seen.mpp[1]  # else each axis keeps its own
    mpp = seen.mpp[0] if entry.mpp is None and seen.mpp and square else entry.mpp
    return replace(entry, mpp=mpp, annotation=entry.annotation or seen.annotation)


# --- output ----------------------------------------------------------------------------------


def check_target(
    path: Path,
    *,
    overwrite: bool,
    corrected: Path | None = None,
    reviewed: Path | None = None,
) -> None:
    """Refuse to overwrite a manifest or annotations that may have been edited.

    Parameters
    ----------
    path : Path
        Of the manifest.
    corrected : Path, optional
        Folder that gets annotations.
    reviewed : Path, optional
        Run that is not written to.

    Raises
    ------
    ManifestError
    """
    if path.exists() and not overwrite:
        raise ManifestError(
            f"{path}: exists already and may have been edited; use --overwrite (edits are kept "
            "if it is also the INPUT), or another --csv"
        )
    if path.suffix.lower() != ".csv":
        raise ManifestError(f"{path}: a manifest's name ends with .csv")
    if reviewed is not None and path.resolve().is_relative_to(reviewed.resolve()):
        raise ManifestError(
            f"{path}: is in the reviewed run, which is left as it is; write the manifest elsewhere"
        )
    if corrected is not None and corrected.exists() and not overwrite:
        raise ManifestError(
            f"{corrected}: exists already and may have been edited; use --overwrite, or another "
            "--csv"
        )


def write_triage(path: Path, found: Triage, *, source: Path) -> None:
    """Write a manifest with what was seen behind its columns, and corrected annotations.

    Parameters
    ----------
    source : Path
        The input; additional columns of a manifest are kept.
    """
    own = _own_columns(source)
    names = list(own[0]) if own else []
    for annotation, geojson in found.annotations.items():
        annotation.parent.mkdir(parents=True, exist_ok=True)
        update_text(annotation, json_text(geojson))
    rows = []
    for number, row in enumerate(manifest_rows(found.entries, path.parent)):
        facts = _facts(found.checks[number], found.duplicate_of[number])
        rest = own[number].values() if own else ()
        rows.append([*row, *facts, *rest])
    write_csv(path, [*COLUMNS, *FACTS, *names], rows, undecodable="surrogateescape")


def _own_columns(source: Path) -> list[dict[str, str]]:
    if source.suffix.lower() != ".csv":
        return []
    rows = iterate_csv(source, error=ManifestError, undecodable="surrogateescape")
    _, header = next(rows, (0, []))
    filled = (as_mapping(header, cells) for _, cells in rows if any(map(str.strip, cells)))
    return [{k: v for k, v in row.items() if k not in (*COLUMNS, *FACTS)} for row in filled]


def _facts(seen: SlideCheck, duplicate_of: str) -> list[object]:
    width, height = seen.size or ("", "")
    mpp_x, mpp_y = seen.mpp or ("", "")
    n_good = seen.n_probed - seen.n_unreadable
    return [
        "no" if seen.problem else "yes",
        seen.problem,
        "; ".join(seen.notes),
        seen.vendor,
        width,
        height,
        len(seen.level_downsamples) or "",
        " ".join(f"{value:.6g}" for value in seen.level_downsamples),
        mpp_x,
        mpp_y,
        "" if seen.objective_power is None else f"{seen.objective_power:g}",
        " ".join(str(side) for side in seen.bounds or ()),
        f"{n_good} of {seen.n_probed} read" if seen.n_probed else "",
        seen.n_bytes,
        duplicate_of,
    ]


def describe(found: Triage) -> list[str]:
    """Format one line per slide, and a summary."""
    rows = [("slide", "size, px", "levels", "mpp", "vendor", "")]
    for entry, seen, same in zip(found.entries, found.checks, found.duplicate_of, strict=True):
        size = f"{seen.size[0]} x {seen.size[1]}" if seen.size else ""
        mpp = f"{entry.mpp:.4g}" if entry.mpp else _format_mpp(seen.mpp)
        notes = [f"NOT READABLE: {seen.problem}"] if seen.problem else list(seen.notes)
        notes += [f"same content as {same}"] if same else []
        missing = "" if seen.problem else "none"
        levels = str(len(seen.level_downsamples) or "")
        rows.append((entry.slide_id, size, levels, mpp or missing, seen.vendor, "; ".join(notes)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[5]]).rstrip()
        for row in rows
    ]
    return [*map(printable, lines), *found.listed, "", *summarise(found.entries), _summary(found)]


def _format_mpp(mpp: tuple[float, float] | None) -> str:
    if mpp is None:
        return ""
    return f"{mpp[0]:.4g}" if is_square(mpp) else f"{mpp[0]:.4g} x {mpp[1]:.4g}"


def _summary(found: Triage) -> str:
    without = sum(
        not seen.problem and entry.mpp is None and seen.mpp is None
        for entry, seen in zip(found.entries, found.checks, strict=True)
    )
    n_same = sum(bool(same) for same in found.duplicate_of)
    damaged = sum(bool(seen.n_unreadable) and not seen.problem for seen in found.checks)
    annotated = sum(entry.annotation is not None for entry in found.entries)
    parts = [
        f"{pluralize(len(found.checks), 'slide')}: {found.n_readable} readable",
        f"{len(found.checks) - found.n_readable} unreadable",
        f"{damaged} with unreadable regions",
        f"{without} without mpp",
        pluralize(n_same, "duplicate"),
        f"{annotated} with annotation",
    ]
    return ", ".join(parts)
