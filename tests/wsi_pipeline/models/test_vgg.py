"""VGG16 as the lecture has it (docs/models.md)."""

import inspect
import json

import pytest
import torch
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import MODELS, PatchClassifier, build_model, vgg
from wsi_pipeline.models.vgg import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    VGG11,
    VGG16,
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_it_has_thirteen_convolutions_and_the_published_number_of_parameters():
    with torch.device("meta"):
        model = VGG16()
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 13
    assert sum(p.numel() for p in model.parameters()) == 14_715_201


@pytest.mark.parametrize(
    ("name", "convolutions", "parameters"),
    # configurations A and E of the published table; the counts without its classifier, plus 513
    [("vgg11_pooled", 8, 9_220_993), ("vgg19", 16, 20_024_897)],
)
def test_the_shallower_and_the_deeper_one_have_the_published_sizes(name, convolutions, parameters):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == convolutions
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_vgg11_with_its_linear_layers_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = VGG11()
    assert sum(p.numel() for p in model.parameters()) == 128_770_433
    kinds = [type(m).__name__ for m in model.classifier]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    names = [name for name in model.state_dict() if name.startswith("classifier")]
    assert names == [f"classifier.{n}.{kind}" for n in (0, 3, 6) for kind in ("weight", "bias")]


def test_vgg11_takes_224_px_as_they_are_and_averages_other_sizes():
    model = VGG11(width=1 / 32).eval()
    seen = []
    model.classifier[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(1, 3, 224, 224)
    model(x)
    assert torch.equal(seen[0], model.feature_maps(x).flatten(1))
    assert model(torch.rand(2, 3, 100, 130)).shape == (2,)


def test_dropout_is_for_training_only():
    model, x = VGG11(width=1 / 16), torch.rand(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


def test_a_grey_image_is_one_of_three_equal_channels():
    model, x = VGG16(width=1 / 16), torch.rand(2, 1, 40, 33)
    assert torch.equal(model(x), model(x.expand(2, 3, 40, 33)))


def test_no_activation_hides_from_hooks():
    """Guided backpropagation needs a module per ReLU; a function gives the plain gradient."""
    source = inspect.getsource(vgg)
    assert "F.relu" not in source
    assert sum(isinstance(m, nn.ReLU) for m in VGG16(width=1 / 16).modules()) == 13


def test_activations_in_place_change_no_score_and_no_gradient():
    model = VGG16(width=0.1)
    x = torch.rand(2, 3, 40, 40)
    with torch.inference_mode():
        predicted = model(x)
    trained = model(x.requires_grad_())
    trained.sum().backward()
    assert torch.equal(predicted, trained.detach())
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_its_layers_are_named_as_in_torchvision():
    with torch.device("meta"):
        names = list(VGG16().state_dict())
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]  # torchvision's vgg16
    assert names == [f"features.{n}.{kind}" for n in numbers for kind in ("weight", "bias")] + [
        "output.weight",
        "output.bias",
    ]


def test_the_last_pooling_changes_nothing_before_a_global_maximum():
    model = VGG16(width=1 / 16)
    x = torch.rand(2, 3, 64, 64)
    maps = (x - model.mean) / model.std
    for module in list(model.features)[:-1]:
        maps = module(maps)
    assert torch.equal(model.output(maps.amax((2, 3))).squeeze(-1), model(x))


def test_inputs_are_normalised_as_imagenet_was():
    model = VGG16(width=1 / 32)
    grey = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    white = grey + torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    seen = []
    model.features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(grey)
    model(white)
    torch.testing.assert_close(seen[0], torch.zeros_like(seen[0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(seen[1], torch.ones_like(seen[1]), atol=1e-5, rtol=0)


def test_the_gradient_reaches_every_convolution():
    model = VGG16(width=1 / 16)
    model.loss(torch.rand(2, 3, 64, 64), torch.tensor([0.0, 1.0])).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_an_untrained_network_is_undecided():
    """Its first logits lie near 0: from scratch, a confident start diverges."""
    with torch.no_grad():
        assert VGG16(width=1 / 4)(torch.rand(4, 3, 64, 64)).abs().max() < 1


def test_a_patch_too_small_for_five_poolings_is_refused():
    with pytest.raises(ModelError, match=r"VGG16 halves its input five times.*31 x 32"):
        VGG16(width=1 / 16)(torch.rand(1, 3, 32, 31))


def test_rmsprop_is_the_lectures():
    """v = rho v + (1 - rho) g^2; b = 0.9 b + g / (sqrt v + eps); w -= lr b, fifty steps by hand."""
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    optimizer = torch.optim.RMSprop([w], lr=5e-5, alpha=0.9, momentum=0.9, eps=1e-8)
    by_hand, v, b = w.detach().clone(), torch.zeros(2), torch.zeros(2)
    for _ in range(50):
        optimizer.zero_grad()
        (w**2).sum().backward()
        optimizer.step()
        g = 2 * by_hand
        v = 0.9 * v + 0.1 * g**2
        b = 0.9 * b + g / (v.sqrt() + 1e-8)
        by_hand = by_hand - 5e-5 * b
    torch.testing.assert_close(w.detach(), by_hand, atol=1e-6, rtol=0)


SMALL = {
    "cam": {"width": 1 / 16},
    "vgg11": {"width": 1 / 16},
    "vgg11_pooled": {"width": 1 / 16},
    "vgg16": {"width": 1 / 16},
    "vgg19": {"width": 1 / 16},
    "patchnet": {"m": 5, "filters": 4, "depth": 2},
    "precision_patchnet": {"m": 5, "filters": 4, "depth": 2},
    "resnet18": {"width": 1 / 16},
    "resnet34": {"width": 1 / 16, "pooling": "average"},
    "resnet50": {"width": 1 / 16},
    "protopnet": {"base": "vgg11", "width": 1 / 16, "depth": 16},
}


class TestEveryModel:
    """What a model must do to be listed."""

    @pytest.fixture(params=sorted(MODELS))
    def model(self, request) -> PatchClassifier:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return build_model(request.param, **SMALL[request.param]).eval()

    def test_it_gives_one_logit_per_image(self, model):
        assert model(torch.rand(3, 3, 32, 40)).shape == (3,)

    def test_scores_are_between_zero_and_one(self, model):
        scores = model.score(torch.rand(3, 3, 32, 32))
        assert ((scores >= 0) & (scores <= 1)).all()

    def test_images_of_a_batch_do_not_see_each_other(self, model):
        x = torch.rand(4, 3, 32, 32)
        torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-5, rtol=1e-5)

    def test_its_options_build_it_again(self, model):
        name = next(key for key, kind in MODELS.items() if type(model) is kind)
        again = build_model(name, **model.options).eval()
        again.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 32, 32)
        assert torch.equal(model(x), again(x))

    def test_a_few_steps_lower_the_loss(self, model):
        x, y = torch.rand(8, 3, 32, 32), torch.tensor([0.0, 1] * 4)
        x[y == 1] *= 0.3
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        first = model.loss(x, y)
        for _ in range(20):
            optimizer.zero_grad()
            model.loss(x, y).backward()
            optimizer.step()
        assert model.loss(x, y) < first

    def test_what_is_done_before_the_network_is_part_of_its_options(self, model):
        name = next(key for key, kind in MODELS.items() if type(model) is kind)
        before = {"crop": [32, 36], "gamma": 2.2, "colour_constancy": True}
        changed = build_model(name, preprocess=before, **model.options).eval()
        changed.load_state_dict(model.state_dict())
        again = build_model(name, **json.loads(json.dumps(changed.options))).eval()
        again.load_state_dict(model.state_dict())
        x = torch.rand(2, 3, 40, 50)
        assert torch.equal(changed(x), again(x))
        torch.testing.assert_close(changed(x), model(changed.preprocess(x)))
        assert not torch.equal(changed(x), model(x))


def test_an_unknown_preprocessing_is_named():
    with pytest.raises(ModelError, match="gama"):
        build_model("vgg16", width=1 / 16, preprocess={"gama": 2.2})


def test_an_unknown_model_is_named():
    with pytest.raises(ModelError, match="no model is called 'vgg17'"):
        build_model("vgg17")
