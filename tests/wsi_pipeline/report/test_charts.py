"""Charts are well-formed SVG and draw what they are given where it belongs."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.report.charts import (
    Axis,
    Chart,
    Series,
    draw_chart,
    fitted_axis,
    share_axis,
    simplify,
)


def line_points(svg):
    """The points of the first line of a chart, px."""
    path = next(e for e in ET.fromstring(svg).iter("path") if "line" in e.get("class", ""))
    return np.array(re.findall(r"([\d.]+) ([\d.]+)", path.get("d")), float)


def test_line_runs_from_corner_to_corner():
    line = Series("a", np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    svg = draw_chart(Chart("t", share_axis("x"), share_axis("y"), (line,), diagonal=True))

    frame = next(e for e in ET.fromstring(svg).iter("path") if e.get("class") == "axis")
    left, top, bottom, right = map(float, re.findall(r"[\d.]+", frame.get("d")))
    np.testing.assert_allclose(line_points(svg), [[left, bottom], [right, top]])


def test_text_is_escaped_and_svg_well_formed():
    line = Series("<b>&", np.array([0.0, 1.0]), np.array([0.5, np.nan]), marked=True)
    svg = draw_chart(Chart("a & b", share_axis("<x>"), share_axis('"'), (line,)))

    assert "<b>" not in svg
    assert ET.fromstring(svg).find("title").text == "a & b"


def test_nan_breaks_the_line():
    line = Series("a", np.arange(4) / 3, np.array([0.1, np.nan, 0.2, 0.3]))
    svg = draw_chart(Chart("t", share_axis("x"), share_axis("y"), (line,)))

    path = next(e for e in ET.fromstring(svg).iter("path") if "line" in e.get("class", ""))
    assert re.sub(r"[\d. ]", "", path.get("d")) == "MML"


def test_a_line_of_one_point_is_a_filled_dot():
    """The curves of a single epoch were empty frames."""
    line = Series("a", np.array([1.0]), np.array([0.25]))
    axis = fitted_axis("epoch", line.x, whole=True)
    svg = ET.fromstring(draw_chart(Chart("t", axis, share_axis("y"), (line,))))
    (dot,) = svg.iter("circle")
    left, right = (float(v) for v in re.findall(r"M([\d.]+).*H([\d.]+)", frame_of(svg))[0])
    assert float(dot.get("cx")) == pytest.approx((left + right) / 2, abs=0.1)
    assert "lone" in dot.get("class")


def test_lonely_points_between_gaps_are_dots():
    y = np.array([0.1, np.nan, 0.2, np.nan, 0.3, 0.4])
    line = Series("a", np.linspace(0, 1, 6), y)
    svg = ET.fromstring(draw_chart(Chart("t", share_axis("x"), share_axis("y"), (line,))))
    assert [dot.get("class") for dot in svg.iter("circle")] == ["dot lone series-0"] * 2


def frame_of(svg):
    return next(e for e in svg.iter("path") if e.get("class") == "axis").get("d")


def test_logarithmic_axis_places_doublings_evenly():
    axis = Axis("fps", 0.125, 8.0, (0.125, 8.0), "log")
    np.testing.assert_allclose(
        axis.place(np.array([0.0, 0.125, 1.0, 8.0, 99.0])), [0, 0, 0.5, 1, 1]
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5))
def test_fitted_axis_holds_its_values_with_few_ticks(values):
    axis = fitted_axis("y", np.array(values))
    span = axis.high - axis.low
    assert axis.low <= min(values) + 1e-6 * span
    assert max(values) <= axis.high + 1e-6 * span
    assert 2 <= len(axis.ticks) <= 8


@settings(max_examples=30)
@given(st.integers(1, 3000), st.integers(0, 99))
def test_simplified_line_keeps_ends_and_looks_the_same(n, seed):
    steps = np.random.default_rng(seed).random((n, 2)) < 0.5
    points = np.cumsum(steps, axis=0) * 300 / n
    kept = simplify(points)

    np.testing.assert_allclose(kept[[0, -1]], points[[0, -1]], atol=0.051)
    if len(kept) > 1:
        line = shapely.LineString(kept)
        assert shapely.distance(line, shapely.points(points)).max() < 0.3


def test_simplified_line_keeps_a_lone_step_among_many_points():
    flat = np.stack([np.linspace(0, 100, 5000), np.zeros(5000)], axis=1)
    points = np.concatenate([flat, [[300, 0], [300, 80]]])
    assert simplify(points).tolist() == [[0, 0], [300, 0], [300, 80]]


def test_band_is_closed_around_the_known_ends():
    at = np.array([0.0, 0.5, 1.0])
    low, high = np.array([0.1, np.nan, 0.3]), np.array([0.5, 0.6, 0.7])
    line = Series("a", at, at, low=low, high=high, band_x=at)
    svg = draw_chart(Chart("t", share_axis("x"), share_axis("y"), (line,)))

    band = next(e for e in ET.fromstring(svg).iter("path") if "band" in e.get("class", ""))
    points = np.array(re.findall(r"([\d.]+) ([\d.]+)", band.get("d")), float)
    assert band.get("d").endswith("Z")
    assert len(points) == 4  # two known places, once along the top and once back below
    assert points[0, 1] < points[3, 1]  # y decreases upwards: high is above low
