"""Figures of image folders: their intervals, and which settings they heed."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from wsi_pipeline.cli import app as cli
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Rule
from wsi_pipeline.evaluation.bootstrap import draw_resamples
from wsi_pipeline.evaluation.image_evaluation import evaluate_images
from wsi_pipeline.evaluation.intervals import share_interval
from wsi_pipeline.inference.image_scores import ScoredImage


def scored(n=40):
    """Two images of each patient; class 1 scores higher, now and then."""
    random = np.random.default_rng(0)
    found = []
    for number in range(n):
        label = number // 2 % 2
        score = float(np.clip(random.normal(0.4 + 0.2 * label, 0.2), 0.01, 0.99))
        patient = f"p{number // 2}"
        found.append(ScoredImage(f"i{number}", patient, "test", "c", label, score, 0.0))
    return found


def figures(tmp_path, images, **settings):
    given = {"rule": Rule(0.5, strict=False), "model": "m", "settings": EvaluateConfig(**settings)}
    return evaluate_images(images, {"classes": ["a", "b"]}, out=tmp_path, **given)


def test_intervals_are_of_patients(tmp_path):
    """Shares: Wilson by patient. Others: scikit-learn's figures of each replicate."""
    images = scored()
    found = figures(tmp_path, images, bootstrap=60, seed=3)["patch"]
    labels = np.array([i.label for i in images])
    scores = np.array([i.score for i in images])
    patients = [i.patient for i in images]
    drawn = []
    for times in draw_resamples(patients, n_replicates=60, seed=3).weights:
        assert (times[::2] == times[1::2]).all()  # both images of a patient
        y, s = np.repeat(labels, times), np.repeat(scores, times)
        drawn.append((f1_score(y, s >= 0.5), roc_auc_score(y, s), average_precision_score(y, s)))
    names = ("f1", "roc_auc", "average_precision")
    for name, values in zip(names, zip(*drawn, strict=True), strict=True):
        assert found[f"{name}_ci95"] == pytest.approx(np.percentile(values, [2.5, 97.5]))
        assert found["ci95_method"][name] == "percentile bootstrap by patient"
    called = scores >= 0.5
    resamples = draw_resamples(patients, n_replicates=1, seed=0)
    for name, right, among in (
        ("accuracy", called == labels, np.ones(40, int)),
        ("precision", labels, called),
        ("recall", called, labels),
    ):
        share = share_interval(right * among, among.astype(int), resamples)
        assert found[f"{name}_ci95"] == [share.low, share.high]
        assert share.low < found[name] < share.high
        assert found["ci95_method"][name] == "Wilson, effective sample size by patient"


def test_a_seed_repeats_the_intervals_and_none_are_made_unasked(tmp_path):
    once, again, other = (
        figures(tmp_path, scored(), bootstrap=50, seed=seed)["patch"] for seed in (1, 1, 2)
    )
    assert once == again
    assert once != other
    assert not [key for key in figures(tmp_path, scored(), bootstrap=0)["patch"] if "ci95" in key]
    stratified = figures(tmp_path, scored(), bootstrap=50, seed=1, stratified=True)["patch"]
    assert stratified != once


def test_one_patient_has_no_intervals_and_is_reported(tmp_path):
    metrics = figures(tmp_path, scored(2), bootstrap=50)
    assert any("1 patient, at least 5 are needed" in note for note in metrics["notes"])
    assert metrics["patch"]["accuracy_ci95"] is metrics["patch"]["f1_ci95"] is None
    reason = "1 patient, at least 2 are needed"
    assert metrics["undefined"]["patch.accuracy_ci95"] == reason


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("settings")
    random = np.random.default_rng(0)
    for number in range(8):
        path = root / "data" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (12, 12), np.uint8)).save(path)
    run = root / "run"
    tile = ["tile", str(root / "data"), "--out", str(run), "--quiet"]
    assert cli.main([*tile, "--set", "images.channels=1", "--set", "splits.folds=4"]) == 0
    train = ["train", str(run), "--model", "patchnet", "--quiet", "--set", "steps_per_epoch=1"]
    train += ["--set", "model.options={m: 5, filters: 2, depth: 1, channels: 1}"]
    assert cli.main([*train, "--set", "max_epochs=1"]) == 0
    return run


def test_settings_that_do_nothing_to_images_are_named(run, caplog):
    predict = ["predict", str(run), "--quiet"]
    with caplog.at_level(logging.WARNING):
        assert cli.main([*predict, "--set", "batch_size=3", "--set", "readers=2"]) == 0
        assert cli.main(["heatmap", str(run), "--quiet", "--set", "maps_per_class=1"]) == 0
        assert cli.main(["evaluate", str(run), "--quiet", "--set", "bootstrap=20"]) == 0
    assert not caplog.messages
    for stage, keys in {
        "predict": ["compiler=inductor"],
        "heatmap": ["overlap=max", "dense_step_px=8"],
        "evaluate": ["rates=[1.0]", "top_k=3"],
    }.items():
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            given = [part for key in keys for part in ("--set", key)]
            assert cli.main([stage, str(run), "--quiet", *given]) == 0
        (message,) = caplog.messages
        assert message.startswith("no effect on a folder of images: ")
        names = message.partition(": ")[2].split(", ")
        assert sorted(names) == sorted(f"{stage}.{key.partition('=')[0]}" for key in keys)


def test_a_faster_precision_is_compared_with_fp32(run, caplog):
    about = run / "scores" / "patchnet" / "images.json"
    predict = ["predict", str(run), "--quiet", "--overwrite", "--set", "compiler=none", "--set"]
    assert cli.main([*predict, "precision=fp32"]) == 0
    assert json.loads(about.read_text())["precision_check"] is None
    given = ["precision=bf16", "--set"]
    with caplog.at_level(logging.WARNING):
        assert cli.main([*predict, *given, "tolerance=1.0"]) == 0
        assert not caplog.messages
        assert cli.main([*predict, *given, "tolerance=0.0"]) == 0
    check = json.loads(about.read_text())["precision_check"]
    assert check["n_patches"] == 8
    assert 0 < check["largest_difference"] < 0.05
    (message,) = caplog.messages
    assert "above the tolerance of 0; use --set predict.precision=fp32" in message
