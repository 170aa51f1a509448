"""Occlusion against its definition."""

import numpy as np
import pytest
import torch
from captum.attr import Occlusion

from tests.wsi_pipeline.explain.networks import Linear, draw_images, network
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.occlusion import OcclusionSettings, place_windows

occlusion = load_method("occlusion")


@pytest.mark.parametrize("fill", ["mean", "zero"])
def test_of_a_linear_model_it_is_exact(fill):
    """With windows that do not divide the image: the last one is flush with the border."""
    model, images = Linear(), draw_images(2, 12, 16)
    config = OcclusionSettings(window=5 / 12, stride=2 / 12, fill=fill)
    found = occlusion(model, images, config=config)
    weight = model.weight.detach().permute(1, 2, 0).numpy()
    for values, image in zip(found, images / 255, strict=True):
        lost = weight * (image - (image.mean((0, 1)) if fill == "mean" else 0))
        windows = [[] for _ in range(12 * 16)]
        for top in (0, 2, 4, 6, 7):
            for left in (0, 2, 4, 6, 8, 10, 11):
                total = lost[top : top + 5, left : left + 5].sum()
                for y in range(top, top + 5):
                    for x in range(left, left + 5):
                        windows[y * 16 + x].append(total)
        expected = np.array([np.mean(one) for one in windows]).reshape(12, 16)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_it_is_captums_where_windows_divide_the_image():
    model, image = network("vgg16").eval(), draw_images(1, 32, 32)
    found = occlusion(model, image, config=OcclusionSettings(window=8 / 32, stride=4 / 32))
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    mean = x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    expected = Occlusion(model).attribute(
        x, sliding_window_shapes=(3, 8, 8), strides=(3, 4, 4), baselines=mean
    )
    np.testing.assert_allclose(found[0], expected[0, 0].detach(), rtol=1e-4, atol=1e-5)


def test_windows_and_steps_are_16_and_8_of_224_px():
    config = OcclusionSettings()
    assert (round(224 * config.window), round(224 * config.stride)) == (16, 8)
    assert place_windows(224, 16, 8)[-1] == 208
    assert place_windows(5, 5, 2) == [0]


@pytest.mark.parametrize(
    "wrong", [{"window": 0.1, "stride": 0.2}, {"window": 2.0}, {"stride": 0.0}, {"fill": "grey"}]
)
def test_settings_that_would_leave_pixels_uncovered_are_refused(wrong):
    with pytest.raises(ConfigError, match="occlusion's"):
        OcclusionSettings(**wrong)
