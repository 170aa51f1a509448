"""Pictures of heatmaps lie over the slide to the pixel."""

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import Normalize
from PIL import Image

from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.errors import HeatmapError
from wsi_pipeline.heatmaps.colours import colour_of
from wsi_pipeline.heatmaps.overlays import compose_overlay, draw_overlay

pytestmark = pytest.mark.real_pictures


@settings(max_examples=50)
@given(
    slide=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    thumbnail=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    pixel=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    seed=st.integers(0, 99),
)
def test_overlay_colours_exactly_the_scored_pixels(slide, thumbnail, pixel, seed):
    rng = np.random.default_rng(seed)
    shape = (-(-slide[1] // pixel[1]), -(-slide[0] // pixel[0]))
    values = np.where(rng.random(shape) < 0.5, np.float32(np.nan), np.float32(1))
    picture = np.full((thumbnail[1], thumbnail[0], 3), 255, np.uint8)

    overlay = compose_overlay(picture, Heatmap(values, pixel, slide))

    for row, column in np.ndindex(*picture.shape[:2]):
        x = (column + 0.5) * slide[0] / thumbnail[0]
        y = (row + 0.5) * slide[1] / thumbnail[1]
        scored = not np.isnan(values[int(y / pixel[1]), int(x / pixel[0])])
        assert scored == bool((overlay[row, column] != 255).any())


def test_colour_scale_does_not_depend_on_the_scores():
    picture = np.full((1, 2, 3), 200, np.uint8)
    low = compose_overlay(picture, Heatmap(np.array([[0.1, 0.2]], "f4"), (1, 1), (2, 1)))
    high = compose_overlay(picture, Heatmap(np.array([[0.1, 1.0]], "f4"), (1, 1), (2, 1)))

    np.testing.assert_array_equal(low[0, 0], high[0, 0])
    assert (low[0, 1] != high[0, 1]).any()


@pytest.mark.parametrize("slide_size", [(1000, 800), (4000, 500), (90, 2000)])
def test_picture_is_drawn_and_the_same_each_time(tmp_path, slide_size):
    width, height = slide_size
    heatmap = Heatmap(np.full((-(-height // 50), -(-width // 50)), 0.7, "f4"), (50, 50), slide_size)
    picture = np.full((height // 10, width // 10, 3), 230, np.uint8)
    ring = np.array([[10.0, 10.0], [80.0, 10.0], [80.0, 300.0]])

    for name in ("a.png", "b.png"):
        draw_overlay(
            tmp_path / name,
            heatmap,
            picture,
            title="a $ slide_1",
            mpp=(0.25, 0.25),
            outlines=[ring],
        )

    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert "Software" not in image.info
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_colours_are_those_of_matplotlib():
    values = np.linspace(-1.5, 2.5, 4001, dtype=np.float32)
    for limits in ((0, 1), (-1, 1), (-1, 2.2)):
        expected = matplotlib.colormaps["RdYlBu_r"](Normalize(*limits)(values.astype(float)))
        np.testing.assert_allclose(colour_of(values, limits), expected[:, :3], atol=2e-6)


def test_what_is_written_on_the_picture_is_not_cut_off(tmp_path):
    """A long name makes the picture wider."""
    heatmap = Heatmap(np.full((4, 4), 0.5, "f4"), (100, 100), (400, 400))
    widths = []
    for title in ("s", "a_name_of_a_slide_" * 12):
        draw_overlay(tmp_path / "a.png", heatmap, np.zeros((40, 40, 3), np.uint8), title=title)
        with Image.open(tmp_path / "a.png") as image:
            pixels = np.asarray(image)
        assert (pixels[:, [0, -1]] == 255).all()
        assert (pixels[[0, -1]] == 255).all()
        widths.append(pixels.shape[1])
    assert widths[1] > widths[0]


def test_thumbnail_that_is_no_picture_is_refused():
    heatmap = Heatmap(np.zeros((1, 1), np.float32), (1, 1), (1, 1))
    with pytest.raises(HeatmapError, match=r"\(h, w, 3\) uint8"):
        compose_overlay(np.zeros((4, 4), np.uint8), heatmap)


@pytest.mark.parametrize("mpp", [(0.5, 0.25), (0.25, 0.5), (0.5, 0.5)])
def test_a_slide_is_drawn_in_its_true_proportions(tmp_path, mpp):
    """A slide of pixels that are not square was drawn as if they were."""
    heatmap = Heatmap(np.full((8, 4), np.nan, "f4"), (100, 100), (400, 800))
    picture = np.full((80, 40, 3), (0, 200, 0), np.uint8)
    draw_overlay(tmp_path / "a.png", heatmap, picture, title="s", mpp=mpp)
    with Image.open(tmp_path / "a.png") as image:
        green = (np.asarray(image.convert("RGB")) == (0, 200, 0)).all(axis=2)

    def first_run(line):
        return int(np.argmin(line[np.argmax(line) :]))

    wide, high = first_run(green.any(axis=0)), first_run(green.any(axis=1))
    assert high / wide == pytest.approx(2 * mpp[1] / mpp[0], rel=0.05)
