"""Models of other programs (docs/other_models.md)."""

import io
import json
import pickle
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from tests.helpers.external_models import CLASSES, ColourNet, describe, write_export, write_zoo
from wsi_pipeline.cli.app import main
from wsi_pipeline.config.model_files import find_model, open_external
from wsi_pipeline.config.zoo_config import Normalize, Resize, ToTensor
from wsi_pipeline.errors import CheckpointError, ConfigError, ModelError
from wsi_pipeline.models import PatchClassifier, build_model, find_architecture
from wsi_pipeline.models.external import load_external, transform_images
from wsi_pipeline.models.torchvision_nets import ARCHITECTURES, RESNETS, DenseNet, ResNet

GRADES = ("grade 3", "grade 4")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def load(path, *, positive=GRADES, architecture=None):
    found = open_external(path, architecture=architecture, positive=positive)
    assert found is not None
    return load_external(found)


def draw(count=5, side=32, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), np.uint8)
    return pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def prepare_with_pillow(pixels, size=16):
    """The zoo's transform by its definition: Pillow, then a tensor, then the normalisation."""
    small = [np.asarray(Image.fromarray(p).resize((size, size), Image.BILINEAR)) for p in pixels]
    x = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.7, 0.6, 0.5], [0.2, 0.25, 0.5]))
    return (x - mean) / std


@pytest.mark.parametrize("kind", ["torchscript", "export", "export of one image"])
def test_probabilities_are_the_softmax_of_the_networks_own_outputs(tmp_path, kind):
    if kind == "torchscript":
        path = write_zoo(tmp_path / "net")
    else:
        path = write_export(tmp_path / "net.pt2", ColourNet(), batch=2 if "one" in kind else None)
    pixels, x = draw()
    with torch.inference_mode():
        model = load(path)
        wanted = ColourNet()(prepare_with_pillow(pixels)).softmax(1)
        found = model.all_logits(x).sigmoid()
        scores = model.score(x)
    torch.testing.assert_close(found[:, 1:], wanted, atol=2e-3, rtol=0)  # Pillow rounds weights
    torch.testing.assert_close(found[:, 0], found[:, 2:].sum(1), atol=1e-6, rtol=0)
    torch.testing.assert_close(scores, found[:, 0])
    assert found[:, 0].std() > 1e-3  # the images differ


