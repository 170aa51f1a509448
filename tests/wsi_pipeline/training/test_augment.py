"""Augmentation: what it may change, and what it may not."""

import colorsys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed

from wsi_pipeline.config.settings import AugmentConfig
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.training.augment import (
    Augment,
    change_stains,
    crop_at,
    draw_numbers,
    flip,
    turn_hue,
    zoom_in,
)

OFF = AugmentConfig(flips=False, brightness=0, contrast=0, saturation=0, hue=0)


def batch(n=16, side=6):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_off_changes_nothing():
    x = batch()
    assert torch.equal(Augment(OFF, seed=0)(x), x)


def test_the_same_seed_gives_the_same_changes_call_by_call():
    x = batch()
    one, other = Augment(AugmentConfig(), seed=3), Augment(AugmentConfig(), seed=3)
    first = one(x)
    assert torch.equal(first, other(x))
    assert not torch.equal(first, one(x))
    assert torch.equal(one(x), [other(x), other(x)][1])


def test_patches_of_a_batch_are_changed_each_by_itself():
    x = batch()
    others = torch.cat([x[:1], 1 - x[1:]])
    one, other = (Augment(AugmentConfig(), seed=2)(images) for images in (x, others))
    assert torch.equal(one[0], other[0])
    same = Augment(AugmentConfig(), seed=2)(x[:1].expand_as(x))
    assert len(same.flatten(1).unique(dim=0)) == len(x)


def test_the_input_is_left_alone():
    x = batch()
    before = x.clone()
    Augment(AugmentConfig(), seed=0)(x)
    assert torch.equal(x, before)


def test_values_stay_in_range_and_change_the_colours():
    x = batch()
    out = Augment(AugmentConfig(flips=False), seed=0)(x)
    assert out.min() >= 0
    assert out.max() <= 1
    assert ((out - x).abs().amax((1, 2, 3)) > 0.01).all()


def test_flips_are_exact_and_all_four_happen():
    x = batch(64)
    out = Augment(replace(OFF, flips=True), seed=0)(x)
    seen = set()
    for one, other in zip(x, out, strict=True):
        kinds = [dims for dims in ((), (1,), (2,), (1, 2)) if torch.equal(one.flip(dims), other)]
        assert len(kinds) == 1
        seen.add(kinds[0])
    assert seen == {(), (1,), (2,), (1, 2)}


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue", "stain"])
def test_each_perturbation_does_something_by_itself(name):
    config = replace(OFF, **{name: 0.2})
    assert not torch.equal(Augment(config, seed=0)(batch()), batch())


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_grey_has_no_colour_to_perturb(name):
    config = replace(OFF, **{name: 0.4})
    grey = torch.rand(8, 1, 4, 4).expand(8, 3, 4, 4)
    torch.testing.assert_close(Augment(config, seed=0)(grey), grey)


def test_a_third_of_a_turn_makes_green_of_red():
    red = torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)
    turned = turn_hue(red, torch.full((1, 1, 1, 1), 1 / 3))
    torch.testing.assert_close(turned.flatten(), torch.tensor([0.1, 0.9, 0.1]))


def test_a_small_turn_moves_the_hue_as_hsv_has_it():
    pink = torch.tensor([0.8, 0.45, 0.6])
    turned = turn_hue(pink.view(1, 3, 1, 1), torch.full((1, 1, 1, 1), 0.05)).flatten()
    before, after = (colorsys.rgb_to_hsv(*map(float, c))[0] for c in (pink, turned))
    assert after - before == pytest.approx(0.05, abs=0.02)


UNIT = -np.log(1e-6)  # natural optical density of one of scikit-image's units


def stained(n=4, side=8):
    """Images of haematoxylin, eosin and DAB, and their amounts in natural optical density."""
    amounts = np.random.default_rng(0).uniform(0.2, 0.7, (n, side, side, 3))
    return torch.from_numpy(hed2rgb(amounts / UNIT)).permute(0, 3, 1, 2), amounts


def test_stains_are_those_of_scikit_image():
    x, amounts = stained()
    factor, shift = [1.1, 0.8, 1.0], [0.05, 0.1, -0.1]
    changed = change_stains(x, *(torch.tensor([v]).expand(4, 3) for v in (factor, shift)))
    found = rgb2hed(changed.permute(0, 2, 3, 1).numpy()) * UNIT
    np.testing.assert_allclose(found, amounts * factor + shift, atol=1e-5)


def test_stains_stay_within_their_range_and_all_of_it_happens():
    """One colour in many images: the amount of each stain after the change."""
    x = torch.from_numpy(hed2rgb(np.full((1, 1, 3), 0.5 / UNIT))).permute(2, 0, 1)
    out = Augment(replace(OFF, stain=0.2), seed=0)(x.expand(2000, 3, 1, 1))
    amounts = rgb2hed(out.permute(0, 2, 3, 1).numpy()).reshape(-1, 3) * UNIT
    low, high = amounts.min(axis=0), amounts.max(axis=0)
    assert (low >= 0.5 * 0.8 - 0.2 - 1e-5).all()
    assert (high <= 0.5 * 1.2 + 0.2 + 1e-5).all()
    assert (low < 0.24).all()
    assert (high > 0.76).all()
    assert abs(np.corrcoef(amounts.T) - np.eye(3)).max() < 0.1


def test_a_stain_change_of_nothing_leaves_the_image_and_black_stays_finite():
    x = batch()
    x[0] = 0
    none = torch.ones(len(x), 3), torch.zeros(len(x), 3)
    torch.testing.assert_close(change_stains(x, *none), x.clamp_min(1 / 255), atol=1e-5, rtol=0)
    assert Augment(replace(OFF, stain=1.0), seed=0)(x).isfinite().all()


