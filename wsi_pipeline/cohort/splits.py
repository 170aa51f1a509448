"""Splits by patient, stratified by whether the patient has a tumour slide; seeded.

Never by slide or patch: two slides of one patient look alike, and a model that has seen one
is not tested by the other.
"""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from tiling.wording import pluralize
from wsi_pipeline.config.reading import SplitConfig
from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import ConfigError, ManifestError

MIN_PATIENTS = 3  # one for each split


def assign_splits(
    entries: Sequence[SlideEntry],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    folds: int | Literal["patients"] | None = None,
    fold: int = 0,
) -> dict[str, Split]:
    """Put each patient of a data set without splits into train, val or test.

    If all entries are in train or test, as published data sets often are, validation takes its
    share of the training patients, and the test stays as it is.

    Patients with and without a tumour slide are dealt separately, so that each split gets its
    share of both; each split asked for gets at least one patient of a kind while the kind has
    enough for all splits, and training always does. The order of the entries does not matter.

    Parameters
    ----------
    val_fraction, test_fraction : in [0, 1)
        Shares of the patients; the rest is for training. Ignored if `folds` is a number.
    folds : int, optional
        Divide the patients into so many folds; number `fold` is the test, the next one (the first
        after the last) validates, the rest trains. Of two folds the other one trains. "patients":
        each patient is a fold, in the order of their names; of the others `val_fraction` validate.
    fold : int
        From 0.

    Returns
    -------
    split_by_patient : dict

    Raises
    ------
    ConfigError
        If the fractions leave nothing to train on, or there is no such fold.
    ManifestError
        If some slides have a split already: half a split is a mistake.

    Examples
    --------
    >>> from pathlib import Path
    >>> slides = [SlideEntry(f"s{i}", Path(), f"p{i}", label=i % 2) for i in range(10)]
    >>> found = assign_splits(slides, val_fraction=0.2, test_fraction=0.2, seed=0)
    >>> sorted(found.values()).count("train")
    6
    """
    if isinstance(folds, int) and not (folds >= 2 and 0 <= fold < folds):
        raise ConfigError(
            "splits: folds must be at least 2 and fold in 0 to folds - 1, "
            f"got folds={folds}, fold={fold}"
        )
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            "splits: val_fraction and test_fraction must be in [0, 1) and leave patients to train "
            f"on, got {val_fraction} and {test_fraction}"
        )
    if folds is None and val_fraction and {e.split for e in entries} == {"train", "test"}:
        return _validate_by_some(entries, val_fraction=val_fraction, seed=seed)
    if any(entry.split for entry in entries):
        raise ManifestError(
            "the manifest has splits already; set the config's splits to null (--set splits=null) "
            "or remove the manifest's split column. "
            "(Where it has train and test alone, for every entry, splits.val_fraction takes val "
            "from train.)"
        )
    if folds == "patients":
        return _leave_out(entries, fold, val_fraction=val_fraction, seed=seed)
    if folds is not None:
        return _take_fold(assign_folds(entries, folds=folds, seed=seed), folds, fold)
    positive = _positive_patients(entries)
    patients = sorted({entry.patient for entry in entries})
    result: dict[str, Split] = {}
    generator = random.Random(seed)
    for kind in (True, False):
        group = [p for p in patients if (p in positive) == kind]
        generator.shuffle(group)
        n_val, n_test = _shares(len(group), val_fraction, test_fraction)
        for i, patient in enumerate(group):
            result[patient] = "test" if i < n_test else "val" if i < n_test + n_val else "train"
    return result


def _validate_by_some(
    entries: Sequence[SlideEntry], *, val_fraction: float, seed: int
) -> dict[str, Split]:
    """Take a share of the training patients for validation."""
    train = [replace(entry, split=None) for entry in entries if entry.split == "train"]
    found = assign_splits(train, val_fraction=val_fraction, test_fraction=0.0, seed=seed)
    tested: dict[str, Split] = {entry.patient: "test" for entry in entries}
    return tested | found


