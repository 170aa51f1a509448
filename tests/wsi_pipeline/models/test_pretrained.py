"""Weights to start from, as torchvision and other trainings save them (docs/models.md)."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.helpers.real_data import real_data
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.cam import CAM
from wsi_pipeline.models.pretrained import load_imagenet_weights
from wsi_pipeline.models.vgg import VGG11, VGG16

WIDTH = 1 / 16


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def features_of(model):
    return {k: v for k, v in model.state_dict().items() if k.startswith("features.")}


def save(path, content):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", [".pth", "old .pth", ".safetensors"])
def test_imagenet_weights_load_from_a_file(tmp_path, kind):
    source, target = VGG16(width=1 / 16), VGG16(width=1 / 16)
    tensors = {k: v for k, v in source.state_dict().items() if k.startswith("features.")}
    tensors["classifier.0.weight"] = torch.zeros(3, 3)  # as torchvision's files have
    path = tmp_path / f"vgg16{kind[-4:] if kind.endswith('.pth') else kind}"
    if kind == ".safetensors":
        safetensors.torch.save_file(tensors, path)
    else:  # torchvision's own files of VGG predate the zip format
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == ".pth")
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


class TouchesWhenLoaded:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["a.pth", "a.pt", "a.safetensors"])
def test_weights_that_would_run_code_are_refused_without_running_it(tmp_path, name):
    touched = tmp_path / "touched"
    torch.save({"features.0.weight": TouchesWhenLoaded(touched)}, tmp_path / name)
    with pytest.raises(ModelError, match="not a file of weights"):
        load_imagenet_weights(VGG16(width=1 / 16), tmp_path / name)
    assert not touched.exists()


def test_vgg11_takes_hidden_layers_from_a_file_but_not_the_last(tmp_path):
    source, target = VGG11(width=1 / 32), VGG11(width=1 / 32)
    tensors = dict(source.state_dict())
    tensors["classifier.6.weight"] = torch.zeros(1000, 128)  # as torchvision's files have
    tensors["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path / "vgg11.safetensors"
    safetensors.torch.save_file(tensors, path)
    output = target.classifier[6].weight.clone()
    load_imagenet_weights(target, path)
    assert torch.equal(target.classifier[3].weight, source.classifier[3].weight)
    assert torch.equal(target.classifier[6].weight, output)

    tensors["classifier.3.weight"] = torch.zeros(4, 4)
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(ModelError, match=r"layer 'classifier\.3\.weight' is \(4, 4\)"):
        load_imagenet_weights(target, path)


PREFIXES = ["module.", "backbone.", "model.", "encoder.", "module.backbone.", "net.encoder_q."]
CHECKPOINTS = {
    "state_dict": lambda s: {"epoch": 7, "arch": "vgg16", "state_dict": OrderedDict(s)},
    "model": lambda s: {"model": s, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
    "model_state_dict": lambda s: {"loss": 0.5, "model_state_dict": s, "history": [1.0, 0.5]},
    "both": lambda s: {"model": {"state_dict": s}, "step": torch.tensor(3)},
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_names_with_a_prefix_are_loaded(tmp_path, prefix, suffix):
    """DataParallel, Lightning and contrastive trainings wrap the network; these were refused."""
    source, target = VGG16(width=WIDTH), VGG16(width=WIDTH)
    stored = {f"{prefix}{k}": v for k, v in features_of(source).items()}
    load_imagenet_weights(target, save(tmp_path / f"a{suffix}", stored))
    for name, value in features_of(source).items():
        assert torch.equal(target.state_dict()[name], value)


@pytest.mark.parametrize("wrap", CHECKPOINTS.values(), ids=CHECKPOINTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_of_trainings_are_loaded(tmp_path, wrap, prefix):
    source, target = VGG16(width=WIDTH), VGG16(width=WIDTH)
    stored = {f"{prefix}{k}": v for k, v in features_of(source).items()}
    load_imagenet_weights(target, save(tmp_path / "a.pth", wrap(stored)))
    assert torch.equal(target.features[28].weight, source.features[28].weight)


def refusal(model, path):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_imagenet_weights(model, path)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    return str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["features.0.weight", "features.28.bias"])
def test_weights_that_are_not_finite_are_reported_as_that(tmp_path, value, name):
    tensors = {k: v.clone() for k, v in features_of(VGG16(width=WIDTH)).items()}
    tensors[name].view(-1)[1] = value
    message = refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", {"state_dict": tensors}))
    assert f"a.pth: layer '{name}' holds NaN or infinity (1 of {tensors[name].numel()}" in message


def test_a_value_that_only_the_file_can_hold_is_not_finite_here(tmp_path):
    tensors = {k: v.double() for k, v in features_of(VGG16(width=WIDTH)).items()}
    tensors["features.0.weight"][0, 0, 0, 0] = 1e300
    assert "holds NaN or infinity" in refusal(VGG16(width=WIDTH), save(tmp_path / "a.pt", tensors))


def test_wrong_shapes_are_named_with_both(tmp_path):
    tensors = features_of(VGG16(width=WIDTH))
    tensors["features.5.weight"] = torch.zeros(8, 4, 5, 5)
    path = save(tmp_path / "a.pth", {"model": {f"module.{k}": v for k, v in tensors.items()}})
    message = refusal(VGG16(width=WIDTH), path)
    assert "layer 'features.5.weight' is (8, 4, 5, 5), the model's is (8, 4, 3, 3)" in message


def test_layers_that_are_missing_are_named_with_what_the_file_has(tmp_path):
    tensors = features_of(VGG16(width=WIDTH))
    tensors["features.5.kernel"] = tensors.pop("features.5.weight")
    message = refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", tensors))
    assert "no layer 'features.5.weight'; the file has 'features.5.kernel'" in message
    message = refusal(
        VGG16(width=WIDTH), save(tmp_path / "b.pth", {"conv1.weight": torch.zeros(1)})
    )
    assert re.search(
        r"no layer 'features\.0\.weight', .* and 21 more; the file has 'conv1", message
    )


def test_weights_of_a_deeper_vgg_are_not_cut_off_silently(tmp_path):
    """Every layer of the model is in the file, but the file is of another network."""
    tensors = features_of(VGG16(width=WIDTH))
    tensors["features.30.weight"] = torch.zeros(32, 32, 3, 3)
    message = refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", tensors))
    assert "the model has no layer 'features.30.weight'" in message
    message = refusal(CAM(width=WIDTH), save(tmp_path / "b.pth", features_of(VGG16(width=WIDTH))))
    assert "no layer 'features.16.weight'" in message


def test_layers_that_are_not_used_are_named(tmp_path, caplog):
    tensors = features_of(VGG16(width=WIDTH)) | {
        "classifier.0.weight": torch.zeros(1),  # torchvision's own top
        "projector.weight": torch.zeros(1),
    }
    load_imagenet_weights(VGG16(width=WIDTH), save(tmp_path / "a.pth", tensors))
    (line,) = caplog.messages
    assert line.startswith("a.pth: not used")
    assert line.endswith("such layer: 'projector.weight'")


def test_two_networks_in_one_file_are_not_chosen_between(tmp_path):
    tensors = features_of(VGG16(width=WIDTH))
    both = {f"{who}.{k}": v for k, v in tensors.items() for who in ("student", "teacher")}
    message = refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", both))
    assert "weights of several networks, under 'student.', 'teacher.'" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "its keys are 'state_dict'"),
        ({"epoch": 3}, "its keys are 'epoch'"),
        ({}, "it is empty"),
        ([1.0, 2.0], "it is a list"),
        (torch.zeros(3), "it is a Tensor"),
        ({f"features.{i}.weight": i for i in range(30)}, "no state dict of plain tensors"),
    ],
)
def test_other_contents_are_described(tmp_path, content, message):
    assert re.search(message, refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", content)))


def test_quantised_weights_are_refused(tmp_path):
    tensors = features_of(VGG16(width=WIDTH))
    tensors["features.2.weight"] = (tensors["features.2.weight"] * 100).to(torch.int8)
    message = refusal(VGG16(width=WIDTH), save(tmp_path / "a.pth", tensors))
    assert "layer 'features.2.weight' is torch.int8" in message


def test_the_real_imagenet_weights_load_and_see_edges(tmp_path):
    """float16 in the file; a wrapped copy gives the same network."""
    path = real_data("vgg16_imagenet/vgg16_imagenet_features.safetensors")
    plain, wrapped = VGG16(), VGG16()
    load_imagenet_weights(plain, path)
    stored = safetensors.torch.load_file(path)
    tensors = {f"module.backbone.{k}": v for k, v in stored.items()}
    load_imagenet_weights(wrapped, save(tmp_path / "a.pt", {"state_dict": tensors, "epoch": 90}))
    x = torch.zeros(1, 3, 64, 64)
    x[..., 32:] = 1
    assert plain.features[0].weight.dtype == torch.float32
    with torch.inference_mode():
        maps = plain.feature_maps(x)
        assert torch.equal(maps, wrapped.feature_maps(x))
    assert torch.isfinite(maps).all()
    first = plain.features[0].weight
    assert first.std() > 0.05  # not the initial ones: He's deviation is 0.27, these are scaled
    assert torch.equal(first.half(), stored["features.0.weight"])
