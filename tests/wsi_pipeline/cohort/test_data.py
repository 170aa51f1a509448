"""Batches hold the patches that were asked for, in the order asked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.cohort.data import (
    check_stores,
    choose_validation,
    load_batch,
    to_unit_range,
    usable_labels,
)
from wsi_pipeline.errors import TrainingError


def test_batch_is_the_drawn_patches_in_order(fake_store):
    """The grouped read equals the definition, one patch at a time."""
    stores = [fake_store("a", [0, 1, 1]), fake_store("b", [0] * 5)]
    slide = np.array([1, 0, 1, 1, 0, 0])
    patch = np.array([4, 2, 0, 4, 0, 2])

    batch = load_batch(stores, slide, patch)

    expected = np.stack([stores[s].pixels[p] for s, p in zip(slide, patch, strict=True)])
    assert batch.pixels.dtype == torch.uint8
    assert np.array_equal(batch.pixels.numpy(), expected)
    assert batch.readable.all()


def test_each_slide_is_read_once_in_its_order_and_no_patch_twice(fake_store):
    stores = [fake_store("a", [0] * 4), fake_store("b", [0] * 4), fake_store("c", [0])]

    load_batch(stores, np.array([1, 0, 1, 1]), np.array([3, 2, 0, 3]))

    assert [store.reads for store in stores] == [[[2]], [[0, 3]], []]


def test_a_patch_that_cannot_be_decoded_is_left_out_wherever_it_was_drawn(fake_store):
    stores = [fake_store("a", [0, 1, 1], broken=[1]), fake_store("b", [0, 0])]

    batch = load_batch(stores, np.array([0, 1, 0, 0]), np.array([1, 1, 2, 1]))

    assert batch.readable.tolist() == [False, True, True, False]
    expected = np.stack([stores[1].pixels[1], stores[0].pixels[2]])
    assert np.array_equal(batch.pixels.numpy(), expected)


def test_unit_range_is_exact_and_channels_last(fake_store):
    store = fake_store("a", [0, 1])

    x = to_unit_range(torch.from_numpy(store.pixels), torch.device("cpu"))

    assert x.shape == (2, 3, 15, 15)
    assert x.is_contiguous(memory_format=torch.channels_last)
    expected = store.pixels.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    assert np.array_equal(x.numpy(), expected)


def test_unreadable_patches_are_not_trained_on(fake_store):
    store = fake_store("a", [0, 1, 1, -1], unreadable=[1])

    assert usable_labels(store).tolist() == [0, -1, 1, -1]


def test_a_class_absent_from_a_split_is_named(fake_store):
    both, normal = fake_store("a", [0, 1]), fake_store("b", [0, 0, -1])
    patients = {"a": "p", "b": "q"}

    with pytest.raises(TrainingError, match=r"split val has no readable patch of class tumour.*b"):
        check_stores([both], [normal], patients)
    with pytest.raises(TrainingError, match=r"split train has no readable patch of class tumour"):
        check_stores([normal], [both], patients)
    with pytest.raises(TrainingError, match="class normal"):
        check_stores([fake_store("a", [1])], [fake_store("b", [0, 1])], patients)


def test_an_unreadable_patch_does_not_make_a_class_present(fake_store):
    with pytest.raises(TrainingError, match="split train has no readable patch of class tumour"):
        check_stores([fake_store("a", [0, 1], unreadable=[1])], [fake_store("b", [0, 1])], {})


def test_an_empty_split_is_named(fake_store):
    with pytest.raises(TrainingError, match="split val has no slide"):
        check_stores([fake_store("a", [0, 1])], [], {"a": "p"})


def test_a_third_class_is_refused_by_name(fake_store):
    """It was left out of training, and taken for a target of 2 in validation."""
    train, val = [fake_store("a", [0, 1])], [fake_store("b", [0, 1, 2, -1])]
    with pytest.raises(TrainingError, match=r"b has patches of the labels -1, 0, 1, 2; .*two cl"):
        check_stores(train, val, {"a": "p", "b": "q"})


@pytest.mark.parametrize("other", [{"patch_px": 17}, {"target_mpp": 0.25}])
def test_patches_that_differ_name_two_slides_and_the_remedy(fake_store, other):
    a, b = fake_store("a", [0, 1]), fake_store("b", [0, 1], **other)

    with pytest.raises(TrainingError, match=r"a has patches of 15 px.*b has .*same patch_px"):
        check_stores([a], [b], {"a": "p", "b": "q"})


def test_rounding_of_the_resolution_is_no_difference(fake_store):
    a, b = fake_store("a", [0, 1]), fake_store("b", [0, 1])
    b.geometry = replace(b.geometry, target_mpp=0.50001)

    check_stores([a], [b], {"a": "p", "b": "q"})


def test_a_patient_in_both_splits_is_refused(fake_store):
    with pytest.raises(TrainingError, match="both train and val: p"):
        check_stores([fake_store("a", [0, 1])], [fake_store("b", [0, 1])], {"a": "p", "b": "p"})


label_lists = st.lists(
    st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=30), min_size=1, max_size=5
)


@given(labels=label_lists)
@settings(max_examples=50)
def test_validation_without_a_limit_is_every_labelled_patch(labels):
    slide, patch, label = choose_validation(
        [np.array(y, np.int8) for y in labels], most=None, seed=0
    )

    expected = [(i, j, y) for i, ys in enumerate(labels) for j, y in enumerate(ys) if y >= 0]
    assert list(zip(slide.tolist(), patch.tolist(), label.tolist(), strict=True)) == expected


@given(labels=label_lists, most=st.integers(2, 40), seed=st.integers(0, 5))
@settings(max_examples=50)
def test_a_limited_validation_is_balanced_over_classes_and_slides(labels, most, seed):
    arrays = [np.array(y, np.int8) for y in labels]
    slide, patch, label = choose_validation(arrays, most=most, seed=seed)

    drawn = list(zip(slide.tolist(), patch.tolist(), strict=True))
    assert len(set(drawn)) == len(drawn)  # without replacement
    assert all(arrays[s][p] == y for (s, p), y in zip(drawn, label, strict=True))
    for y in (0, 1):
        there = np.array([(a == y).sum() for a in arrays])
        taken = np.bincount(slide[label == y], minlength=len(arrays))
        assert taken.sum() == min(most // 2, there.sum())
        # No slide gives more than one beyond another that had more to give.
        left = taken < there
        assert not left.any() or taken.max() <= taken[left].min() + 1
    again = choose_validation(arrays, most=most, seed=seed)
    assert np.array_equal(again[1], patch)