EVERYTHING = AugmentConfig(rotate_180=True, zoom=1.2, stain=0.05)


@pytest.mark.parametrize("sizes", [[16], [1] * 16, [5, 11], [3, 3, 3, 7]])
def test_how_samples_are_batched_changes_nothing(sizes):
    x = batch(16, side=9)
    whole = Augment(EVERYTHING, seed=5, crop=(7, 8))(x)
    augment = Augment(EVERYTHING, seed=5, crop=(7, 8))
    parts = torch.cat([augment(part) for part in x.split(sizes)])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


def test_a_sample_is_changed_by_its_number_wherever_it_is():
    x = batch(6, side=9)
    whole = Augment(EVERYTHING, seed=5)(x)
    some = Augment(EVERYTHING, seed=5)(x[[4, 1]], np.array([4, 1]))
    torch.testing.assert_close(some, whole[[4, 1]], rtol=0, atol=1e-6)


def test_numbers_are_even_and_independent_of_each_other():
    numbers = draw_numbers(3, np.arange(20_000))
    assert abs(numbers.mean(axis=0) - 0.5).max() < 0.01
    assert abs(np.corrcoef(numbers.T) - np.eye(16)).max() < 0.03
    assert not np.array_equal(numbers, draw_numbers(4, np.arange(20_000)))


def test_switching_a_change_on_leaves_the_others_as_they_were():
    x = batch(32)
    flipped = Augment(replace(OFF, flips=True), seed=1)(x)
    both = Augment(replace(OFF, flips=True, rotate_180=True), seed=1)(x)
    for one, other in zip(flipped, both, strict=True):
        assert torch.equal(one, other) or torch.equal(one.flip((1, 2)), other)


def test_half_a_turn_is_an_exact_double_flip_of_half_the_samples():
    x = batch(64, side=7)
    out = Augment(replace(OFF, rotate_180=True), seed=0)(x)
    turned = [torch.equal(a.flip((1, 2)), b) for a, b in zip(x, out, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(x, out, strict=True)]
    assert all(a or b for a, b in zip(turned, kept, strict=True))
    assert 20 < sum(turned) < 44


def test_zoom_is_enlarging_and_keeping_the_centre():
    """Twice as large: each pixel of the centre becomes four, bilinear in between."""
    x = batch(2, side=8)
    found = zoom_in(x, torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(found[0], x[0], atol=1e-5, rtol=0)
    large = torch.nn.functional.interpolate(
        x[1:], size=(16, 16), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(found[1:], large[..., 4:12, 4:12], atol=1e-5, rtol=0)


def test_zoom_factors_are_between_one_and_the_most():
    """Of an image whose columns count up, the columns at the edges give the factor."""
    ramp = (torch.arange(64.0) + 0.5).div(64).expand(200, 1, 64, 64)
    out = Augment(replace(OFF, zoom=1.2), seed=0)(ramp)
    factor = 62 / (out[:, 0, 0, 63] - out[:, 0, 0, 1]) / 64
    assert factor.min() >= 1 - 1e-3
    assert factor.max() <= 1.2 + 1e-3
    assert 1.08 < factor.mean() < 1.12


def test_random_crops_come_from_everywhere_and_are_exact():
    x = torch.arange(5 * 6.0).view(1, 1, 5, 6).div(30).expand(400, 1, 5, 6)
    out = Augment(OFF, seed=0, crop=(4, 4))(x)
    corners = (out[:, 0, 0, 0] * 30).round().int()
    assert set(corners.tolist()) == {0, 1, 2, 6, 7, 8}
    assert torch.bincount(corners)[[0, 1, 2, 6, 7, 8]].min() > 40  # of 400 / 6
    first = int(corners[0])
    row, column = divmod(first, 6)
    assert torch.equal(out[0], x[0, :, row : row + 4, column : column + 4])


def test_stains_are_drawn_apart_from_the_other_changes():
    x = batch(32)
    both, flipped = (Augment(replace(OFF, flips=True, stain=s), seed=1)(x) for s in (1e-9, 0.0))
    torch.testing.assert_close(both, flipped.clamp_min(1 / 255), atol=1e-5, rtol=0)


def test_a_crop_of_the_images_own_size_is_the_image():
    x = batch(3)
    zero = torch.zeros(3)
    assert torch.equal(crop_at(x, (6, 6), zero, zero), x)
    with pytest.raises(ModelError, match="6 x 6 px is smaller than the crop of 7 x 4"):
        crop_at(x, (4, 7), zero, zero)


def test_images_of_one_channel_are_changed_in_brightness_and_contrast_only():
    grey = torch.rand(4, 1, 6, 6)
    assert torch.equal(
        Augment(replace(OFF, hue=0.3, saturation=0.4, stain=0.2), seed=0)(grey), grey
    )
    spread = Augment(AugmentConfig(flips=False), seed=2)
    three = Augment(AugmentConfig(flips=False), seed=2)(grey.expand(4, 3, 6, 6))
    torch.testing.assert_close(spread(grey), three[:, :1], atol=1e-5, rtol=1e-5)


def test_zooming_out_is_refused():
    with pytest.raises(ConfigError, match=r"zoom must be at least 1, got 0\.9"):
        Augment(replace(OFF, zoom=0.9), seed=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_those_of_each_image(channels):
    x = torch.rand(4, channels, 5, 6)
    along_x, along_y = np.array([0, 1, 0, 1], bool), np.array([0, 0, 1, 1], bool)
    flipped = flip(x, along_x=along_x, along_y=along_y)
    assert flipped[0].equal(x[0])
    assert flipped[1].equal(x[1].flip(2))
    assert flipped[2].equal(x[2].flip(1))
    assert flipped[3].equal(x[3].flip(1, 2))
