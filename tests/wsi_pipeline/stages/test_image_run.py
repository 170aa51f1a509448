"""Whole runs on folders of images."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.helpers.html_pages import Page, check_policy
from tests.helpers.striped_images import make_folder, rows_of
from wsi_pipeline.cli import app as cli
from wsi_pipeline.cohort.image_folder import read_images
from wsi_pipeline.cohort.image_store import open_images
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Rule
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.image_evaluation import evaluate_images
from wsi_pipeline.inference.image_scores import ScoredImage
from wsi_pipeline.inference.scores import TRAINED_ON
from wsi_pipeline.models.checkpoint import load_checkpoint, read_meta
from wsi_pipeline.report.images import build_image_report

SMALL = "{model: {options: {m: 5, stride: 4, filters: 4, depth: 2, channels: 1, normalise: minmax}}"
TRAIN = "sampling: balanced, steps_per_epoch: 8, max_epochs: 3, lr: 0.003}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two models on one-channel images that are not square; one file is broken."""
    root = tmp_path_factory.mktemp("images")
    folder = make_folder(root / "data")
    (folder / "rows" / "broken.png").write_bytes(b"not an image")
    config = root / "c.yaml"
    config.write_text(
        "input: data\nout: run\nimages: {classes: [rows, columns], channels: 1}\n"
        "splits: {folds: 4, fold: 1}\nheatmap: {maps_per_class: 1}\n"
        f"train:\n  patchnet: {SMALL}, {TRAIN}\n"
        "  cam: {model: {options: {width: 0.03125}}, steps_per_epoch: 4, max_epochs: 2, "
        "batch_size: 8}\n"
    )
    return root, cli.main(["run", str(config), "--quiet"])


def test_a_broken_file_is_listed_and_the_others_go_on(finished):
    root, code = finished
    assert code == 3
    (failure,) = rows_of(root / "run" / "failures.csv")
    assert failure["slide_id"] == "rows__broken"
    assert "broken.png: cannot be decoded" in failure["message"]
    assert (root / "run" / "report.html").is_file()


def test_scores_are_those_of_the_model_on_the_file(finished):
    root, _ = finished
    scores = rows_of(root / "run" / "scores" / "patchnet" / "images.csv")
    assert len(scores) == 25
    model, meta = load_checkpoint(root / "run" / "models" / "patchnet" / "checkpoint.safetensors")
    assert meta.image_shape == (18, 25, 1)
    assert meta.class_names == ("rows", "columns")
    for row in scores:
        if row["image_id"] == "rows__broken":
            assert row["score"] == row["predicted"] == ""
            continue
        name, number = row["image_id"].split("__")
        pixels = np.asarray(Image.open(root / "data" / name / f"{number}.png"))
        with torch.no_grad():
            score = model.score(torch.from_numpy(pixels.copy())[None, None].float() / 255).item()
        assert float(row["score"]) == pytest.approx(score, abs=1e-5)
        assert int(row["predicted"]) == (float(row["score"]) > 0.5)
        assert int(row["label"]) == (name == "columns")


def test_metrics_can_be_counted_again_from_the_scores(finished):
    root, _ = finished
    folder = root / "run" / "evaluation" / "patchnet"
    metrics = json.loads((folder / "metrics.json").read_text())
    test = [r for r in rows_of(root / "run" / "scores" / "patchnet" / "images.csv")
            if r["split"] == "test" and r["score"]]  # fmt: skip
    right = [(float(r["score"]) > 0.5) == (r["label"] == "1") for r in test]
    assert metrics["patch"]["accuracy"] == pytest.approx(np.mean(right))
    assert metrics["patch"]["n"] == len(test)
    p = [float(r["score"]) if r["label"] == "1" else 1 - float(r["score"]) for r in test]
    assert metrics["patch"]["loss"] == pytest.approx(-np.log(p).mean())
    assert metrics["strict"] is True
    assert metrics["threshold"] == 0.5
    assert metrics["froc"] is None
    assert metrics["undefined"]["froc"] == "a folder of images has no slides"
    assert set(metrics["splits"]) == {"train", "val", "test"}


