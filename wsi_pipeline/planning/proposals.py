"""What a manifest is filled in with besides what the slide files hold.

Annotations by the names of their files, labels by the annotations, patients by the names of the
slides, and splits. Values that a manifest has are never changed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tiling.wording import name_some, pluralize
from wsi_pipeline.cohort.manifest import with_splits
from wsi_pipeline.cohort.patients import patient_finder
from wsi_pipeline.cohort.splits import assign_splits
from wsi_pipeline.contracts import SPLITS, SlideEntry
from wsi_pipeline.errors import EvaluationError, ManifestError


@dataclass(frozen=True)
class Proposals:
    """How the columns of a manifest are to be filled in."""

    annotations: Path | None = None  # folder of files named after the slides
    unannotated: Literal["unknown", "normal"] = "unknown"  # label of slides without annotation
    patient_pattern: str | None = None  # regular expression, on the name of a slide's file
    splits: tuple[float, float] | None = None  # shares of patients for val and test
    seed: int = 0  # of the splits
    reviews: Path | None = None  # run whose reviews correct annotations and labels
    corrected: Path = Path()  # folder of the annotations that they correct


def find_annotations(
    entries: Sequence[SlideEntry], folder: Path, *, others_are_normal: bool
) -> tuple[list[SlideEntry], list[str]]:
    """Give slides without an annotation the file of a folder that is named after them.

    Case, the suffix of a slide and the endings ``_mask`` and ``_evaluation_mask`` make no
    difference.

    Parameters
    ----------
    others_are_normal : bool
        Whether slides without an annotation count as normal: then a file that is named after one
        and cannot be read is an error.

    Returns
    -------
    entries : list of SlideEntry
    notes : list of str
        Files that belong to no slide, or cannot be read.

    Raises
    ------
    ManifestError
        If there is no such folder, or two files or two slides go by one name.
    """
    from tiling.annotation.formats import SUFFIXES
    from wsi_pipeline.evaluation.froc_folders import list_files
    from wsi_pipeline.evaluation.slide_names import SlideIndex, list_ids

    known = ".xml, .geojson and .json"
    index = SlideIndex()
    try:
        files = list_files(folder, tuple(SUFFIXES), readable=known, is_reference=True)
        for entry in entries:
            index.add(entry.path.name, list_ids(entry.path.name), entry.path.name)
        by_name, unmatched = files.by_slide(index)
        bare = {e.path.name for e in entries if not e.annotation} - set(by_name)
        without = bare if others_are_normal else set()
        notes = files.check_others(index, without, [e.path.resolve() for e in entries])
    except EvaluationError as error:
        raise ManifestError(str(error)) from error
    if unmatched:
        names = name_some([path.name for path in unmatched])
        notes.append(f"{pluralize(len(unmatched), 'annotation')} of no slide: {names}")
    found = [replace(e, annotation=e.annotation or by_name.get(e.path.name)) for e in entries]
    return found, notes


def propose_label(
    entry: SlideEntry, is_tumour_outlined: bool | None, proposals: Proposals
) -> tuple[int | None, tuple[str, ...]]:
    """Return a slide's label, and notes on it.

    Parameters
    ----------
    is_tumour_outlined : bool or None
        In the slide's annotation; None where there is none that can be read.
    """
    notes: tuple[str, ...] = ()
    if entry.label == 0 and is_tumour_outlined:
        notes = ("label 0, but its annotation outlines tumour",)
    if entry.label == 1 and is_tumour_outlined is False:
        notes = ("label 1, but its annotation outlines no tumour",)
    if entry.label is not None:
        return entry.label, notes
    if is_tumour_outlined is False:
        return 0, ("label 0, as its annotation outlines no tumour",)
    if is_tumour_outlined:
        return 1, ()
    if proposals.unannotated == "normal" and entry.annotation is None:
        return 0, ()
    return None, ()


def propose_patients(
    entries: Sequence[SlideEntry], same_as: Sequence[int | None], pattern: str
) -> list[SlideEntry]:
    """Take patients from the names of files, where none is named; a copy has its original's.

    Raises
    ------
    ManifestError
        If the pattern is wrong, or finds nothing in a name.
    """
    find = patient_finder(pattern, option="--patient-from")
    named: list[SlideEntry] = []
    for entry, first in zip(entries, same_as, strict=True):
        if first is not None:
            patient = named[first].patient
        elif entry.patient != entry.slide_id:
            patient = entry.patient
        else:
            patient = find(entry.path.name)
        named.append(replace(entry, patient=patient))
    return named


def propose_splits(entries: Sequence[SlideEntry], proposals: Proposals) -> list[SlideEntry]:
    """Divide the patients between splits.

    Raises
    ------
    ConfigError
        If the shares leave nothing to train on.
    ManifestError
        If some slides have a split already.
    """
    if proposals.splits is None:
        return list(entries)
    val, test = proposals.splits
    found = assign_splits(entries, val_fraction=val, test_fraction=test, seed=proposals.seed)
    return with_splits(entries, found)


def summarise(entries: Sequence[SlideEntry]) -> list[str]:
    """Count labels and splits, if there are any; advise on slides without a label."""
    lines = []
    labels = Counter(entry.label for entry in entries)
    if labels[0] or labels[1]:
        known = f"{labels[1]} tumour, {labels[0]} normal, {labels[None]} unknown"
        lines.append(f"labels: {known}")
        if labels[None]:
            lines.append(
                "slides without a label can be scored, not trained on; write 0 for those that are "
                "normal, or use --unannotated normal if all without annotation are"
            )
    splits = Counter(entry.split for entry in entries)
    if any(splits[split] for split in SPLITS):
        patients = len({entry.patient for entry in entries})
        shares = ", ".join(f"{split} {splits[split]}" for split in SPLITS)
        n = pluralize(len(entries), "slide")
        lines.append(f"splits: {shares} ({n} of {pluralize(patients, 'patient')})")
    return lines
