"""What every explanation method keeps to, by being listed."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from tests.wsi_pipeline.explain.networks import OPTIONS, draw_images, draw_images_for, network
from wsi_pipeline.errors import ConfigError, ModelError
from wsi_pipeline.explain import METHODS, choose_method, load_method
from wsi_pipeline.explain.base import Settings
from wsi_pipeline.models import MODELS

QUICK = {
    "smoothgrad": {"samples": 4},
    "guided_smoothgrad": {"samples": 4},
    "occlusion": {"window": 1 / 4, "stride": 1 / 6},
    "unveiling": {"samples": 2, "kernel": 3, "rounds": 2},
    "lime": {"samples": 60, "segments": 8, "l1": 1e-6},
}  # settings by which a method is done sooner

PAIRS = [
    pytest.param(name, model, id=f"{name}-{model}")
    for name in METHODS
    for model in OPTIONS
    if load_method(name).explains(MODELS[model])
]


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [hook for module in model.modules() for kind in kinds for hook in getattr(module, kind)]


@pytest.mark.parametrize(("name", "architecture"), PAIRS)
class TestEveryMethod:
    @pytest.fixture
    def method(self, name):
        return load_method(name)

    @pytest.fixture
    def explain(self, method, name):
        config = method.settings(**QUICK.get(name, {}))
        return lambda *given, **how: method(*given, config=config, **how)

    def test_its_maps_lie_on_the_images_as_the_model_sees_them(self, method, explain, architecture):
        model, images = network(architecture).train(), draw_images_for(architecture)
        modes = [module.training for module in model.modules()]
        drawn = torch.get_rng_state()
        maps = explain(model, images)
        crop = model.preprocess.config.crop if model.preprocess else None
        assert maps.shape == (2, *(crop or images.shape[1:3]))
        assert maps.dtype == np.float32
        assert np.isfinite(maps).all()
        assert maps.std() > 0
        assert maps.min() >= method.low
        assert maps.max() <= method.high
        # and the model is as it was
        assert [module.training for module in model.modules()] == modes
        assert not hooks_of(model)
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        assert torch.equal(torch.get_rng_state(), drawn)

    def test_an_images_map_is_its_own_in_any_batch_and_of_any_dtype(self, explain, architecture):
        model, images = network(architecture), draw_images_for(architecture)
        together = explain(model, images, seed=3)
        assert together.tobytes() == explain(model, images, seed=3).tobytes()
        single = [
            explain(model, (image[None] / 255).astype(np.float32), seed=3) for image in images
        ]
        np.testing.assert_allclose(together, np.concatenate(single), rtol=1e-6, atol=1e-6)
        assert explain(model, images[:0]).shape == (0, *images.shape[1:3])

    def test_it_explains_the_class_that_is_asked_for(self, method, explain, architecture):
        model, images = network(architecture), draw_images_for(architecture, 1)
        ours, other = (explain(model, images, target=target) for target in (1, 0))
        if method.low < 0:
            np.testing.assert_allclose(other, -ours, rtol=1e-4, atol=1e-5)
        elif method.is_probability:
            np.testing.assert_allclose(other, 1 - ours, rtol=1e-6)
        with pytest.raises(ModelError, match="0 or 1, got target=2"):
            explain(model, images, target=2)

    def test_it_refuses_what_would_mislead(self, method, explain, architecture):
        model, images = network(architecture), draw_images_for(architecture, 1)
        for wrong, message in (
            (images / 1.0, "in \\[0, 1\\], got 0.0 to 255.0; divide by 255"),
            (images.astype(np.int16), "uint8 or float in \\[0, 1\\], got int16"),
            (images[..., :2], "\\(n, H, W, 3\\), or \\(n, H, W, 1\\), got"),
        ):
            with pytest.raises(ModelError, match=message):
                explain(model, wrong)
        with torch.inference_mode(), pytest.raises(ModelError, match="call the method outside"):
            explain(model, images)
        with pytest.raises(ModelError, match=f"are {method.settings.__name__}, got Other"):
            method(model, images, config=type("Other", (), {})())

    def test_every_setting_has_a_default_and_cannot_be_changed_later(self, method, architecture):
        assert issubclass(method.settings, Settings)
        assert method.settings() == method.settings()
        for field in fields(method.settings):
            with pytest.raises(AttributeError):
                setattr(method.settings(), field.name, None)


def test_a_models_own_map_is_that_of_its_kind():
    own = {name: choose_method(kind) for name, kind in MODELS.items()}
    assert own["patchnet"] == own["precision_patchnet"] == "patchnet"
    assert own["cam"] == "cam"
    assert own["protopnet"] == "prototypes"
    assert {own[name] for name in own if name.startswith("vgg")} == {"grad_cam"}


def test_a_method_that_is_not_listed_is_refused_with_those_that_are():
    with pytest.raises(ConfigError, match=r"called 'gradcam'; known: patchnet, cam, prototypes"):
        load_method("gradcam")
    with pytest.raises(ModelError, match="explains CAM, not VGG16; take another"):
        load_method("cam")(network("vgg16"), draw_images())


def test_a_map_that_is_not_finite_is_refused():
    model = network("vgg16")
    with torch.no_grad():
        model.output.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="0 are finite, for 1280 pixels; weights of VGG16 may"):
        load_method("saliency")(model, draw_images())
