"""Figures as they are rendered, and as the other tests write them."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.helpers.quick_pictures import quick_pictures
from wsi_pipeline.contracts import FrocCurve, OperatingPoint
from wsi_pipeline.evaluation import plots
from wsi_pipeline.evaluation.metrics import Confusion
from wsi_pipeline.evaluation.ranking import ranking_curves

pytestmark = pytest.mark.real_pictures

CURVE = ranking_curves(np.array([0, 1, 0, 1, 1]), np.array([0.1, 0.4, 0.5, 0.7, 0.9]))
FROC = FrocCurve(
    definition="patch",
    fp_denominator="normal",
    at_rate="linear",
    n_slides=4,
    n_normal=2,
    n_lesions=2,
    n_itc=0,
    thresholds=np.array([np.inf, 0.8, 0.3]),
    avg_fps=np.array([0, 0.5, 4]),
    sensitivity=np.array([0, 0.5, 1]),
    sensitivity_at={"0.5": 0.5, "4": 1.0},
    operating_points={"0.5": OperatingPoint(0.8, 0.5, 0.5), "4": OperatingPoint(0.3, 4.0, 1.0)},
    score=0.75,
    band={"avg_fps": [0.25, 1.0, 8.0], "low": [0.1, 0.2, 0.6], "high": [0.5, 0.9, 1.0]},
)
BAND = np.array([[0, 0.1, 0.6], [0.5, 0.4, 0.9], [1, 1, 1]])


def draw_roc(path, auc=5 / 6):
    plots.draw_roc(path, [("patches", CURVE, auc)], bands={"patches": BAND})


def draw_precision_recall(path, average=0.9):
    plots.draw_precision_recall(path, [("patches", CURVE, average)])


def draw_confusion(path, tp=3):
    plots.draw_confusion(path, Confusion(tp, 1, 2, 4), threshold=0.5)


def draw_froc(path, score=0.5):
    plots.draw_froc(path, [replace(FROC, score=score)])


drawn = pytest.mark.parametrize(
    "draw", [draw_roc, draw_precision_recall, draw_confusion, draw_froc]
)


@drawn
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_figure_drawn_twice_has_the_same_bytes_and_another_has_others(draw, kind, tmp_path):
    files = [tmp_path / f"{name}.{kind}" for name in "abc"]
    draw(files[0])
    draw(files[1])
    draw(files[2], 0)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    if kind == "png":
        with Image.open(files[0]) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(10**6)) > 20  # lines, text, shading


@drawn
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_quick_pictures_differ_where_the_figures_do(draw, kind, tmp_path):
    files = [tmp_path / f"{name}.{kind}" for name in "abc"]
    with quick_pictures():
        draw(files[0])
        draw(files[1])
        draw(files[2], 0)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
