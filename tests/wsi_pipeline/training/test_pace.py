"""The warning before a training of more than a day, by a clock that the test sets."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.tiny_training import CPU, TINY, train
from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.training import loop
from wsi_pipeline.training.pace import Pace, suggest

VGG = TrainConfig(model=ModelConfig("vgg16"), sampling="balanced")  # 100 epochs of 1000 steps


def warnings_of(config, seconds, steps_per_epoch=1000):
    """Run a clock through steps that take so many seconds; return step and text of warnings."""
    clock = [0.0]
    pace = Pace(config, CPU, clock=lambda: clock[0])
    pace.begin_epoch()
    found = []
    for done, duration in enumerate(seconds, start=1):
        clock[0] += duration
        if text := pace.end_step(done=done, steps_per_epoch=steps_per_epoch):
            found.append((done, text))
    return found


def test_the_first_five_steps_do_not_count_and_the_next_twenty_do():
    ((done, text),) = warnings_of(VGG, [10] * 5 + [2] * 40)
    assert done == 25
    assert text == (
        "vgg16: at the pace of its first steps (2 s each on cpu), an epoch of 1000 steps takes 33 "
        "min and the rest of at most 100 epochs 2.3 days, unless it stops early. To shorten it: "
        "train on a GPU (--device cuda); lower steps_per_epoch (1000) or max_epochs (100); take a "
        "smaller network (model.options) or smaller patches"
    )


@pytest.mark.parametrize(("seconds", "warned"), [(0.85, False), (0.88, True)])
def test_it_comes_from_a_day_on(seconds, warned):
    assert bool(warnings_of(VGG, [seconds] * 30)) is warned  # 0.864 s a step is a day


def test_slow_steps_are_measured_by_fewer():
    assert [done for done, _ in warnings_of(VGG, [70] * 30)] == [2]
    assert [done for done, _ in warnings_of(VGG, [30] * 30)] == [4]


def test_time_between_epochs_does_not_count():
    clock = [0.0]
    pace = Pace(VGG, CPU, clock=lambda: clock[0])
    for epoch in range(10):
        clock[0] += 1e6  # validation
        pace.begin_epoch()
        for step in range(3):
            clock[0] += 0.1
            assert pace.end_step(done=3 * epoch + step + 1, steps_per_epoch=3) is None


@pytest.mark.parametrize(
    ("changes", "advice", "missing"),
    [
        ({"model": ModelConfig("vgg16", weights=Path("w.pth"))}, "freeze: all", "precision"),
        ({"model": ModelConfig("vgg16", weights=Path("w.pth")), "freeze": 3}, "GPU", "freeze"),
        ({"model": ModelConfig("patchnet")}, "--device cuda", "freeze"),
        ({"sampling": "shuffle"}, "lower max_epochs (100)", "steps_per_epoch"),
    ],
)
def test_it_advises_what_can_be_changed(changes, advice, missing):
    text = "; ".join(suggest(replace(VGG, **changes), CPU))
    assert advice in text
    assert missing not in text


def test_a_training_of_days_warns_once(fake_store, tmp_path, monkeypatch, caplog):
    class Slow(Pace):
        def __init__(self, config, device):
            ticks = iter(range(10**6))
            super().__init__(config, device, clock=lambda: 3600.0 * next(ticks))

    monkeypatch.setattr(loop, "Pace", Slow)
    with caplog.at_level(logging.WARNING):
        train(fake_store, tmp_path, replace(TINY, max_epochs=9, patience=9))
    (warning,) = [r.message for r in caplog.records if "To shorten it" in r.message]
    assert "(60 min each on cpu)" in warning
