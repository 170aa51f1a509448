"""Tissue against glass, pen and black; its share of each tile."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from tests.helpers import thumbnails
from tests.helpers.real_data import real_data
from tiling.contracts import TissueConfig
from tiling.errors import GridError, TissueError
from tiling.tissue.mask import segment_tissue
from tiling.tissue.summed_mask import SummedMask

GLASS, PINK, PALE = (244, 243, 244), (200, 140, 190), (238, 214, 230)
GREEN_PEN, BLUE_PEN, BLACK_PEN = (30, 140, 60), (40, 60, 170), (25, 25, 30)


def draw(
    *shapes: tuple[slice, slice, tuple[int, int, int]],
    glass: tuple[int, int, int] = GLASS,
    size: tuple[int, int] = (200, 300),
    noise: float = 3.0,
) -> NDArray[np.uint8]:
    """A thumbnail of coloured rectangles on glass, with sensor noise."""
    picture = np.empty((*size, 3))
    picture[:] = glass
    for rows, columns, colour in shapes:
        picture[rows, columns] = colour
    picture += np.random.default_rng(0).normal(0, noise, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


def segment(picture: NDArray[np.uint8], mpp: float = 8.0, **changes: float) -> NDArray[np.bool_]:
    config = dataclasses.replace(TissueConfig(), **changes)
    return segment_tissue(picture, mpp=(mpp, mpp), config=config)


BLOCK = (slice(50, 150), slice(100, 200))


def agreement(mask: NDArray[np.bool_], rows: slice, columns: slice) -> float:
    truth = np.zeros_like(mask)
    truth[rows, columns] = True
    return float((mask & truth).sum() / (mask | truth).sum())


@pytest.mark.parametrize("colour", [PINK, PALE, (130, 80, 160)], ids=["pink", "pale", "dark"])
@pytest.mark.parametrize("glass", [GLASS, (228, 224, 230), (240, 232, 222)])
def test_stained_tissue_is_found_to_the_pixel_or_two(colour, glass):
    mask = segment(draw((*BLOCK, colour), glass=glass))

    assert mask.dtype == bool
    assert mask.shape == (200, 300)
    assert agreement(mask, *BLOCK) > 0.92


@pytest.mark.parametrize("noise", [0.0, 3.0, 5.0])
@pytest.mark.parametrize("glass", [GLASS, (255, 255, 255), (238, 233, 228), (200, 200, 200)])
def test_bare_glass_holds_no_tissue_however_noisy(glass, noise):
    assert not segment(draw(glass=glass, noise=noise)).any()


def test_a_thumbnail_full_of_tissue_is_not_split_into_pale_and_dark():
    """Otsu alone parts pink from purple where there is no glass."""
    picture = draw((slice(0, 200), slice(0, 150), (110, 60, 150)), glass=(225, 180, 210))

    assert segment(picture).mean() > 0.99


def test_weak_tissue_beside_strong_tissue_is_kept():
    picture = draw((slice(0, 100), slice(0, 300), (110, 50, 150)), (*BLOCK, (222, 185, 208)))

    assert segment(picture)[100:148, 103:197].all()


@pytest.mark.parametrize(
    "colour", [GREEN_PEN, BLUE_PEN, BLACK_PEN, (0, 0, 0)], ids=["green", "blue", "black", "void"]
)
def test_pen_and_black_are_not_tissue(colour):
    picture = draw((*BLOCK, PINK), (slice(10, 30), slice(20, 280), colour))

    mask = segment(picture)

    assert not mask[:40].any()
    assert agreement(mask, *BLOCK) > 0.92


def test_black_around_the_scanned_part_is_not_tissue():
    picture = draw((*BLOCK, PINK), noise=0)
    picture[:40], picture[:, :60] = 0, 0

    mask = segment(picture)

    assert not mask[:40].any()
    assert not mask[:, :60].any()
    assert agreement(mask, *BLOCK) > 0.92


def test_a_wholly_black_or_white_thumbnail_holds_no_tissue():
    assert not segment(np.zeros((50, 60, 3), np.uint8)).any()
    assert not segment(np.full((50, 60, 3), 255, np.uint8)).any()
    assert segment(np.zeros((0, 0, 3), np.uint8)).shape == (0, 0)


def test_in_dark_field_what_shines_is_tissue():
    picture = np.zeros((200, 300, 3), np.uint8)
    picture[50:150:4, 100:200:4, 2] = 220  # lit nuclei, dark between them
    picture[51:150:4, 100:200:4, 2] = 220

    assert agreement(segment(picture), *BLOCK) > 0.8


def score(scene: thumbnails.Scene, mask: NDArray[np.bool_]) -> tuple[float, float, float]:
    """IoU outside the artefacts; the share of them taken for tissue, on glass and across tissue."""
    outside = ~ndimage.binary_dilation(scene.artefact, iterations=8)
    iou = (mask & scene.tissue & outside).sum() / ((mask | scene.tissue) & outside).sum()
    on_glass, across = scene.artefact & ~scene.tissue, scene.artefact & scene.tissue
    leaks = [float((mask & part).sum() / max(1, part.sum())) for part in (on_glass, across)]
    return float(iou), leaks[0], leaks[1]


@pytest.mark.parametrize("glass", [thumbnails.GLASS, (240, 233, 220), (226, 222, 230)])
@pytest.mark.parametrize("stain", thumbnails.STAINS)
def test_every_stain_is_found_on_any_glass(stain, glass):
    scene = thumbnails.draw_scene(stain, mpp=12.0, glass=glass)

    assert score(scene, segment(scene.rgb, mpp=12.0))[0] > 0.97


@pytest.mark.parametrize("ink", thumbnails.INKS)
@pytest.mark.parametrize("stain", thumbnails.STAINS)
def test_pen_across_and_beside_tissue_is_left_out(stain, ink):
    scene = thumbnails.draw_scene(stain, mpp=10.0, ink=ink)

    iou, on_glass, across = score(scene, segment(scene.rgb, mpp=10.0))

    assert iou > 0.96
    assert on_glass < 0.04
    assert across < 0.4  # where ink is thin over tissue, tissue is seen


@pytest.mark.parametrize("stain", thumbnails.STAINS)
@pytest.mark.parametrize("artefact", ["edges", "bubble"])
def test_edges_and_rims_of_bubbles_are_left_out(stain, artefact):
    scene = thumbnails.draw_scene(stain, **{artefact: True})

    iou, on_glass, _ = score(scene, segment(scene.rgb))

    assert iou > 0.97
    assert on_glass < 0.01


@pytest.mark.parametrize(
    ("stain", "mpp"),
    [
        pytest.param("H&E", 4.0, marks=pytest.mark.slow),
        *itertools.product(thumbnails.STAINS, (16.0, 32.0)),
    ],
)
def test_another_resolution_finds_the_same_tissue(stain, mpp):
    scene = thumbnails.draw_scene(stain, mpp=mpp)

    mask = segment(scene.rgb, mpp=mpp)

    assert score(scene, mask)[0] > 0.92
    at_8 = segment(thumbnails.draw_scene(stain).rgb)
    assert mask.mean() == pytest.approx(at_8.mean(), rel=0.05)


def test_tissue_filled_up_by_pale_eosin_is_not_taken_for_glass():
    assert segment(draw(glass=(240, 222, 232))).mean() > 0.99


def test_white_that_no_camera_saw_beside_warm_glass_holds_no_tissue():
    picture = draw((*BLOCK, PINK), glass=(240, 232, 222))
    picture[:, 220:] = 255

    mask = segment(picture)

    assert not mask[:, 215:].any()
    assert agreement(mask, *BLOCK) > 0.92


def test_a_bright_field_slide_mostly_unscanned_is_not_taken_for_dark_field():
    picture = draw((slice(0, 200), slice(0, 300), (150, 80, 150)))
    picture[:, :180] = 0

    mask = segment(picture)

    assert not mask[:, :178].any()
    assert mask[:, 185:].all()


def test_tissue_that_touches_the_border_is_kept():
    picture = draw((slice(0, 80), slice(0, 90), PINK))

    assert agreement(segment(picture), slice(0, 80), slice(0, 90)) > 0.92


def test_hairs_are_no_tissue_however_long():
    """8 µm wide, 2.2 mm long: twice the smallest object's area."""
    picture = draw((*BLOCK, PINK), (slice(20, 21), slice(10, 290), (190, 150, 190)))

    mask = segment(picture, mpp=8.0)

    assert not mask[:40].any()
    assert mask[100, 150]


