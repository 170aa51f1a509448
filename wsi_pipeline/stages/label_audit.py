"""The label audit: the labels of all patch stores of a run, as tables and pictures.

Made from the finished stores alone, so that it is right whatever made them: one run, a resumed
one, or the shards of a job array. Pixels are read of the few patches that are shown.
"""

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tiling.annotation.audit import (
    GROUPS,
    Ambiguous,
    Group,
    LabelCounts,
    count_labels,
    count_shares,
    find_ambiguous,
    share_bins,
)
from tiling.contracts import LabelRule, TileGeometry
from tiling.errors import ExpectedError, TilingError
from tiling.files import digest_json, json_text, move_into, scratch_folder
from tiling.store import PatchStore
from tiling.store_files import stored_fingerprint
from tiling.wording import format_percent, pluralize
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.csv_files import format_csv, read_csv
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.full_disk import describe_full, is_full
from wsi_pipeline.run.state import clear_mark, examine_unit, mark_finished, record_damage

if TYPE_CHECKING:
    from wsi_pipeline.stages.audit_pictures import Sample

log = logging.getLogger(__name__)

VERSION = 2  # raised when the same stores would give other files
SHOWN = 24  # patches in the picture: six columns of four
UNIT = Unit("label_audit")


class Labelled(Protocol):
    """A labelled slide's arrays, of a store or of a plan; see `TileTable`."""

    @property
    def coords(self) -> NDArray[np.int64]:
        """(N, 2): top left corners, level-0 px."""

    @property
    def label(self) -> NDArray[np.int8]:
        """(N,): a `Label` each."""

    @property
    def tumour(self) -> NDArray[np.float32]:
        """(N,): share of the inner square that is tumour."""

    @property
    def unreadable(self) -> NDArray[np.bool_]:
        """(N,)."""

    @property
    def lesion_pairs(self) -> NDArray[np.int64]:
        """(M, 2): row, number of a lesion that it meets."""


@dataclass(frozen=True)
class Audited:
    """What the audit keeps of one slide."""

    entry: SlideEntry
    counts: LabelCounts
    shares: NDArray[np.int64]  # (3, bins)
    n_lesions: int
    n_lesions_hit: int  # that the inner square of some positive patch meets
    ambiguous: list[Ambiguous]
    coords: dict[int, tuple[int, int]]  # of the ambiguous rows
    rule: tuple[Any, ...]


def update_audit(run: RunFolder, *, overwrite: bool = False) -> str:
    """Bring a run's label audit up to date; keep it where no store has changed.

    Parameters
    ----------
    run : RunFolder
        With a manifest and patch stores.
    overwrite : bool
        Make it again even so.

    Returns
    -------
    line : str
        What it found, or why it could not be made: labels are there without it. Empty where no
        slide is tiled, or none has a label or an annotation.
    """
    try:
        stores = _list_stores(run)
        if not has_labels([entry for entry, _ in stores]) and not run.label_audit.is_dir():
            return ""
        fingerprint = digest_json([VERSION, [_made_from(entry, made) for entry, made in stores]])
        found = examine_unit(run, UNIT, fingerprint)
        for problem in found.problems:
            log.warning("label audit: %s; rebuilding", problem)
        if overwrite or found.state != "finished":
            clear_mark(run, UNIT)
            files = _write_audit(run, [entry for entry, _ in stores])
            mark_finished(run, UNIT, fingerprint, files)
        return _line(run.label_audit / "slides.csv")
    except (ExpectedError, OSError) as error:
        log.debug("label audit", exc_info=True)
        if isinstance(error, ExpectedError) and error.damaged is not None:
            record_damage(run, error.damaged, "the label audit", str(error))
        return f"label audit: not made: {describe_full(run.path) if is_full(error) else error}"


def has_labels(entries: Iterable[SlideEntry]) -> bool:
    """Whether a slide has a label or an annotation: otherwise there is nothing to audit."""
    return any(entry.label is not None or entry.annotation is not None for entry in entries)


