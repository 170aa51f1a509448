"""The model card: what it counts, what it must not name, and where it is shown."""

import dataclasses
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from tests.helpers.tiny_training import TINY
from wsi_pipeline.cli.app import main
from wsi_pipeline.config.checkpoint_header import CheckpointMeta, read_meta
from wsi_pipeline.config.model_card import render_model_card
from wsi_pipeline.config.settings import ModelConfig
from wsi_pipeline.models import build_model, weights_source
from wsi_pipeline.models.weights_source import describe_weights
from wsi_pipeline.training import train_model

SHORT = replace(TINY, max_epochs=1, steps_per_epoch=1)


@pytest.fixture
def model(fake_store, tmp_path):
    """A training whose slides and patients have names that a card must not show."""
    train_model(
        SHORT,
        train=[
            fake_store("case Anna Muster", [0, 1, 1, -1, 0], unreadable=(0,)),
            fake_store("case 2", [0, 0, 0]),
        ],
        val=[fake_store("case 3", [0, 1])],
        patients={"case Anna Muster": "Anna", "case 2": "Anna", "case 3": "Bert"},
        out=tmp_path / "model",
        device="cpu",
    )
    return tmp_path / "model"


def test_a_card_counts_patients_slides_and_patches(model):
    card = (model / "model_card.md").read_text()
    assert "| training | 1 | 2 | 4 | 2 | 1 | 1 |" in card
    assert "| validation | 1 | 1 | 1 | 1 | 0 | 0 |" in card
    assert "patches of slides, 15 x 15 px, 3 channels, 8 bits, at 0.5 µm per pixel" in card
    assert "| initial weights | random |" in card
    assert "not a medical device" in card
    metrics = json.loads((model / "config.json").read_text())["metrics"]
    assert f"| ROC AUC, validation | {metrics['val_roc_auc']:.4f} |" in card
    meta = read_meta(model / "checkpoint.safetensors")
    assert f"| temperature | {meta.temperature:.4f}; " in card
    lines = card.splitlines()
    for name, what in (
        ("val_loss", "cross-entropy"), ("val_ece", "expected calibration error")
    ):  # fmt: skip
        at = lines.index(f"| {what}, validation | {metrics[name]:.4f} |")
        after = metrics[f"{name}_calibrated"]
        assert lines[at + 1] == f"| the same, with the temperature | {after:.4f} |"


def test_a_card_names_no_slide_patient_or_folder(model, tmp_path):
    card = (model / "model_card.md").read_text()
    assert not [word for word in ("Anna", "Bert", "case", str(tmp_path)) if word in card]


def test_doctor_shows_the_card_of_a_checkpoint(model, capsys):
    assert main(["doctor", str(model / "checkpoint.safetensors")]) == 0
    assert capsys.readouterr().out == (model / "model_card.md").read_text()
    assert main(["doctor", str(model / "config.json")]) == 1
    assert "config.json: damaged, or not a safetensors file" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_has_a_card_with_gaps():
    meta = CheckpointMeta("vgg16", {}, patch_px=64, target_mpp=0.5, train_slides=("a", "b"))
    card = render_model_card(meta)
    assert "| initial weights | not recorded |" in card
    assert "| temperature | not recorded |" in card
    assert "training: 2 slides" in card
    assert "None: the training monitored no validation data." in card


def test_a_card_of_single_images_counts_images_and_has_their_rule():
    splits = [{"split": "train", "patients": 7, "negative": 4, "positive": 3}]
    meta = CheckpointMeta(
        "patchnet", {}, 64, 0.0, ("benign", "mel|anoma"), image_shape=(48, 64, 3),
        card={"splits": splits, "positive_if": "score >= 0.5", "weights": None},
    )  # fmt: skip
    card = render_model_card(meta)
    assert "single images of 64 x 48 px" in card
    assert "| split | patients | negative images | positive images |" in card
    assert "| positive if | score >= 0.5 |" in card
    assert "mel\\|anoma" in card


def test_initial_weights_are_named_with_source_and_licence(fake_store, tmp_path):
    path = tmp_path / "some folder" / "weights.safetensors"
    path.parent.mkdir()
    like = build_model("vgg16", width=0.0625)
    state = {k: v for k, v in like.state_dict().items() if k.startswith("features.")}
    safetensors.torch.save_file(
        state, path, metadata={"source": "Some University", "license": "CC BY 4.0"}
    )
    config = replace(SHORT, model=ModelConfig("vgg16", {"width": 0.0625}, weights=path))
    stores = [fake_store(name, [0, 1], patch_px=32) for name in ("a", "b")]
    train_model(config, train=stores[:1], val=stores[1:], out=tmp_path / "model", device="cpu")
    card = (tmp_path / "model/model_card.md").read_text()
    assert "| initial weights | weights.safetensors, Some University; CC BY 4.0; SHA-256 " in card
    meta = read_meta(tmp_path / "model/checkpoint.safetensors")
    assert str(tmp_path) not in json.dumps(dataclasses.asdict(meta)) + card


def test_weights_that_torchvision_publishes_are_known_by_their_digest(tmp_path, monkeypatch):
    path = tmp_path / "renamed.pth"
    torch.save({"x": torch.zeros(1)}, path)
    assert set(describe_weights(path)) == {"file", "sha256"}
    monkeypatch.setattr(weights_source, "digest_file", lambda path: "397923af" + "0" * 56)
    found = describe_weights(path)
    assert "VGG-16" in found["source"]
    assert found["licence"] == "BSD-3-Clause"