def test_stripes_are_learnt(finished):
    root, _ = finished
    metrics = json.loads((root / "run" / "evaluation" / "patchnet" / "metrics.json").read_text())
    assert metrics["splits"]["train"]["roc_auc"] > 0.9


def test_each_shown_image_has_its_maps(finished):
    root, _ = finished
    folder = root / "run" / "heatmaps" / "patchnet"
    arrays = sorted(folder.glob("*.npz"))
    assert len(arrays) == 2  # one of each class
    with np.load(arrays[0]) as maps:
        assert maps["filters"].shape == (4, 18, 25)
        assert maps["histograms"].shape == (5, 256)
    cam = sorted((root / "run" / "heatmaps" / "cam").glob("*.tif"))
    assert tifffile.imread(cam[0]).shape == (18, 25)
    assert (folder / "overview.png").is_file()


def test_collect_says_what_is_done_and_what_was_lost(finished, tmp_path, capsys):
    root, _ = finished
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    (run / ".state/predict/cam/images.done.json").unlink()
    assert cli.main(["collect", str(run)]) == 3
    out = capsys.readouterr().out.splitlines()
    assert "tile: done" in out
    assert "predict patchnet: done" in out
    assert "predict cam: missing" in out
    assert {"train cam: done", "evaluate patchnet: done", "report: done"} <= set(out)
    assert "heatmap cam: done" in out
    assert "images: 25, 1 unreadable (rows__broken)" in out
    assert any(line.startswith("1 failure, listed in") for line in out)


def test_a_second_run_keeps_everything_but_the_broken_file(finished, capsys):
    root, _ = finished
    capsys.readouterr()
    assert cli.main(["run", str(root / "c.yaml")]) == 3
    out = capsys.readouterr().out
    assert "done" not in out.replace("0 done", "")
    assert "train: 0 done, 2 kept" in out


def test_parts_of_a_job_array_make_the_bytes_of_one_task(finished, tmp_path, capsys):
    order = (2, 0, 1)
    root, _ = finished
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    scores = run / "scores" / "patchnet"
    before = {path.name: path.read_bytes() for path in scores.iterdir()}
    words = ["predict", str(run), "--overwrite", "--set", "batch_size=5"]
    assert cli.main([*words, "--quiet"]) == 0
    whole = {path.name: path.read_bytes() for path in scores.iterdir()}
    assert whole.keys() == before.keys()
    shutil.rmtree(run / "scores")
    for place, number in enumerate(order):
        assert not scores.exists()
        assert cli.main([*words, "--shard", f"{number}/3"]) == 0
        printed = capsys.readouterr().out
        assert ("images by patchnet: all parts put together" in printed) == (place == 2)
    assert {path.name: path.read_bytes() for path in scores.iterdir()} == whole
    maps = {p: p.read_bytes() for p in (run / "heatmaps").rglob("*") if p.is_file()}
    shutil.rmtree(run / "heatmaps")
    for number in order:
        assert not (run / "heatmaps/cam/maps.json").exists()
        assert cli.main(["heatmap", str(run), "--shard", f"{number}/3", "--quiet"]) == 0
    found = {p: p.read_bytes() for p in (run / "heatmaps").rglob("*") if p.is_file()}
    assert found == maps
    assert not list(run.rglob("*-of-*.npz"))
    assert cli.main(["collect", str(run)]) == 3  # the broken file
    assert "predict patchnet: done" in capsys.readouterr().out.splitlines()
    assert cli.main(["evaluate", str(run), "--quiet"]) == 0


