"""Maps of the images of a run: which models have them, and their files."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from wsi_pipeline.cli import app as cli
from wsi_pipeline.explain import METHODS, load_method
from wsi_pipeline.explain import image_maps as maps
from wsi_pipeline.explain.files import stretch
from wsi_pipeline.explain.pictures import draw_sheet
from wsi_pipeline.models import MODELS
from wsi_pipeline.models.checkpoint import load_checkpoint


@pytest.fixture
def run(tmp_path):
    """Eight images of two classes, and a VGG trained on them for one step."""
    random = np.random.default_rng(0)
    for number in range(8):
        path = tmp_path / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 40, 3), np.uint8)).save(path)
    run = tmp_path / "run"
    tile = ["tile", str(tmp_path / "data"), "--out", str(run), "--quiet"]
    assert cli.main([*tile, "--set", "images.channels=3", "--set", "splits.folds=4"]) == 0
    train(run)
    assert cli.main(["predict", str(run), "--quiet"]) == 0
    return run


def train(run, *more):
    given = ["steps_per_epoch=1", "max_epochs=1", "batch_size=2", "model.options.width=0.03125"]
    sets = [part for key in given for part in ("--set", key)]
    assert cli.main(["train", str(run), "--model", "vgg16", "--quiet", *sets, *more]) == 0


def files_of(run):
    return {path.name for path in (run / "heatmaps" / "vgg16").iterdir()}


def test_files_carry_the_methods_name_and_a_vggs_is_grad_cam(run):
    assert cli.main(["heatmap", str(run), "--quiet"]) == 0
    folder = run / "heatmaps" / "vgg16"
    about = json.loads((folder / "maps.json").read_text())
    assert len(about["images"]) == 2  # one of each class in the split test
    assert about["probability"] is False
    assert about["method"] == "grad_cam"
    model, _ = load_checkpoint(run / "models" / "vgg16" / "checkpoint.safetensors")
    for image_id in about["images"]:
        path = run.parent / "data" / f"{image_id.replace('__', '/')}.png"
        expected = load_method("grad_cam")(model, np.asarray(Image.open(path))[None])[0]
        found = tifffile.imread(folder / f"{image_id}.grad_cam.tif")
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-9)
        grey = np.asarray(Image.open(folder / f"{image_id}.grad_cam.png"))
        assert abs(grey / 255 - stretch(expected)).max() <= 1 / 255


def test_maps_of_an_earlier_setting_do_not_stay(run):
    heatmap = ["heatmap", str(run), "--quiet"]
    assert cli.main(heatmap) == 0
    several = files_of(run)
    (run / "heatmaps" / "vgg16" / "mine.png").write_bytes(b"not of the run")
    assert cli.main([*heatmap, "--set", "maps_per_class=0"]) == 0
    assert files_of(run) == {"overview.png", "maps.json", "mine.png"}
    assert cli.main([*heatmap, "--set", "maps_per_class=4"]) == 0
    assert files_of(run) == several | {"mine.png"}


def test_an_interrupted_heatmap_leaves_no_maps(run, monkeypatch):
    write, calls = maps.write_image_map, []

    def die(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments, **more)

    monkeypatch.setattr(maps, "write_image_map", die)
    assert cli.main(["heatmap", str(run), "--quiet"]) == 130
    assert files_of(run) == set()


def test_an_interrupted_explanation_leaves_no_maps(run, monkeypatch):
    write, calls = maps.write_explanation, []

    def die(*arguments, **more):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(*arguments, **more)

    monkeypatch.setattr(maps, "write_explanation", die)
    command = ["explain", str(run), "--method", "saliency", "--top", "9", "--errors", "9"]
    assert cli.main(command) == 130
    assert len(calls) == 2
    assert [path for path in (run / "explanations").rglob("*") if path.is_file()] == []


def test_models_without_maps_are_named_with_the_reason(run, tmp_path, capsys):
    heatmap = ["heatmap", str(run)]
    checkpoint = run / "models" / "vgg16" / "checkpoint.safetensors"
    assert cli.main([*heatmap, "--set", "method=cam"]) == 0
    assert "no maps of vgg16: cam does not explain the architecture vgg16" in message(capsys)
    assert cli.main([*heatmap, "--set", "method=gradcam"]) == 1
    assert "no explanation method is called 'gradcam'" in capsys.readouterr().err
    assert cli.main([*heatmap, "--set", "method=saliency"]) == 0
    assert len(list((run / "heatmaps/vgg16").glob("*.saliency.tif"))) == 2
    heatmap += ["--set", "method=null"]

    (tmp_path / "brought.safetensors").write_bytes(checkpoint.read_bytes())
    named = ["--checkpoint", str(tmp_path / "brought.safetensors"), "--quiet"]
    assert cli.main(["predict", str(run), *named]) == 0
    assert cli.main(heatmap) == 0
    out = message(capsys)
    assert "heatmap: 1 done;" in out
    assert "no maps of brought: its scores are by a checkpoint outside the run; copy" in out

    train(run, "--set", "lr=0.01")
    assert cli.main(heatmap) == 0
    out = message(capsys)
    assert "heatmap: 0 done\n" in out
    assert "no maps of vgg16: its scores are by another checkpoint than models/vgg16; run" in out
    assert cli.main(["explain", str(run), "--method", "saliency", "--model", "vgg16"]) == 0
    assert "no saliency of vgg16: its scores are by another checkpoint than" in message(capsys)
    assert not (run / "explanations").exists()


def message(capsys):
    return capsys.readouterr().out


def test_a_map_of_small_values_is_stretched_and_a_constant_one_is_grey():
    values = np.array([[0.0, 1e-9], [2e-9, 4e-9]], np.float32)
    np.testing.assert_allclose(stretch(values), [[0, 0.25], [0.5, 1]], rtol=1e-6)
    for constant in (0.0, 0.3):
        assert (stretch(np.full((2, 3), constant, np.float32)) == 0.5).all()


def test_all_methods_explain_images_side_by_side(run, capsys):
    train(run, "--set", "model.preprocess.crop=[32, 32]")
    assert cli.main(["predict", str(run), "--quiet"]) == 0
    options = ["--method", "all", "--top", "1", "--errors", "1", "--set", "evaluate.split=all"]
    assert cli.main(["explain", str(run), *options]) == 0
    out = message(capsys)
    fitting = [name for name in METHODS if load_method(name).explains(MODELS["vgg16"])]
    assert set(METHODS) - set(fitting) == {"patchnet", "cam", "prototypes"}
    assert all(f"explain {name}: 1 done" in out for name in fitting)
    assert "no patchnet of vgg16: the method does not explain the architecture vgg16" in out
    folder = run / "explanations" / "vgg16"
    names = [path.stem for path in (folder / "saliency").glob("*.tif")]
    assert names
    for name in fitting:
        assert {path.stem for path in (folder / name).glob("*.tif")} == set(names)
    assert (folder / "lime" / f"{names[0]}.csv").is_file()
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    # A line of captions, then for each image its caption and the square that the model sees
    assert sheet.shape == (8 + 18 + len(names) * (18 + 160 + 8), (1 + len(fitting)) * 168, 3)
    one = ["--method", "saliency", "--images", names[0]]
    assert cli.main(["explain", str(run), *one]) == 0
    assert [path.stem for path in (folder / "saliency").glob("*.tif")] == names[:1]


def test_the_layer_of_a_map_is_chosen(run, capsys):
    heatmap = ["heatmap", str(run), "--set", "layer=features.1", "--set"]
    assert cli.main([*heatmap, "method=grad_cam"]) == 0
    assert list((run / "heatmaps/vgg16").glob("*.grad_cam.tif"))
    assert cli.main([*heatmap, "method=saliency"]) == 1
    assert "heatmap.layer is features.1, but saliency has no layer" in capsys.readouterr().err


def test_rows_of_a_sheet_are_as_high_as_their_pictures(tmp_path):
    wide, square = np.full((8, 16), 90, np.uint8), np.full((4, 4, 3), 90, np.uint8)
    rows = [(["", "m" * 99], []), (["one caption " * 9], [wide, wide]), ((), [square, None])]
    draw_sheet(tmp_path / "sheet.png", rows)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (8 + 18 + (18 + 80 + 8) + (160 + 8), 2 * 168, 3)
    assert (sheet == 90).all(axis=2).sum() == 2 * 160 * 80 + 160 * 160  # nothing is covered
    assert (sheet[:, -4:] == 255).all()  # and no caption leaves its place