@pytest.mark.parametrize("mpp", [2.0, 8.0])
def test_holes_and_specks_are_judged_in_square_microns(mpp):
    """The same drawing at another resolution: a hole of 20 x 20 px has 1600 or 25600 µm²."""
    hole, speck = (slice(90, 110), slice(140, 160)), (slice(10, 30), slice(250, 270))
    picture = draw((*BLOCK, PINK), (*hole, GLASS), (*speck, PINK), noise=0)
    areas = {"max_hole_um2": 20_000.0, "min_object_um2": 20_000.0}

    mask = segment(picture, mpp=mpp, **areas)

    small = 400 * mpp**2 < 20_000
    assert bool(mask[100, 150]) is small  # filled
    assert bool(mask[20, 260]) is not small  # removed


def test_a_gap_that_reaches_the_edge_is_no_hole():
    picture = draw((slice(0, 200), slice(0, 300), PINK), (slice(0, 6), slice(100, 106), GLASS))

    assert not segment(picture)[0:2, 102:104].any()


def test_a_picture_smaller_than_the_smallest_object_keeps_its_tissue():
    picture = draw((slice(0, 6), slice(0, 6), PINK), size=(6, 6), noise=0)

    assert segment(picture, mpp=8.0).all()


def test_the_same_picture_gives_the_same_mask_and_is_not_changed():
    picture = draw((*BLOCK, PINK))
    before = picture.copy()

    assert np.array_equal(segment(picture), segment(picture))
    assert np.array_equal(picture, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mpp": 0.0}, "tissue.mpp"),
        ({"min_saturation": 1.5}, "tissue.min_saturation"),
        ({"min_saturation": math.nan}, "tissue.min_saturation"),
        ({"min_fraction": -0.1}, "tissue.min_fraction"),
        ({"min_object_um2": -1.0}, "tissue.min_object_um2"),
        ({"max_hole_um2": math.nan}, "tissue.max_hole_um2"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    config = dataclasses.replace(TissueConfig(), **change)

    with pytest.raises(GridError, match=message):
        segment_tissue(draw(), mpp=(8.0, 8.0), config=config)


@pytest.mark.parametrize("bad", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_what_is_no_rgb_picture_is_refused(bad):
    with pytest.raises(TissueError, match=r"\(H, W, 3\) uint8"):
        segment_tissue(bad, mpp=(8.0, 8.0), config=TissueConfig())


def test_a_thumbnail_without_a_resolution_is_refused():
    with pytest.raises(TissueError, match="mpp of the thumbnail"):
        segment_tissue(draw(), mpp=(8.0, math.nan), config=TissueConfig())


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("CMU-1-Small-Region.svs", 0.25, 0.45),
        ("camelyon-overview-jpeg.dcm", 0.18, 0.3),
        ("nuclei-dapi.ndpi", 0.4, 0.9),
        ("tiny-sm.dcm", 0.0, 0.0),  # 25 µm of glass
    ],
)
def test_real_slides_have_the_tissue_that_a_person_sees(name, low, high):
    path = real_data(f"slides/{name}")
    openslide = pytest.importorskip("openslide")
    with openslide.OpenSlide(path) as slide:
        mpp = float(slide.properties["openslide.mpp-x"])
        step = max(1.0, 8.0 / mpp)
        width, height = (max(1, round(side / step)) for side in slide.dimensions)
        picture = slide.get_thumbnail((width, height)).convert("RGB")
        mpp *= slide.dimensions[0] / picture.width

    mask = segment_tissue(np.asarray(picture), mpp=(mpp, mpp), config=TissueConfig())

    assert low <= mask.mean() <= high


sizes = st.integers(1, 8)
lengths = st.floats(0.5, 20.0)


def share_of_one_tile(mask, mask_pixel, corner, tile):
    """The definition, mask pixel by mask pixel."""
    covered = 0.0
    for row, column in np.argwhere(mask):
        x0, x1 = column * mask_pixel[0], (column + 1) * mask_pixel[0]
        y0, y1 = row * mask_pixel[1], (row + 1) * mask_pixel[1]
        across = max(0.0, min(x1, corner[0] + tile[0]) - max(x0, corner[0]))
        down = max(0.0, min(y1, corner[1] + tile[1]) - max(y0, corner[1]))
        covered += across * down
    return covered / (tile[0] * tile[1])


@settings(max_examples=60)
@given(
    shape=st.tuples(sizes, sizes),
    pixel=st.tuples(lengths, lengths),
    tile=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    corners=st.lists(
        st.tuples(st.integers(-30, 160), st.integers(-30, 160)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_tissue_fraction_equals_the_sum_over_mask_pixels(shape, pixel, tile, corners, seed):
    mask = np.random.default_rng(seed).random(shape) < 0.5

    fraction = SummedMask(mask, pixel).tile_fraction(np.array(corners), tile)

    assert fraction.dtype == np.float32
    expected = [share_of_one_tile(mask, pixel, corner, tile) for corner in corners]
    assert fraction == pytest.approx(expected, abs=1e-6)


def test_no_tiles_have_no_fractions_and_an_empty_mask_has_no_tissue():
    one = np.array([[3, 3]])
    mask = np.ones((4, 4), bool)

    none = SummedMask(mask, (2, 2)).tile_fraction(one[:0], (2, 2))
    empty = SummedMask(mask[:0, :0], (2, 2)).tile_fraction(one, (2, 2))

    assert none.shape == (0,)
    assert empty.tolist() == [0.0]


@pytest.mark.parametrize(("pixel", "tile"), [((0.0, 1.0), (2, 2)), ((1.0, 1.0), (2, 0))])
def test_lengths_that_are_none_are_refused(pixel, tile):
    with pytest.raises(TissueError, match="positive sides"):
        SummedMask(np.ones((2, 2), bool), pixel).tile_fraction(np.array([[0, 0]]), tile)