def test_parts_of_other_settings_are_not_put_together(finished, tmp_path, capsys):
    """Batches are what a part is made of: of others, some images would be in no part."""
    root, _ = finished
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    words = ["predict", str(run), "--quiet", "--overwrite"]
    table = run / "scores" / "cam" / "images.csv"
    table.unlink()
    assert cli.main([*words, "--shard", "0/2", "--set", "batch_size=2"]) == 0
    assert cli.main([*words, "--shard", "1/2", "--set", "batch_size=7"]) == 0
    assert cli.main(["collect", str(run)]) == 3
    assert "predict cam: missing" in capsys.readouterr().out
    assert not table.exists()
    # Nor are parts of images that are not those of now.
    listed = (run / "images.csv").read_bytes()
    (run / "images.csv").write_bytes(listed.replace(b"rows__00", b"rows__zz"))
    state = run / ".state/parts/predict/cam"
    shutil.copy(state / "images.1-of-2.npz", state / "images.0-of-1.npz")
    with np.load(state / "images.0-of-1.npz") as one:
        np.savez(state / "images.0-of-1.npz", **(dict(one) | {"count": 1}))
    assert cli.main(["collect", str(run)]) == 3
    assert not table.exists()
    (run / "images.csv").write_bytes(listed)
    (state / "images.0-of-1.npz").unlink()
    assert cli.main([*words, "--shard", "0/2", "--set", "batch_size=7"]) == 0
    assert len(rows_of(table)) == 25
    assert sum(row["score"] == "" for row in rows_of(table)) == 1


def test_maps_of_an_array_that_did_not_end_go_with_it(finished, tmp_path):
    """Its tasks drew more images than the one that finishes the work in one piece."""
    root, _ = finished
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    maps = run / "heatmaps" / "cam"
    before = sorted(path.name for path in maps.iterdir())
    words = ["heatmap", str(run), "--quiet"]
    more = ["--set", "heatmap.maps_per_class=3", "--shard", "0/2"]
    assert cli.main([*words, *more]) == 0
    assert len(list(maps.iterdir())) > len(before)
    assert cli.main([*words, "--set", "heatmap.maps_per_class=1"]) == 0
    assert sorted(path.name for path in maps.iterdir()) == before
    assert not list(run.rglob("*-of-*.npz"))


def test_images_of_another_shape_are_refused_by_name(finished, tmp_path, capsys):
    root, _ = finished
    make_folder(tmp_path / "other", n=2, height=20)
    run = tmp_path / "run"
    tile = ["tile", str(tmp_path / "other"), "--out", str(run), "--quiet"]
    assert cli.main([*tile, "--set", "images.channels=1"]) == 0
    checkpoint = root / "run" / "models" / "patchnet" / "checkpoint.safetensors"
    assert cli.main(["predict", str(run), "--checkpoint", str(checkpoint), "--quiet"]) == 1
    printed = (run / "failures.csv").read_text()
    assert "images of 20 x 25 x 1 of unknown resolution" in printed
    assert "trained on images of 18 x 25 x 1 of unknown resolution" in printed


def predict_elsewhere(root, folder, run, *more):
    tile = ["tile", str(folder), "--out", str(run), "--quiet", "--set", "images.channels=1"]
    assert cli.main([*tile, *more]) == 0
    checkpoint = root / "run" / "models" / "patchnet" / "checkpoint.safetensors"
    return cli.main(["predict", str(run), "--checkpoint", str(checkpoint), "--quiet"])


def test_classes_in_another_order_than_the_checkpoints_are_refused(finished, tmp_path):
    root, _ = finished
    folder = make_folder(tmp_path / "other", n=2)
    assert predict_elsewhere(root, folder, tmp_path / "run") == 1  # alphabetical: columns, rows
    printed = (tmp_path / "run" / "failures.csv").read_text()
    assert "tile again with images.classes: [rows, columns]" in printed
    right = ["--set", "images.classes=[rows, columns]"]
    assert predict_elsewhere(root, folder, tmp_path / "run", *right) == 0


def test_images_of_no_class_are_scored_but_not_evaluated(finished, tmp_path, capsys):
    root, _ = finished
    folder = make_folder(tmp_path / "other", n=2)
    for number, path in enumerate(folder.rglob("*.png")):
        path.rename(folder / f"{number}.png")
    assert predict_elsewhere(root, folder, tmp_path / "run") == 0
    (scores,) = (tmp_path / "run" / "scores").glob("*/images.csv")
    assert all(0 < float(row["score"]) < 1 for row in rows_of(scores))
    assert cli.main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 1
    assert "no scored image with a class" in (tmp_path / "run" / "failures.csv").read_text()

    capsys.readouterr()
    again = ["tile", str(folder), "--out", str(tmp_path / "again"), "--set", "images={channels: 1}"]
    assert cli.main(again) == 0
    printed = capsys.readouterr().out
    assert "no image has a class, so these can be scored, not trained on" in printed
    assert printed.endswith(f"next: wsi-pipeline predict {tmp_path / 'again'} --checkpoint FILE\n")


