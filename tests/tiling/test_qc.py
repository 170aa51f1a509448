"""The quality-control picture: what is drawn where."""

import numpy as np
import pytest
import shapely
from PIL import Image

from tiling import qc
from tiling.qc import (
    COLOUR_BY_LABEL,
    OUTLINE,
    SIDE_PX,
    UNREADABLE,
    draw_qc,
    save_qc,
    scale_bar_um,
    write_qc,
)

GLASS = 240


def draw(size=(300, 200), pixel=4.0, **changes):
    """A slide of 1200 x 800 level-0 px; four tiles of 200, one of each kind, on its left."""
    rgb = np.full((size[1], size[0], 3), GLASS, np.uint8)
    tissue = np.zeros((size[1], size[0]), bool)
    tissue[: size[1] // 2, : size[0] // 2] = True
    settings = {
        "pixel_l0": (pixel, pixel),
        "tissue": tissue,
        "coords": np.array([[0, 0], [200, 0], [0, 200], [200, 200]]),
        "tile_l0": (200, 200),
        "label": np.array([1, 0, -1, 0], np.int8),
        "unreadable": np.array([False, False, False, True]),
        "title": "a",
        "mpp": 0.5,
        **changes,
    }
    return draw_qc(rgb, **settings)


def is_tinted(pixel, colour) -> bool:
    """Between glass and a colour, not glass."""
    expected = np.array(colour) - GLASS
    share = (np.array(pixel, int) - GLASS) @ expected / (expected @ expected)
    off = np.abs(GLASS + share * expected - pixel).max()
    return share > 0.03 and off < 3


def test_tiles_have_the_colours_of_their_labels():
    picture = draw()  # 1200 px wide: one px each of level 0

    for x, y, colour in [
        (100, 100, COLOUR_BY_LABEL[1]),
        (300, 100, COLOUR_BY_LABEL[0]),
        (100, 300, COLOUR_BY_LABEL[-1]),
        (300, 300, UNREADABLE),
    ]:
        assert is_tinted(picture.getpixel((x, y)), colour)
    assert picture.getpixel((900, 500)) == (GLASS, GLASS, GLASS)


def test_the_outline_of_tissue_lies_on_its_edge():
    pixels = np.asarray(draw())
    found = np.argwhere((pixels[:800] == OUTLINE).all(axis=2))

    assert found[:, 0].max() == 399
    assert found[:, 1].max() == 599


def test_the_annotation_is_outlined_with_its_holes():
    area = shapely.box(700, 100, 1100, 500).difference(shapely.box(800, 200, 900, 300))
    plain, drawn = np.asarray(draw()), np.asarray(draw(tumour=area))

    for x, y in [(700, 300), (900, 100), (800, 250), (850, 300)]:
        assert drawn[y - 2 : y + 3, x - 2 : x + 3].min() == 0
        assert plain[y, x].tolist() == [GLASS] * 3
    assert drawn[250, 850].tolist() == [GLASS] * 3  # not filled


def test_an_empty_annotation_and_no_tiles_are_drawn():
    nothing = {
        "coords": np.zeros((0, 2), np.int64),
        "label": np.zeros(0, np.int8),
        "unreadable": np.zeros(0, bool),
    }

    assert draw(tumour=shapely.MultiPolygon(), **nothing).width == 1200


def test_what_matters_lies_on_top_of_overlapping_tiles():
    picture = draw(
        coords=np.array([[0, 0], [100, 0]]),
        label=np.array([1, 0], np.int8),
        unreadable=np.zeros(2, bool),
    )

    red, _, blue = picture.getpixel((150, 100))
    assert red > blue


@pytest.mark.parametrize("size", [(3, 3), (50, 4), (4, 50), (5000, 3000)])
def test_any_slide_has_a_picture_of_bounded_size(size):
    picture = draw(size, 1200 / size[0])

    assert picture.width <= max(SIDE_PX, 620)
    assert SIDE_PX / 2 <= max(picture.size) <= SIDE_PX + 200


def test_tiles_too_small_for_lines_are_filled():
    side = 4  # 4 px each
    coords = np.stack(np.meshgrid(np.arange(0, 400, side), np.arange(0, 400, side)), -1)
    coords = coords.reshape(-1, 2)
    n = len(coords)

    picture = np.asarray(
        draw(coords=coords, tile_l0=(side, side), label=np.ones(n, np.int8),
             unreadable=np.zeros(n, bool))
    )  # fmt: skip

    assert len(np.unique(picture[100:200, 100:200].reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
    ("longest", "bar"), [(4300, 2000), (5000, 5000), (1.0, 1), (0.15, 0.1), (999, 500), (10, 10)]
)
def test_the_scale_bar_has_a_round_length(longest, bar):
    assert scale_bar_um(longest) == pytest.approx(bar)


def test_the_scale_bar_is_as_long_as_it_says():
    """0.5 µm per level-0 px, one picture px each: 300 px are 150 µm, so the bar is 100 µm."""
    pixels = np.asarray(draw())
    bar = (pixels[800:, 600:] == 0).all(axis=2).sum(axis=1).max()

    assert bar == pytest.approx(200, abs=3)


def test_the_picture_is_a_png(tmp_path):
    picture = draw()
    write_qc(tmp_path / "a.png", picture)

    with Image.open(tmp_path / "a.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(picture))
    with (tmp_path / "b.png").open("wb") as file:
        save_qc(file, picture)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()


def test_a_large_overview_is_drawn_like_a_small_one(monkeypatch):
    """It is averaged before Pillow gets it, which would need four bytes a pixel."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (25, 13, 3), np.uint8)
    picture = np.kron(blocks, np.ones((101, 203, 1), np.uint8))[:2513, :2639]
    tissue = np.zeros(picture.shape[:2], np.bool_)
    tissue[500:1500, 700:2000] = True

    def draw():
        return qc.draw_qc(
            picture,
            pixel_l0=(16.0, 16.0),
            tissue=tissue,
            coords=np.array([[8000, 16000]]),
            tile_l0=(512, 512),
            label=np.array([1], np.int8),
            unreadable=np.array([False]),
            title="s",
            mpp=0.5,
        )

    whole = np.asarray(draw(), int)
    monkeypatch.setattr(qc, "LARGE_PX", 0)
    small = np.asarray(draw(), int)
    assert small.shape == whole.shape
    assert np.median(np.abs(small - whole)) <= 1
    assert (np.abs(small - whole).max(axis=2) > 8).mean() < 0.02  # at edges of the blocks
