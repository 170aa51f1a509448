"""Splits by patient, stratified by whether the patient has a tumour slide; seeded.

Never by slide or patch: two slides of one patient look alike, and a model that has seen one
is not tested by the other.
"""

import random
from collections.abc import Sequence

from wsi_pipeline.contracts import SlideEntry, Split
from wsi_pipeline.errors import ConfigError, ManifestError


def assign_splits(
    entries: Sequence[SlideEntry], *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Split]:
    """Put each patient of a data set without splits into train, val or test.

    Patients with and without a tumour slide are dealt separately, so that each split gets its
    share of both; each split asked for gets at least one patient of a kind while the kind has
    enough for all splits.

    Parameters
    ----------
    val_fraction, test_fraction : in [0, 1)
        Shares of the patients; the rest trains.

    Returns
    -------
    split_by_patient : dict

    Raises
    ------
    ConfigError
        If the fractions leave nothing to train on.
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
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            "splits: val_fraction and test_fraction must be in [0, 1) and leave patients to train "
            f"on, got {val_fraction} and {test_fraction}"
        )
    if any(entry.split for entry in entries):
        raise ManifestError(
            "the manifest has splits already; remove its split column or the config's splits"
        )
    positive = {e.patient for e in entries if e.label == 1 or (e.label is None and e.annotation)}
    patients = sorted({entry.patient for entry in entries})
    result: dict[str, Split] = {}
    generator = random.Random(seed)
    for kind in (True, False):
        group = [p for p in patients if (p in positive) == kind]
        generator.shuffle(group)
        n_val, n_test = (_share(fraction, len(group)) for fraction in (val_fraction, test_fraction))
        for i, patient in enumerate(group):
            result[patient] = "test" if i < n_test else "val" if i < n_test + n_val else "train"
    return result


def _share(fraction: float, n: int) -> int:
    # At least one where asked for, as long as one each remains for the other two splits.
    return max(round(fraction * n), 1 if fraction > 0 and n >= 3 else 0)