def _list_stores(run: RunFolder) -> list[tuple[SlideEntry, str]]:
    """List the slides that are tiled, and what each store was made from."""
    found = [
        (entry, stored_fingerprint(run.store(entry.slide_id)))
        for entry in read_run_manifest(run)
        if Unit("tile", entry.slide_id).is_marked(run)
    ]
    return [(entry, made) for entry, made in found if made is not None]


def _made_from(entry: SlideEntry, made: str) -> tuple[Any, ...]:
    return (entry.slide_id, entry.patient, entry.split, made)


def _write_audit(run: RunFolder, entries: Sequence[SlideEntry]) -> list[Path]:
    audited = [_audit(run, entry) for entry in entries]
    files = make_files(audited, lambda one, patch: _sample(run, one, patch))
    with scratch_folder(run.label_audit) as scratch:
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        return move_into(scratch, run.label_audit)


def make_files(
    audited: Sequence[Audited], sample: "Callable[[Audited, Ambiguous], Sample]"
) -> dict[str, bytes]:
    """Make the audit's files in memory.

    Parameters
    ----------
    audited : sequence of Audited
    sample : function
        Gives what the sheet shows of a patch.

    Returns
    -------
    files : dict
        Contents by name.
    """
    from wsi_pipeline.stages.audit_pictures import draw_histogram, draw_sheet

    shares = np.zeros((len(GROUPS), len(share_bins()[0])), np.int64)
    shares += sum(one.shares for one in audited)
    chosen = choose(audited)
    rows = [_ambiguous_row(rank, one, patch) for rank, (one, patch) in enumerate(chosen, start=1)]
    slides = [_slide_row(one) for one in audited]
    patients = _patient_rows(audited)
    classes = _class_rows(audited)
    histogram = _histogram_rows(shares)
    whole = {
        "total": asdict(sum((one.counts for one in audited), LabelCounts())),
        "slides": slides,
        "patients": patients,
        "classes": classes,
        "histogram": histogram,
        "ambiguous": rows,
    }
    files = {
        "slides.csv": _as_csv(slides, SLIDE_COLUMNS),
        "patients.csv": _as_csv(patients, PATIENT_COLUMNS),
        "classes.csv": _as_csv(classes, CLASS_COLUMNS),
        "histogram.csv": _as_csv(histogram, HISTOGRAM_COLUMNS),
        "ambiguous.csv": _as_csv(rows, AMBIGUOUS_COLUMNS),
        "audit.json": json_text(whole).encode(),
    }
    if shares.any():
        picture = io.BytesIO()
        draw_histogram(picture, shares)
        files["histogram.png"] = picture.getvalue()
    if chosen:
        picture = io.BytesIO()
        draw_sheet(picture, [sample(*pair) for pair in chosen])
        files["ambiguous.png"] = picture.getvalue()
    return files


def _audit(run: RunFolder, entry: SlideEntry) -> Audited:
    with PatchStore.open(run.store(entry.slide_id)) as store:
        bounds = (store.tiling["negative_fraction"], store.tiling["positive_fraction"])
        return audit_slide(
            entry,
            store,
            geometry=store.geometry,
            n_lesions=len(store.lesion_ids),
            label_rule=store.tiling["label_rule"],
            bounds=bounds,
        )


def audit_slide(
    entry: SlideEntry,
    table: Labelled,
    *,
    geometry: TileGeometry,
    n_lesions: int,
    label_rule: LabelRule,
    bounds: tuple[float, float],
) -> Audited:
    """Look over the labels of one slide; `bounds` are those of the rule ``fraction``."""
    found = find_ambiguous(
        coords=table.coords,
        side_l0=(
            max(geometry.patch_l0, geometry.stride_l0),
            max(geometry.patch_l0_y, geometry.stride_l0_y),
        ),
        label=table.label,
        tumour=table.tumour,
        unreadable=table.unreadable,
        bounds=bounds,
        most=SHOWN,
    )
    row, lesion = table.lesion_pairs.T
    return Audited(
        entry=entry,
        counts=count_labels(table.label, table.tumour, table.unreadable),
        shares=count_shares(table.label, table.tumour),
        n_lesions=n_lesions,
        n_lesions_hit=len(np.unique(lesion[table.label[row] == 1])),
        ambiguous=found,
        coords={at.row: _point(table.coords[at.row]) for at in found},
        rule=(label_rule, *bounds),
    )