def test_images_the_model_was_trained_on_are_no_test_of_it(finished, tmp_path):
    root, _ = finished
    right = ["--set", "images.classes=[rows, columns]"]
    folder = make_folder(tmp_path / "again")
    assert predict_elsewhere(root, folder, tmp_path / "run", *right) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "--quiet"]) == 1
    assert "was trained on" in (tmp_path / "run" / "failures.csv").read_text()


@pytest.mark.parametrize("role", ["train", "val"])
def test_a_validation_by_images_the_model_was_trained_on_is_refused(tmp_path, role):
    """Without a test split figures are of val, which another run's model may have trained on."""
    images = [
        ScoredImage(f"i{n}", f"p{n}", "val", "c", n % 2, score=0.3 + n / 10, logit=n / 10)
        for n in range(4)
    ]
    about = {
        "classes": ["a", "b"],
        TRAINED_ON: {"train_slides": [], "val_slides": [], f"{role}_patients": ["p2"]},
    }
    given = {"rule": Rule(0.5, strict=False), "model": "m", "settings": EvaluateConfig(bootstrap=0)}
    if role == "val":  # its own validation: said to be one, not refused
        metrics = evaluate_images(images, about, out=tmp_path, **given)
        assert metrics["notes"] == ["no image in the split test: figures are of val"]
    else:
        with pytest.raises(EvaluationError, match=r"trained on 1 patient .*p2"):
            evaluate_images(images, about, out=tmp_path, **given)


def test_a_mended_file_is_no_failure_any_more(tmp_path):
    folder = make_folder(tmp_path / "data", n=2)
    broken = folder / "rows" / "00.png"
    good = broken.read_bytes()
    broken.write_bytes(good[:40])
    command = ["tile", str(folder), "--out", str(tmp_path / "run"), "--quiet"]
    command += ["--set", "images.channels=1"]
    assert cli.main(command) == 3
    broken.write_bytes(good)
    assert cli.main(command) == 0
    assert rows_of(tmp_path / "run" / "failures.csv") == []


def test_sizes_that_differ_name_two_files(tmp_path, capsys):
    folder = make_folder(tmp_path / "data", n=2)
    Image.new("L", (9, 9)).save(folder / "rows" / "00.png")
    command = ["tile", str(folder), "--out", str(tmp_path / "run"), "--quiet"]
    assert cli.main([*command, "--set", "images.channels=1"]) == 1
    assert "set images.size" in (tmp_path / "run" / "failures.csv").read_text()
    assert cli.main([*command, "--set", "images.size=[16, 16]"]) == 0
    entries = read_images(tmp_path / "run" / "images.csv")
    assert open_images(tmp_path / "run" / "tiles", entries).kind.shape == (16, 16, 3)


def test_preprocessing_and_crops_travel_in_the_checkpoint(tmp_path):
    folder = make_folder(tmp_path / "data", n=6, channels=3)
    config = tmp_path / "c.yaml"
    config.write_text(
        "input: data\nout: run\nimages: {equal_classes: true}\n"
        "splits: {val_fraction: 0.3, test_fraction: 0.3}\nstages: [tile, train, predict, heatmap]\n"
        "train:\n  patchnet:\n    model:\n      options: {m: 5, filters: 2, depth: 1}\n"
        "      preprocess: {crop: [12, 16], gamma: 2.2, colour_constancy: true, minmax: true}\n"
        "    augment: {zoom: 1.2, rotate_180: true}\n    steps_per_epoch: 2\n    max_epochs: 1\n"
    )
    assert cli.main(["run", str(config), "--quiet"]) == 0
    meta = read_meta(tmp_path / "run" / "models" / "patchnet" / "checkpoint.safetensors")
    assert meta.options["preprocess"]["crop"] == [12, 16]
    heatmap = next((tmp_path / "run" / "heatmaps" / "patchnet").glob("*.tif"))
    assert tifffile.imread(heatmap).shape == (12, 16)
    assert folder.is_dir()


