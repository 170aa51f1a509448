"""VGG16 as the lecture has it (specs/models.md 1.9)."""

import pytest
import safetensors.torch
import torch
from torch import nn

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import MODELS, PatchClassifier, build_model
from wsi_pipeline.models.vgg import IMAGENET_MEAN, IMAGENET_STD, VGG16, load_imagenet_weights


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


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_imagenet_weights_load_from_a_file(tmp_path, suffix):
    source, target = VGG16(width=1 / 16), VGG16(width=1 / 16)
    tensors = {k: v for k, v in source.state_dict().items() if k.startswith("features.")}
    tensors["classifier.0.weight"] = torch.zeros(3, 3)  # as torchvision's files have
    path = tmp_path / f"vgg16{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    output = target.output.weight.clone()
    load_imagenet_weights(target, path)

    assert torch.equal(target.features[28].weight, source.features[28].weight)
    assert torch.equal(target.output.weight, output)


def test_weights_of_another_network_name_the_layer(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file(VGG16(width=1 / 16).state_dict(), path)
    with pytest.raises(ModelError, match=r"'features\.0\.weight' is \(4, 3, 3, 3\)"):
        load_imagenet_weights(VGG16(width=1 / 8), path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match=r"no layer 'features\.0\.weight'"):
        load_imagenet_weights(VGG16(width=1 / 8), path)


def test_a_file_that_is_no_weights_is_refused(tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(ModelError, match=r"broken\.pth: not a file of weights"):
        load_imagenet_weights(VGG16(width=1 / 16), path)
    with pytest.raises(ModelError, match="no such weights file"):
        load_imagenet_weights(VGG16(width=1 / 16), tmp_path / "none.pth")


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
    "vgg16": {"width": 1 / 16},
    "patchnet": {"m": 5, "filters": 4, "depth": 2},
    "precision_patchnet": {"m": 5, "filters": 4, "depth": 2},
}


class TestEveryModel:
    """What a model must do to be listed."""

    @pytest.fixture(params=sorted(MODELS))
    def model(self, request) -> PatchClassifier:
        return build_model(request.param, **SMALL[request.param])

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
        again = build_model(name, **model.options)
        again.load_state_dict(model.state_dict())
        x = torch.rand(1, 3, 32, 32)
        assert torch.equal(model(x), again(x))

    def test_a_few_steps_lower_the_loss(self, model):
        x, y = torch.rand(8, 3, 32, 32), torch.tensor([0.0, 1] * 4)
        x[y == 1] *= 0.3
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        first = model.loss(x, y)
        for _ in range(15):
            optimizer.zero_grad()
            model.loss(x, y).backward()
            optimizer.step()
        assert model.loss(x, y) < first


def test_an_unknown_model_is_named():
    with pytest.raises(ModelError, match="no model is called 'vgg17'"):
        build_model("vgg17")
