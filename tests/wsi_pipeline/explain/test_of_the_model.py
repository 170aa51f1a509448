"""Feature maps, first-layer filters and activation maximisation."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tests.wsi_pipeline.explain.networks import OPTIONS, Linear, draw_images, network
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.explain import load_method
from wsi_pipeline.explain.activation_maximisation import MaximisationSettings, maximise_activation
from wsi_pipeline.explain.feature_maps import FeatureMapSettings
from wsi_pipeline.explain.first_layer_filters import first_layer_filters, write_filters
from wsi_pipeline.models import build_model


def test_feature_maps_are_a_layers_output(tmp_path):
    model, images = network("vgg16").eval(), draw_images(1)
    config = FeatureMapSettings("features.4")
    (found,) = load_method("feature_maps").explain(model, images, config=config)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected = model.features[:5]((x - model.mean) / model.std)
    np.testing.assert_allclose(found.details.maps, expected[0], rtol=1e-5, atol=1e-6)
    stretched = F.interpolate(
        expected.abs().mean(1, keepdim=True), size=(32, 40), mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found.values, stretched[0, 0], rtol=1e-5, atol=1e-6)
    arrays, sheet = found.details.write(tmp_path, "a")
    with np.load(arrays) as file:
        assert np.array_equal(file["maps"], found.details.maps)
    assert np.asarray(Image.open(sheet)).max() == 255  # each is stretched by itself
    with pytest.raises(ModelError, match="no layer 'features"):
        load_method("feature_maps")(model, images, config=FeatureMapSettings("features.99"))


@pytest.mark.parametrize(("name", "channels"), [("vgg16", 3), ("patchnet", 3), ("patchnet", 1)])
def test_filters_are_the_first_convolutions_weights(tmp_path, name, channels):
    options = OPTIONS[name] | ({"channels": channels} if name == "patchnet" else {})
    model = build_model(name, **options)
    filters = first_layer_filters(model)
    convolution = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert filters.shape == (convolution.out_channels, 3, 3, channels)
    assert filters[1, 0, 2, 0] == convolution.weight[1, 0, 0, 2].item()
    arrays, sheet = write_filters(tmp_path, "filters", filters)
    with np.load(arrays) as file:
        assert np.array_equal(file["filters"], filters)
    first = np.asarray(Image.open(sheet))[:48, :48]
    assert (first.min(), first.max()) == (0, 255)
    assert first.ndim == (3 if channels == 3 else 2)


def test_a_model_that_begins_otherwise_has_no_filters():
    with pytest.raises(ModelError, match="Linear does not begin with a convolution"):
        first_layer_filters(Linear())


@pytest.mark.parametrize("target", [1, 0])
def test_of_a_linear_model_the_maximum_is_the_weights_over_twice_the_penalty(target):
    model = Linear(5, 6)
    with torch.no_grad():
        model.weight *= 0.02
    found = maximise_activation(model, (5, 6), target=target)
    expected = (2 * target - 1) * model.weight.detach().permute(1, 2, 0).numpy() / (2 * 0.01)
    np.testing.assert_allclose(found.normalised, expected, atol=1e-3)
    assert len(found.objective) == 257


@pytest.mark.parametrize("name", ["cam", "patchnet", "vgg11_pooled"])
def test_the_score_rises_above_that_of_noise_and_the_model_stays_as_it_was(tmp_path, name):
    wide = {} if name == "patchnet" else {"width": 1 / 8}
    torch.manual_seed(1)
    model = build_model(name, **OPTIONS[name] | wide).train()
    if wide:
        torch.nn.init.normal_(model.output.weight)
        for parameter in model.features.parameters():
            if parameter.ndim == 1:  # or it would be flat at 0
                torch.nn.init.normal_(parameter, std=0.3)
    config = MaximisationSettings(steps=40, penalty=1e-5)
    found = maximise_activation(model, (32, 32), config=config)
    assert found.objective[-1] > found.objective[0]
    assert np.isfinite(found.objective).all()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert (model.preprocess is not None) == (name == "vgg11_pooled")
    mean, std = (model.mean, model.std) if name != "patchnet" else (0, 1)
    z = torch.from_numpy(found.normalised).permute(2, 0, 1)[None]
    noise = torch.randn(50, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * z.std()
    with torch.no_grad():
        model.eval().preprocess = None
        best, others = model(z * std + mean), model(noise * std + mean)
    assert best.item() > others.max().item()
    files = found.write(tmp_path, "class1")
    assert [path.name for path in files] == ["class1.npz", "class1.png", "class1_curve.csv"]
    with files[2].open(newline="") as file:
        curve = [float(row["objective"]) for row in csv.DictReader(file)]
    assert curve == found.objective.tolist()


def test_grey_models_and_settings_without_sense():
    model = build_model("patchnet", **OPTIONS["patchnet"], channels=1, normalise="minmax")
    found = maximise_activation(model, (9, 9), channels=1, config=MaximisationSettings(steps=3))
    assert found.image.shape == (9, 9, 1)
    assert found.objective[-1] > found.objective[0]
    assert model.normalise == "minmax"  # and untrained, without biases: flat at 0
    with pytest.raises(ConfigError, match="penalty=0"):
        MaximisationSettings(penalty=0)
