"""Nuclei have the size, the direction and the place that were requested."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.demo import cells

KINDS = {
    name: getattr(cells, name)
    for name in ("FIBROBLAST", "STROMAL", "LYMPHOCYTE", "EPITHELIAL", "TUMOUR")
}


@pytest.mark.parametrize("name", KINDS)
def test_a_nucleus_has_the_area_of_its_kind(name):
    kind = KINDS[name]
    rng = np.random.default_rng(0)
    stamps = [cells.draw_nucleus(rng, kind, angle=0.4, mpp=0.25) for _ in range(40)]

    diameters = [2 * np.sqrt(s.cover.sum() / np.pi) * 0.25 for s in stamps]

    low, high = kind.diameter_um
    assert low * 0.9 < np.mean(diameters) < high * 1.1
    for stamp in stamps:
        assert stamp.cover.shape == stamp.haematoxylin.shape
        assert len(stamp.cover) % 2 == 1
        edge = np.concatenate([stamp.cover[0], stamp.cover[-1], stamp.cover[:, 0]])
        assert edge.max() == 0, "the stamp holds the whole nucleus"


def test_tumour_nuclei_are_larger_than_any_normal_one():
    largest = max(kind.diameter_um[1] for name, kind in KINDS.items() if name != "TUMOUR")

    assert cells.TUMOUR.diameter_um[0] > 1.3 * largest


@pytest.mark.parametrize("angle", np.linspace(0, np.pi, 7)[:-1])
def test_an_oriented_nucleus_lies_along_its_angle(angle):
    rng = np.random.default_rng(0)
    stamps = cells.draw_stamps(rng, cells.FIBROBLAST, mpp=0.25, oriented=True)
    number = cells.oriented_choice(rng, cells.FIBROBLAST, np.array([angle]))[0]
    y, x = np.nonzero(stamps[number].cover > 0.5)

    values, vectors = np.linalg.eigh(np.cov(np.stack([x, y])))

    long_axis = vectors[:, np.argmax(values)]
    assert abs(long_axis @ (np.cos(angle), np.sin(angle))) > 0.97


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(8, 40))
def test_scattered_points_keep_apart(seed, spacing):
    points = cells.scatter_points(
        np.random.default_rng(seed), (200.0, 150.0), spacing=spacing, jitter=0.1
    )

    apart = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    np.fill_diagonal(apart, np.inf)
    assert apart.min(initial=np.inf) > 0.7 * spacing


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-12, 40), st.integers(-12, 30)), min_size=1, max_size=6),
    st.integers(0, 99),
)
def test_stamps_are_placed_as_pixel_by_pixel(places, seed):
    """The cut windows equal the definition, also where a nucleus hangs over an edge."""
    rng = np.random.default_rng(seed)
    stamps = cells.draw_stamps(rng, cells.STROMAL, mpp=1.0)[:3]
    choice = rng.integers(0, 3, len(places))
    canvas = rng.random((20, 30), np.float32)
    expected = canvas.copy()
    for (x, y), number in zip(places, choice, strict=True):
        stamp = stamps[number]
        half = len(stamp.cover) // 2
        for row, column in np.ndindex(stamp.cover.shape):
            i, j = y + row - half, x + column - half
            if 0 <= i < 20 and 0 <= j < 30:
                cover, amount = stamp.cover[row, column], stamp.haematoxylin[row, column]
                expected[i, j] += (amount - expected[i, j]) * cover

    cells.place_stamps(canvas, np.array(places, float), stamps, choice)

    assert np.allclose(canvas, expected, atol=1e-6)
