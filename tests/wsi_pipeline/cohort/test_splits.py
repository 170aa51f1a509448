"""Splits by patient: what must hold for every data set."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.cohort.splits import advise_missing_split, assign_folds, assign_splits
from wsi_pipeline.config.reading import SplitConfig
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ConfigError, ManifestError


def entries_of(patients):
    """One slide per label of each patient."""
    return [
        SlideEntry(f"{name}-{i}", Path(), name, label=label)
        for name, labels in patients.items()
        for i, label in enumerate(labels)
    ]


cohorts = st.dictionaries(
    st.text("abcdefg", min_size=1, max_size=4),
    st.lists(st.integers(0, 1), min_size=1, max_size=3),
    min_size=2,
    max_size=30,
).map(entries_of)
seeds = st.integers(0, 2**32)
fractions = st.tuples(st.floats(0, 0.6), st.floats(0, 0.6)).filter(lambda f: sum(f) < 0.99)


def kinds(entries):
    """Names of the patients with and without a tumour slide."""
    positive = {e.patient for e in entries if e.label == 1}
    return positive, {e.patient for e in entries} - positive


@given(entries=cohorts, shares=fractions, seed=seeds, data=st.data())
@settings(max_examples=80)
def test_shares_cover_every_patient_and_are_stratified(entries, shares, seed, data):
    val, test = shares
    found = assign_splits(entries, val_fraction=val, test_fraction=test, seed=seed)

    assert set(found) == {e.patient for e in entries}
    for kind in kinds(entries):
        splits = [found[p] for p in kind]
        for name, share in (("val", val), ("test", test)):
            assert abs(splits.count(name) - share * len(kind)) < (1.5 if share else 0.5)
            if share and len(kind) >= 3:
                assert name in splits
        if kind:
            assert "train" in splits
    shuffled = data.draw(st.permutations(entries))
    assert assign_splits(shuffled, val_fraction=val, test_fraction=test, seed=seed) == found


@given(entries=cohorts, share=st.floats(0.05, 0.6), seed=seeds, data=st.data())
@settings(max_examples=40)
def test_validation_is_taken_from_a_given_training_set(entries, share, seed, data):
    """CAMELYON16, ISIC 2016: published with a test and without validation."""
    patients = sorted({e.patient for e in entries})
    tested = data.draw(st.sets(st.sampled_from(patients), min_size=1, max_size=len(patients) - 1))
    official = [replace(e, split="test" if e.patient in tested else "train") for e in entries]

    found = assign_splits(official, val_fraction=share, test_fraction=0.2, seed=seed)

    assert {p for p, split in found.items() if split == "test"} == tested
    alone = [replace(e, split=None) for e in official if e.split == "train"]
    others = assign_splits(alone, val_fraction=share, test_fraction=0, seed=seed)
    assert {p: s for p, s in found.items() if p not in tested} == others


def test_splits_with_validation_are_not_divided_again():
    entries = [SlideEntry(s, Path(), s, split=s) for s in ("train", "val", "test")]
    with pytest.raises(ManifestError, match="has splits already"):
        assign_splits(entries, val_fraction=0.5, test_fraction=0, seed=0)
    with pytest.raises(ManifestError, match="has splits already"):  # folds have a test of their own
        assign_splits(entries[::2], val_fraction=0.5, test_fraction=0, seed=0, folds=2)


@given(entries=cohorts, seed=seeds, data=st.data())
@settings(max_examples=60)
def test_each_patient_is_tested_and_validated_in_one_fold_each(entries, seed, data):
    patients = sorted({e.patient for e in entries})
    folds = data.draw(st.integers(2, len(patients)))
    shuffled = data.draw(st.permutations(entries))
    times = {"test": [], "val": []}
    for fold in range(folds):
        found = assign_splits(
            entries, val_fraction=0.2, test_fraction=0.2, seed=seed, folds=folds, fold=fold
        )
        assert set(found) == set(patients)
        assert found == assign_splits(
            shuffled, val_fraction=0.2, test_fraction=0.2, seed=seed, folds=folds, fold=fold
        )
        for name, tested in times.items():
            tested += [p for p, split in found.items() if split == name]
    assert sorted(times["test"]) == patients
    assert sorted(times["val"]) == (patients if folds > 2 else [])


@given(entries=cohorts, seed=seeds, data=st.data())
@settings(max_examples=60)
def test_folds_are_of_one_size_as_a_whole_and_within_each_kind(entries, seed, data):
    folds = data.draw(st.integers(2, len({e.patient for e in entries})))
    fold_of = assign_folds(entries, folds=folds, seed=seed)
    for group in (set(fold_of), *kinds(entries)):
        sizes = [sum(fold_of[p] == fold for p in group) for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1


@given(entries=cohorts, seed=seeds, val=st.sampled_from([0.0, 0.2, 0.5]))
@settings(max_examples=40)
def test_leaving_one_patient_out_tests_each_once_and_alone(entries, seed, val):
    patients = sorted({e.patient for e in entries})
    for fold, left_out in enumerate(patients):
        found = assign_splits(
            entries, val_fraction=val, test_fraction=0.2, seed=seed, folds="patients", fold=fold
        )
        assert set(found) == set(patients)
        assert [p for p, split in found.items() if split == "test"] == [left_out]
        assert "train" in found.values()
        if val == 0:
            assert "val" not in found.values()


def test_a_patient_to_leave_out_that_is_not_there_is_refused():
    entries = entries_of({"a": [0], "b": [1]})
    with pytest.raises(ConfigError, match="fold=2 with 2 patients"):
        assign_splits(entries, val_fraction=0, test_fraction=0, seed=0, folds="patients", fold=2)


def test_a_kind_of_few_patients_trains_first():
    """Two large shares of three patients left none of them to train on."""
    entries = entries_of({"a": [1], "b": [1], "c": [1], "d": [0], "e": [1, 0]})
    for shares in ((0.5, 0.49), (0.49, 0.5), (0.9, 0.0)):
        found = assign_splits(entries, val_fraction=shares[0], test_fraction=shares[1], seed=0)
        assert found["d"] == "train"
        assert "train" in {found[p] for p in "abce"}


def slides_of(labels: str) -> list[SlideEntry]:
    """One slide of each patient; + tumour, - normal."""
    return [
        SlideEntry(f"s{i}", Path(), f"p{i}", label=int(kind == "+"))
        for i, kind in enumerate(labels)
    ]


@pytest.mark.parametrize("labels", ["+", "+-"])
@pytest.mark.parametrize("made", [None, SplitConfig()])
def test_too_few_patients_are_named_as_that(labels, made):
    """`splits` was advised, which cannot make three splits of two patients either."""
    advice = advise_missing_split(slides_of(labels), "val", made=made)

    assert f"{len(labels)} patient" in advice
    assert "too few for training, validation and test splits" in advice
    assert "monitor=none" in advice
    assert "set splits" not in advice


def test_splits_that_could_not_divide_a_kind_are_not_advised_again():
    entries = slides_of("++--")
    assert set(assign_splits(entries, val_fraction=0.2, test_fraction=0.2, seed=0).values()) == {
        "train"
    }

    advice = advise_missing_split(entries, "val", made=SplitConfig())

    assert "at least 3 of a kind, got 2 with and 2 without tumour" in advice
    assert "set splits in the config" not in advice


def test_two_folds_have_no_validation():
    assert "three or more (splits.folds)" in advise_missing_split(
        slides_of("+++---"), "val", made=SplitConfig(folds=2)
    )


def test_a_manifest_without_splits_gets_the_advice_to_make_some():
    assert "set splits in the config" in advise_missing_split(
        slides_of("+++---"), "train", made=None
    )
