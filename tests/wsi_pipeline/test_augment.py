"""Augmentation: what it may change, and what it may not."""

import colorsys
from dataclasses import replace

import pytest
import torch

from wsi_pipeline.augment import Augment, turn_hue
from wsi_pipeline.settings import AugmentConfig

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
    out = Augment(AugmentConfig(True, 0, 0, 0, 0), seed=0)(x)
    seen = set()
    for one, other in zip(x, out, strict=True):
        kinds = [dims for dims in ((), (1,), (2,), (1, 2)) if torch.equal(one.flip(dims), other)]
        assert len(kinds) == 1
        seen.add(kinds[0])
    assert seen == {(), (1,), (2,), (1, 2)}


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_perturbation_does_something_by_itself(name):
    config = replace(OFF, **{name: 0.2})
    assert not torch.equal(Augment(config, seed=0)(batch()), batch())


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_grey_has_no_colour_to_perturb(name):
    config = AugmentConfig(False, 0, 0, *((0.4, 0) if name == "saturation" else (0, 0.4)))
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
