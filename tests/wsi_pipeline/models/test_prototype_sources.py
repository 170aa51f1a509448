"""Sources of prototypes, kept with the weights."""

import json

import numpy as np
import pytest
import torch

from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, load_checkpoint, save_checkpoint
from wsi_pipeline.models.prototype_sources import PrototypeSource, PrototypeSources

RECORDS = (
    PrototypeSource("tumör_001", 7, (1, 2), (3, 4, 10, 11), (300, 400, 1000, 1100)),
    PrototypeSource("b", 0, (0, 0), (0, 0, 5, 5), (0, 0, 500, 500)),
    PrototypeSource("c.png", 2, (1, 0), (1, 0, 5, 5), None),
    PrototypeSource("d", 3, (1, 1), (2, 0, 5, 5), None),
)


def draw_pixels(n=4):
    return np.random.default_rng(0).integers(0, 256, (n, 6, 8, 3), np.uint8)


@pytest.fixture
def model():
    made = build_model("protopnet", base="vgg11", width=1 / 64, depth=2, prototypes_per_class=2)
    made.sources.set(RECORDS, draw_pixels())
    return made


def test_there_are_none_before_the_first_push(tmp_path):
    made = build_model("protopnet", base="vgg11", width=1 / 64, depth=2, prototypes_per_class=2)
    assert made.sources.records == ()
    save_checkpoint(
        tmp_path / "c.safetensors", made, CheckpointMeta("protopnet", made.options, 64, 1.0)
    )
    assert load_checkpoint(tmp_path / "c.safetensors")[0].sources.records == ()


def test_a_checkpoint_holds_them(model, tmp_path):
    options = json.loads(json.dumps(model.options))
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, model, CheckpointMeta("protopnet", options, 64, 1.0))
    again, _ = load_checkpoint(path)
    assert again.sources.records == RECORDS
    assert np.array_equal(again.sources.pixels.numpy(), draw_pixels())


def test_a_state_without_them_takes_them_away(model):
    empty = build_model("protopnet", base="vgg11", width=1 / 64, depth=2, prototypes_per_class=2)
    model.load_state_dict(empty.state_dict())
    assert model.sources.records == ()


def test_pruning_drops_those_of_dropped_prototypes(model):
    model.keep(torch.tensor([True, False, False, True]))
    assert model.sources.records == (RECORDS[0], RECORDS[3])
    assert np.array_equal(model.sources.pixels.numpy(), draw_pixels()[[0, 3]])


@pytest.mark.parametrize(
    "pixels", [draw_pixels(3), draw_pixels() / 255, draw_pixels()[0]], ids=["few", "float", "one"]
)
def test_pixels_of_another_kind_are_refused(pixels):
    with pytest.raises(ModelError, match=r"4 prototypes need images \(P, h, w, C\) uint8"):
        PrototypeSources().set(RECORDS, pixels)
