"""What the command ``froc`` computes: plain files in, ``froc.json`` and its companions out.

Needs no run folder: any method's detections can be scored, any reference used. What is missing or
contradicts itself is an error that names the file, never a silently smaller denominator.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import Unclassified
from tiling.files import digest_file, write_json
from wsi_pipeline import __version__
from wsi_pipeline.contracts import FrocCurve
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import draw_weights
from wsi_pipeline.evaluation.detections import DetectionFile, read_detection_file
from wsi_pipeline.evaluation.froc import (
    RATES,
    AtRate,
    Definition,
    Denominator,
    SlideHits,
    build_froc,
    check_rates,
    collect_events,
    match_detections,
    match_patches,
)
from wsi_pipeline.evaluation.froc_results import (
    LesionRow,
    add_interval,
    describe_found,
    describe_result,
    lesion_rows,
    named_lesion_rows,
    write_froc,
)
from wsi_pipeline.evaluation.lesions import CAMELYON16_MPP, LesionReference
from wsi_pipeline.evaluation.reference import (
    MASK_SUFFIXES,
    POLYGON_SUFFIXES,
    find_references,
    list_folder,
    read_reference,
)
from wsi_pipeline.evaluation.tables import parse_score, read_rows

log = logging.getLogger(__name__)

Say = Callable[[str], None]


@dataclass(frozen=True)
class FrocOptions:
    """What the command was told."""

    definition: Definition
    out: Path
    detections: Path | None = None  # folder; camelyon16
    reference: Path | None = None  # folder; camelyon16
    patches: Path | None = None  # CSV; patch
    slides: Path | None = None  # CSV; optional for camelyon16
    fp_denominator: Denominator | None = None  # None: all for camelyon16, normal for patch
    at_rate: AtRate = "linear"
    rates: tuple[float, ...] = RATES
    bootstrap: int = 0  # replicates; 0: no interval
    seed: int = 0
    stratified: bool = False  # resample tumour and normal slides apart
    mask_downsample: float | None = None  # None: from the file; 32 for polygons
    mpp: float | None = None  # µm per level-0 px; None: 0.243, CAMELYON16's
    tumour_value: int | None = None  # None: every value but 0
    unclassified: Unclassified | None = None  # polygons without class; None: auto


@dataclass(frozen=True)
class MatchedSlides:
    """All that the curve is made of."""

    slide_ids: list[str]
    hits: list[SlideHits]
    lesions: list[LesionRow]
    notes: list[str] = field(default_factory=list)


def run_froc(options: FrocOptions, *, say: Say = log.info) -> FrocCurve:
    """Score detections or patches from plain files.

    Parameters
    ----------
    options : FrocOptions
    say : callable
        Takes each line for the user: what was found, before any score, and what is undefined.

    Returns
    -------
    curve : FrocCurve
        As written to ``froc.json``.

    Raises
    ------
    EvaluationError
        If the files contradict each other or themselves, naming file and line.
    """
    check_options(options)
    matched = (
        _match_camelyon16(options) if options.definition == "camelyon16" else _match_patch(options)
    )
    for note in matched.notes:
        say(f"note: {note}")
    for line in describe_found(matched.hits):
        say(line)
    events = collect_events(
        matched.hits, definition=options.definition, fp_denominator=options.fp_denominator
    )
    curve = build_froc(events, rates=options.rates, at_rate=options.at_rate)
    if options.bootstrap:
        weights = draw_weights(
            len(matched.hits),
            n_replicates=options.bootstrap,
            seed=options.seed,
            strata=~events.normal if options.stratified else None,
        )
        curve = add_interval(
            curve, events, weights, seed=options.seed, unit="slide", stratified=options.stratified
        )
    write_json(options.out / "inputs.json", _describe_inputs(options, matched))
    write_froc(options.out, curve, matched.lesions)
    for line in describe_result(curve):
        say(line)
    return curve


def _describe_inputs(options: FrocOptions, matched: MatchedSlides) -> dict[str, Any]:
    """Say what the figures were made of; names and digests, no folders."""
    given = {
        "detections": options.detections,
        "reference": options.reference,
        "patches": options.patches,
        "slides": options.slides,
    }
    suffixes = {"detections": (".csv",), "reference": (*POLYGON_SUFFIXES, *MASK_SUFFIXES)}
    files = {
        what: list_folder(path, suffixes[what]) if what in suffixes else [path]
        for what, path in given.items()
        if path is not None
    }
    left_out = {"out", *given}
    return {
        "version": __version__,
        "settings": {k: v for k, v in asdict(options).items() if k not in left_out},
        "inputs": [
            {"what": what, "file": path.name, "sha256": digest_file(path)}
            for what, paths in files.items()
            for path in paths
        ],
        "notes": matched.notes,
    }


def check_options(options: FrocOptions) -> None:
    """Refuse options that miss something, contradict each other or cannot be; reads no file.

    Raises
    ------
    EvaluationError
        Naming the option.
    """
    check_rates(options.rates)
    needed = {
        "camelyon16": {"--detections": options.detections, "--reference": options.reference},
        "patch": {"--patches": options.patches, "--slides": options.slides},
    }
    missing = [name for name, value in needed[options.definition].items() if value is None]
    if missing:
        raise EvaluationError(f"--definition {options.definition} needs {' and '.join(missing)}")
    other = needed["patch" if options.definition == "camelyon16" else "camelyon16"]
    unused = [name for name, value in other.items() if value is not None and name != "--slides"]
    if options.definition == "patch":
        for name, value in (
            ("--mask-downsample", options.mask_downsample),
            ("--mpp", options.mpp),
            ("--tumour-value", options.tumour_value),
            ("--unclassified", options.unclassified),
        ):
            unused += [name] if value is not None else []
    if unused:
        raise EvaluationError(f"--definition {options.definition} does not use {', '.join(unused)}")
    if options.bootstrap < 0:
        raise EvaluationError(f"--bootstrap must not be negative, got {options.bootstrap}")
    for name, length in (("--mask-downsample", options.mask_downsample), ("--mpp", options.mpp)):
        if length is not None and not 0 < length < float("inf"):
            raise EvaluationError(f"{name} must be a positive number, got {length}")


# ------------------------------------------------------------ camelyon16


def _match_camelyon16(options: FrocOptions) -> MatchedSlides:
    assert options.detections is not None
    assert options.reference is not None
    detections = {path.stem: path for path in list_folder(options.detections, (".csv",))}
    references = find_references(options.reference)
    listed = _read_slide_list(options.slides) if options.slides else None
    label_by_slide: dict[str, int | None] = dict(
        listed
        if listed is not None
        else zip(sorted({*detections, *references}), repeat(None), strict=False)
    )
    if not label_by_slide:
        raise EvaluationError(
            f"no slides: neither CSVs in {options.detections} nor references in {options.reference}"
        )
    if listed is not None:
        _refuse_unlisted(detections, listed, options)
    matched = MatchedSlides([], [], [], _frame_notes(options, detections, references, listed))
    for slide_id, label in label_by_slide.items():
        path = references.get(slide_id)
        reference, notes = read_reference(
            path,
            unclassified=options.unclassified or "auto",
            mask_downsample=options.mask_downsample,
            mpp=options.mpp,
            tumour_value=options.tumour_value,
            label=label,
        )
        _check_label(slide_id, label, reference, path, options)
        found = _read_inside(detections.get(slide_id), reference)
        hits = match_detections(reference, found.detections) if found else _nothing(reference)
        matched.slide_ids.append(slide_id)
        matched.hits.append(hits)
        matched.lesions.extend(lesion_rows(slide_id, reference, hits))
        matched.notes.extend(notes)
    return matched


def _refuse_unlisted(
    detections: dict[str, Path], listed: dict[str, int], options: FrocOptions
) -> None:
    extra = [path for slide_id, path in detections.items() if slide_id not in listed]
    if extra:
        names = ", ".join(path.name for path in extra[:5])
        raise EvaluationError(
            f"{len(extra)} of {len(detections)} CSVs in {options.detections} are of slides that "
            f"{options.slides} does not list: {names}; list them, or take them away"
        )


def _frame_notes(
    options: FrocOptions,
    detections: dict[str, Path],
    references: dict[str, Path],
    listed: dict[str, int] | None,
) -> list[str]:
    """Say what is assumed, and what is there but not used or the other way round."""
    notes = []
    if options.mpp is None and references:
        notes.append(
            f"level-0 pixels taken as {CAMELYON16_MPP:g} µm, CAMELYON16's; --mpp says otherwise"
        )
    slides = listed if listed is not None else {**detections, **references}
    without = [slide_id for slide_id in slides if slide_id not in detections]
    if without:
        notes.append(
            f"{len(without)} of {len(slides)} slides have no CSV and so no detections: "
            f"{_some(without)}"
        )
    unlisted = [s for s in references if listed is not None and s not in listed]
    if unlisted:
        notes.append(
            f"{len(unlisted)} references are of slides that are not listed, left out: "
            f"{_some(unlisted)}"
        )
    return notes


def _some(names: Sequence[str], n: int = 5) -> str:
    return ", ".join(names[:n]) + (", ..." if len(names) > n else "")


def _check_label(
    slide_id: str,
    label: int | None,
    reference: LesionReference,
    path: Path | None,
    options: FrocOptions,
) -> None:
    if label == 1 and not reference.has_tumour:
        what = f"no tumour in {path}" if path else f"no file in {options.reference}"
        raise EvaluationError(
            f"slide {slide_id} has label 1 in {options.slides} but no reference ({what}); "
            "add it, or label the slide 0"
        )
    if label == 0 and reference.has_tumour:
        raise EvaluationError(
            f"slide {slide_id} has label 0 in {options.slides} but {path} holds a lesion; "
            "one of the two is wrong"
        )


def _read_inside(path: Path | None, reference: LesionReference) -> DetectionFile | None:
    if path is None:
        return None
    found = read_detection_file(path)
    found.check_inside(reference.size)
    return found


def _nothing(reference: LesionReference) -> SlideHits:
    return SlideHits(
        false_positives=np.zeros(0),
        best=np.full(reference.n_lesions, np.nan),
        normal=not reference.has_tumour,
        n_itc=reference.n_itc,
    )


# ------------------------------------------------------------ slides.csv


def _read_slide_list(path: Path) -> dict[str, int]:
    """Read ``slide_id,label``; other columns are passed over."""
    return {slide_id: label for slide_id, label, _ in _read_slides(path, ("slide_id", "label"))}


def _read_slides(path: Path, columns: tuple[str, ...]) -> list[tuple[str, int, list[str]]]:
    """Read a list of slides: id, label and the other columns' text.

    Without a header the columns stand in the order of `columns`.
    """
    rows: list[tuple[str, int, list[str]]] = []
    line_by_slide: dict[str, int] = {}
    for where, line, fields in _read_table(path, columns):
        slide_id, label, *others = fields
        if not slide_id:
            raise EvaluationError(f"{where}: the column 'slide_id' is empty")
        if slide_id in line_by_slide:
            raise EvaluationError(
                f"{where}: slide {slide_id} stands in line {line_by_slide[slide_id]} already"
            )
        if label not in ("0", "1", "0.0", "1.0"):
            raise EvaluationError(
                f"{where}: label '{label}' is neither 1 (tumour) nor 0 (normal); "
                f"the columns are {','.join(columns)}"
            )
        line_by_slide[slide_id] = line
        rows.append((slide_id, int(float(label)), others))
    if not rows:
        raise EvaluationError(f"{path}: lists no slides")
    return rows


def _read_table(path: Path, columns: tuple[str, ...]) -> list[tuple[str, int, list[str]]]:
    """Read the named columns of a CSV: file and line, line, fields; the header is optional."""
    table = []
    order: list[int] | None = None
    width = len(columns)
    for line, fields in read_rows(path):
        where = f"{path}, line {line}"
        if order is None:
            order = list(range(len(columns)))
            if columns[0] in fields:
                missing = [name for name in columns if name not in fields]
                if missing:
                    raise EvaluationError(
                        f"{where}: no column '{missing[0]}' in the header {','.join(fields)}; "
                        f"the columns are {','.join(columns)}"
                    )
                order, width = [fields.index(name) for name in columns], len(fields)
                continue
        if len(fields) != width:
            raise EvaluationError(
                f"{where}: {len(fields)} fields, expected {width} ({','.join(columns)}), "
                "separated by commas"
            )
        table.append((where, line, [fields[i] for i in order]))
    return table


# ------------------------------------------------------------ patch


def _match_patch(options: FrocOptions) -> MatchedSlides:
    assert options.patches is not None
    assert options.slides is not None
    slides = _read_slides(options.slides, ("slide_id", "label", "lesions"))
    lesions = {
        slide_id: _check_lesions(options.slides, slide_id, label, lesions)
        for slide_id, label, (lesions,) in slides
    }
    patches = _read_patches(options.patches, lesions, options.slides)
    matched = MatchedSlides([], [], [])
    for slide_id, label, _ in slides:
        scores, pairs = patches[slide_id]
        names = lesions[slide_id]
        hits = match_patches(scores, pairs, n_lesions=len(names), normal=label == 0)
        matched.slide_ids.append(slide_id)
        matched.hits.append(hits)
        matched.lesions.extend(named_lesion_rows(slide_id, names, hits))
    n_unreadable = sum(int(np.isnan(scores).sum()) for scores, _ in patches.values())
    if n_unreadable:
        matched.notes.append(f"{n_unreadable} patches without a score left out")
    without = [slide_id for slide_id, (scores, _) in patches.items() if not scores.size]
    if without:
        matched.notes.append(f"{len(without)} slides have no patches: {_some(without)}")
    return matched


def _check_lesions(path: Path, slide_id: str, label: int, text: str) -> list[str]:
    names = _split_ids(text)
    if len(set(names)) < len(names):
        raise EvaluationError(f"{path}: slide {slide_id} names a lesion twice: {text}")
    if label == 1 and not names:
        raise EvaluationError(
            f"{path}: slide {slide_id} has label 1 but no lesions; name them, or label it 0"
        )
    if label == 0 and names:
        raise EvaluationError(
            f"{path}: slide {slide_id} has label 0 but lesions {text}; one of the two is wrong"
        )
    return names


def _split_ids(text: str) -> list[str]:
    return [name.strip() for name in text.split(";") if name.strip()]


def _read_patches(
    path: Path, lesions: dict[str, list[str]], slides_path: Path
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Read patches by slide: scores (N,), and pairs (M, 2) of patch and lesion."""
    scores: dict[str, list[float]] = {slide_id: [] for slide_id in lesions}
    pairs: dict[str, list[tuple[int, int]]] = {slide_id: [] for slide_id in lesions}
    index = {s: {name: i for i, name in enumerate(names)} for s, names in lesions.items()}
    for where, _, (slide_id, score, touched) in _read_table(path, ("slide_id", "score", "lesions")):
        if slide_id not in scores:
            raise EvaluationError(f"{where}: slide '{slide_id}' is not listed in {slides_path}")
        row = len(scores[slide_id])
        unreadable = score.lower() in ("", "nan")
        scores[slide_id].append(np.nan if unreadable else parse_score(where, "score", score))
        for name in dict.fromkeys(_split_ids(touched)):
            if name not in index[slide_id]:
                raise EvaluationError(
                    f"{where}: slide {slide_id} has no lesion '{name}' in {slides_path}"
                )
            pairs[slide_id].append((row, index[slide_id][name]))
    return {
        slide_id: (
            np.array(scores[slide_id], dtype=np.float64),
            np.array(pairs[slide_id], dtype=np.int64).reshape(-1, 2),
        )
        for slide_id in lesions
    }