def test_slides_and_images_do_not_share_a_run_folder(finished, tmp_path, capsys):
    root, _ = finished
    assert cli.main(["tile", str(tmp_path), "--out", str(root / "run"), "--quiet"]) == 1
    assert "use another run folder for slides" in capsys.readouterr().err


def test_a_tables_path_is_relative_to_the_config(tmp_path):
    make_folder(tmp_path / "data", n=3)
    lines = "".join(f"{c}/{i:02d}.png,p{i}\n" for c in ("rows", "columns") for i in range(3))
    (tmp_path / "patients.csv").write_text("file,patient\n" + lines)
    (tmp_path / "c.yaml").write_text(
        "input: data\nout: run\nstages: [tile]\nsplits: {folds: 3}\n"
        "images: {channels: 1, table: patients.csv}\n"
    )
    assert cli.main(["run", str(tmp_path / "c.yaml"), "--quiet"]) == 0
    split = {}
    for e in read_images(tmp_path / "run" / "images.csv"):
        assert split.setdefault(e.patient, e.split) == e.split
    assert sorted(split.values()) == ["test", "train", "val"]


def test_two_models_are_compared_on_the_same_images(finished, tmp_path, capsys):
    root, _ = finished
    out = tmp_path / "compared"
    assert cli.main(["compare", str(root / "run"), "--out", str(out), "--bootstrap", "30"]) == 0
    (pair,) = json.loads((out / "comparison.json").read_text())
    page = (out / "compare.html").read_text()
    assert (pair["first"], pair["second"]) == ("cam", "patchnet")
    for name, figure in pair["figures"].items():
        for side in ("first", "second"):
            metrics = json.loads(
                (root / "run/evaluation" / pair[side] / "metrics.json").read_text()
            )
            assert figure[side] == pytest.approx(metrics["patch"][name])
            assert pair["n_images"] == metrics["patch"]["n"]
        assert figure["difference"] == pytest.approx(figure["first"] - figure["second"])
        if figure["difference_ci95"] is None:
            assert f"no interval: {pair['undefined'][f'{name}.difference_ci95']}" in page
        else:
            low, high = figure["difference_ci95"]
            assert low < high
            assert figure["method"] == "percentile bootstrap by patient"
    assert "<script src" not in page
    assert "cam less patchnet" in page
    named = ["--model", "cam", "--model", "vgg"]
    assert cli.main(["compare", str(root / "run"), "--out", str(out), *named]) == 1
    assert "no evaluated model vgg in run" in capsys.readouterr().err


def test_scores_of_images_are_exported_image_by_image(finished, tmp_path, capsys):
    root, _ = finished
    run = str(root / "run")
    out = ["--out", str(tmp_path / "out"), "--model", "cam"]
    assert cli.main(["export", run, "--format", "qupath", "--format", "wsinfer", *out]) == 0
    assert "export qupath: 1 done" in capsys.readouterr().out
    scores = {r["image_id"]: r["score"] for r in rows_of(root / "run/scores/cam/images.csv")}
    assert len(scores) == 25
    for image_id, score in scores.items():
        tiles = json.loads((tmp_path / "out/qupath" / f"{image_id}.geojson").read_text())
        table = rows_of(tmp_path / "out/wsinfer" / f"{image_id}.csv")
        assert len(tiles["features"]) == len(table) == (image_id != "rows__broken")
        for row, tile in zip(table, tiles["features"], strict=True):
            assert [int(row[k]) for k in ("minx", "miny", "width", "height")] == [0, 0, 25, 18]
            assert np.float32(row["prob_columns"]) == np.float32(score)
            assert tile["properties"]["measurements"]["score"] == float(row["prob_columns"])
            assert [25, 18] in tile["geometry"]["coordinates"][0]
    assert cli.main(["export", run, "--format", "qupath", *out, "--set", "qupath=both"]) == 1
    failure = [r for r in rows_of(root / "run/failures.csv") if r["stage"] == "export"]
    assert "single images have one score each and no regions" in failure[0]["message"]
    assert cli.main(["export", run, "--format", "qupath", *out]) == 0


