"""PatchNet against the papers' definitions and plain loops (paper 1, 3.2 to 3.5)."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.tiny_training import TINY, train
from wsi_pipeline.config.settings import ModelConfig
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import build_model, patchnet
from wsi_pipeline.models.patchnet import (
    PatchNet,
    PrecisionPatchNet,
    Subnet,
    log_mean_probability,
    min_max,
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def with_biases(net):
    """Give every bias a value: a net without biases hides what happens at borders."""
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net.double()


@pytest.mark.parametrize(
    ("m", "channels", "count"),
    [(15, 3, 237_889), (17, 1, 240_833), (21, 3, 251_713), (31, 3, 284_993), (11, 1, 230_081)],
)
def test_the_subnet_has_as_many_parameters_as_published(m, channels, count):
    assert sum(p.numel() for p in Subnet(m, channels=channels).parameters()) == count


def test_the_readout_is_one_linear_model_per_filter():
    net = with_biases(Subnet(5, filters=4, depth=2))
    patch = torch.rand(2, 3, 5, 5, dtype=torch.double)
    maps = net.convolutions(patch)
    for f in range(4):
        expected = torch.tanh(
            (maps[:, f] * net.readout_weight[f]).sum((1, 2)) + net.readout_bias[f]
        )
        torch.testing.assert_close(net.filter_outputs(patch)[:, f], expected)


def test_convolutions_are_kaiming_normal_and_their_biases_zero():
    net = Subnet(11)
    conv = net.convolutions[2]
    assert math.isclose(conv.weight.std().item(), math.sqrt(2 / (64 * 9)), rel_tol=0.02)
    assert not conv.bias.any()


def test_the_image_probability_is_the_mean_of_the_patches():
    net = with_biases(PatchNet(m=5, stride=3, filters=4, depth=3))
    x = torch.rand(3, 3, 13, 16, dtype=torch.double)
    torch.testing.assert_close(net.score(x).double(), net.patch_logits(x).sigmoid().mean(1),
                               rtol=1e-6, atol=1e-7)  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 5, 24, 100])
def test_how_many_patches_are_computed_at_once_changes_nothing(monkeypatch, at_once):
    net = with_biases(PatchNet(m=5, stride=3, filters=4, depth=3))
    x = torch.rand(2, 3, 10, 13, dtype=torch.double)
    expected = net.subnet(net.cut(x).flatten(0, 1)).view(2, -1)
    monkeypatch.setattr(patchnet, "CPU_LAYER_VALUES", at_once * 5 * 5 * 4)
    torch.testing.assert_close(net.patch_logits(x), expected, rtol=0, atol=1e-12)


def test_patches_are_cut_where_the_definition_says():
    net = PatchNet(m=3, stride=2, filters=2, depth=1, grid="floor")
    x = torch.arange(6 * 7, dtype=torch.float).view(1, 1, 6, 7).expand(1, 3, 6, 7)
    patches = net.cut(x)
    expected = [x[0, :, r : r + 3, c : c + 3] for r in (0, 2) for c in (0, 2, 4)]
    assert torch.equal(patches[0], torch.stack(expected))


@pytest.mark.parametrize(
    ("grid", "white", "mixed", "black"),
    [("floor", 9, 7, 33), ("ceil", 9, 7, 48), ("center", 9, 16, 39)],
)
def test_the_grid_determines_the_patches_of_the_papers_toy_image(grid, white, mixed, black):
    """The counts of docs/convergence.md: a 64 px white square in a 128 px image, m = s = 17."""
    image = torch.zeros(1, 3, 128, 128)
    image[..., :64, :64] = 1
    share = PatchNet(m=17, stride=17, filters=1, depth=1, grid=grid).cut(image).mean((2, 3, 4))[0]
    assert (int((share == 1).sum()), int(((share > 0) & (share < 1)).sum()),
            int((share == 0).sum())) == (white, mixed, black)  # fmt: skip


@pytest.mark.parametrize("side", range(3, 25))
@pytest.mark.parametrize(("m", "stride"), [(3, 1), (5, 3), (7, 7), (3, 5), (5, 9)])
def test_ceil_covers_every_pixel_that_a_patch_can_reach_and_has_no_empty_patch(side, m, stride):
    net = PatchNet(m=m, stride=stride, filters=1, depth=1)
    patches = net.cut(torch.ones(1, 3, side, m))[0]
    starts = [0]
    while starts[-1] + m < side and starts[-1] + stride < side:
        starts.append(starts[-1] + stride)
    assert [int(p.sum()) for p in patches] == [3 * m * min(m, side - s) for s in starts]


def test_with_one_patch_the_image_is_the_patch():
    net = with_biases(PatchNet(m=5, stride=5, filters=3, depth=2))
    x = torch.rand(2, 3, 5, 5, dtype=torch.double)
    torch.testing.assert_close(net(x), net.subnet(x))


def test_the_order_of_patches_does_not_matter():
    logits = torch.randn(2, 9, dtype=torch.double)
    for one, other in zip(
        log_mean_probability(logits), log_mean_probability(logits.flip(1)), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("logits", "log_p", "log_not_p"),
    [
        ((200.0, 300.0), 0.0, -200.69314718),  # the naive log(1 - P) is -inf
        ((-200.0, -150.0, 120.0), -1.09861229, -0.40546511),
    ],
)
def test_extreme_patches_give_finite_losses(logits, log_p, log_not_p):
    found = log_mean_probability(torch.tensor([logits], dtype=torch.double))
    assert [value.item() for value in found] == pytest.approx([log_p, log_not_p], abs=1e-6)


def test_the_loss_is_cross_entropy_of_the_mean():
    net = with_biases(PatchNet(m=5, stride=2, filters=4, depth=2))
    x, y = torch.rand(4, 3, 9, 9, dtype=torch.double), torch.tensor([0.0, 1, 1, 0]).double()
    p = net.patch_logits(x).sigmoid().mean(1)
    torch.testing.assert_close(net.loss(x, y), F.binary_cross_entropy(p, y))


def test_the_gradient_of_the_loss_is_right():
    net = with_biases(PatchNet(m=3, stride=2, filters=2, depth=2))
    x = torch.rand(2, 3, 5, 5, dtype=torch.double)
    y = torch.tensor([1.0, 0.0]).double()
    weights = dict(net.named_parameters())
    names = ["subnet.readout_weight", "subnet.output.weight"]

    def loss(*values):
        changed = {**weights, **dict(zip(names, values, strict=True))}
        logits = torch.func.functional_call(net, changed, (x,))
        return F.binary_cross_entropy_with_logits(logits, y)

    assert torch.autograd.gradcheck(loss, tuple(weights[name] for name in names))


@pytest.mark.parametrize("kind", [PatchNet, PrecisionPatchNet])
def test_in_half_precision_scores_stay_apart(kind):
    """The sums over filters and patches are float32's: in bf16 near scores would all be one."""
    net = kind(m=5, stride=2, filters=32, depth=3)
    x, y = torch.rand(40, 3, 16, 16), torch.arange(40) % 2
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, loss = net(x), net.loss(x, y)
    with torch.no_grad():
        expected = net(x), net.loss(x, y)
    assert logits.dtype == torch.float32
    assert logits.unique().numel() == 40
    torch.testing.assert_close(logits, expected[0], atol=2e-3, rtol=0)
    torch.testing.assert_close(loss, expected[1], atol=1e-3, rtol=0)


