"""Preprocessing against its definitions (docs/models.md)."""

import pytest
import torch

from wsi_pipeline.config.settings import PreprocessConfig
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.preprocess import (
    Preprocess,
    crop_centre,
    estimate_light,
    min_max,
    shades_of_grey,
)


def images(n=3, side=8, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, channels, side, side, generator=generator, dtype=torch.double)


def test_off_changes_nothing():
    x = images()
    assert torch.equal(Preprocess(PreprocessConfig())(x), x)


def test_min_max_stretches_each_image_and_survives_constants():
    x = torch.stack([torch.rand(3, 4, 4) * 0.5 + 0.2, torch.full((3, 4, 4), 0.7)])
    stretched = min_max(x)
    assert (stretched[0].min(), stretched[0].max()) == (0, 1)
    assert not stretched[1].any()


def test_min_max_is_over_all_channels_of_one_image():
    x = images() * torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1)
    for one, found in zip(x, min_max(x), strict=True):
        torch.testing.assert_close(found, (one - one.min()) / (one.max() - one.min()))


def test_a_grey_image_keeps_its_colours():
    grey = images(channels=1).expand(3, 3, 8, 8)
    torch.testing.assert_close(shades_of_grey(grey), grey, atol=1e-15, rtol=0)
    single = images(channels=1)
    torch.testing.assert_close(shades_of_grey(single), single, atol=1e-15, rtol=0)


def test_colour_constancy_done_twice_is_done_once():
    once = shades_of_grey(images())
    torch.testing.assert_close(shades_of_grey(once), once, atol=1e-15, rtol=1e-15)


def test_the_light_of_the_result_is_grey():
    light = estimate_light(shades_of_grey(images()))
    torch.testing.assert_close(light, torch.full_like(light, 3**-0.5))


def test_a_coloured_light_is_divided_out_but_for_its_strength():
    """SoG(x diag(s)) = const * SoG(x)."""
    x, light = images(), torch.tensor([0.9, 0.5, 0.7], dtype=torch.double).view(1, 3, 1, 1)
    ratio = shades_of_grey(x * light) / shades_of_grey(x)
    for one in ratio:
        torch.testing.assert_close(one, one.flatten()[0].expand_as(one))


def test_the_estimate_is_the_minkowski_mean():
    x = images()
    mean = (x**6).mean((2, 3)) ** (1 / 6)
    torch.testing.assert_close(estimate_light(x), mean / mean.norm(dim=1, keepdim=True))
    plain = x.mean((2, 3))
    torch.testing.assert_close(estimate_light(x, order=1), plain / plain.norm(dim=1, keepdim=True))


def test_black_images_and_black_channels_stay_black():
    black = torch.zeros(1, 3, 4, 4)
    assert not shades_of_grey(black).any()
    red = black.clone()
    red[:, 0] = 0.5
    found = shades_of_grey(red)
    assert found.isfinite().all()
    assert not found[:, 1:].any()


def test_an_image_darker_than_a_power_of_six_can_hold_is_still_corrected():
    dark = torch.rand(1, 3, 4, 4) * 1e-9
    light = estimate_light(dark)
    assert light.norm().item() == pytest.approx(1)


@pytest.mark.parametrize(("mode", "exponent"), [("encode", 1 / 2.2), ("decode", 2.2)])
def test_gamma_goes_either_way(mode, exponent):
    x = images()
    found = Preprocess(PreprocessConfig(gamma=2.2, gamma_mode=mode))(x)
    torch.testing.assert_close(found, x**exponent)


def test_gamma_comes_before_colour_constancy_and_the_result_is_clipped():
    x = images()
    found = Preprocess(PreprocessConfig(gamma=2.2, colour_constancy=True))(x)
    torch.testing.assert_close(found, shades_of_grey(x ** (1 / 2.2)).clamp(0, 1))
    assert found.max() <= 1


def test_the_centre_is_cropped():
    x = images(side=10)
    assert torch.equal(crop_centre(x, (4, 6)), x[..., 3:7, 2:8])
    assert torch.equal(Preprocess(PreprocessConfig(crop=(4, 6)))(x), x[..., 3:7, 2:8])
    with pytest.raises(ModelError, match="10 x 10 px is smaller than the crop of 4 x 12"):
        crop_centre(x, (12, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 0}, "gamma"),
        ({"crop": (0, 3)}, "crop"),
        ({"minkowski": 0.5}, "minkowski"),
        ({"stain": "vahadane"}, "stain must be one of macenko, reinhard, got 'vahadane'"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ModelError, match=message):
        Preprocess(PreprocessConfig(**settings))
