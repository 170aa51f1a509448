"""What the command ``froc`` computes: plain files in, ``froc.json`` and its companions out.

Needs no run folder: any method's detections can be scored, any reference used. What is missing or
contradicts itself is an error that names the file, never a silently smaller denominator.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tiling.contracts import Unclassified
from tiling.files import digest_file, write_json
from tiling.wording import name_some, pluralize
from wsi_pipeline import __version__
from wsi_pipeline.contracts import AtRate, Definition, Denominator, FrocCurve, PrintLine
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.bootstrap import Resamples, draw_resamples
from wsi_pipeline.evaluation.froc import (
    RATES,
    FrocEvents,
    SlideHits,
    build_froc,
    check_rates,
    collect_events,
    match_detections,
    match_patches,
)
from wsi_pipeline.evaluation.froc_inputs import SlideFiles, find_slide_files
from wsi_pipeline.evaluation.froc_lists import (
    ListedSlide,
    read_lesion_names,
    read_patches,
    read_slide_list,
)
from wsi_pipeline.evaluation.froc_results import (
    LesionRow,
    add_intervals,
    describe_reference,
    describe_result,
    lesion_rows,
    named_lesion_rows,
    write_froc,
)
from wsi_pipeline.evaluation.lesions import CAMELYON16_MPP, LesionReference
from wsi_pipeline.evaluation.reference import read_reference

log = logging.getLogger(__name__)

ReadReference = Callable[..., tuple[LesionReference, tuple[str, ...]]]


@dataclass(frozen=True)
class FrocOptions:
    """The options of the command."""

    definition: Definition
    out: Path
    detections: Path | None = None  # folder, or CSV of all slides; camelyon16
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

    slide_ids: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)  # the slides where none are known
    unit: str = "slide"  # or "patient": what is resampled
    hits: list[SlideHits] = field(default_factory=list)
    lesions: list[LesionRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    inputs: list[tuple[str, Path]] = field(default_factory=list)  # what was read, and as what


@dataclass(frozen=True)
class ScoredSlides:
    """A curve, and what it was made of."""

    curve: FrocCurve
    slide_ids: list[str]
    events: FrocEvents
    resamples: Resamples | None  # of these slides; None: no interval was asked for


def run_froc(options: FrocOptions, *, print_line: PrintLine = log.info) -> FrocCurve:
    """Score detections or patches from plain files; see `score_slides`.

    Returns
    -------
    curve : FrocCurve
        As written to ``froc.json``.
    """
    return score_slides(options, print_line=print_line).curve


def score_slides(
    options: FrocOptions,
    *,
    print_line: PrintLine = log.info,
    read: ReadReference = read_reference,
) -> ScoredSlides:
    """Score detections or patches from plain files, and write the results.

    Parameters
    ----------
    options : FrocOptions
    print_line : callable
        Called with each line for the user: what was found, before any score, and what is undefined.
    read : callable
        Reads the reference of a slide, as `read_reference`.

    Returns
    -------
    scored : ScoredSlides

    Raises
    ------
    EvaluationError
        If the files contradict each other or themselves, naming file and line.
    """
    check_options(options)
    matched = (
        _match_camelyon16(options, read)
        if options.definition == "camelyon16"
        else _match_patch(options)
    )
    for note in matched.notes:
        print_line(f"note: {note}")
    for line in describe_reference(matched.hits):
        print_line(line)
    events = collect_events(
        matched.hits, definition=options.definition, fp_denominator=options.fp_denominator
    )
    curve = build_froc(events, rates=options.rates, at_rate=options.at_rate)
    resamples = None
    if options.bootstrap:
        resamples = draw_resamples(
            matched.patients,
            n_replicates=options.bootstrap,
            seed=options.seed,
            unit=matched.unit,
            strata=~events.normal if options.stratified else None,
        )
        curve = add_intervals(
            curve, events, resamples, seed=options.seed, stratified=options.stratified
        )
    write_json(options.out / "inputs.json", _describe_inputs(options, matched))
    write_froc(options.out, curve, matched.lesions)
    for line in describe_result(curve):
        print_line(line)
    return ScoredSlides(curve, matched.slide_ids, events, resamples)


def _describe_inputs(options: FrocOptions, matched: MatchedSlides) -> dict[str, Any]:
    """Record what the figures were made of; names and digests, no folders."""
    left_out = {"out", "detections", "reference", "patches", "slides"}
    return {
        "version": __version__,
        "settings": {k: v for k, v in asdict(options).items() if k not in left_out},
        "inputs": [
            {"what": what, "file": path.name, "sha256": digest_file(path)}
            for what, path in matched.inputs
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


def _match_camelyon16(options: FrocOptions, read: ReadReference) -> MatchedSlides:
    assert options.detections is not None
    assert options.reference is not None
    listed = read_slide_list(options.slides) if options.slides else None
    found = find_slide_files(options.detections, options.reference, listed)
    if options.mpp is None and found.references:
        found.notes.append(
            f"level-0 pixels taken as {CAMELYON16_MPP:g} µm, CAMELYON16's; --mpp sets another size"
        )
    matched = MatchedSlides(
        unit="patient" if listed and listed.has_patients else "slide",
        notes=found.notes,
        inputs=_list_inputs(options, found),
    )
    for slide_id in found.index.slide_ids:
        slide = listed.slides[slide_id] if listed else None
        path = found.references.get(slide_id)
        reference, notes = read(
            path,
            unclassified=options.unclassified or "auto",
            mask_downsample=options.mask_downsample,
            mpp=options.mpp,
            tumour_value=options.tumour_value,
            label=slide.label if slide else None,
        )
        if slide:
            _check_label(slide, reference, path, found, options)
        own = found.detections.by_slide.get(slide_id)
        hits = (
            match_detections(reference, own.on_slide(reference.size))
            if own
            else _no_detections(reference)
        )
        matched.slide_ids.append(slide_id)
        matched.patients.append(slide.patient if slide else slide_id)
        matched.hits.append(hits)
        matched.lesions.extend(lesion_rows(slide_id, reference, hits))
        matched.notes.extend(notes)
    return matched


def _list_inputs(options: FrocOptions, found: SlideFiles) -> list[tuple[str, Path]]:
    inputs = [("detections", path) for path in found.detections.paths]
    inputs += [("reference", path) for path in sorted(found.references.values())]
    return inputs + ([("slides", options.slides)] if options.slides else [])


def _no_detections(reference: LesionReference) -> SlideHits:
    return SlideHits(
        false_positives=np.zeros(0),
        best=np.full(reference.n_lesions, np.nan),
        normal=not reference.has_tumour,
        n_itc=reference.n_itc,
    )


def _check_label(
    slide: ListedSlide,
    reference: LesionReference,
    path: Path | None,
    found: SlideFiles,
    options: FrocOptions,
) -> None:
    if slide.label == 1 and not reference.has_tumour:
        what = f"no tumour in {path}" if path else f"no file in {options.reference}"
        if found.unmatched and not path:
            names = name_some([path.name for path in found.unmatched])
            what += f", where these match no listed slide: {names}"
        raise EvaluationError(
            f"slide {slide.slide_id} has label 1 in {options.slides} but no reference ({what}); "
            "add it, or label the slide 0"
        )
    if slide.label == 0 and reference.has_tumour:
        raise EvaluationError(
            f"slide {slide.slide_id} has label 0 in {options.slides} but {path} holds a lesion; "
            "one of the two is wrong"
        )


# ------------------------------------------------------------ patch


def _match_patch(options: FrocOptions) -> MatchedSlides:
    assert options.patches is not None
    assert options.slides is not None
    slides = read_slide_list(options.slides, with_lesions=True)
    lesions = read_lesion_names(slides)
    patches = read_patches(options.patches, slides, lesions)
    matched = MatchedSlides(
        unit="patient" if slides.has_patients else "slide",
        inputs=[("patches", options.patches), ("slides", options.slides)],
    )
    for slide_id, slide in slides.slides.items():
        own = patches[slide_id]
        names = lesions[slide_id]
        hits = match_patches(own.scores, own.pairs, n_lesions=len(names), normal=slide.label == 0)
        matched.slide_ids.append(slide_id)
        matched.patients.append(slide.patient)
        matched.hits.append(hits)
        matched.lesions.extend(named_lesion_rows(slide_id, names, hits))
    n_unreadable = sum(int(np.isnan(own.scores).sum()) for own in patches.values())
    if n_unreadable:
        matched.notes.append(f"{pluralize(n_unreadable, 'patch')} without a score left out")
    without = [slide_id for slide_id, own in patches.items() if not own.scores.size]
    if without:
        verb = "has" if len(without) == 1 else "have"
        matched.notes.append(
            f"{pluralize(len(without), 'slide')} {verb} no patches: {name_some(without)}"
        )
    return matched
