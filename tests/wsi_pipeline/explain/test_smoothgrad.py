"""SmoothGrad, plain and guided, against its definition."""

import numpy as np
import pytest
import torch
from captum.attr import Saliency

from tests.wsi_pipeline.explain.networks import draw_images, network
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.smoothgrad import SmoothGradSettings


@pytest.mark.parametrize(
    ("name", "plain"), [("smoothgrad", "saliency"), ("guided_smoothgrad", "guided_backprop")]
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_single_copy_without_noise_is_the_plain_map(name, plain, signed):
    model, images = network("vgg16"), draw_images()
    config = SmoothGradSettings(samples=1, noise=0, signed=signed)
    found = load_method(name)(model, images, config=config)
    assert np.array_equal(found, load_method(plain)(model, images))


@pytest.mark.parametrize("signed", [False, True])
def test_it_averages_gradients_of_noisy_copies(signed):
    """Of as many copies the mean is known to some per cent, whatever generator drew them."""
    model, image = network("vgg16").eval(), draw_images(1) // 2
    config = SmoothGradSettings(samples=600, noise=0.1, signed=signed)
    found = load_method("smoothgrad")(model, image, config=config)[0]
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    random = torch.Generator().manual_seed(5)
    spread = 0.1 * float(x.max() - x.min())
    noisy = x + spread * torch.randn(600, *x.shape[1:], generator=random)
    gradients = torch.cat(
        [Saliency(model).attribute(p.requires_grad_(), abs=False) for p in noisy.split(100)]
    )
    mean = gradients.mean(0).abs() if signed else gradients.abs().mean(0)
    expected = mean.amax(0).numpy()
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > (0.9 if signed else 0.99)
    assert found.mean() == pytest.approx(expected.mean(), rel=0.05)


def test_the_two_means_differ_and_seeds_do():
    model, images = network("vgg16"), draw_images(1)
    method, few = load_method("smoothgrad"), SmoothGradSettings(samples=5)
    plain = method(model, images, config=few)
    signed = method(model, images, config=SmoothGradSettings(samples=5, signed=True))
    assert (signed <= plain * (1 + 1e-5)).all()
    assert (signed < plain * 0.9).any()
    assert not np.array_equal(plain, method(model, images, seed=1, config=few))


def test_settings_without_sense_are_refused():
    with pytest.raises(ConfigError, match="at least 1 sample, got 0"):
        SmoothGradSettings(samples=0)
    with pytest.raises(ConfigError, match="smoothgrad's noise is at least 0"):
        SmoothGradSettings(noise=-0.1)