def test_one_half_is_not_class_one():
    net = PatchNet(m=3, stride=3, filters=1, depth=1)
    torch.nn.init.zeros_(net.subnet.output.weight)
    torch.nn.init.zeros_(net.subnet.output.bias)
    x = torch.rand(1, 3, 6, 6)
    assert net.score(x).item() == 0.5
    assert not net.predict(x)


def test_the_dense_map_is_the_subnet_around_every_pixel():
    net = with_biases(PatchNet(m=5, filters=4, depth=3))
    image = torch.rand(3, 6, 7, dtype=torch.double)
    heatmap, filters = net.dense_map(image)
    padded = F.pad(image, (2, 2, 2, 2))
    for r in range(6):
        for c in range(7):
            patch = padded[None, :, r : r + 5, c : c + 5]
            torch.testing.assert_close(heatmap[r, c], net.subnet(patch).sigmoid()[0])
            torch.testing.assert_close(filters[:, r, c], net.subnet.filter_outputs(patch)[0])


def test_a_patch_is_not_a_crop_of_one_pass_over_the_image():
    """Each patch has its own zero border; a fully convolutional pass would give something else."""
    net = with_biases(Subnet(7, filters=8, depth=3))
    image = torch.rand(1, 3, 15, 15, dtype=torch.double)
    own = net.convolutions(image[..., 4:11, 4:11])
    crop = net.convolutions(image)[..., 4:11, 4:11]
    assert (own - crop).abs().max() > 1e-3
    torch.testing.assert_close(own[..., 3, 3], crop[..., 3, 3])  # beyond the border's reach


