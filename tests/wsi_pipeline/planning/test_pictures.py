"""Sizes of pictures in a plan: a sample is drawn in a large cohort, and the error is stated."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.helpers.slides import tissue, write_slide
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.planning import pictures, plan
from wsi_pipeline.planning.figures import SlidePlan
from wsi_pipeline.planning.pictures import MOST_DRAWN, Picture, add_pictures, choose_drawn
from wsi_pipeline.planning.plan import PlanTask, plan_slide
from wsi_pipeline.planning.plan_text import summarise

TILE = "{target_mpp: 0.5, patch_px: 32, tissue: {mpp: 2.0, min_object_um2: 100.0}}"


@pytest.mark.parametrize("n_slides", [0, 1, MOST_DRAWN, MOST_DRAWN + 1, 1000])
def test_the_drawn_ones_are_all_of_a_few_and_spread_over_many(n_slides):
    drawn = sorted(choose_drawn(n_slides))
    assert len(drawn) == min(n_slides, MOST_DRAWN)
    gaps = {b - a for a, b in pairwise(drawn)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    assert all(0 <= number < n_slides for number in drawn)


def test_the_stated_error_covers_the_total_in_about_95_of_100_cohorts():
    rng = np.random.default_rng(0)
    n_slides, n_covered = 100, 0
    for _ in range(100):
        sizes = rng.lognormal(13, 0.5, n_slides).astype(int).tolist()
        slides = [SlidePlan(f"s{number}") for number in range(n_slides)]
        drawn = choose_drawn(n_slides)
        filled, error = add_pictures(
            slides,
            [Picture(size, 0.1) if n in drawn else None for n, size in enumerate(sizes)],
        )
        n_covered += abs(sum(s.bytes for s in filled) - sum(sizes)) <= error
    assert 88 <= n_covered <= 99


def test_nothing_is_estimated_where_all_are_drawn_or_kept():
    new = SlidePlan("a", bytes=10, files=2, seconds=1.0)
    kept = replace(new, state="finished", seconds=0.0)
    failing = SlidePlan("b", problem="unreadable")
    filled, error = add_pictures([new, failing, kept], [Picture(5, 0.5), None, None])
    assert error == 0
    assert filled[0] == replace(new, bytes=15, files=3, seconds=1.5)
    assert filled[1] == failing
    assert (filled[2].seconds, filled[2].is_picture_estimated) == (0.0, True)


def map_here(function, tasks, workers):
    return enumerate(map(function, tasks))


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Nine strips of different widths; the first one is not a slide at all."""
    monkeypatch.setattr(plan, "map_in_processes", map_here)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "s0.tif").write_bytes(b"II*\0rubbish")
    for number in range(1, 9):
        write_slide(
            tmp_path / "data" / f"s{number}.tif", [tissue(300 + 40 * number, 64, seed=number)]
        )
    text = f"input: {tmp_path / 'data'}\nout: {tmp_path / 'run'}\nstages: [tile]\ntile: {TILE}\n"
    (tmp_path / "config.yaml").write_text(text)
    return read_config(tmp_path / "config.yaml")


def test_a_plan_with_a_sample_states_its_error(config, monkeypatch):
    exact = plan.plan_run(config, workers=1, quiet=True)
    monkeypatch.setattr(pictures, "MOST_DRAWN", 4)
    sampled = plan.plan_run(config, workers=1, quiet=True)

    assert exact.picture_error == 0
    assert not any("sample" in line for line in summarise(exact))
    assert 0 < abs(sampled.new_bytes - exact.new_bytes) <= sampled.picture_error
    assert sampled.new_files == exact.new_files
    guessed = [s.slide_id for s in sampled.slides if s.is_picture_estimated]
    assert guessed == ["s1", "s3", "s5", "s7", "s8"]
    for one, other in zip(sampled.slides, exact.slides, strict=True):
        same = {"bytes": 0, "seconds": 0.0, "is_picture_estimated": False}
        assert replace(one, **same) == replace(other, **same)
    assert any("the sizes of 5 pictures are estimated" in line for line in summarise(sampled))
    assert sampled.as_plain()["totals"]["new_bytes_error"] == sampled.picture_error


def test_others_are_drawn_where_all_of_the_sample_would_fail(config, monkeypatch):
    monkeypatch.setattr(pictures, "MOST_DRAWN", 1)  # the one that is not a slide
    found = plan.plan_run(config, workers=1, quiet=True)
    assert found.picture_error > 0
    assert [s.is_picture_estimated for s in found.slides] == [False, False, *[True] * 7]


def test_where_none_is_drawn_no_picture_is(config, monkeypatch):
    """Drawing takes longer than everything else of a small slide."""
    entry = plan.list_entries(config)[1]
    drawn = []
    monkeypatch.setattr("tiling.footprint.draw_plan", lambda *_: drawn.append(1))
    found = plan_slide(PlanTask(entry, config.tile, None, draw=False))
    assert found.plan.patches
    assert (found.picture, drawn) == (None, [])