def _point(at: NDArray[np.int64]) -> tuple[int, int]:
    x, y = at.tolist()
    return x, y


def choose(audited: Sequence[Audited]) -> list[tuple[Audited, Ambiguous]]:
    """Choose the least certain patches of all slides, an equal part of each group that has any."""
    by_group: dict[Group, list[tuple[Audited, Ambiguous]]] = {}
    for one in audited:
        for patch in one.ambiguous:
            by_group.setdefault(patch.group, []).append((one, patch))
    for pairs in by_group.values():
        pairs.sort(key=lambda p: (-p[1].doubt[0], -p[1].doubt[1], p[0].entry.slide_id, p[1].row))
    share = SHOWN // max(1, len(by_group))
    return [pair for group in GROUPS for pair in by_group.get(group, [])[:share]]


# --- tables ----------------------------------------------------------------------------------

_COUNTS = tuple(LabelCounts.__dataclass_fields__)
SLIDE_COLUMNS = (
    "slide_id", "patient", "split", "slide_label", *_COUNTS, "lesions", "lesions_hit",
)  # fmt: skip
PATIENT_COLUMNS = ("patient", "split", "slides", *_COUNTS)
CLASS_COLUMNS = ("split", "label", "patches", "slides", "patients")
HISTOGRAM_COLUMNS = ("above", "up_to", *GROUPS)
AMBIGUOUS_COLUMNS = (
    "rank", "label", "slide_id", "patch", "x", "y", "tumour", "around", "label_rule",
)  # fmt: skip


def _slide_row(one: Audited) -> dict[str, Any]:
    entry = one.entry
    return {
        "slide_id": entry.slide_id,
        "patient": entry.patient,
        "split": entry.split,
        "slide_label": entry.label,
        **asdict(one.counts),
        "lesions": one.n_lesions,
        "lesions_hit": one.n_lesions_hit,
    }


def _patient_rows(audited: Sequence[Audited]) -> list[dict[str, Any]]:
    by_patient: dict[str, list[Audited]] = {}
    for one in audited:
        by_patient.setdefault(one.entry.patient, []).append(one)
    return [
        {
            "patient": patient,
            "split": ones[0].entry.split,
            "slides": len(ones),
            **asdict(sum((one.counts for one in ones), LabelCounts())),
        }
        for patient, ones in sorted(by_patient.items())
    ]


def _class_rows(audited: Sequence[Audited]) -> list[dict[str, Any]]:
    rows = []
    splits = sorted({one.entry.split or "" for one in audited})
    for split in splits:
        ones = [one for one in audited if (one.entry.split or "") == split]
        for label in (*GROUPS, "unlabelled"):
            having = [one for one in ones if getattr(one.counts, label)]
            rows.append(
                {
                    "split": split or None,
                    "label": label,
                    "patches": sum(getattr(one.counts, label) for one in having),
                    "slides": len(having),
                    "patients": len({one.entry.patient for one in having}),
                }
            )
    return rows


def _histogram_rows(shares: NDArray[np.int64]) -> list[dict[str, Any]]:
    low, high = (bounds.tolist() for bounds in share_bins())
    return [
        {"above": low[at], "up_to": high[at], **dict(zip(GROUPS, column, strict=True))}
        for at, column in enumerate(shares.T.tolist())
    ]


def _ambiguous_row(rank: int, one: Audited, patch: Ambiguous) -> dict[str, Any]:
    x, y = one.coords[patch.row]
    return {
        "rank": rank,
        "label": patch.group,
        "slide_id": one.entry.slide_id,
        "patch": patch.row,
        "x": x,
        "y": y,
        "tumour": patch.share,
        "around": patch.neighbours,
        "label_rule": one.rule[0],
    }


