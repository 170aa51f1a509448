"""The stage explain: which patches, which files, and what is kept."""

import csv
import errno
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.explain import METHODS, list_methods, load_method, pictures
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.stages.candidates import choose_extremes


@pytest.fixture(scope="module")
def explained(finished, tmp_path_factory):
    """A run of slides, two of whose patches were explained by two methods."""
    import shutil

    root = shutil.copytree(finished, tmp_path_factory.mktemp("explained") / "copy")
    methods = ["--method", "saliency", "--method", "patchnet", "--method", "cam"]
    assert main(["explain", str(root / "run"), *methods, "--top", "1", "--errors", "1"]) == 0
    return root / "run"


def read_about(run, method):
    return json.loads((run / f"explanations/patchnet/{method}/explain.json").read_text())


def test_maps_are_of_the_patches_they_name(explained):
    model, _ = load_checkpoint(explained / "models/patchnet/checkpoint.safetensors")
    about = read_about(explained, "saliency")
    assert about["settings"] == {}
    assert about["explained"]
    for one in about["explained"]:
        slide_id, x, y = one["name"].rsplit("_", 2)
        x, y = int(x[1:]), int(y[1:])
        with PatchStore.open(explained / f"tiles/{slide_id}.zarr") as store:
            row = int(np.flatnonzero((store.coords == (x, y)).all(axis=1))[0])
            pixels, _ = store.read_flagged(np.array([row]))
            side = store.geometry.patch_l0
            assert one["label"] == store.label[row]
        scores = read_scores(explained / f"scores/patchnet/{slide_id}.h5")
        assert one["score"] == scores.scores[row]
        assert 1 / (1 + np.exp(-one["logit"])) == pytest.approx(one["score"], abs=1e-5)
        for method in ("saliency", "patchnet"):
            path = explained / f"explanations/patchnet/{method}/{one['name']}.tif"
            expected = load_method(method)(model, pixels)[0]
            with tifffile.TiffFile(path) as tiff:
                np.testing.assert_allclose(tiff.asarray(), expected, rtol=1e-4, atol=1e-7)
                place = json.loads(tiff.pages.first.description)
            assert place == {
                "x_l0": x, "y_l0": y, "width_l0": side, "height_l0": side, "um_per_px": 0.5,
            }  # fmt: skip
            grey = np.asarray(Image.open(path.with_suffix(".png")))
            assert grey.shape == (32, 32)
            assert path.with_name(f"{one['name']}_overlay.png").is_file()
    sheet = np.asarray(Image.open(explained / "explanations/patchnet/sheet.png"))
    assert sheet.shape[1] == 3 * 168  # the patch, and two methods


def test_the_report_shows_the_sheet(explained):
    assert main(["report", str(explained), "--quiet"]) == 0
    page = (explained / "report.html").read_text()
    section = page.partition("<h2>Where the models look</h2>")[2].partition("</section>")[0]
    assert section.count("<img") == 1
    assert 'src="data:image/jpeg;base64,' in section


def test_images_are_not_named_on_a_run_of_slides(explained, capsys):
    assert main(["explain", str(explained), "--method", "saliency", "--images", "s4"]) == 1
    assert "--images is for folders of images; use --patches" in capsys.readouterr().err


def test_what_is_explained_is_kept_until_something_changes(explained, capsys):
    command = ["explain", str(explained), "--method", "saliency", "--top", "1"]
    assert main([*command, "--errors", "1"]) == 0
    assert "explain saliency: 0 done, 1 kept from before" in capsys.readouterr().out
    assert main(["collect", str(explained)]) == 0
    assert "explain saliency patchnet: done" in capsys.readouterr().out
    victim = next((explained / "explanations/patchnet/saliency").glob("*_overlay.png"))
    victim.write_bytes(b"")
    assert main([*command, "--errors", "1"]) == 0
    assert "explain saliency: 1 done" in capsys.readouterr().out
    assert victim.stat().st_size > 0
    first = {path.name for path in victim.parent.iterdir()}
    assert main([*command, "--errors", "0", "--set", "target=0"]) == 0
    assert {path.name for path in victim.parent.iterdir()} <= first  # and no map of before
    assert len(list(victim.parent.glob("*.tif"))) == 1
    assert read_about(explained, "saliency")["target"] == 0


