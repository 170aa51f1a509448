"""Maps of images against masks: P2's figures, from the files of a run and by brute force."""

import csv
import json
import shutil

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import roc_auc_score

from wsi_pipeline.cli import app as cli
from wsi_pipeline.cohort.image_masks import read_object_mask
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.evaluation.image_localisation import localise_image

PATCHNET = "{model: {options: {m: 5, stride: 4, filters: 4, depth: 2}}"
CAM = "{model: {options: {width: 0.03125}, preprocess: {crop: [24, 30]}}"
SHORT = "steps_per_epoch: 1, max_epochs: 1}"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images of 48 x 64 px shrunk by two, with masks: one empty, one of another size, one none."""
    root = tmp_path_factory.mktemp("masked")
    random = np.random.default_rng(0)
    lines = ["file,class,split,mask"]
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 6
    (root / "data").mkdir()
    for number, split in enumerate(splits):
        image = random.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / "data" / f"{number}.png")
        mask = np.zeros((48, 64) if number != 9 else (48, 60), np.uint8)
        if number != 8:  # its mask stays empty
            mask[8:30, 10 + number : 40] = 1  # not 255: what is not 0 is the object
        Image.fromarray(mask).save(root / "data" / f"mask{number}.png")
        named = "" if number == 10 else f"mask{number}.png"
        lines.append(f"{number}.png,{'ab'[number % 2]},{split},{named}")
    (root / "t.csv").write_text("\n".join(lines) + "\n")
    (root / "c.yaml").write_text(
        "input: data\nout: run\nimages: {table: t.csv, size: [24, 32]}\n"
        "stages: [tile, train, predict, heatmap, evaluate, report]\nheatmap: {maps_per_class: 3}\n"
        f"train:\n  patchnet: {PATCHNET}, {SHORT}\n  cam: {CAM}, {SHORT}\n"
    )
    assert cli.main(["run", str(root / "c.yaml"), "--quiet"]) == 3  # for mask9.png
    return root


ELSEWHERE = [
    "4 masks are in the split train, which is not evaluated: 0, 1, 2, 3; set evaluate.split=train "
    "to compare their maps",
    "2 masks are in the split val, which is not evaluated: 4, 5; set evaluate.split=val to compare "
    "their maps",
]


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected_of(heatmap, mask):
    """Follow the definition pixel by pixel."""
    pairs = [(h >= 0.5, m) for h, m in zip(heatmap.ravel(), mask.ravel(), strict=True)]
    exact = sum(c == m for c, m in pairs) / len(pairs)
    recall = sum(c for c, m in pairs if m) / mask.sum() if mask.any() else None
    mixed = mask.any() and not mask.all()
    return exact, recall, roc_auc_score(mask.ravel(), heatmap.ravel()) if mixed else None


@pytest.mark.parametrize("model", ["patchnet", "cam"])
def test_each_masked_image_of_the_test_is_measured_and_the_means_are_of_images(root, model):
    folder = root / "run" / "evaluation" / model
    rows = rows_of(folder / "localisation.csv")
    assert [row["image_id"] for row in rows] == ["6", "7", "8", "11"]  # 9, 10 have no usable mask
    found = []
    for row in rows:
        number = int(row["image_id"])
        values = tifffile.imread(root / f"run/heatmaps/{model}/{number}.{model}.tif")
        if model == "cam":  # stretched over its image; a map of the crop's size
            values = (values - values.min()) / (values.max() - values.min())
            assert values.shape == (24, 30)
        picture = Image.open(root / "data" / f"mask{number}.png").point(lambda v: 255 * (v > 0))
        mask = np.asarray(picture.resize((32, 24), Image.Resampling.BICUBIC)) > 127
        mask = mask[:, 1:31] if model == "cam" else mask
        exact, recall, auc = expected_of(values, mask)
        assert float(row["exact_match"]) == pytest.approx(exact)
        assert (row["recall"] == "") == (recall is None) == (number == 8)
        if number != 8:
            assert float(row["recall"]) == pytest.approx(recall)
            assert float(row["roc_auc"]) == pytest.approx(auc)
        found.append((exact, recall, auc))
    means = json.loads((folder / "metrics.json").read_text())["localisation"]
    exacts, recalls, aucs = (
        [v for v in part if v is not None] for part in zip(*found, strict=True)
    )
    assert means["average_exact_match"] == pytest.approx(np.mean(exacts))
    assert means["average_recall"] == pytest.approx(np.mean(recalls))
    assert means["average_roc_auc"] == pytest.approx(np.mean(aucs))
    assert (means["n"], means["recall_n"], means["roc_auc_n"], means["skipped"]) == (4, 3, 3, 0)


def test_a_mask_of_another_size_is_listed_and_its_image_is_used(root):
    (failure,) = rows_of(root / "run" / "failures.csv")
    assert failure["slide_id"] == "9"
    assert failure["message"] == "mask9.png: a mask of 60 x 48 px for an image of 64 x 48 px"
    scores = rows_of(root / "run" / "scores" / "patchnet" / "images.csv")
    assert all(row["score"] for row in scores)


def evaluate_split(run, split):
    """Maps and figures of a split, by the commands as a user gives them."""
    words = ["--quiet", "--set", "maps_per_class=null", "--set", f"evaluate.split={split}"]
    assert cli.main(["heatmap", str(run), *words]) == 0
    assert cli.main(["evaluate", str(run), "--quiet", "--set", f"split={split}"]) == 0
    folder = run / "evaluation" / "patchnet"
    mapped = {path.name.split(".")[0] for path in (run / "heatmaps" / "patchnet").glob("*.tif")}
    return json.loads((folder / "metrics.json").read_text()), folder, mapped


@pytest.mark.parametrize(
    ("split", "masked", "elsewhere"),
    [
        ("val", ["4", "5"], {"train": 4, "test": 4}),
        ("train", ["0", "1", "2", "3"], {"val": 2, "test": 4}),
        ("all", [str(i) for i in (0, 1, 2, 3, 4, 5, 6, 7, 8, 11)], {}),
        ("test", ["6", "7", "8", "11"], {"train": 4, "val": 2}),
    ],
)
def test_maps_and_figures_follow_the_split_that_is_asked_for(
    root, tmp_path, split, masked, elsewhere
):
    """PatchNet paper 2, table 2: the masks are on validation images, and no figure was given."""
    shutil.copytree(root / "run", tmp_path / "run")
    metrics, folder, mapped = evaluate_split(tmp_path / "run", split)

    assert [row["image_id"] for row in rows_of(folder / "localisation.csv")] == masked
    assert metrics["evaluated"] == split
    assert metrics["localisation"]["n"] == len(masked)
    assert metrics["localisation"]["elsewhere"] == elsewhere
    assert metrics["localisation"]["average_exact_match"] is not None
    sizes = {"train": 4, "val": 2, "test": 6, "all": 12}
    assert metrics["patch"]["n"] == len(mapped) == sizes[split]
    assert set(metrics["splits"]) == {"train", "val", "test"}
    if split != "all":
        assert metrics["patch"]["loss"] == metrics["splits"][split]["loss"]
    seen = [note for note in metrics["notes"] if note.startswith("no test: the model was trained")]
    assert len(seen) == (split in ("train", "all"))
    named = [note for note in metrics["notes"] if "which is not evaluated" in note]
    assert len(named) == len(elsewhere)


def test_a_split_that_is_not_there_is_named_with_those_that_are(root, tmp_path, capsys):
    shutil.copytree(root / "run", tmp_path / "run")
    run = tmp_path / "run"
    words = [str(run), "--quiet", "--set"]
    assert cli.main(["predict", *words, "predict.splits=[test]"]) == 0
    assert cli.main(["evaluate", *words, "split=val"]) == 1
    printed = capsys.readouterr().err
    assert "no scored image with a class in the split val" in printed
    assert "test 6" in printed
    assert "predict.splits" in printed
    assert cli.main(["evaluate", *words, "split=valid"]) == 1
    assert "evaluate.split: input should be 'test', 'val', 'train' or 'all'" in (
        capsys.readouterr().err
    )


def test_run_refuses_at_once_to_evaluate_what_predict_does_not_score(root, tmp_path, capsys):
    words = ["run", str(root / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    words += ["--set", "predict.splits=[test]", "--set", "evaluate.split=val"]
    assert cli.main(words) == 1
    printed = capsys.readouterr().err
    assert "evaluate.split is val, but predict.splits is [test]" in printed
    assert not (tmp_path / "run").exists()


def test_masks_of_unlabelled_images_are_compared_too(root, tmp_path):
    """Tests of maps alone do not need the classes."""
    table = (root / "t.csv").read_text().replace("11.png,b,test", "11.png,,test")
    (tmp_path / "t.csv").write_text(table)
    run = ["run", str(root / "c.yaml"), "--out", str(tmp_path / "run"), "--quiet"]
    run += ["--set", f"images.table={tmp_path / 't.csv'}", "--set", "stages=[tile,train,predict,"]
    run[-1] += "heatmap,evaluate]"
    assert cli.main(run) == 3
    rows = rows_of(tmp_path / "run/evaluation/patchnet/localisation.csv")
    assert [row["image_id"] for row in rows] == ["6", "7", "8", "11"]


def test_the_report_has_the_means(root):
    page = (root / "run" / "report.html").read_text()
    assert "Maps compared with masks" in page


def test_images_without_a_map_are_counted_with_the_remedy(root):
    run = ["--quiet", "--set"]
    assert cli.main(["heatmap", str(root / "run"), *run, "maps_per_class=1"]) == 0
    assert cli.main(["evaluate", str(root / "run"), "--quiet"]) == 0
    metrics = json.loads((root / "run/evaluation/patchnet/metrics.json").read_text())
    assert (metrics["localisation"]["n"], metrics["localisation"]["skipped"]) == (2, 2)
    assert metrics["notes"] == [
        "no map of 2 of 4 evaluated images with a mask; run heatmap again (with "
        "--set maps_per_class=null for all of them), then evaluate",
        *ELSEWHERE,
    ]
    about = root / "run/heatmaps/patchnet/maps.json"
    whole = about.read_text()
    shutil.rmtree(root / "run/.state/heatmap")  # or the change would be damage
    about.write_text(whole.replace("image-maps/2", "image-maps/1"))  # of an earlier version
    assert cli.main(["evaluate", str(root / "run"), "--quiet"]) == 0
    metrics = json.loads((root / "run/evaluation/patchnet/metrics.json").read_text())
    assert (metrics["localisation"]["n"], metrics["localisation"]["skipped"]) == (0, 4)
    about.write_text(whole.replace('"checkpoint": "', '"checkpoint": "another '))
    assert cli.main(["evaluate", str(root / "run"), "--quiet"]) == 0
    metrics = json.loads((root / "run/evaluation/patchnet/metrics.json").read_text())
    assert metrics["localisation"]["average_recall"] is None
    assert "both a mask and a map" in metrics["undefined"]["localisation.average_exact_match"]
    assert metrics["notes"] == [
        "the maps are of another checkpoint than the scores; run heatmap again",
        *ELSEWHERE,
    ]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_it_is_what_plain_python_and_scikit_learn_compute(seed, probability):
    random = np.random.default_rng(seed)
    values = random.integers(0, 5, (4, 6)) / 4
    mask = random.random((6, 6)) < 0.4
    if probability:
        shown, image = values, localise_image(values, mask, probability=True)
    else:  # of any scale; the shown values are what is left of it
        image = localise_image(values * 7 - 3, mask, probability=False)
        span = values.max() - values.min()
        shown = (values - values.min()) / span if span else np.full(values.shape, 0.5)
    exact, recall, auc = expected_of(shown, mask[1:5])
    assert image.exact_match == pytest.approx(exact)
    assert image.recall == (None if recall is None else pytest.approx(recall))
    assert image.roc_auc == (None if auc is None else pytest.approx(auc))


@pytest.mark.parametrize("probability", [True, False])
def test_a_perfect_an_inverted_and_a_constant_map(probability):
    mask = np.zeros((8, 10), bool)
    mask[2:5, 3:7] = True

    def figures(values):
        image = localise_image(np.asarray(values, np.float32), mask, probability=probability)
        return image.exact_match, image.recall, image.roc_auc

    assert figures(mask) == (1, 1, 1)
    assert figures(~mask) == (0, 0, 0)
    assert figures(np.full(mask.shape, 0.5)) == (12 / 80, 1, 0.5)  # at least 0.5, as on slides
    if probability:
        assert figures(np.ones(mask.shape)) == (12 / 80, 1, 0.5)


@pytest.mark.parametrize("ending", [".tif", ".png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_value_but_zero_is_the_object_however_deep(tmp_path, ending, dtype):
    """Masks that number nuclei: 1 of 1000 is as much an object as 1000, and so is 1 everywhere."""
    numbered = np.zeros((20, 30), dtype)
    numbered[4:8, 5:9], numbered[10:15, 5:9] = 1, min(1000, np.iinfo(dtype).max)
    for values in (numbered, np.ones((20, 30), dtype), np.zeros((20, 30), dtype)):
        path = tmp_path / f"m{ending}"
        Image.fromarray(values).save(path)
        found = read_object_mask(tmp_path, path.name, (20, 30), ImagesConfig())
        np.testing.assert_array_equal(found, values > 0)
