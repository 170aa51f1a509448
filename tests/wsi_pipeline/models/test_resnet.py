"""ResNets as trainable patch classifiers (docs/models.md)."""

import numpy as np
import pytest
import safetensors.torch
import torch

from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import ModelError
from wsi_pipeline.explain import load_method
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.models.pretrained import load_imagenet_weights
from wsi_pipeline.models.torchvision_nets import ARCHITECTURES, RESNETS, ResNet

WIDTH = 1 / 8


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize(
    ("name", "parameters"),
    # torchvision's counts without their last layer, plus one output
    [
        ("resnet18", 11_689_512 - 513_000 + 513),
        ("resnet34", 21_797_672 - 513_000 + 513),
        ("resnet50", 25_557_032 - 2_049_000 + 2049),
    ],
)
def test_they_have_the_published_number_of_parameters_and_torchvisions_names(name, parameters):
    with torch.device("meta"):
        model, published = build_model(name), ARCHITECTURES[name](1000)
    assert sum(p.numel() for p in model.parameters()) == parameters
    own = {key for key in model.state_dict() if not key.startswith("output.")}
    assert own == {key for key in published.state_dict() if not key.startswith("fc.")}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_torchvisions_weights_give_its_last_maps(tmp_path, prefix):
    published = ResNet(*RESNETS["resnet18"], 10, width=WIDTH)
    published.train()(torch.rand(4, 3, 64, 64))  # running statistics of its own
    published.eval()
    stored = {prefix + name: value for name, value in published.state_dict().items()}
    safetensors.torch.save_file(stored, tmp_path / "a.safetensors")
    model = build_model("resnet18", width=WIDTH, pooling="average").eval()
    load_imagenet_weights(model, tmp_path / "a.safetensors")
    seen = []
    for network in (published, model):
        network.layer4.register_forward_hook(lambda *a: seen.append(a[2]))
    x = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        published((x - model.mean) / model.std)
        logits = model(x)
    torch.testing.assert_close(seen[1], seen[0])
    torch.testing.assert_close(logits, model.output(seen[0].mean((2, 3))).squeeze(1))


def test_the_lectures_top_takes_the_maximum_of_each_map():
    model, seen = build_model("resnet18", width=WIDTH).eval(), []
    model.layer4.register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.inference_mode():
        logits = model(torch.rand(2, 3, 64, 96))
    torch.testing.assert_close(logits, model.output(seen[0].amax((2, 3))).squeeze(1))


def test_an_image_of_one_channel_is_grey():
    model = build_model("resnet18", width=WIDTH).eval()
    x = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x.expand(-1, 3, -1, -1)))


def test_weights_of_another_resnet_are_refused(tmp_path):
    other = ResNet(*RESNETS["resnet34"], 10, width=WIDTH)
    torch.save(other.state_dict(), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"resnet18 has no 'layer1.2.*weights of resnet18"):
        load_imagenet_weights(build_model("resnet18", width=WIDTH), tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"'conv1.weight' is .*leave width at 1"):
        load_imagenet_weights(build_model("resnet34", width=1 / 4), tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "max or average, got pooling='mean'"),
        ({"width": 0}, "width=0"),
    ],
)
def test_options_out_of_range_are_named(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("resnet18", **options)


def test_images_below_32_px_are_refused():
    with pytest.raises(ModelError, match="at least 32 x 32 px, got 40 x 31"):
        build_model("resnet18", width=WIDTH)(torch.rand(1, 3, 31, 40))


def test_a_run_trains_one_and_scores_with_it(copy):
    run = copy / "run"
    short = {"steps_per_epoch": 2, "max_epochs": 1, "batch_size": 4}
    settings = [f"--set={key}={value}" for key, value in short.items()]
    options = "--set=model.options={width: 0.125}"
    assert main(["train", str(run), "--model", "resnet18", options, *settings, "--quiet"]) == 0
    model, meta = load_checkpoint(RunFolder(run).checkpoint("resnet18"))
    assert meta.options == {"width": 0.125, "pooling": "max"}
    assert int(model.bn1.num_batches_tracked) == 2  # trained, not evaluated, with batch statistics
    assert main(["predict", str(run), "--quiet"]) == 0
    assert main(["heatmap", str(run), "--model", "resnet18", "--quiet"]) == 0


def test_grad_cam_looks_at_its_last_maps():
    model, seen = build_model("resnet18", width=WIDTH, pooling="average").eval(), []
    model.layer4.register_forward_hook(lambda *a: seen.append(a[2]))
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
    found = load_method("grad_cam")(model, images)
    # of an average and one dense layer the gradient is the dense layer's weights
    cam = torch.einsum("fhw,f->hw", seen[0][0].detach(), model.output.weight[0].detach())
    wide = torch.nn.functional.interpolate(cam.relu()[None, None] / 6, (64, 96), mode="bilinear")
    np.testing.assert_allclose(found[0], wide[0, 0], atol=1e-6)
