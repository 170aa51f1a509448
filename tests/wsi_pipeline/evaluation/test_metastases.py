"""Sizes of metastases."""

import pytest
import shapely

from tiling.contracts import Annotation
from wsi_pipeline.evaluation.metastases import largest_metastasis, longest_diameter


def test_the_diameter_is_the_longest_of_the_outline_in_microns():
    lesion = shapely.Polygon([(0, 0), (4000, 0), (100, 100), (0, 3000)])  # not convex
    assert longest_diameter(lesion, mpp=(0.25, 0.25)) == pytest.approx(1250)
    assert longest_diameter(lesion, mpp=(0.5, 0.25)) == pytest.approx((2000**2 + 750**2) ** 0.5)


@pytest.mark.parametrize(("side", "kind"), [(8100, "macro"), (900, "micro"), (700, "itc")])
def test_the_largest_lesion_decides(side, kind):
    lesions = (shapely.box(0, 0, 10, 10), shapely.box(0, 100, side, 110))
    found = largest_metastasis(Annotation(shapely.MultiPolygon(lesions), lesions), mpp=(0.25, 0.25))
    assert found.kind == kind


def test_without_lesions_there_is_none():
    assert largest_metastasis(None, mpp=(1, 1)) is None
    assert largest_metastasis(Annotation(shapely.MultiPolygon(), ()), mpp=(1, 1)) is None
