"""`predict.calibrated`: logits divided by the temperature in the checkpoint (docs/predict.md)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit, logit

import wsi_pipeline as wsi
from tests.helpers.external_models import write_zoo
from tests.helpers.slides import halve, tissue, write_slide
from tests.helpers.striped_images import make_folder, rows_of
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import CheckpointError
from wsi_pipeline.inference.image_scores import read_scores as read_image_scores
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, read_meta, save_checkpoint

OPTIONS = {
    "patchnet": {"m": 5, "stride": 5, "filters": 4, "depth": 2},
    "vgg16": {"width": 0.0625},
    "protopnet": {"width": 0.0625, "prototypes_per_class": 2, "depth": 8},
}
TEMPERATURE = 2.5
SETTINGS = ("--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100")
TILE = wsi.TileConfig(tissue=wsi.TissueConfig(mpp=2, min_object_um2=100))
CALIBRATED = ("--set", "predict.calibrated=true")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    pixels = tissue(300, 260, seed=1)
    (folder / "slides").mkdir()
    write_slide(folder / "slides/s.tif", [pixels, halve(pixels)])
    meta = CheckpointMeta("patchnet", OPTIONS["patchnet"], patch_px=32, target_mpp=0.5)
    torch.manual_seed(0)
    model = build_model("patchnet", **meta.options)
    save_checkpoint(folder / "old.safetensors", model, meta)
    meta = replace(meta, card={"temperature": TEMPERATURE})
    save_checkpoint(folder / "one.safetensors", model, meta)
    return folder


def predict(data: Path, run: Path, *more: str, checkpoint="one.safetensors") -> int:
    asked = ["predict", str(run), "--slides", str(data / "slides")]
    return main([*asked, "--checkpoint", str(data / checkpoint), *SETTINGS, *more])


def test_scores_are_rebuilt_when_the_setting_changes(data, tmp_path, capsys):
    path = tmp_path / "run/scores/one/s.h5"
    assert predict(data, tmp_path / "run") == 0
    before = path.read_bytes()
    plain = read_scores(path)
    assert "temperature" not in plain.attributes
    assert predict(data, tmp_path / "run", *CALIBRATED) == 0
    calibrated = read_scores(path)
    assert calibrated.attributes["temperature"] == TEMPERATURE
    wanted = expit(logit(plain.scores.astype(float)) / TEMPERATURE)
    np.testing.assert_allclose(calibrated.scores, wanted, atol=1e-6)
    assert np.abs(calibrated.scores - plain.scores).max() > 1e-3
    capsys.readouterr()
    assert predict(data, tmp_path / "run", *CALIBRATED) == 0
    assert "predict: 0 done, 1 kept from before" in capsys.readouterr().out
    assert predict(data, tmp_path / "run", "--set", "predict.calibrated=false") == 0
    assert path.read_bytes() == before


def test_the_python_api_and_apply_give_the_same(data, tmp_path):
    assert predict(data, tmp_path / "run", *CALIBRATED) == 0
    stage = read_scores(tmp_path / "run/scores/one/s.h5")
    found = wsi.predict(data / "one.safetensors", data / "slides/s.tif", tile=TILE, calibrated=True)
    np.testing.assert_array_equal(found.scores, stage.scores)
    assert found.attributes["temperature"] == TEMPERATURE
    asked = ["apply", str(data / "slides"), "--checkpoint", str(data / "one.safetensors")]
    assert main([*asked, "--out", str(tmp_path / "applied"), *SETTINGS, *CALIBRATED]) == 0
    applied = tmp_path / "applied/scores/one/s.h5"
    assert applied.read_bytes() == (tmp_path / "run/scores/one/s.h5").read_bytes()


@pytest.mark.parametrize("name", OPTIONS)
def test_every_model_is_calibrated_by_the_logit_of_its_score(name, data):
    torch.manual_seed(0)
    model = build_model(name, **OPTIONS[name])
    meta = CheckpointMeta(name, model.options, 32, 0.5, card={"temperature": TEMPERATURE})
    slide = data / "slides/s.tif"
    plain = wsi.predict((model, meta), slide, tile=TILE).scores.astype(float)
    calibrated = wsi.predict((model, meta), slide, tile=TILE, calibrated=True).scores
    np.testing.assert_allclose(calibrated, expit(logit(plain) / TEMPERATURE), atol=1e-6)
    assert np.abs(calibrated - plain).max() > 1e-4
    np.testing.assert_array_equal(calibrated >= 0.5, plain >= 0.5)
    assert (np.diff(calibrated[np.argsort(plain)]) >= 0).all()  # ROC AUC and FROC go by the order


def test_a_checkpoint_without_a_temperature_is_refused_before_any_slide(data, tmp_path, capsys):
    assert predict(data, tmp_path / "run", *CALIBRATED, checkpoint="old.safetensors") == 1
    printed = capsys.readouterr().err
    assert "old.safetensors: predict.calibrated needs a temperature" in printed
    assert "set predict.calibrated=false" in printed
    assert not (tmp_path / "run/scores").exists()
    assert not (tmp_path / "run/tiles").exists()
    with pytest.raises(CheckpointError, match=r"old\.safetensors: predict\.calibrated needs"):
        wsi.predict(data / "old.safetensors", data / "slides/s.tif", tile=TILE, calibrated=True)


def test_a_model_of_another_program_is_refused(data, tmp_path, capsys):
    write_zoo(tmp_path / "zoo", spacing_um_px=1.0)
    more = (*CALIBRATED, "--positive", "grade 3")
    assert predict(data, tmp_path / "run", *more, checkpoint=str(tmp_path / "zoo")) == 1
    assert "predict.calibrated needs a temperature" in capsys.readouterr().err
    assert not (tmp_path / "run/scores").exists()


@pytest.mark.parametrize("value", [0.0, -1.0, "2", True])
def test_a_temperature_that_divides_nothing_is_a_damaged_header(value, data, tmp_path):
    meta = read_meta(data / "one.safetensors")
    model = build_model("patchnet", **meta.options)
    save_checkpoint(tmp_path / "x.safetensors", model, replace(meta, card={"temperature": value}))
    with pytest.raises(CheckpointError, match="damaged checkpoint header"):
        read_meta(tmp_path / "x.safetensors")


def test_a_run_that_would_end_without_a_temperature_is_refused_at_once(tmp_path, capsys):
    make_folder(tmp_path / "data")
    config = tmp_path / "c.yaml"
    config.write_text(
        "input: data\nout: run\nimages: {classes: [rows, columns], channels: 1}\n"
        "predict: {calibrated: true}\ntrain: {vgg11: {monitor: none}}\n"
    )
    assert main(["run", str(config)]) == 1
    assert "train.vgg11.monitor is none" in capsys.readouterr().err


def test_images_are_scored_with_the_temperature_that_training_fitted(tmp_path):
    """From images to an evaluation; in one task, and in the parts of a job array."""
    make_folder(tmp_path / "data")
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(
        "input: data\nout: run\nimages: {classes: [rows, columns], channels: 1}\n"
        "splits: {folds: 4, fold: 1}\nstages: [tile, train, predict]\n"
        "train:\n  patchnet: {model: {options: {m: 5, stride: 4, filters: 4, depth: 2, "
        "channels: 1}}, sampling: balanced, steps_per_epoch: 8, max_epochs: 2, lr: 0.003}\n"
    )
    assert main(["run", str(config)]) == 0
    temperature = read_meta(run / "models/patchnet/checkpoint.safetensors").temperature
    assert temperature is not None
    plain = rows_of(run / "scores/patchnet/images.csv")
    assert "temperature" not in json.loads((run / "scores/patchnet/images.json").read_text())
    assert main(["predict", str(run), *CALIBRATED]) == 0
    calibrated = rows_of(run / "scores/patchnet/images.csv")
    assert json.loads((run / "scores/patchnet/images.json").read_text())["temperature"] == (
        temperature
    )
    for one, other in zip(plain, calibrated, strict=True):
        z = float(one["logit"]) / temperature
        assert float(other["logit"]) == pytest.approx(z, rel=1e-6, abs=1e-9)
        assert float(other["score"]) == pytest.approx(expit(z), rel=1e-6)
        assert other["predicted"] == one["predicted"]
    folder = run / "scores/patchnet"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    for path in folder.iterdir():
        path.unlink()
    for part in ("0/2", "1/2"):
        assert main(["predict", str(run), *CALIBRATED, "--shard", part, "--overwrite"]) in (0, 3)
    images, about = read_image_scores(folder)
    assert len(images) == len(plain)
    assert about["temperature"] == temperature
    assert (folder / "images.csv").read_bytes() == whole["images.csv"]
    assert main(["evaluate", str(run)]) == 0
