"""`predict` with models of other programs, and every stage after it (docs/other_models.md)."""

import csv
import json
import shutil
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.external_models import CLASSES, TRANSFORM, ColourNet, describe, write_zoo
from tests.helpers.printed import summaries
from tests.helpers.slides import halve, tissue, write_slide
from tests.helpers.tiny_cohort import draw_cohort
from tiling import PatchStore, TileConfig, TissueConfig
from wsi_pipeline import predict
from wsi_pipeline.cli.app import main
from wsi_pipeline.config.zoo_config import read_zoo_config
from wsi_pipeline.inference.journal import Journal
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.models.external import transform_images
from wsi_pipeline.models.torchvision_nets import ARCHITECTURES, RESNETS, ResNet

POSITIVE = ("--positive", "grade 3", "--positive", "grade 4")
SETTINGS = ("--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100", "--quiet")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A folder as the zoo has it, of a network for patches of 32 px at 1 µm/px."""
    return write_zoo(tmp_path_factory.mktemp("zoo") / "colours", spacing_um_px=1.0).parent


@pytest.fixture(scope="module")
def slide(tmp_path_factory) -> Path:
    pixels = tissue(300, 260, seed=3)
    return write_slide(tmp_path_factory.mktemp("slides") / "a.tif", [pixels, halve(pixels)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, zoo, slide) -> Path:
    """One slide scored; not to be changed."""
    run = tmp_path_factory.mktemp("run") / "run"
    asked = ["predict", str(run), "--slides", str(slide), "--checkpoint", str(zoo), *POSITIVE]
    assert main([*asked, *SETTINGS]) == 0
    return run


def test_slides_are_cut_as_the_description_asks(run, slide):
    scores = read_scores(run / "scores/colours/a.h5")
    with PatchStore.open(run / "tiles/a.zarr", slide_path=slide) as store:
        assert (store.geometry.patch_px, store.geometry.target_mpp) == (32, 1.0)
        assert len(store) == len(scores.scores) > 4
        assert scores.coords.tolist() == store.coords.tolist()
    assert scores.coords_attributes["patch_size"] == 64  # level-0 px of 0.5 µm


def test_scores_and_classes_are_those_of_the_network(run, slide, zoo):
    found = read_scores(run / "scores/colours/a.h5")
    with PatchStore.open(run / "tiles/a.zarr", slide_path=slide) as store:
        x = torch.from_numpy(store[:]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        steps = read_zoo_config(zoo / "config.json").transform
        wanted = ColourNet()(transform_images(x, steps)).softmax(1)
    np.testing.assert_allclose(found.probabilities, wanted, atol=1e-6)
    np.testing.assert_allclose(found.scores, wanted[:, 1:].sum(1), atol=1e-6)
    assert found.attributes["classes"] == list(CLASSES)
    assert found.attributes["positive"] == ["grade 3", "grade 4"]
    assert "trained_on" not in found.attributes
    with h5py.File(run / "scores/colours/a.h5") as file:
        assert file["probabilities"].shape == (len(found.scores), 3)


def test_the_python_api_gives_the_same(run, slide, zoo):
    tissue_settings = TissueConfig(mpp=2, min_object_um2=100)
    found = predict(
        zoo, slide, tile=TileConfig(tissue=tissue_settings), positive=("grade 3", "grade 4")
    )
    wanted = read_scores(run / "scores/colours/a.h5")
    np.testing.assert_array_equal(found.probabilities, wanted.probabilities)
    np.testing.assert_array_equal(found.scores, wanted.scores)
    assert found.attributes["checkpoint"] == wanted.attributes["checkpoint"]


def test_wsinfers_csv_has_a_column_of_each_class(run, tmp_path):
    asked = ["export", str(run), "--format", "wsinfer", "--out", str(tmp_path), "--quiet"]
    assert main(asked) == 0
    with next(tmp_path.rglob("a.csv")).open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"prob_{name}" for name in CLASSES]
    assert list(rows[0]) == ["minx", "miny", "width", "height", *names]
    scores = read_scores(run / "scores/colours/a.h5")
    np.testing.assert_allclose(
        [[float(row[name]) for name in names] for row in rows], scores.probabilities, atol=1e-7
    )
    assert {(row["width"], row["height"]) for row in rows} == {("64", "64")}


def test_qupaths_tiles_have_every_class(run, tmp_path):
    asked = ["export", str(run), "--format", "qupath", "--out", str(tmp_path), "--quiet"]
    assert main(asked) == 0
    feature = json.loads(next(tmp_path.rglob("a.geojson")).read_text())["features"][0]
    measured = feature["properties"]["measurements"]
    assert list(measured) == ["score", *(f"prob_{name}" for name in CLASSES)]
    assert measured["score"] == pytest.approx(measured["prob_grade 3"] + measured["prob_grade 4"])


def test_results_are_kept_until_the_model_or_its_description_changes(
    run, zoo, tmp_path, capsys, caplog
):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(zoo, tmp_path / "colours")

    def score(*more: str) -> str:
        asked = ["predict", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "colours")]
        assert main([*asked, *more]) == 0
        return capsys.readouterr().out

    assert summaries(score()) == ["predict: 0 done, 1 kept from before"]  # its classes are recalled
    warned = [r.getMessage() for r in caplog.records if "code of its author" in r.getMessage()]
    assert warned == [
        f"{tmp_path / 'colours/torchscript_model.pt'} is a TorchScript file: it runs code of its "
        "author"
    ]
    assert "1 done" in score("--positive", "grade 4")
    assert "0 done, 1 kept" in score("--positive", "grade 4")
    steps = [
        *TRANSFORM[:2],
        {"name": "Normalize", "arguments": {"mean": [0.5] * 3, "std": [1] * 3}},
    ]
    (tmp_path / "colours/config.json").write_text(
        json.dumps(describe(spacing_um_px=1.0, transform=steps))
    )
    assert "1 done" in score()
    scores = read_scores(tmp_path / "run/scores/colours/a.h5")
    np.testing.assert_allclose(scores.scores, scores.probabilities[:, 2], atol=1e-6)


def test_patches_of_another_kind_are_refused_with_what_to_do(run, zoo, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "colours").mkdir()
    shutil.copy(zoo / "torchscript_model.pt", tmp_path / "colours")
    (tmp_path / "colours/config.json").write_text(json.dumps(describe(patch_size_pixels=64)))
    asked = ["predict", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "colours")]
    assert main([*asked, *POSITIVE]) == 1
    assert "tile with patch_px=64 and target_mpp=0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ((), "has 3 classes (benign, grade 3, grade 4); choose those"),
        (("--positive", "tumor"), "--positive tumor: "),
    ],
)
def test_a_missing_choice_of_classes_costs_no_time(slide, zoo, tmp_path, capsys, more, message):
    asked = ["predict", str(tmp_path / "run"), "--slides", str(slide), "--checkpoint", str(zoo)]
    assert main([*asked, *more]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run/tiles").exists()


def test_an_interrupted_prediction_continues_with_all_classes(run, zoo, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    real, left = Journal.append, [2]

    def append(self, scores):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(self, scores)

    asked = ["predict", str(tmp_path / "run"), "--checkpoint", str(zoo), *POSITIVE]
    asked += ["--overwrite", "--quiet", "--set", "predict.batch_size=2"]
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        assert main(asked) not in (0, 1)
    assert main(asked[:-4] + asked[-3:]) == 0
    again, whole = (
        read_scores(folder / "scores/colours/a.h5") for folder in (tmp_path / "run", run)
    )
    np.testing.assert_allclose(again.probabilities, whole.probabilities, atol=1e-6)
    np.testing.assert_allclose(again.scores, whole.scores, atol=1e-6)


@pytest.mark.slow
def test_every_stage_works_on_the_result(tmp_path, zoo):
    draw_cohort(tmp_path / "data")
    run, tile = str(tmp_path / "run"), ["--set", "patch_px=32", "--set", "target_mpp=1.0"]
    asked = ["tile", str(tmp_path / "data/manifest.csv"), "--out", run, *tile]
    assert main([*asked, *SETTINGS]) == 0
    two = tmp_path / "two"
    write_zoo(two, ColourNet(2), num_classes=2, class_names=["no", "yes"], spacing_um_px=1.0)
    both = ["predict", run, "--checkpoint", str(zoo), "--checkpoint", str(two), "--quiet"]
    assert main([*both, "--positive", "grade 4"]) == 1  # which "two" has not
    assert main(["predict", run, "--checkpoint", str(zoo), "--quiet", *POSITIVE]) == 0
    for stage in (["heatmap"], ["evaluate", "--set", "bootstrap=0"], ["report"]):
        assert main([stage[0], run, *stage[1:], "--quiet"]) == 0
    metrics = json.loads((tmp_path / "run/evaluation/colours/metrics.json").read_text())
    assert metrics["slide"]["n"] == 2
    assert (tmp_path / "run/report.html").stat().st_size > 1000


def test_a_state_dict_takes_the_patches_that_there_are(run, tmp_path, monkeypatch, caplog):
    small = partial(ResNet, *RESNETS["resnet18"], width=1 / 16)
    monkeypatch.setitem(ARCHITECTURES, "resnet18", small)
    torch.save(small(2).state_dict(), tmp_path / "mine.pth")
    shutil.copytree(run, tmp_path / "run")
    asked = ["predict", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "mine.pth")]
    assert main([*asked, "--architecture", "resnet18", "--set", "predict.positive=[]"]) == 0
    scores = read_scores(tmp_path / "run/scores/mine/a.h5")
    assert scores.attributes["classes"] == ["class_0", "class_1"]
    np.testing.assert_allclose(scores.scores, scores.probabilities[:, 1], atol=1e-6)
    assert "the score is the probability of 'class_1'" in caplog.text
    assert "code of its author" not in caplog.text


def test_an_option_without_effect_is_warned_of(copy, caplog):
    assert main(["predict", str(copy / "run"), "--architecture", "resnet18", "--quiet"]) == 0
    assert "no effect: predict.architecture" in caplog.text


def test_single_images_are_scored(tmp_path, caplog, capsys):
    folder = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    for number, one in enumerate(pixels):
        name = ("no", "yes")[number % 2]
        (folder / "test" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(folder / "test" / name / f"{number}.png")
    settings = "images: {size: [32, 32], mpp: 0.5, classes: ['no', 'yes']}\n"
    (tmp_path / "c.yaml").write_text(settings)
    run, config = str(tmp_path / "run"), ["--config", str(tmp_path / "c.yaml"), "--quiet"]
    assert main(["tile", str(folder), "--out", run, *config]) == 0
    model = str(write_zoo(tmp_path / "colours"))
    assert main(["predict", run, "--checkpoint", model, *POSITIVE, "--quiet"]) == 0
    assert "no effect" not in caplog.text
    with (tmp_path / "run/scores/colours/images.csv").open(newline="") as file:
        found = {row["image_id"][-1]: float(row["score"]) for row in csv.DictReader(file)}
    steps = read_zoo_config(tmp_path / "colours/config.json").transform
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        wanted = ColourNet()(transform_images(x, steps)).softmax(1)[:, 1:].sum(1).tolist()
    assert found == pytest.approx({str(n): score for n, score in enumerate(wanted)}, abs=1e-6)
    capsys.readouterr()
    assert main(["heatmap", run]) == 0
    assert "a model of another program, whose maps are not computed" in capsys.readouterr().out
