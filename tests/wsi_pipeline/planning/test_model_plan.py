"""The time of a training: frozen blocks cost one pass, and none for maps that are kept."""

from dataclasses import replace

import pytest

from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import AugmentConfig, ModelConfig, TrainConfig
from wsi_pipeline.planning import models
from wsi_pipeline.planning.figures import ModelPlan, SlidePlan
from wsi_pipeline.planning.models import _count_encoded, plan_models
from wsi_pipeline.training.frozen_maps import MOST_BYTES

FLIPS = AugmentConfig(brightness=0, contrast=0, saturation=0, hue=0)
PROBE = TrainConfig(
    ModelConfig("resnet18"), freeze="all", augment=FLIPS, steps_per_epoch=10, max_epochs=5
)


def test_each_flip_of_an_image_is_encoded_once():
    assert _count_encoded(1000, PROBE, n_trained=20, map_bytes=1) == 80
    assert _count_encoded(50, PROBE, n_trained=20, map_bytes=1) == 50
    plain = replace(PROBE, augment=replace(FLIPS, flips=False))
    assert _count_encoded(1000, plain, n_trained=20, map_bytes=1) == 20


def test_every_image_is_encoded_where_no_map_is_kept():
    coloured = replace(PROBE, augment=AugmentConfig())
    assert _count_encoded(1000, coloured, n_trained=20, map_bytes=1) == 1000
    assert _count_encoded(1000, PROBE, n_trained=20, map_bytes=0) == 1000  # on a GPU


def test_maps_beyond_the_memory_are_computed_each_time():
    half = MOST_BYTES // 40  # of the 80 flipped images, 40 are kept
    assert _count_encoded(1000, PROBE, n_trained=20, map_bytes=half) == 40 + 480


def test_a_linear_probe_is_planned_as_one(monkeypatch):
    seconds = iter([1.0, 1.0, 0.75])  # forward, forward, blocks alone

    def time_passes(work):
        work()
        return next(seconds)

    monkeypatch.setattr(models, "_time_passes", time_passes)
    slides = [SlidePlan("s", split="train", patches=20)]
    config = Config(stages=("train",), train={"all": replace(PROBE, freeze=None), "head": PROBE})
    whole, head = plan_models(slides, config, "cpu", shape=(32, 32, 3), n_trained=20)
    n_drawn = 5 * 10 * 32
    assert whole.train_seconds == 3 * n_drawn
    assert head.train_patches == n_drawn
    assert (head.frozen_seconds_per_patch, head.frozen_patches) == (0.75, 80)
    assert head.train_seconds == 0.75 * 80 + 3 * 0.25 * n_drawn


@pytest.mark.parametrize(("frozen", "n", "seconds"), [(0.0, 0, 300.0), (0.5, 10, 155.0)])
def test_a_step_counts_three_passes_but_for_frozen_blocks(frozen, n, seconds):
    planned = ModelPlan("m", 1.0, 100, 0, frozen_seconds_per_patch=frozen, frozen_patches=n)
    assert planned.train_seconds == seconds
