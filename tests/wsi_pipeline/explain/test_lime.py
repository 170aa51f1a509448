"""LIME against models of which the answer is known."""

import json

import numpy as np
import pytest
import torch
from captum.attr import Lime
from captum.attr._core.lime import get_exp_kernel_similarity_function
from sklearn.linear_model import Ridge

from tests.wsi_pipeline.explain.networks import Linear, draw_images, network
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.lime import LimeSettings, divide, draw_presence, fit

lime = load_method("lime")


def blocks(height=12, width=16):
    """An image that SLIC can divide: four colours, and some noise."""
    image = np.random.default_rng(0).integers(0, 60, (height, width, 3))
    image[: height // 2] += (150, 0, 0)
    image[:, : width // 2] += (0, 150, 40)
    return image.astype(np.uint8)


@pytest.mark.parametrize("target", [1, 0])
def test_a_model_that_is_linear_in_presence_is_recovered(target):
    model, image = Linear(), blocks()
    config = LimeSettings(segments=6, samples=60, l1=0)
    (found,) = lime.explain(model, image[None], target=target, config=config)
    fitted = found.details
    weight = model.weight.detach().permute(1, 2, 0).numpy()
    sign, expected = 2 * target - 1, []
    for number in range(fitted.superpixels.max() + 1):
        inside = fitted.superpixels == number
        colours = image[inside] / 255
        expected.append(sign * (weight[inside] * (colours - colours.mean(axis=0))).sum())
    np.testing.assert_allclose(fitted.weights, expected, atol=1e-6)
    assert len(expected) >= 4
    assert fitted.r2 == pytest.approx(1)
    whole = sign * (weight * image / 255).sum() + sign / 3
    assert fitted.intercept + fitted.weights.sum() == pytest.approx(whole)
    np.testing.assert_allclose(found.values, fitted.weights[fitted.superpixels], rtol=1e-6)


def test_an_l1_penalty_shrinks_and_drops_what_does_not_matter():
    presence = draw_presence(8, 400, seed=0)
    logits = presence @ np.array([2.0, -1, 0, 0, 0, 0, 0, 0.0]) + 0.5
    exact, _, _ = fit(presence, logits, LimeSettings(l1=0))
    np.testing.assert_allclose(exact, [2, -1, 0, 0, 0, 0, 0, 0], atol=1e-12)
    shrunk, _, r2 = fit(presence, logits, LimeSettings(l1=0.05))
    # Of balanced, independent columns of variance 1/4, by 4 l1.
    np.testing.assert_allclose(shrunk[:2], [1.8, -0.8], atol=0.03)
    assert (shrunk[2:] == 0).all()
    assert 0.9 < r2 < 1
    assert fit(presence, np.ones(400), LimeSettings())[2] is None  # nothing to explain


def test_near_samples_count_more_with_the_cosine_kernel():
    """As captum weighs them, and with ridge regression as in the authors' code."""
    presence, logits = draw_presence(9, 50, seed=1), np.random.default_rng(2).normal(size=50)
    kernel = get_exp_kernel_similarity_function("cosine", kernel_width=0.25)
    rows = torch.from_numpy(presence.astype(float))
    counts = [float(kernel(torch.ones(1, 9).double(), row[None], None)) for row in rows]
    expected = Ridge(alpha=1.0).fit(presence, logits, sample_weight=counts)
    weights, intercept, _ = fit(presence, logits, LimeSettings(kernel="cosine"))
    np.testing.assert_allclose(
        weights, expected.coef_, rtol=1e-5, atol=1e-7
    )  # captum's is of float32
    assert intercept == pytest.approx(expected.intercept_)


def test_it_nears_captums_with_all_samples_alike():
    model, image = network("vgg16").eval(), draw_images(1, 32, 32)
    config = LimeSettings(segments=9, samples=400, l1=1e-7)
    (found,) = lime.explain(model, image, config=config)
    x = torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255
    numbers = torch.from_numpy(found.details.superpixels)
    means = torch.stack([x[0][:, numbers == n].mean(1) for n in range(int(numbers.max()) + 1)])
    torch.manual_seed(0)
    from captum._utils.models.linear_model import SkLearnLinearRegression

    expected = Lime(
        model, SkLearnLinearRegression(), similarity_func=lambda *_, **__: torch.tensor(1.0)
    ).attribute(
        x, baselines=means[numbers].permute(2, 0, 1)[None], feature_mask=numbers[None, None],
        n_samples=400, perturbations_per_eval=50,
    )  # fmt: skip
    correlation = np.corrcoef(found.values.ravel(), expected[0, 0].detach().ravel())[0, 1]
    assert correlation > 0.95


def test_an_image_that_slic_does_not_divide_gets_a_regular_grid():
    """Of pure noise it makes one superpixel."""
    noise = np.random.default_rng(0).random((32, 48, 3))
    found = divide(noise, LimeSettings(segments=24))
    areas = np.bincount(found.ravel())
    assert len(areas) == 24
    assert (areas == 64).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_superpixels_are_numbered_from_0_without_gaps(channels):
    found = divide(blocks(40, 40)[..., :channels] / 255, LimeSettings())
    assert np.array_equal(np.unique(found), np.arange(found.max() + 1))
    assert found.max() > 3


def test_the_first_sample_is_the_image_and_half_of_the_others_is_there():
    presence = draw_presence(50, 1000, seed=3)
    assert presence[0].all()
    assert presence[1:].mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(presence, draw_presence(50, 1000, seed=3))


def test_the_files_hold_what_was_fitted(tmp_path):
    config = LimeSettings(segments=6, samples=40)
    (found,) = lime.explain(Linear(), blocks()[None], config=config)
    table, about, picture = found.details.write(tmp_path, "a.lime")
    rows = table.read_text().splitlines()
    assert rows[0] == "superpixel,weight,area_px"
    assert float(rows[1].split(",")[1]) == found.details.weights[0]
    assert sum(int(row.split(",")[2]) for row in rows[1:]) == 12 * 16
    assert json.loads(about.read_text())["r2"] == found.details.r2
    assert picture.name == "a.lime_superpixels.png"


@pytest.mark.parametrize(
    "wrong", [{"segments": 1}, {"samples": 1}, {"kernel": "rbf"}, {"l1": -1.0}]
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match="lime"):
        LimeSettings(**wrong)