def advise_missing_split(
    entries: Sequence[SlideEntry], split: Split, *, made: SplitConfig | None
) -> str:
    """Explain why no slide is in a split, and what to do.

    Parameters
    ----------
    entries : slides of the whole data set
    split : the one that is empty
    made : SplitConfig, optional
        How the splits were made; None: they are the manifest's.
    """
    patients = {entry.patient for entry in entries}
    positive = _positive_patients(entries)
    without = "train without validation (--set monitor=none), or "
    if len(patients) < MIN_PATIENTS:
        verb = "is" if len(patients) == 1 else "are"
        return (
            f"{pluralize(len(patients), 'patient')} {verb} too few for training, validation and "
            f"test splits; {without if split == 'val' else ''}add slides of other patients"
        )
    if made and made.folds is not None:
        return "two folds leave none for validation; use three or more (splits.folds), or " + (
            "train without validation (--set monitor=none)"
        )
    if made:
        return (
            f"splits divides patients with and without tumour separately and needs at least "
            f"{MIN_PATIENTS} of a kind, got {len(positive)} with and "
            f"{len(patients - positive)} without tumour; {without if split == 'val' else ''}"
            "choose the splits in the manifest's split column"
        )
    return "fill the manifest's split column, or set splits in the config, and run tile again"


def advise_image_split(split: Split) -> str:
    """Say how images get into a split where none is in it."""
    without = "; or train without validation: monitor=none" if split == "val" else ""
    return (
        "tile again with splits in the config (--set splits.val_fraction=0.2), with folders train/ "
        f"and val/, or with a table's column split{without}"
    )


def assign_folds(entries: Sequence[SlideEntry], *, folds: int, seed: int) -> dict[str, int]:
    """Deal patients into folds of nearly equal size, those with and without tumour apart.

    Returns
    -------
    fold_by_patient : dict
        From 0. Every patient is in one fold; sizes differ by at most one within each kind.
    """
    positive = _positive_patients(entries)
    patients = sorted({entry.patient for entry in entries})
    if folds < 2:
        raise ConfigError(f"splits: folds must be at least 2, got {folds}")
    if len(patients) < folds:
        raise ConfigError(
            f"splits: {folds} folds need as many patients, got "
            f"{pluralize(len(patients), 'patient')}; set splits.folds lower"
        )
    generator = random.Random(seed)
    shuffled = []
    for kind in (True, False):
        group = [p for p in patients if (p in positive) == kind]
        generator.shuffle(group)
        shuffled += group
    return {patient: place % folds for place, patient in enumerate(shuffled)}


def _take_fold(fold_by_patient: dict[str, int], folds: int, fold: int) -> dict[str, Split]:
    def split_of(found: int) -> Split:
        if found == fold:
            return "test"
        return "val" if folds > 2 and found == (fold + 1) % folds else "train"

    return {patient: split_of(found) for patient, found in fold_by_patient.items()}


def _leave_out(
    entries: Sequence[SlideEntry], fold: int, *, val_fraction: float, seed: int
) -> dict[str, Split]:
    patients = sorted({entry.patient for entry in entries})
    if not (len(patients) >= 2 and 0 <= fold < len(patients)):
        raise ConfigError(
            "splits: folds=patients needs at least two patients, and fold from 0 to patients - 1; "
            f"got fold={fold} with {pluralize(len(patients), 'patient')}"
        )
    others = [entry for entry in entries if entry.patient != patients[fold]]
    result = assign_splits(others, val_fraction=val_fraction, test_fraction=0.0, seed=seed)
    return {**result, patients[fold]: "test"}


def _positive_patients(entries: Sequence[SlideEntry]) -> set[str]:
    return {e.patient for e in entries if e.label == 1 or (e.label is None and e.annotation)}


def _shares(n: int, *fractions: float) -> list[int]:
    # At least one where asked for, as long as one each remains for the other two splits.
    shares = [max(round(f * n), 1 if f > 0 and n >= MIN_PATIENTS else 0) for f in fractions]
    while sum(shares) >= n > 0:  # no patient would be left for training
        shares[shares.index(max(shares))] -= 1
    return shares