def test_exports_that_do_not_warn_of_single_images_are_refused(finished, tmp_path, capsys):
    root, _ = finished
    for name in ("clam", "camelyon16", "trident", "ome-zarr"):
        assert cli.main(["export", str(root / "run"), "--format", name]) == 1
        printed = capsys.readouterr().err
        assert f"{name} (" in printed
        assert "single images have none; for them there are qupath, wsinfer" in printed
    config = tmp_path / "c.yaml"
    config.write_text((root / "c.yaml").read_text() + "export: {formats: [clam]}\n")
    assert cli.main(["run", str(config), "--quiet"]) == 1
    assert "there are qupath, wsinfer" in capsys.readouterr().err
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    about = json.loads((run / "tiles/images.json").read_text())
    about["settings"]["size"] = [18, 25]
    (run / "tiles/images.json").write_text(json.dumps(about))
    assert cli.main(["export", str(run), "--format", "qupath"]) == 1
    assert "brought to 25 x 18 px (images.size)" in capsys.readouterr().err


def test_the_report_names_every_split_and_needs_no_other_file(finished):
    root, _ = finished
    page = (root / "run" / "report.html").read_text()
    assert page.index("<td>train</td>") < page.index("<td>val</td>") < page.index("<td>test</td>")
    # A PatchNet's score has to be over its threshold, as in its paper; others' may be equal.
    text = Page(page).text
    assert "patchnet an image is called class 1 (columns) > 0.500 the rule that" in text
    assert "cam an image is called class 1 (columns) ≥ 0.500 the rule that" in text
    assert 'src="data:image/jpeg' in page
    assert str(root) not in page


def test_the_report_shows_each_image_with_its_verdict_and_map(finished, tmp_path):
    """Reports of image folders had neither single images nor SVG charts, unlike those of slides."""
    root, _ = finished
    copy = shutil.copytree(root / "run", tmp_path / "run")
    report = build_image_report(copy, models=["patchnet"], n_pictures=3)
    check_policy(report.read_text())
    page = Page(report.read_text())
    assert page.open == []
    evaluated = json.loads((copy / "evaluation/patchnet/metrics.json").read_text())["evaluated"]
    rows = [
        row
        for row in rows_of(copy / "evaluation/patchnet/images.csv")
        if row["split"] == evaluated and row["score"]
    ]
    wrong = {row["image_id"] for row in rows if row["label"] != row["predicted"]}
    alts = [v for tag, name, v in page.attributes if (tag, name) == ("img", "alt")]
    cards = [alt for alt in alts if alt.startswith("image ")]
    assert len(cards) == 3
    assert sum(alt.split()[1] in wrong for alt in cards) == min(3, len(wrong))
    assert f"{len(rows) - len(wrong)} of {len(rows)} images are called correctly" in page.text
    assert "What failed" in page.text
    titles = [v for tag, name, v in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert titles == [
        "ROC curve over images",
        "Precision and recall over images",
        "patchnet: loss by epoch",
        "patchnet: validation ROC AUC by epoch",
    ]
    maps = json.loads((copy / "heatmaps/patchnet/maps.json").read_text())["images"]
    with_map = build_image_report(copy, models=["patchnet"]).read_text()
    shown = [alt for alt in Page(with_map).attributes if alt[1] == "alt" and "its map" in alt[2]]
    assert {alt[2].split()[1] for alt in shown} == set(maps) & {row["image_id"] for row in rows}


def test_the_report_of_images_that_are_only_scored_has_no_results(finished, tmp_path):
    root, _ = finished
    copy = shutil.copytree(root / "run", tmp_path / "run")
    for name in ("evaluation", "models", "explanations"):
        shutil.rmtree(copy / name, ignore_errors=True)
    page = Page(build_image_report(copy, models=["cam"]).read_text())
    ids = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert ids == ["headline", "per-image", "what", "maps", "data", "provenance"]
    scores = [
        float(row["score"]) for row in rows_of(copy / "scores/cam/images.csv") if row["score"]
    ]
    assert f"scored {len(scores)} images: the scores are between" in page.text
    assert {min(scores), max(scores)} <= set(page.numbers)
    assert "run wsi-pipeline" not in page.text