def test_precision_loss_is_larger_unless_all_patches_agree():
    net = with_biases(PrecisionPatchNet(m=3, stride=3, filters=3, depth=1))
    x, zero = torch.rand(1, 3, 9, 9, dtype=torch.double), torch.zeros(1, dtype=torch.double)
    assert net.loss(x, zero) > PatchNet.loss(net, x, zero)
    same = torch.full((1, 3, 9, 9), 0.5, dtype=torch.double)
    torch.testing.assert_close(net.loss(same, zero), PatchNet.loss(net, same, zero))
    one = torch.ones(1, dtype=torch.double)
    torch.testing.assert_close(net.loss(x, one), PatchNet.loss(net, x, one))


def test_precision_loss_falls_where_a_normal_patch_looks_less_suspicious():
    """The sign of paper 1, eq. (2), corrected: d loss / d z_i = Q_i / l > 0 on class-0 images."""
    z = torch.randn(1, 6, dtype=torch.double, requires_grad=True)
    net = PrecisionPatchNet(m=3, filters=1, depth=1)
    net.patch_logits = lambda x: z
    net.loss(torch.zeros(1, 3, 3, 3), torch.zeros(1, dtype=torch.double)).backward()
    torch.testing.assert_close(z.grad, z.sigmoid().detach() / 6)


def test_min_max_stretches_each_image_and_survives_constants():
    x = torch.stack([torch.rand(3, 4, 4) * 0.5 + 0.2, torch.full((3, 4, 4), 0.7)])
    stretched = min_max(x)
    assert (stretched[0].min(), stretched[0].max()) == (0, 1)
    assert not stretched[1].any()


def test_region_keeps_the_central_square():
    net = PatchNet(m=3, stride=3, filters=1, depth=1, region=6, grid="floor")
    x = torch.rand(1, 3, 12, 10)
    assert torch.equal(net.cut(x)[0, 0], x[0, :, 3:6, 2:5])
    assert net.cut(x).shape[1] == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"m": 4}, "odd"),
        ({"m": 1}, "at least 3"),
        ({"m": 17, "region": 8}, "region"),
        ({"grid": "round"}, "ceil, floor or center"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"stride": 2.5}, "stride is a whole number, got stride=2.5"),
        ({"m": "17"}, "m is a whole number"),
        ({"strides": 2}, "did you mean 'stride'"),
    ],
)
def test_a_wrong_option_is_refused(options, message):
    with pytest.raises(ModelError, match=message):
        build_model("patchnet", **options)


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (3, 1)])
def test_images_of_other_channels_are_refused_with_a_remedy(channels, given):
    """It was torch's sentence about groups and weights."""
    net = PatchNet(m=5, filters=1, depth=1, channels=channels)
    with pytest.raises(ModelError, match=f"channels={given}, or images.channels={channels}"):
        net(torch.rand(2, given, 9, 9))


def test_strides_are_the_papers():
    chosen = {m: PatchNet(m=m, filters=1, depth=1).stride for m in (3, 11, 15, 17, 21, 31)}
    assert chosen == {3: 1, 11: 3, 15: 3, 17: 5, 21: 5, 31: 10}


def test_a_small_image_is_padded_by_ceil_and_refused_by_floor():
    x = torch.rand(1, 3, 8, 8)
    assert PatchNet(m=11, stride=3, filters=1, depth=1)(x).shape == (1,)
    with pytest.raises(ModelError, match="holds no patch of m=11"):
        PatchNet(m=11, stride=3, filters=1, depth=1, grid="floor")(x)


def test_a_patch_larger_than_the_tile_is_refused_by_training(fake_store, tmp_path):
    """m=99 on tiles of 48 px was trained, mostly on padding."""
    config = replace(TINY, model=ModelConfig("patchnet", {"m": 99}))
    with pytest.raises(ModelError, match=r"99 x 99 px .* of at most \d+, or"):
        train(fake_store, tmp_path, config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "largest"), [((48, 60), 47), ((60, 47), 47)])
def test_the_largest_patch_that_fits_is_named(size, largest):
    PatchNet.check_size(size, m=largest, stride=3)
    with pytest.raises(ModelError, match=f"at most {largest},"):
        PatchNet.check_size(size, m=largest + 2)
