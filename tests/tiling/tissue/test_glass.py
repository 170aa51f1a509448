"""The colour of glass under any tint, and what half a slide of tissue makes of it."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers import thumbnails
from tiling.contracts import TissueConfig
from tiling.tissue.glass import find_filler, find_glass, is_grey
from tiling.tissue.mask import find_kind_and_tissue, segment_tissue
from tiling.tissue.summed_mask import SummedMask

TINTS = {
    "white": (243, 241, 244),
    "warm": (244, 238, 205),
    "pink": (238, 220, 230),
    "cream": (250, 240, 225),
    "yellow": (240, 225, 180),
    "dim yellow": (205, 195, 160),
    "green": (228, 242, 220),
    "mint": (220, 245, 230),
    "cyan": (215, 240, 240),
    "sky": (205, 225, 245),
    "lilac": (232, 222, 244),
    "rose": (245, 225, 225),
    "peach": (250, 228, 210),
    "beige": (225, 215, 200),
    "strong pink": (240, 210, 225),
    "grey": (205, 205, 205),
    "pure white": (255, 255, 255),
}
TISSUES = {"H&E": (200, 110, 160), "pale": (225, 180, 210), "DAB": (170, 120, 80)}
every_tint = pytest.mark.parametrize("glass", TINTS.values(), ids=TINTS)
some_tints = pytest.mark.parametrize(
    "glass", [TINTS[name] for name in ("white", "warm", "pink", "dim yellow", "sky", "lilac")]
)
SIDE = 128


def draw(glass, tissue=TISSUES["H&E"], *, noise=3.0, speckle=20, disc=False):
    """Glass, with tissue on its left half or in a disc, and where that is."""
    rng = np.random.default_rng(0)
    picture = np.empty((SIDE, SIDE, 3))
    picture[:] = glass
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    truth = np.hypot(x, y) < 0.4 * SIDE if disc else x < 0
    picture[truth] = np.array(tissue) + rng.integers(-speckle, speckle + 1, (truth.sum(), 1))
    picture += rng.normal(0, noise, picture.shape)
    return picture.clip(0, 255).astype(np.uint8), truth


def segment(picture, mpp=8.0):
    return segment_tissue(picture, mpp=(mpp, mpp), config=TissueConfig())


def kind_of(picture):
    return find_kind_and_tissue(picture, mpp=(8.0, 8.0), config=TissueConfig())[0]


def agreement(mask, truth):
    return (mask & truth).sum() / (mask | truth).sum()


def shade(picture, factor):
    return (picture * factor).clip(0, 255).astype(np.uint8)


def compress(picture, quality):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


# ------------------------------------------------------------ tinted glass


@every_tint
@pytest.mark.parametrize("tissue", TISSUES.values(), ids=TISSUES)
@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_with_half_the_slide_tissue_half_the_tiles_are(glass, tissue, noise):
    """Tinted glass was tissue from edge to edge."""
    picture, _ = draw(glass, tissue, noise=noise, speckle=6)
    tiles = np.stack(np.meshgrid(range(0, SIDE, 16), range(0, SIDE, 16)), axis=-1).reshape(-1, 2)

    fraction = SummedMask(segment(picture), (1.0, 1.0)).tile_fraction(tiles, (16, 16))

    np.testing.assert_array_equal(fraction >= 0.5, tiles[:, 0] < SIDE / 2)


@some_tints
@pytest.mark.parametrize("quality", [90, 40])
def test_jpeg_does_no_harm(glass, quality):
    picture, truth = draw(glass)

    assert agreement(segment(compress(picture, quality)), truth) > 0.95


@some_tints
def test_vignetting_does_no_harm(glass):
    picture, truth = draw(glass, disc=True)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5

    mask = segment(shade(picture, (1 - 0.5 * (x**2 + y**2))[..., None]))  # 0.75 in the corners

    assert agreement(mask, truth) > 0.93


@some_tints
def test_a_colour_gradient_and_stripes_of_the_scanner_do_no_harm(glass):
    picture, truth = draw(glass, disc=True)
    across = np.linspace(0, 1, SIDE)[None, :, None]
    gradient = np.concatenate([1 - 0.03 * across, np.ones_like(across), 0.97 + 0.03 * across], 2)
    stripes = np.ones((1, SIDE, 3))
    stripes[:, ::16] *= (0.97, 0.98, 0.99)

    assert agreement(segment(shade(picture, gradient)), truth) > 0.93
    assert agreement(segment(shade(picture, stripes)), truth) > 0.93


@some_tints
@pytest.mark.parametrize("fill", [0, 128, 255])
def test_filled_in_borders_are_neither_glass_nor_tissue(glass, fill):
    picture, truth = draw(glass, disc=True)
    padded = np.pad(picture, ((30, 30), (60, 10), (0, 0)), constant_values=fill)

    assert agreement(segment(padded), np.pad(truth, ((30, 30), (60, 10)))) > 0.93


@pytest.mark.parametrize("size", [6, 16, 40])
@pytest.mark.parametrize("glass", [TINTS["warm"], TINTS["pink"]], ids=["warm", "pink"])
def test_tiny_slides_of_tinted_glass(glass, size):
    picture, truth = draw(glass, noise=0)
    step = SIDE // size

    assert agreement(segment(picture[::step, ::step], mpp=2.0), truth[::step, ::step]) > 0.85


@pytest.mark.parametrize("stain", thumbnails.STAINS)
@pytest.mark.parametrize("glass", ["warm", "pink", "green", "sky"])
def test_every_stain_is_found_on_tinted_glass(stain, glass):
    scene = thumbnails.draw_scene(stain, mpp=20.0, glass=TINTS[glass])

    assert agreement(segment(scene.rgb, mpp=20.0), scene.tissue) > 0.95


def test_pen_on_tinted_glass_is_left_out():
    for ink in thumbnails.INKS:
        scene = thumbnails.draw_scene("H&E", mpp=32.0, ink=ink, glass=TINTS["warm"])
        on_glass = scene.artefact & ~scene.tissue

        assert (segment(scene.rgb, mpp=32.0) & on_glass).sum() < 0.06 * on_glass.sum(), ink


@pytest.mark.parametrize("glass", ["warm", "yellow", "green", "sky", "peach"])
def test_bare_glass_of_a_colour_that_no_stain_has_is_no_tissue(glass):
    picture, _ = draw(TINTS[glass], TINTS[glass], speckle=0)

    assert not segment(picture).any()


def test_uneven_pale_pink_is_eosin_though_there_is_something_darker():
    """At 8 µm per pixel real eosin varies by 7 and more of 255 within 3 x 3 pixels."""
    rng = np.random.default_rng(1)
    picture = np.array([235, 212, 228]) + rng.normal(0, 9, (SIDE, SIDE, 1))
    picture[:20] = (120, 60, 150)

    assert segment(picture.clip(0, 255).astype(np.uint8)).mean() > 0.98


def test_a_few_white_highlights_are_not_the_glass():
    picture, truth = draw(TINTS["yellow"], disc=True)
    picture[2:10, 2:60] = (246, 244, 246)

    assert find_glass(picture)[2] < 0.75
    assert agreement(segment(picture) & truth, truth) > 0.93


# ------------------------------------------------------------ grey slides


def to_grey(picture):
    return np.repeat(np.asarray(Image.fromarray(picture).convert("L"))[..., None], 3, axis=2)


@pytest.mark.parametrize("stain", thumbnails.STAINS)
def test_in_a_grey_slide_what_is_darker_than_glass_is_tissue(stain):
    """A single-channel slide is documented as input, and nothing of it was tissue."""
    scene = thumbnails.draw_scene(stain, mpp=24.0)
    picture = to_grey(scene.rgb)

    assert kind_of(picture) == "grey"
    assert agreement(segment(picture, mpp=24.0), scene.tissue) > 0.96


@pytest.mark.parametrize(
    ("glass", "tissue"), [(255, 230), (255, 165), (242, 200), (225, 200), (200, 120)]
)
def test_grey_glass_of_any_brightness(glass, tissue):
    picture, truth = draw((glass,) * 3, (tissue,) * 3, noise=0, speckle=5, disc=True)

    assert agreement(segment(picture), truth) > 0.95


def test_bare_grey_glass_and_black_are_no_tissue():
    picture, _ = draw((240,) * 3, (240,) * 3, noise=0, speckle=2)
    picture[:40] = 0

    assert not segment(picture).any()


def test_dirt_on_bare_glass_that_is_nearly_grey_is_no_tissue():
    picture, _ = draw((243, 242, 244), (243, 242, 244), noise=0, speckle=0)
    picture[40:60, 40:90] = (120, 119, 121)

    assert kind_of(picture) == "stained"
    assert not segment(picture).any()


def test_grey_fluorescence_is_dark_field():
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[30:90:4, 30:90:4] = picture[31:90:4, 30:90:4] = 220

    assert kind_of(picture) == "dark field"
    assert segment(picture)[40:80, 40:80].all()


# ------------------------------------------------------------ parts


def test_grey_means_three_equal_channels():
    picture = np.full((20, 20, 3), 100, np.uint8)
    assert is_grey(picture)
    picture[:2, :, 0] += 1
    assert not is_grey(picture)
    assert not is_grey(np.zeros((0, 0, 3), np.uint8))


def test_filler_is_exact_grey_among_its_like():
    picture = np.full((9, 9, 3), 240, np.uint8)
    picture[4, 4] = (240, 241, 240)
    picture[7, 7] = 200
    found = find_filler(picture)
    expected = np.ones((9, 9), bool)
    expected[4, 4] = expected[7, 6:9] = expected[6:9, 7] = False
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("shape", [(0, 0), (1, 1), (2, 5), (3, 3)])
def test_pictures_of_a_few_pixels_have_a_glass(shape):
    picture = np.full((*shape, 3), (243, 241, 244), np.uint8)
    assert min(find_glass(picture)) > 0.9
