"""Deletion and insertion curves against models whose curves are known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.special import expit
from torch import nn

from tests.wsi_pipeline.explain.networks import Linear, draw_images, network
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.explain.curves import CurveSettings, blur, rank_pixels, trace_curves
from wsi_pipeline.models.base import PatchClassifier

H, W = 6, 8


class Constant(PatchClassifier):
    """The same logit for all images."""

    def __init__(self):
        super().__init__()
        self.options = {}
        self.logit = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.logit.expand(len(x))


def linear_case(seed=0):
    model = Linear(H, W)
    pixels = np.random.default_rng(seed).random((H, W, 3))
    weight = model.weight.detach().numpy()  # (3, H, W)
    image = pixels.transpose(2, 0, 1)
    gain = (weight * (image - image.mean(axis=(1, 2), keepdims=True))).sum(axis=0)
    return model, pixels, weight, image, gain  # gain: what the logit loses when a pixel is covered


def test_curves_of_a_linear_model_are_the_sums_of_its_pixels():
    model, pixels, weight, image, gain = linear_case()
    values = np.random.default_rng(1).permutation(H * W).reshape(H, W).astype(np.float32)
    found = trace_curves(model, pixels, values, config=CurveSettings(steps=H * W))

    order = np.argsort(-values, axis=None)
    lost = np.concatenate([[0], np.cumsum(gain.ravel()[order])])
    np.testing.assert_allclose(
        found.deletion, expit((weight * image).sum() + 1 / 3 - lost), atol=1e-12
    )
    # scipy's `nearest` and truncation after 5 px: the same Gaussian, cut to 11 x 11
    blurred = np.stack([gaussian_filter(c, 5, mode="nearest", truncate=1) for c in image])
    won = np.cumsum((weight * (image - blurred)).sum(axis=0).ravel()[order])
    expected = (weight * blurred).sum() + 1 / 3 + np.concatenate([[0], won])
    np.testing.assert_allclose(found.insertion, expit(expected), atol=1e-12)
    assert found.share.tolist() == (np.arange(H * W + 1) / (H * W)).tolist()
    by_hand = (found.deletion[1:] + found.deletion[:-1]).sum() / 2 / (H * W)
    assert found.deletion_auc == pytest.approx(by_hand, abs=1e-12)


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([1, 4, 7, H * W]))
def test_no_order_deletes_faster_than_that_of_what_pixels_contribute(seed, steps):
    model, pixels, _, _, gain = linear_case()
    config = CurveSettings(steps=steps)
    oracle = trace_curves(model, pixels, gain, config=config)
    other = np.random.default_rng(seed).permutation(gain.ravel()).reshape(gain.shape)
    shuffled = trace_curves(model, pixels, other, config=config)
    assert (oracle.deletion <= shuffled.deletion + 1e-12).all()
    assert oracle.deletion_auc <= shuffled.deletion_auc + 1e-12


def test_a_constant_model_has_flat_curves():
    values = np.arange(H * W, dtype=np.float32).reshape(H, W)
    for target, expected in ((1, expit(0.7)), (0, expit(-0.7))):
        found = trace_curves(
            Constant(),
            draw_images(1, H, W)[0],
            values,
            target=target,
            config=CurveSettings(steps=5),
        )
        np.testing.assert_allclose([found.deletion, found.insertion], expected, atol=1e-6)
        assert found.insertion_auc == pytest.approx(expected, abs=1e-6)


def test_curves_begin_and_end_at_the_image():
    model = network("vgg11_pooled")  # crops to 32 x 32
    pixels = draw_images(1)[0]
    values = np.zeros((32, 32), np.float32)
    found = trace_curves(model, pixels, values, config=CurveSettings(steps=3))
    assert model.training  # as it was
    with torch.no_grad():
        image = torch.from_numpy(pixels / np.float32(255)).permute(2, 0, 1)[None, ..., 4:-4]
        score = model.eval().score(image).item()
    assert found.deletion[0] == pytest.approx(score, abs=1e-6)
    assert found.insertion[-1] == pytest.approx(score, abs=1e-6)


def test_pixels_of_one_value_are_in_random_order_and_others_by_value():
    flat = rank_pixels(np.zeros((5, 5)), seed=0)
    assert sorted(flat.ravel()) == list(range(25))
    assert flat.ravel().tolist() != list(range(25))
    assert (flat == rank_pixels(np.zeros((5, 5)), seed=0)).all()
    assert (flat != rank_pixels(np.zeros((5, 5)), seed=1)).any()


def test_a_blur_keeps_a_constant_image():
    image = torch.full((1, 3, 4, 5), 0.25, dtype=torch.float64)
    torch.testing.assert_close(blur(image, CurveSettings()), image)


def test_a_map_of_another_size_and_settings_out_of_range_are_refused():
    with pytest.raises(ModelError, match=r"map shape \(2, 2\) does not match image \(6, 8\)"):
        trace_curves(Constant(), draw_images(1, H, W)[0], np.zeros((2, 2)))
    with pytest.raises(ConfigError, match="at least 1 step, got steps=0"):
        CurveSettings(steps=0)
    with pytest.raises(ConfigError, match="kernel_px=10"):
        CurveSettings(kernel_px=10)