def test_a_method_that_does_not_explain_a_model_is_named(copy, capsys):
    assert main(["explain", str(copy / "run"), "--method", "cam"]) == 0
    out = capsys.readouterr().out
    assert "no cam of patchnet: the method does not explain the architecture patchnet" in out
    assert main(["explain", str(copy / "run"), "--method", "gradcam"]) == 2
    assert "no explanation method is called 'gradcam'" in capsys.readouterr().err


def test_patches_can_be_named_in_a_csv(copy, tmp_path, capsys):
    coords = read_scores(copy / "run/scores/patchnet/s4.h5").coords
    path = tmp_path / "mine.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("slide_id", "x", "y"), *[("s4", *coords[3])] * 2])
    command = ["explain", str(copy / "run"), "--method", "patchnet", "--patches", str(path)]
    assert main(command) == 0
    x, y = coords[3]
    folder = copy / "run/explanations/patchnet/patchnet"
    assert len(json.loads((folder / "explain.json").read_text())["explained"]) == 1  # named twice
    assert [p.name for p in folder.glob("*.tif")] == [f"s4_x{x}_y{y}.tif"]
    assert (folder / f"s4_x{x}_y{y}.npz").is_file()  # what else the method found
    path.write_text("slide_id,x,y\ns4,1,2\n")
    assert main(command) == 1
    assert "patches or images: s4 1 2; use ids" in capsys.readouterr().err
    path.write_text("slide,x,y\ns4,1,2\n")
    assert main(command) == 1
    assert (
        "needs rows with the columns slide_id, x, y, has the columns slide, x, y"
        in capsys.readouterr().err
    )


def test_run_explains_by_the_methods_of_its_config(copy, capsys):
    config = str(copy / "config.yaml")
    with_methods = ["--set", "explain.methods=[saliency]", "--set", "explain.top=1"]
    assert main(["run", config, *with_methods]) == 0
    assert "explain saliency: 1 done" in capsys.readouterr().out
    assert main(["run", config, "--set", "explain.methods=[salience]"]) == 1
    assert "no explanation method is called 'salience'" in capsys.readouterr().err


def test_the_best_hits_and_the_worst_errors_are_chosen():
    scores = np.array([0.9, 0.7, 0.95, 0.1, 0.4, np.nan, 0.8])
    labels = np.array([1, 1, 0, 1, 0, 1, -1])
    how = {"rule": Rule(0.5)}
    assert choose_extremes(scores, labels, top=2, errors=5, **how) == [0, 6, 2, 3]
    assert choose_extremes(scores, labels, top=0, errors=1, **how) == [2]
    assert choose_extremes(scores, labels, top=9, errors=0, **how) == [0, 6, 1, 4]


def test_shards_divide_methods(copy, capsys):
    """All methods of a model went to one task of a job array."""
    methods = ["--method", "saliency", "--method", "patchnet", "--method", "guided_backprop"]
    command = ["explain", str(copy / "run"), *methods, "--top", "1", "--errors", "0"]
    done = []
    for shard in ("0/2", "1/2"):
        assert main([*command, "--shard", shard]) == 0
        out = capsys.readouterr().out
        done.append({line.split(":")[0] for line in out.splitlines() if ": 1 done" in line})
    assert not done[0] & done[1]
    assert sorted(map(len, done)) == [1, 2]
    sheet = np.asarray(Image.open(copy / "run/explanations/patchnet/sheet.png"))
    assert sheet.shape[1] == 4 * 168


def test_a_finished_explanation_may_be_read_only(explained, monkeypatch, capsys):
    command = ["explain", str(explained), "--method", "patchnet", "--top", "1", "--errors", "1"]
    assert main(command) == 0

    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "read-only")

    monkeypatch.setattr(pictures, "write_png", refuse)
    assert main(command) == 0
    assert "explain patchnet: 0 done, 1 kept from before" in capsys.readouterr().out


def test_a_sheet_of_many_is_cut(explained, monkeypatch):
    monkeypatch.setattr("wsi_pipeline.explain.files.SHEET_ROWS", 1)
    command = ["explain", str(explained), "--method", "patchnet", "--top", "1", "--errors", "1"]
    assert main(command) == 0
    sheet = np.asarray(Image.open(explained / "explanations/patchnet/sheet.png"))
    assert sheet.shape[0] == 8 + 18 + 18 + (18 + 160 + 8)


def test_all_stands_for_every_method():
    assert list_methods(["saliency", "all"]) == list(METHODS)
    assert list_methods(["lime", "saliency", "lime"]) == ["lime", "saliency"]
    with pytest.raises(ConfigError, match="no explanation method is called 'al'"):
        list_methods(["al"])