def _as_csv(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> bytes:
    return format_csv(columns, ([row[name] for name in columns] for row in rows)).encode()


def _line(slides_csv: Path) -> str:
    rows = read_csv(slides_csv, error=StageError)
    if not rows:
        return ""
    total = {name: sum(int(row[name]) for row in rows) for name in _COUNTS}
    n_patients = len({row["patient"] for row in rows})
    known = total["patches"] - total["unlabelled"]
    share = f" ({format_percent(total['positive'] / known)})" if known else ""
    parts = [f"{total['positive']} positive{share}", f"{total['negative']} negative"]
    parts += [f"{total[name]} {name}" for name in ("ignored", "unlabelled") if total[name]]
    missed = sum(int(row["lesions"]) - int(row["lesions_hit"]) for row in rows)
    parts += [f"{pluralize(missed, 'lesion')} without a positive patch"] if missed else []
    where = f"{slides_csv.parent.parent.name}/{slides_csv.parent.name}/"
    return (
        f"labels: {pluralize(total['patches'], 'patch')} of {pluralize(len(rows), 'slide')}, "
        f"{pluralize(n_patients, 'patient')}: {', '.join(parts)}; review them in {where}"
    )


# --- the patches that are shown --------------------------------------------------------------


def _sample(run: RunFolder, one: Audited, patch: Ambiguous) -> "Sample":
    entry = one.entry
    path, cache = run.store(entry.slide_id), run.content(entry.slide_id)
    with PatchStore.open(path, slide_path=entry.path, content_cache=cache) as store:
        pixels = _read_pixels(store, patch.row)
        tumour = _read_tumour(entry, store)
        return make_sample(one, patch, pixels=pixels, tumour=tumour, geometry=store.geometry)


def make_sample(
    one: Audited,
    patch: Ambiguous,
    *,
    pixels: NDArray[np.uint8] | None,
    tumour: Any,
    geometry: TileGeometry,
) -> "Sample":
    """Put together what the sheet shows of a patch; `tumour` is a shapely area or None."""
    from wsi_pipeline.stages.audit_pictures import Sample

    x, y = one.coords[patch.row]
    return Sample(
        pixels=pixels,
        lines=_outlines_within(tumour, (x, y, x + geometry.patch_l0, y + geometry.patch_l0_y)),
        inner=geometry.inner_px / geometry.patch_px,
        group=patch.group,
        caption=f"{one.entry.slide_id} #{patch.row}",
        share=patch.share,
        around=patch.neighbours,
    )


def _read_pixels(store: PatchStore, row: int) -> NDArray[np.uint8] | None:
    try:
        pixels, unreadable = store.read_flagged([row])
    except (TilingError, OSError) as error:  # of `store: coords`, perhaps the slide is away
        if isinstance(error, ExpectedError) and error.damaged is not None:
            raise
        log.warning("label audit: %s", error)
        return None
    return None if unreadable[0] else pixels[0]


def _read_tumour(entry: SlideEntry, store: PatchStore) -> Any:
    from tiling.annotation.slide_annotation import read_annotation_of_store

    if entry.annotation is None:
        return None
    try:
        return read_annotation_of_store(entry.annotation, store).tumour
    except (TilingError, OSError) as error:
        log.warning("label audit: %s", error)
        return None


def _outlines_within(tumour: Any, window: tuple[int, int, int, int]) -> list[NDArray[np.float64]]:
    """Cut the annotation's outlines to a window; (n, 2) each, in shares of its sides."""
    import shapely

    if tumour is None:
        return []
    cut = shapely.intersection(tumour.boundary, shapely.box(*window))
    corner = np.array(window[:2], float)
    side = np.array(window[2:], float) - corner
    parts = shapely.get_parts(cut)
    lines = [(shapely.get_coordinates(part) - corner) / side for part in parts]
    return [line for line in lines if len(line) > 1]
