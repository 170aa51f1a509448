"""The dense map against the definition: every patch cut out and evaluated by itself."""

import pytest
import torch
from torch.nn import functional as F

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models.dense import DenseEngine
from wsi_pipeline.models.dense import engine as engine_module
from wsi_pipeline.models.patchnet import PatchNet, Subnet


# Small images are cheaper patch by patch: without this, regions would go untested.
@pytest.fixture(autouse=True)
def by_regions(monkeypatch, request):
    if not request.node.name.endswith("_evaluated_once"):
        monkeypatch.setattr(engine_module, "cheaper_by_patches", lambda *_, **__: False)


PRODUCTS = ["toom-cook", "direct"]


def random_subnet(m, *, channels=3, filters=8, depth=7, dtype=torch.double, seed=0, bias=0.1):
    """Non-zero biases: without them, wrong borders are not noticed."""
    torch.manual_seed(seed)
    net = Subnet(m, channels=channels, filters=filters, depth=depth)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=bias)
    return net.to(dtype).eval().requires_grad_(False)


def engine_of(net, **options):
    convolutions = [layer for layer in net.convolutions if isinstance(layer, torch.nn.Conv2d)]
    return DenseEngine(convolutions, net.readout_weight, net.readout_bias, **options)


def patch_by_patch(net, image):
    """Cut, evaluate, arrange: (c, H, W) -> (filters, H, W)."""
    m, (height, width) = net.m, image.shape[1:]
    padded = F.pad(image, (m // 2,) * 4)
    patches = torch.stack(
        [padded[:, r : r + m, c : c + m] for r in range(height) for c in range(width)]
    )
    tanh = torch.cat([net.filter_outputs(part) for part in patches.split(64)])
    return tanh.T.reshape(-1, height, width)


@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("m", [3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 31, 33])
def test_every_patch_is_as_if_it_were_alone_in_float64(m, products):
    net = random_subnet(m, channels=1 if m % 4 == 1 else 3)
    image = torch.rand(net.convolutions[0].in_channels, 7, 12, dtype=torch.double)
    made = engine_of(net, products=products, block=5).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12


@pytest.mark.parametrize("m", [11, 15, 17, 31])
def test_in_float32_with_64_filters(m):
    net = random_subnet(m, filters=64, dtype=torch.float)
    image = torch.rand(3, 12, 10)
    expected = patch_by_patch(net, image)
    tolerance = {"toom-cook": 1e-5, "direct": 2e-6}
    for products in PRODUCTS:
        tanh = engine_of(net, products=products).map_image(image)
        assert (tanh - expected).abs().max() < tolerance[products]
        probability = net.combine_filters(tanh) - net.combine_filters(expected)
        assert probability.abs().max() < tolerance[products]


@pytest.mark.parametrize("m", [15, 17])
def test_large_biases_keep_to_the_tolerance_in_float32(m):
    for seed in range(4):
        net = random_subnet(m, filters=64, dtype=torch.float, seed=seed, bias=0.5)
        image = torch.rand(3, 12, 12)
        tanh = engine_of(net).map_image(image)
        assert (tanh - patch_by_patch(net, image)).abs().max() < 1e-5


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 8, 9])
def test_other_depths(depth):
    net = random_subnet(9, depth=depth, filters=4)
    image = torch.rand(3, 6, 5, dtype=torch.double)
    made = engine_of(net).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels(channels):
    net = random_subnet(15, channels=channels, filters=4)
    image = torch.rand(channels, 5, 8, dtype=torch.double)
    made = engine_of(net, block=4).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 3), (40, 2)])
def test_images_smaller_than_a_patch_or_a_block(size):
    net = random_subnet(15, filters=4)
    image = torch.rand(3, *size, dtype=torch.double)
    made = engine_of(net).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12


def test_more_corner_patches_than_are_computed_at_once():
    net = random_subnet(17, filters=4)
    image = torch.rand(3, 23, 19, dtype=torch.double)
    whole = engine_of(net, block=64).map_image(image)
    assert (whole - patch_by_patch(net, image)).abs().max() < 1e-12


def test_windows_of_an_image_join_without_a_seam():
    net = random_subnet(15, filters=4)
    image = torch.rand(3, 30, 26, dtype=torch.double)
    engine = engine_of(net, block=8)
    margin = 20
    padded = F.pad(image, (margin,) * 4)

    def read(top, left, height, width):
        top, left = top + margin, left + margin
        return padded[:, top : top + height, left : left + width]

    made = torch.zeros(4, 30, 26, dtype=torch.double)
    for top, left, height, width in [(0, 0, 11, 26), (11, 0, 19, 7), (11, 7, 19, 19)]:
        part = engine.map_region(read, top=top, left=left, height=height, width=width)
        made[:, top : top + height, left : left + width] = part
    torch.testing.assert_close(made, engine.map_image(image), rtol=0, atol=1e-13)


def test_a_reader_that_gives_too_little_is_reported():
    engine = engine_of(random_subnet(5, filters=2, depth=1))
    with pytest.raises(ModelError, match=r"12 x 12 px was asked .* 3 x 3 px came"):
        engine.map_region(
            lambda *_: torch.rand(3, 3, 3, dtype=torch.double), top=0, left=0, height=8, width=8
        )


