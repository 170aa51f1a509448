"""ProtoPNet's arithmetic, against sums written out."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from wsi_pipeline.models.pretrained import load_imagenet_weights
from wsi_pipeline.models.protopnet import similarity

SMALL = {"base": "vgg11", "width": 1 / 16, "depth": 8}


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return build_model("protopnet", **SMALL, prototypes_per_class=3).eval()


@pytest.fixture
def x():
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(2))


def by_hand(z, p):
    """|z - p|^2 of each position and prototype: (B, D, h, w), (P, D) -> (B, P, h, w)."""
    return ((z[:, None] - p[None, :, :, None, None]) ** 2).sum(dim=2)


def test_the_published_network_has_ten_prototypes_of_128_numbers_for_each_class():
    model = build_model("protopnet", width=1 / 16)
    assert model.prototypes.shape == (20, 128, 1, 1)
    assert model.prototype_class.tolist() == [0] * 10 + [1] * 10
    assert model.options == {
        "base": "vgg16",
        "width": 1 / 16,
        "prototypes_per_class": 10,
        "depth": 128,
    }
    assert (model.prototypes >= 0).all()
    assert (model.prototypes < 1).all()
    assert 0.45 < float(model.prototypes.detach().mean()) < 0.55
    with torch.device("meta"):
        published = build_model("protopnet")
    assert sum(p.numel() for p in published.parameters()) == 14_799_464
    kinds = [type(layer).__name__ for layer in model.add_on]
    assert kinds == ["Conv2d", "ReLU", "Conv2d", "Sigmoid"]
    assert [layer.kernel_size for layer in model.add_on[::2]] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(("base", "convolutions"), [("vgg11", 8), ("vgg16", 13), ("vgg19", 16)])
def test_any_vgg_is_its_body(base, convolutions):
    model = build_model("protopnet", base=base, width=1 / 64)
    assert sum(type(m).__name__ == "Conv2d" for m in model.features) == convolutions


def test_an_image_of_224_px_has_7_x_7_latent_vectors_in_the_unit_cube():
    z = build_model("protopnet", base="vgg11", width=1 / 64, depth=4).latent(
        torch.rand(1, 3, 224, 224)
    )
    assert z.shape == (1, 4, 7, 7)
    assert z.min() >= 0
    assert z.max() <= 1


def test_distances_are_those_summed_by_hand(model, x):
    """Prototypes leave [0, 1] while they are trained."""
    with torch.no_grad():
        model.prototypes.copy_(4 * model.prototypes - 1.5)
        expected = by_hand(model.latent(x).double(), model.prototypes.flatten(1).double())
        found = model.distances(x)
    assert found.shape == (2, 6, 2, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-9)


def test_a_prototype_that_is_a_position_is_at_distance_zero(model, x):
    """With 128 numbers in float32 the three terms leave up to 1e-5."""
    model = build_model("protopnet", **{**SMALL, "depth": 128}).eval()
    with torch.no_grad():
        model.prototypes[4] = model.latent(x)[1, :, 1, 2, None, None]
        assert float(model.distances(x)[1, 4, 1, 2]) <= 1e-12
        assert float(model.similarities(x)[1, 4]) == pytest.approx(9.2103, abs=1e-4)


@settings(max_examples=100)
@given(st.floats(0, 1e6))
def test_similarity_is_that_of_the_paper(d):
    found = float(similarity(torch.tensor(d, dtype=torch.float64)))
    assert found == pytest.approx(np.log((d + 1) / (d + 1e-4)), rel=1e-9, abs=1e-15)


def test_similarity_falls_from_9_2103_to_zero():
    values = similarity(torch.tensor([0.0, 1e-4, 1e-2, 1.0, 10.0, 1e9], dtype=torch.float64))
    assert float(values[0]) == pytest.approx(9.2103, abs=1e-4)
    assert (values.diff() < 0).all()
    assert 0 < float(values[-1]) < 1e-8


def test_an_images_similarity_is_that_of_its_nearest_position(model, x):
    with torch.no_grad():
        nearest = model.distances(x).flatten(2).min(dim=2).values
        torch.testing.assert_close(model.similarities(x), similarity(nearest))


def test_the_last_layer_starts_with_1_for_the_own_class_and_minus_a_half_else(model):
    assert model.last.bias is None
    assert model.last.weight.tolist() == [[1] * 3 + [-0.5] * 3, [-0.5] * 3 + [1] * 3]


def test_the_logit_is_the_difference_and_a_sum_over_prototypes(model, x):
    with torch.no_grad():
        logits, similarities = model.class_logits(x), model.similarities(x)
        weight = model.last.weight[1] - model.last.weight[0]
        torch.testing.assert_close(model(x), logits[:, 1] - logits[:, 0])
        torch.testing.assert_close(model(x), (similarities * weight).sum(dim=1))
        torch.testing.assert_close(model.score(x), logits.softmax(dim=1)[:, 1])


def test_the_loss_is_the_softmax_cross_entropy(model, x):
    y = torch.tensor([0.0, 1.0])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(model.class_logits(x), y.long())
        torch.testing.assert_close(model.loss(x, y), expected)


def test_in_half_precision_distances_and_logits_are_still_float32(model, x):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.latent(x).dtype == model.distances(x).dtype == model(x).dtype == torch.float32


def test_a_pruned_network_is_the_sum_over_what_is_left(model, x):
    kept = torch.tensor([True, False, True, False, False, True])
    with torch.no_grad():
        expected = model.similarities(x)[:, kept] @ model.last.weight[:, kept].T
        model.keep(kept)
        torch.testing.assert_close(model.class_logits(x), expected)
    assert model.prototype_class.tolist() == [0, 0, 1]
    assert model.options["prototypes_per_class"] == [2, 1]
    with pytest.raises(ModelError, match="keeps at least one"):
        model.keep(torch.zeros(3, dtype=torch.bool))


def test_a_pruned_network_comes_back_from_its_checkpoint(model, x, tmp_path):
    model.keep(torch.tensor([True, False, True, False, False, False]))
    meta = CheckpointMeta("protopnet", json.loads(json.dumps(model.options)), 64, 1.0)
    save_checkpoint(tmp_path / "c.safetensors", model, meta)
    again, _ = load_checkpoint(tmp_path / "c.safetensors")
    assert again.prototype_class.dtype == torch.int64
    assert again.prototype_class.tolist() == [0, 0]
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


def test_imagenet_weights_go_into_the_convolutions_alone(model, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(5)
        source = build_model("vgg11", width=1 / 16)
    torch.save(source.state_dict(), tmp_path / "vgg11.pth")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    load_imagenet_weights(model, tmp_path / "vgg11.pth")
    for name, value in model.state_dict().items():
        wanted = source.state_dict() if name.startswith("features.") else before
        assert torch.equal(value, wanted[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "vgg13"}, "base is one of vgg11, vgg16, vgg19, got base='vgg13'"),
        ({"depth": 0}, "depth must be a whole number from 1, got depth=0"),
        ({"prototypes_per_class": 0}, "not both 0; got 0"),
        ({"prototypes_per_class": [3]}, r"one of class 1, not both 0; got \[3\]"),
        ({"prototypes_per_class": [3, -1]}, r"got \[3, -1\]"),
        ({"prototypes_per_class": "many"}, "got 'many'"),
        ({"prototypes_per_class": 2.5}, "got 2.5"),
    ],
)
def test_an_option_out_of_its_range_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("protopnet", **{"width": 1 / 64, **options})