def test_images_in_the_layout_of_prediction_fit_a_graph_with_views(tmp_path):
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, 4)
            self.last = nn.Linear(64, 3)

        def forward(self, x):
            return self.last(self.conv(x).view(x.size(0), -1))

    model = load(write_zoo(tmp_path, Flat()))
    model.to(memory_format=torch.channels_last)
    x = draw()[1].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x.contiguous()))


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
@pytest.mark.parametrize("sizes", [(350, 224), (100, 299), (32, 17)])
def test_resizing_is_that_of_pillow(filter_, sizes):
    side, size = sizes
    noise, _ = draw(1, side)
    smooth = Image.fromarray(noise[0]).resize((side // 4, side // 4)).resize((side, side))
    for pixels in (noise[0], np.asarray(smooth)):
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255
        found = transform_images(x, (Resize(size, filter_), ToTensor()))
        how = Image.BILINEAR if filter_ == "bilinear" else Image.BICUBIC
        wanted = np.asarray(Image.fromarray(pixels).resize((size, size), how))
        got = np.rint(found[0].permute(1, 2, 0).numpy() * 255).astype(int)
        differ = np.abs(got - wanted)
        assert differ.max() <= 1
        assert (differ > 0).mean() < 0.02


def test_the_shorter_side_gets_a_size_of_one_number():
    x = torch.rand(1, 3, 20, 30)
    assert transform_images(x, (Resize(10), ToTensor())).shape == (1, 3, 10, 15)
    assert transform_images(x, (Resize((10, 12)), ToTensor())).shape == (1, 3, 10, 12)
    assert transform_images(x, (ToTensor(), Resize((9, 9), "nearest"))).shape == (1, 3, 9, 9)


def test_steps_come_in_their_order():
    x = torch.rand(2, 3, 8, 8)
    normalise = Normalize((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    found = transform_images(x, (ToTensor(), normalise, Resize(4)))
    assert found.min() < 0  # not clipped to an image after ToTensor
    torch.testing.assert_close(found, transform_images(x, (ToTensor(), Resize(4), normalise)))


def test_one_output_is_a_sigmoid(tmp_path):
    one = {"num_classes": 1, "class_names": ["tumor"]}
    model = load(write_zoo(tmp_path, ColourNet(1), **one), positive=())
    pixels, x = draw()
    with torch.inference_mode():
        wanted = ColourNet(1)(prepare_with_pillow(pixels)).sigmoid()
        found = model.all_logits(x).sigmoid()
    torch.testing.assert_close(found, wanted.expand(-1, 2), atol=2e-3, rtol=0)


def test_of_two_classes_the_second_is_positive_if_none_is_chosen(tmp_path):
    two = {"num_classes": 2, "class_names": ["notumor", "tumor"]}
    path = write_zoo(tmp_path, ColourNet(2), **two)
    _, x = draw()
    with torch.inference_mode():
        by_default = load(path, positive=()).score(x)
        torch.testing.assert_close(by_default, load(path, positive=("tumor",)).score(x))
        torch.testing.assert_close(by_default, 1 - load(path, positive=("notumor",)).score(x))


def test_large_logits_stay_finite(tmp_path):
    class Sure(nn.Module):
        def forward(self, x):
            brightness = x.mean((1, 2, 3))
            return torch.stack([brightness + 1e4, brightness - 1e4, brightness + 3e4], dim=1)

    model = load(write_zoo(tmp_path, Sure()))
    with torch.inference_mode():
        found = model.all_logits(draw(1)[1])
    assert found.isfinite().all()
    assert found.sigmoid().tolist() == [[1, 0, 0, 1]]


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        ((), "has 3 classes .*choose those .* by --positive"),
        (("grade 5",), "--positive grade 5: .* has no such class; it has benign, grade 3, grade 4"),
        (CLASSES, "all classes .* every score would be 1"),
    ],
)
def test_a_wrong_choice_of_classes_is_refused_before_anything_is_loaded(
    tmp_path, positive, message
):
    with pytest.raises(ConfigError, match=message):
        open_external(write_zoo(tmp_path), positive=positive)


def test_a_description_with_another_number_of_classes_is_refused(tmp_path):
    path = write_zoo(tmp_path, ColourNet(2))
    with pytest.raises(ModelError, match=r"returns \(2,\) numbers .* but 3 classes are described"):
        load(path)


def test_a_network_that_does_not_take_such_images_is_refused(tmp_path):
    steps = [{"name": "ToTensor"}]
    path = write_zoo(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), transform=steps)
    with pytest.raises(ModelError, match=r"fails on an image of 32 px .*check patch_size_pixels"):
        load(path)


def test_a_missing_description_is_named(tmp_path):
    path = write_zoo(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json, or torchscript_model.json, next to"):
        open_external(path, positive=GRADES)


def test_a_description_of_the_files_own_name_comes_first(tmp_path):
    path = write_zoo(tmp_path)
    path.with_suffix(".json").write_text(json.dumps(describe(spacing_um_px=2)))
    assert open_external(path, positive=GRADES).meta.target_mpp == 2


def test_everything_that_a_score_depends_on_is_in_the_digest(tmp_path):
    path = write_zoo(tmp_path / "a")
    found = [open_external(path, positive=GRADES), open_external(path, positive=GRADES[:1])]
    (tmp_path / "a/config.json").write_text(json.dumps(describe(spacing_um_px=1)))
    found.append(open_external(path, positive=GRADES))
    write_zoo(tmp_path / "a", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    found.append(open_external(path, positive=GRADES))
    assert len({one.digest for one in found}) == 4


def test_a_folder_stands_for_its_model(tmp_path):
    path = write_zoo(tmp_path / "zoo")
    assert find_model(tmp_path / "zoo") == path
    path.rename(tmp_path / "zoo/other.pt")
    assert find_model(tmp_path / "zoo") == tmp_path / "zoo/other.pt"
    (tmp_path / "zoo/more.pt").touch()
    with pytest.raises(CheckpointError, match=r"it has more.pt, other.pt; name the file"):
        find_model(tmp_path / "zoo")


def test_doctor_describes_the_file(tmp_path, capsys):
    write_zoo(tmp_path / "zoo")
    assert main(["doctor", str(tmp_path / "zoo")]) == 0
    printed = capsys.readouterr().out
    assert "a TorchScript file: it runs code of its author" in printed
    assert f"classes: {', '.join(CLASSES)}" in printed
    assert "transform: Resize, ToTensor, Normalize" in printed


def test_damaged_torchscript_is_named(tmp_path):
    path = write_zoo(tmp_path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data[: len(data) // 2] if name.endswith(".py") else data)
    with pytest.raises(CheckpointError, match=r"TorchScript that torch .* cannot load"):
        load(path)


# ------------------------------------------------------------ nothing is unpickled


class Bomb:
    """Pickled, it leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_pickled_objects_of_an_exported_program_are_refused(tmp_path):
    path, trace = write_export(tmp_path / "a.pt2", ColourNet()), tmp_path / "ran"
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    buffer = io.BytesIO()
    torch.save(Bomb(trace), buffer)
    changed = {"sample": dict(files), "weights": dict(files), "constants": dict(files)}
    changed["sample"]["a/data/sample_inputs/model.pt"] = buffer.getvalue()
    name = "a/data/weights/model_weights_config.json"
    changed["weights"][name] = files[name].replace(b'"use_pickle": false', b'"use_pickle": true')
    changed["constants"]["a/data/constants/model.pt"] = buffer.getvalue()
    assert changed["weights"][name] != files[name]
    for content in changed.values():
        with zipfile.ZipFile(path, "w") as archive:
            for inner, data in content.items():
                archive.writestr(inner, data)
        with pytest.raises(CheckpointError, match="which is not loaded"):
            load(path)
    assert not trace.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_in_place_of_a_state_dict_is_not_run(tmp_path, legacy):
    trace, path = tmp_path / "ran", tmp_path / "resnet18.pth"
    if legacy:
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"a": Bomb(trace)}, path)
    with pytest.raises(ModelError, match="not a file of weights"):
        load(path, architecture="resnet18", positive=())
    assert not trace.exists()


# ------------------------------------------------------------ state dicts


@pytest.fixture
def resnet(monkeypatch):
    """A ResNet-18 of an eighth of the channels, for speed."""
    monkeypatch.setitem(
        ARCHITECTURES, "resnet18", partial(ResNet, *RESNETS["resnet18"], width=1 / 8)
    )
    network = ARCHITECTURES["resnet18"](2)
    network.train()(torch.rand(4, 3, 64, 64))  # running statistics of its own
    return network.eval()


@pytest.mark.parametrize(
    ("suffix", "prefix"),
    [(".safetensors", ""), (".pth", ""), (".pt", "module."), (".safetensors", "model.backbone.")],
)
def test_a_state_dict_gives_the_networks_own_scores(tmp_path, resnet, suffix, prefix):
    stored = {prefix + name: value.clone() for name, value in resnet.state_dict().items()}
    path = tmp_path / f"mine{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(stored, path)
    else:
        torch.save({"state_dict": stored, "epoch": 3} if prefix else stored, path)
    x = torch.rand(2, 3, 64, 64)
    mean, std = (
        torch.tensor(v).view(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.inference_mode():
        model = load(path, architecture="resnet18", positive=("class_1",))
        wanted = resnet((x - mean) / std).softmax(1)
        torch.testing.assert_close(model.all_logits(x).sigmoid()[:, 1:], wanted)
    assert model.class_names == ("class_0", "class_1")


def test_a_description_names_the_classes_of_a_state_dict(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "mine.pth")
    two = describe(num_classes=2, class_names=["normal", "tumor"])
    (tmp_path / "mine.json").write_text(json.dumps(two))
    model = load(tmp_path / "mine.pth", architecture="resnet18", positive=())
    assert (model.class_names, model.positive) == (("normal", "tumor"), (1,))
    assert Resize(16) in model.transform


def test_old_names_of_densenet_are_read(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "densenet121", partial(DenseNet, (1, 1, 1, 1), 4))
    network = ARCHITECTURES["densenet121"](2)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")  # as of before torch 0.4.1
    }
    torch.save(old, tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", architecture="densenet121", positive=("class_0",))
    layer = model.network.features.denseblock1.denselayer1
    assert torch.equal(layer.conv2.weight, network.features.denseblock1.denselayer1.conv2.weight)


def change_weights(stored, change):
    if change == "missing":
        del stored["layer4.1.conv2.weight"]
    elif change == "foreign":
        stored["head.weight"] = torch.zeros(2)
    elif change == "nan":
        stored["layer2.0.conv1.weight"][0, 0, 0, 0] = torch.nan
    else:
        stored["layer1.0.conv1.weight"] = torch.zeros(8, 8, 1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "it has no 'layer4.1.conv2.weight'"),
        ("foreign", "resnet18 has no 'head.weight'"),
        ("nan", "'layer2.0.conv1.weight' holds NaN"),
        ("shape", r"'layer1.0.conv1.weight' is \(8, 8, 1, 1\), in resnet18 it is \(8, 8, 3, 3\)"),
    ],
)
def test_layers_that_do_not_fit_are_named(tmp_path, resnet, change, message):
    stored = {name: value.clone() for name, value in resnet.state_dict().items()}
    change_weights(stored, change)
    torch.save(stored, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "a.pth", architecture="resnet18", positive=())


def test_another_architecture_is_refused_with_what_to_do(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"not a state dict of resnet34: it has no .*give another"):
        load(tmp_path / "a.pth", architecture="resnet34", positive=())
    with pytest.raises(ModelError, match=r"'resnet19'; did you mean 'resnet.*known: .*vgg16_bn"):
        load(tmp_path / "a.pth", architecture="resnet19", positive=())
    with pytest.raises(ConfigError, match=r"a state dict, .*by --architecture NAME"):
        open_external(tmp_path / "a.pth")


def test_other_numbers_of_classes_than_described_are_refused(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pth")
    (tmp_path / "a.json").write_text(json.dumps(describe()))
    with pytest.raises(
        ModelError,
        match=r"'fc.weight' is \(2, 64\), .* \(3, 64\); .* 3 classes are described in the JSON",
    ):
        load(tmp_path / "a.pth", architecture="resnet18")


def test_unknown_classes_of_a_state_dict_are_named(tmp_path, resnet):
    torch.save(resnet.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="no such class; it has class_0, class_1"):
        load(tmp_path / "a.pth", architecture="resnet18", positive=("tumor",))


# ------------------------------------------------------------ models of other packages

PACKAGE = """
import torch
from torch import nn
from wsi_pipeline.models import PatchClassifier

class Darkness(PatchClassifier):
    def __init__(self, *, gain: float = 1.0) -> None:
        super().__init__()
        self.options = {"gain": gain}
        self.gain = nn.Parameter(torch.tensor([gain]))

    def forward(self, x):
        return self.gain * (0.5 - x.mean((1, 2, 3)))

class Plain(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.last = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.last(x.mean((2, 3)))
"""
POINTS = """[wsi_pipeline.models]
darkness = other_package_of_models:Darkness
plain = other_package_of_models:Plain
broken = other_package_of_models:Missing
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    (folder / "other_package-1.0.dist-info").mkdir(parents=True)
    (folder / "other_package-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n"
    )
    (folder / "other_package-1.0.dist-info/entry_points.txt").write_text(POINTS)
    (folder / "other_package_of_models.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("other_package_of_models", None)


@pytest.mark.usefixtures("package")
def test_a_class_of_another_package_is_built_by_its_name():
    model = build_model("darkness", gain=2.0)
    assert isinstance(model, PatchClassifier)
    torch.testing.assert_close(model(torch.zeros(2, 3, 4, 4)), torch.ones(2))


@pytest.mark.usefixtures("package")
def test_a_state_dict_of_such_a_class_is_read(tmp_path):
    torch.save(build_model("darkness", gain=3.0).state_dict(), tmp_path / "a.pth")
    model = load(tmp_path / "a.pth", architecture="darkness", positive=())
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.zeros(2, 3, 8, 8)), torch.full((2,), 1.5))
    assert model.class_names == ("tumour",)


@pytest.mark.usefixtures("package")
def test_a_plain_network_of_another_package_needs_a_description(tmp_path):
    torch.save(nn.Sequential(nn.Identity(), nn.Linear(3, 3)).state_dict(), tmp_path / "b.pth")
    torch.save({"last.weight": torch.eye(3), "last.bias": torch.zeros(3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="number of classes of plain is not known"):
        load(tmp_path / "a.pth", architecture="plain")
    (tmp_path / "config.json").write_text(json.dumps(describe(transform=[{"name": "ToTensor"}])))
    model = load(tmp_path / "a.pth", architecture="plain")
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(model.class_logits(x), x.mean((2, 3)))
    with pytest.raises(ModelError, match="not a state dict of plain"):
        load(tmp_path / "b.pth", architecture="plain")


@pytest.mark.usefixtures("package")
def test_what_is_wrong_with_an_entry_point_is_named():
    with pytest.raises(ModelError, match="'broken' cannot be imported from other_package_of_mode"):
        find_architecture("broken")
    with pytest.raises(ModelError, match=r"'plain' is no subclass of .*PatchClassifier"):
        find_architecture("plain")
    with pytest.raises(ModelError, match=r"'vgg17'; did you mean 'vgg1.'\? known: .*darkness"):
        find_architecture("vgg17")


def test_a_run_folder_in_place_of_a_model_names_its_checkpoints(tmp_path):
    (tmp_path / "models/vgg16").mkdir(parents=True)
    (tmp_path / "models/vgg16/checkpoint.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"it has models/vgg16/checkpoint\.safetensors;"):
        find_model(tmp_path)