def test_bad_options_and_images():
    net = random_subnet(5, filters=2, depth=1)
    with pytest.raises(ModelError, match="block=0"):
        engine_of(net, block=0)
    with pytest.raises(ModelError, match="products='fast'"):
        engine_of(net, products="fast")
    with pytest.raises(ModelError, match="no patch of side 5"):
        engine_of(net).map_padded(torch.rand(3, 4, 9, dtype=torch.double))
    for pixels in (torch.zeros(1, 9, 9, dtype=torch.double), torch.zeros(3, 9, 9)):
        with pytest.raises(ModelError, match=r"takes 3 channels of torch\.float64, got"):
            engine_of(random_subnet(5)).map_padded(pixels)


def test_patchnet_prepares_the_image_first():
    net = PatchNet(m=5, filters=4, depth=3, normalise="minmax").double()
    image = torch.rand(3, 6, 7, dtype=torch.double) / 3
    heatmap, filters = net.dense_map(image)
    expected = patch_by_patch(net.subnet, net.prepare(image[None])[0])
    torch.testing.assert_close(filters, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(heatmap, net.subnet.combine_filters(expected))


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 17, 40])
@pytest.mark.parametrize("m", [5, 15])
@pytest.mark.parametrize("by_patches", [False, True])
def test_any_stride_is_the_dense_map_at_its_lattice(m, stride, by_patches, monkeypatch):
    monkeypatch.setattr(engine_module, "cheaper_by_patches", lambda *_, **__: by_patches)
    net = random_subnet(m, filters=4)
    image = torch.rand(3, 23, 19, dtype=torch.double)
    engine = engine_of(net, block=8)
    padded = F.pad(image, (m // 2,) * 4)
    made = engine.map_lattice(padded, stride=stride)
    expected = patch_by_patch(net, image)[:, ::stride, ::stride]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


def test_strided_windows_join_without_a_seam():
    net = random_subnet(15, filters=4)
    image = torch.rand(3, 44, 44, dtype=torch.double)

    def read(top, left, height, width):
        return F.pad(image, (20,) * 4)[:, top + 20 :, left + 20 :][:, :height, :width]

    engine = engine_of(net, block=8)
    whole = engine.map_region(read, top=0, left=0, height=44, width=44, stride=3)
    left = engine.map_region(read, top=0, left=0, height=44, width=21, stride=3)
    right = engine.map_region(read, top=0, left=21, height=44, width=23, stride=3)
    torch.testing.assert_close(torch.cat([left, right], 2), whole, rtol=0, atol=1e-13)


def test_background_is_evaluated_once(monkeypatch):
    net = random_subnet(15, filters=4)
    image = torch.full((3, 40, 40), 0.9, dtype=torch.double)
    image[:, 3, 4] = 0.2
    engine = engine_of(net, block=40)
    evaluated = []
    original = engine._map_patches
    monkeypatch.setattr(
        engine,
        "_map_patches",
        lambda pixels, stride, index, compiled: (
            evaluated.append(len(index)) or original(pixels, stride, index, compiled)
        ),
    )
    padded = F.pad(image, (7,) * 4, value=0.9)
    made = engine.map_padded(padded)
    assert sum(evaluated) == 11 * 12 + 1  # those that see the dark pixel, and one that does not
    torch.testing.assert_close(
        made[:, 20:, 20:], made[:, 39:, 39:].expand(4, 20, 20), rtol=0, atol=0
    )
    expected = patch_by_patch(net, padded)[:, 7:47, 7:47]
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("products", PRODUCTS)
@pytest.mark.parametrize("m", [15, 17, 21, 31])
def test_compiled_maps_are_the_same(m, products):
    net = random_subnet(m, filters=8, channels=1 if m == 17 else 3)
    image = torch.rand(net.convolutions[0].in_channels, 13, 23, dtype=torch.double)
    made = engine_of(net, products=products, block=20, compiled=True).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12


@pytest.mark.slow
def test_compiled_maps_in_float32_with_64_filters():
    net = random_subnet(15, filters=64, dtype=torch.float)
    image = torch.rand(3, 12, 10)
    made = engine_of(net, compiled=True).map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-5


SLOW = pytest.mark.slow  # to compile


@pytest.mark.parametrize(
    ("m", "depth"), [pytest.param(3, 1, marks=SLOW), pytest.param(7, 2, marks=SLOW), (7, 3)]
)
def test_compiled_maps_of_shallow_networks(m, depth):
    net = random_subnet(m, filters=3, depth=depth)
    image = torch.rand(3, 9, 35, dtype=torch.double)
    engine = engine_of(net, compiled=True, block=40)
    made = engine.map_image(image)
    assert (made - patch_by_patch(net, image)).abs().max() < 1e-12
    stepped = engine.map_lattice(F.pad(image, (m // 2,) * 4), stride=4)
    torch.testing.assert_close(stepped, made[:, ::4, ::4], rtol=0, atol=1e-13)


def test_compiled_maps_keep_nan():
    net = random_subnet(7, filters=3, depth=3)
    image = torch.rand(3, 9, 11, dtype=torch.double)
    image[0, 4, 5] = torch.nan
    made = engine_of(net, compiled=True).map_image(image)
    expected = patch_by_patch(net, image)
    assert torch.equal(made.isnan(), expected.isnan())
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-12, equal_nan=True)


def test_a_step_of_nothing_is_reported():
    engine = engine_of(random_subnet(5, filters=2, depth=1))
    with pytest.raises(ModelError, match="stride=0"):
        engine.map_lattice(torch.rand(3, 9, 9, dtype=torch.double), stride=0)
