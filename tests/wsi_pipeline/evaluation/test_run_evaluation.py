"""The evaluate stage: every number in metrics.json recomputed from the tables."""

import csv
import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

from tests.helpers.evaluated_slides import cohort, make_slide, seen
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Detections
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.run_evaluation import evaluate_run
from wsi_pipeline.training.calibration import apply_temperature

SETTINGS = EvaluateConfig(bootstrap=60)
CONTRACT_FILES = {
    "metrics.json", "slides.csv", "patches.csv", "confusion.csv", "froc.json",
    "roc.png", "pr.png", "froc.png", "confusion.png",
}  # fmt: skip

PATCH_FIGURES = {
    "tp", "fp", "fn", "tn", "accuracy", "precision", "recall", "f1", "roc_auc", "average_precision",
}  # fmt: skip
SLIDE_FIGURES = {
    "aggregator", "n", "n_positive", "roc_auc", "roc_auc_ci95", "threshold", "accuracy",
    "sensitivity", "specificity",
}  # fmt: skip


def unsplit(n):
    """A cohort without splits, and scores of a model that has seen none of it."""
    return [
        replace(s, scores=replace(s.scores, attributes={"trained_on": {}}))
        for s in cohort(n, split=None)
    ]


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation")
    metrics = evaluate_run(cohort(), settings=SETTINGS, out=out, model="vgg16")
    assert json.loads((out / "metrics.json").read_text()) == metrics
    return out, metrics


def test_the_files_of_the_contract_are_there_and_nothing_half_written(evaluated):
    out, _ = evaluated
    names = {path.name for path in out.iterdir()}
    assert names >= CONTRACT_FILES
    assert not [name for name in names if name.startswith(".")]
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_metrics_have_the_shape_of_the_contract(evaluated):
    out, metrics = evaluated
    assert metrics["model"] == "vgg16"
    assert metrics["threshold"] == 0.75
    assert metrics["patch"].keys() >= PATCH_FIGURES
    assert metrics["slide"].keys() >= SLIDE_FIGURES
    assert metrics["froc"] == json.loads((out / "froc.json").read_text())
    assert metrics["froc"]["definition"] == "camelyon16"
    assert metrics["froc_patch"]["definition"] == "patch"
    # The largest lesion of each tumour slide is a micrometastasis: nothing is known of the others.
    # The slides are separated perfectly, so resampling them has no variance.
    others = {name for name in metrics["undefined"] if name.split(".")[1] not in ("macro", "itc")}
    assert {metrics["undefined"][name] for name in others} == {
        "all 60 resampled sets give the same value",
        "the ROC AUC is 1, where DeLong's variance is 0",
    }
    assert {name.rsplit("_", 1)[1] for name in others} == {"ci95"}
    assert metrics["notes"] == ["8 unreadable patches without a score left out"]


def test_patch_figures_are_computed_again_by_scikit_learn(evaluated):
    out, metrics = evaluated
    rows = [r for r in read_csv(out / "patches.csv") if r["score"] and r["label"] != "-1"]
    truth = np.array([int(r["label"]) for r in rows])
    score = np.array([float(r["score"]) for r in rows])
    matrix = confusion_matrix(truth, score >= 0.75, labels=[1, 0]).ravel().tolist()
    figures = metrics["patch"]
    assert matrix == [figures[name] for name in ("tp", "fn", "fp", "tn")]
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(truth, score))
    assert figures["average_precision"] == pytest.approx(average_precision_score(truth, score))
    assert (figures["n"], figures["n_ignored"], figures["n_unreadable"]) == (len(rows), 8, 8)
    for name in ("roc_auc", "accuracy", "precision", "recall", "f1"):
        low, high = figures[f"{name}_ci95"]
        assert low <= figures[name] <= high


def test_slide_figures_are_computed_again_from_the_tables(evaluated):
    out, metrics = evaluated
    slides = read_csv(out / "slides.csv")
    assert list(slides[0]) == ["slide_id", "label", "score", "predicted", "tp", "fp", "fn", "tn"]
    patches = defaultdict(list)
    for row in read_csv(out / "patches.csv"):
        patches[row["slide_id"]].append(row)
    truth = np.array([int(r["label"]) for r in slides])
    score = np.array([float(r["score"]) for r in slides])
    figures = metrics["slide"]
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(truth, score))
    assert figures["average_precision"] == pytest.approx(average_precision_score(truth, score))
    predicted = score >= figures["threshold"]
    assert predicted.astype(int).tolist() == [int(r["predicted"]) for r in slides]
    assert figures["accuracy"] == pytest.approx((predicted == truth).mean())
    assert figures["sensitivity"] == pytest.approx(predicted[truth == 1].mean())
    assert figures["specificity"] == pytest.approx((~predicted[truth == 0]).mean())
    for row in slides:
        known = [r for r in patches[row["slide_id"]] if r["score"]]
        assert float(row["score"]) == max(float(r["score"]) for r in known)
        assert int(row["tp"]) == sum(r["label"] == "1" and float(r["score"]) >= 0.75 for r in known)


def test_confusion_has_the_layout_of_the_lecture(evaluated):
    out, metrics = evaluated
    rows = read_csv(out / "confusion.csv")
    last = {r["true"]: r for r in rows if r["slide_id"] == "all"}
    assert list(last) == ["positive", "negative"]
    counts = [
        int(last[true][f"predicted_{guess}"])
        for true in ("positive", "negative")
        for guess in ("positive", "negative")
    ]
    assert counts == [metrics["patch"][name] for name in ("tp", "fn", "fp", "tn")]
    assert len(rows) == 2 * (8 + 1)


def test_the_patch_froc_is_computed_again_from_the_tables(evaluated, oracle):
    out, metrics = evaluated
    label = {r["slide_id"]: int(r["label"]) for r in read_csv(out / "slides.csv")}
    lesions = defaultdict(dict)
    for row in read_csv(out / "lesions_patch.csv"):
        lesions[row["slide_id"]][row["lesion"]] = None
    fps = defaultdict(list)
    for row in read_csv(out / "patches.csv"):
        if row["score"]:
            p = float(row["score"])
            for name in filter(None, row["lesions"].split(";")):
                best = lesions[row["slide_id"]][name]
                lesions[row["slide_id"]][name] = p if best is None else max(p, best)
            if not label[row["slide_id"]]:
                fps[row["slide_id"]].append(p)
    slides = [(fps[s], lesions[s], not label[s]) for s in label]
    points = oracle.curve(slides, denominator="normal")
    froc = metrics["froc_patch"]
    got = [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in froc["curve"]]
    assert got == oracle.corners(points)
    assert froc["n_lesions"] == 8  # lesions without any patch count
    expected = [oracle.read(points, rate, "linear") for rate in (0.25, 0.5, 1, 2, 4, 8)]
    assert list(froc["sensitivity_at"].values()) == pytest.approx(expected)
    assert froc["score"] == pytest.approx(np.mean(expected))


def test_the_lesion_froc_counts_detections_beside_lesions(evaluated):
    _, metrics = evaluated
    froc = metrics["froc_camelyon16"]
    assert (froc["n_slides"], froc["n_normal"], froc["n_lesions"], froc["n_itc"]) == (8, 4, 8, 0)
    expected = 0
    for slide in (s for s in cohort() if s.split == "test"):
        x, y = slide.detections.x, slide.detections.y
        # Growth of 37.5 µm = 150 px does not reach the next patch's centre, 256 px away.
        on_lesion = (x < 2048) & (y < 2048) if slide.label else np.zeros(x.size, bool)
        expected += np.count_nonzero(~on_lesion)
    assert froc["curve"][-1]["avg_fps"] == expected / 8
    assert froc["curve"][-1]["sensitivity"] == 0.5


def test_only_test_slides_are_scored_and_validation_chooses_the_threshold(evaluated):
    out, metrics = evaluated
    assert {r["slide_id"][0] for r in read_csv(out / "slides.csv")} == {"t"}
    assert {r["slide_id"][0] for r in read_csv(out / "validation.csv")} == {"v"}
    assert "4 validation slides" in metrics["slide"]["threshold_source"]
    val = read_csv(out / "validation.csv")
    tumour = [float(r["score"]) for r in val if r["label"] == "1"]
    normal = [float(r["score"]) for r in val if r["label"] == "0"]
    if min(tumour) > max(normal):
        assert metrics["slide"]["threshold"] == (min(tumour) + max(normal)) / 2


def test_the_threshold_does_not_depend_on_the_test_slides(tmp_path):
    a = evaluate_run(cohort(8), settings=SETTINGS, out=tmp_path / "a", model="m")
    b = evaluate_run(cohort(3), settings=SETTINGS, out=tmp_path / "b", model="m")
    assert a["slide"]["threshold"] == b["slide"]["threshold"]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        evaluate_run(cohort(4), settings=SETTINGS, out=tmp_path / name, model="m")
    for path in (p for p in (tmp_path / "a").rglob("*") if p.is_file()):
        name = path.relative_to(tmp_path / "a")
        assert path.read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_without_splits_all_slides_are_evaluated(tmp_path):
    metrics = evaluate_run(unsplit(4), settings=SETTINGS, out=tmp_path, model="m")
    assert metrics["slide"]["n"] == 10
    assert metrics["slide"]["threshold"] == 0.75
    assert any("no slide has a split" in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("split", "first", "noted"),
    [
        ("test", {"t"}, 0),
        ("val", {"v"}, 2),
        ("train", {"x"}, 2),
        ("all", {"t", "v", "x"}, 3),
    ],
)
def test_the_split_that_is_asked_for_is_evaluated(tmp_path, split, first, noted):
    settings = replace(SETTINGS, split=split)
    metrics = evaluate_run(cohort(4), settings=settings, out=tmp_path, model="m")
    rows = read_csv(tmp_path / "slides.csv")
    assert {r["slide_id"][0] for r in rows} == first
    assert metrics["evaluated"] == split
    assert metrics["slide"]["n"] == metrics["localisation"]["n"] == len(rows)
    assert "4 validation slides" in metrics["slide"]["threshold_source"]
    kinds = ("evaluate.split)", "too optimistic", "no test: the model was trained on 2 patients")
    known = [note for note in metrics["notes"] if any(kind in note for kind in kinds)]
    assert len(known) == noted
    assert ("no test" in " ".join(known)) == (split in ("train", "all"))


def test_a_split_without_slides_is_an_error(tmp_path):
    slides = [s for s in cohort(4) if s.split != "train"]
    with pytest.raises(EvaluationError, match=r"is in the split train; .*evaluate\.split"):
        evaluate_run(slides, settings=replace(SETTINGS, split="train"), out=tmp_path, model="m")


def test_validation_slides_that_were_trained_on_are_no_validation(tmp_path):
    slides = seen(cohort(4), train_slides=["v1"])
    with pytest.raises(EvaluationError, match=r"trained on 1 patient .*: v1; .*the split val"):
        evaluate_run(slides, settings=replace(SETTINGS, split="val"), out=tmp_path, model="m")


def test_outlines_of_other_splits_are_counted_and_named(tmp_path):
    slides = [replace(s, localisation=None) for s in cohort(4)]
    elsewhere = {"train": ["x1"], "val": [f"v{i}" for i in range(7)]}
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m", elsewhere=elsewhere)
    assert metrics["localisation"]["elsewhere"] == {"train": 1, "val": 7}
    assert (
        "1 outlined slide is in the split train, which is not evaluated: x1; set "
        "evaluate.split=train to compare their maps"
    ) in metrics["notes"]
    assert any("v0, v1, v2, v3, v4 and 2 more; set" in note for note in metrics["notes"])


def test_one_class_gives_null_with_reasons(tmp_path):
    slides = [make_slide(f"n{i}", tumour=False) for i in range(3)]
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert metrics["slide"]["roc_auc"] is None
    assert metrics["patch"]["recall"] is None
    assert metrics["froc"]["score"] is None
    assert set(metrics["undefined"]) >= {
        "patch.roc_auc", "patch.recall", "slide.roc_auc", "slide.roc_auc_ci95",
        "slide.sensitivity", "froc_camelyon16.score", "froc_patch.score",
    }  # fmt: skip
    nulls = {
        f"{section}.{name}"
        for section in ("patch", "slide")
        for name, value in metrics[section].items()
        if value is None
    }
    assert nulls <= set(metrics["undefined"])


def test_no_bootstrap_gives_null_with_a_reason(tmp_path):
    settings = replace(SETTINGS, bootstrap=0)
    metrics = evaluate_run(cohort(4), settings=settings, out=tmp_path, model="m")
    assert metrics["slide"]["roc_auc_ci95"] is None
    assert "bootstrap" in metrics["undefined"]["slide.roc_auc_ci95"]
    assert metrics["froc"]["score_ci95"] is None


def test_a_slide_without_any_score_is_counted_apart(tmp_path):
    slides = cohort(4)
    blind = replace(
        slides[0], scores=replace(slides[0].scores, scores=np.full(100, np.nan, np.float32))
    )
    metrics = evaluate_run([blind, *slides[1:]], settings=SETTINGS, out=tmp_path, model="m")
    assert (metrics["slide"]["n"], metrics["slide"]["n_unscored"]) == (3, 1)
    row = read_csv(tmp_path / "slides.csv")[0]
    assert (row["score"], row["predicted"]) == ("", "")


def test_a_tumour_slide_known_by_label_only_is_left_out_of_froc_and_noted(tmp_path):
    slides = cohort(4)
    slides[1] = replace(
        slides[1], annotation=None, lesion_ids=[], lesion_pairs=np.zeros((0, 2), np.int64)
    )
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert metrics["froc"]["n_slides"] == 3
    assert metrics["slide"]["n"] == 4
    assert any("t1" in note for note in metrics["notes"])


def test_a_label_may_come_from_the_annotation_and_slides_without_either_are_left_out(tmp_path):
    slides = [replace(s, label=None) for s in cohort(4)]
    slides.append(replace(make_slide("u", tumour=False), label=None, annotation=None))
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert (metrics["slide"]["n"], metrics["slide"]["n_positive"]) == (4, 2)
    assert any("neither label nor annotation" in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 0}, "t1 has label 0 but its annotation holds a lesion"),
        ({"patch_labels": np.zeros(3, np.int8)}, "100 scores for 3 patches"),
        (
            {"detections": Detections(np.array([6500]), np.array([0]), np.array([0.5]))},
            "t1: the detection at x 6500, y 0 lies outside",
        ),
    ],
)
def test_slides_that_contradict_themselves_are_refused(tmp_path, changes, message):
    slides = cohort(4)
    slides[1] = replace(slides[1], **changes)
    with pytest.raises(EvaluationError, match=message):
        evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")


def test_nothing_to_evaluate_is_an_error(tmp_path):
    slides = [make_slide(f"x{i}", tumour=True, split="train") for i in range(2)]
    with pytest.raises(EvaluationError, match="none of 2 slides"):
        evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")


@pytest.mark.parametrize("aggregator", ["mean", "top_k", "mean_pool_max", "span"])
def test_other_aggregators_are_written_down(tmp_path, aggregator):
    settings = replace(SETTINGS, aggregator=aggregator, bootstrap=0, froc_definition="patch")
    metrics = evaluate_run(cohort(4), settings=settings, out=tmp_path, model="m")
    assert metrics["slide"]["aggregator"] == aggregator
    assert metrics["slide"]["roc_auc"] is not None
    assert metrics["froc"]["definition"] == "patch"


def guessing(slides):
    """The same slides with a model that knows nothing."""
    random = np.random.default_rng(0)
    return [
        replace(s, scores=replace(s.scores, scores=random.random(100).astype(np.float32)))
        for s in slides
    ]


def test_patients_are_resampled_as_one(tmp_path):
    """Resampling one patient with all slides gives that patient every time."""
    apart = evaluate_run(guessing(cohort(6)), settings=SETTINGS, out=tmp_path / "a", model="m")
    slides = guessing(cohort(6, patient="p"))
    as_one = evaluate_run(slides, settings=SETTINGS, out=tmp_path / "b", model="m")
    for section, figure in (("slide", "roc_auc"), ("patch", "roc_auc"), ("froc_patch", "score")):
        value, name = as_one[section][figure], f"{figure}_ci95"
        assert value is not None
        assert as_one[section].get(name) is None
        assert apart[section][name][1] - apart[section][name][0] > 0.01
    assert apart["froc"]["bootstrap"]["unit"] == "patient"
    assert any("1 patient, at least 5" in note for note in as_one["notes"])
    assert as_one["undefined"]["slide.accuracy_ci95"] == "1 patient, at least 2 are needed"


# ------------------------------------------------------------ calibration, sweep, errors


def pooled(path):
    rows = [r for r in read_csv(path) if r["score"] and r["label"] != "-1"]
    return np.array([int(r["label"]) for r in rows]), np.array([float(r["score"]) for r in rows])


def test_the_temperature_is_fitted_on_validation_and_applied_to_test(evaluated):
    out, metrics = evaluated
    figures = metrics["calibration"]
    labels, scores = pooled(out / "patches.csv")
    val_labels, val_scores = pooled(out / "validation_patches.csv")
    assert (figures["n"], figures["n_val"]) == (labels.size, val_labels.size)

    def loss(t, labels=val_labels, scores=val_scores):
        p = apply_temperature(scores, t)
        return -np.mean(np.log(np.where(labels == 1, p, 1 - p)))

    best = figures["temperature"]
    assert loss(best) <= min(loss(best * 1.01), loss(best / 1.01))
    scaled = apply_temperature(scores, best)
    for suffix, p in (("", scores), ("_calibrated", scaled)):
        assert figures[f"brier{suffix}"] == pytest.approx(np.mean((p - labels) ** 2))
        bins = np.minimum((p * 15).astype(int), 14)
        gaps = [abs(np.sum(labels[bins == b]) - np.sum(p[bins == b])) for b in np.unique(bins)]
        assert figures[f"ece{suffix}"] == pytest.approx(sum(gaps) / labels.size)
    rows = read_csv(out / "calibration.csv")
    assert sum(int(r["n"]) for r in rows) == sum(int(r["calibrated_n"]) for r in rows)
    assert sum(int(r["n"]) for r in rows) == labels.size


def test_without_validation_there_is_no_temperature_and_a_reason(tmp_path):
    metrics = evaluate_run(unsplit(4), settings=SETTINGS, out=tmp_path, model="m")
    assert metrics["calibration"]["temperature"] is None
    assert metrics["calibration"]["ece_calibrated"] is None
    assert metrics["calibration"]["ece"] is not None
    assert "no labelled validation patch" in metrics["undefined"]["calibration.temperature"]


def test_the_sweep_holds_the_confusion_at_the_threshold(evaluated):
    out, metrics = evaluated
    (row,) = (r for r in read_csv(out / "sweep.csv") if float(r["threshold"]) == 0.75)
    for name in ("tp", "fp", "fn", "tn"):
        assert int(row[name]) == metrics["patch"][name]
    for name in ("accuracy", "precision", "recall", "f1"):
        assert float(row[name]) == pytest.approx(metrics["patch"][name])


def test_the_worst_errors_are_listed_with_their_pixels(tmp_path):
    asked = []

    def read_patch(slide_id, patch):
        asked.append((slide_id, patch))
        return np.full((4, 4, 3), patch, np.uint8)

    out = tmp_path / "m"
    metrics = evaluate_run(cohort(), settings=SETTINGS, out=out, model="m", read_patch=read_patch)
    rows = read_csv(out / "errors.csv")
    false = [r for r in rows if r["kind"] == "false_positive"]
    missed = [r for r in rows if r["kind"] == "missed_lesion"]
    negatives = sorted(
        (float(r["score"]) for r in read_csv(out / "patches.csv")
         if r["label"] == "0" and r["score"] and float(r["score"]) >= 0.75),
        reverse=True,
    )  # fmt: skip
    assert [float(r["score"]) for r in false] == negatives[:12]
    assert metrics["errors"]["n_false_positives"] == len(negatives) == metrics["patch"]["fp"]
    assert [(r["slide_id"], r["lesion"], r["picture"]) for r in missed[:4]] == [
        (f"t{i}", "2", "") for i in (1, 3, 5, 7)
    ]  # no patch lies on them
    named = {r["picture"] for r in rows} - {""}
    assert named == {f"errors/{p.name}" for p in (out / "errors").iterdir()}
    assert len(asked) == len(named)


# ------------------------------------------------------------ localisation, patients, sizes


def test_localisation_is_averaged_over_slides(evaluated):
    out, metrics = evaluated
    rows = read_csv(out / "localisation.csv")
    figures = metrics["localisation"]
    assert (figures["n"], figures["skipped"], figures["recall_skipped"]) == (8, 0, 4)
    for column, name in (
        ("exact_match", "average_exact_match"),
        ("recall", "average_recall"),
        ("roc_auc", "average_roc_auc"),
    ):
        known = [float(r[column]) for r in rows if r[column]]
        assert figures[name] == pytest.approx(np.mean(known))


def test_patients_are_judged_by_their_most_suspicious_slide(tmp_path):
    slides = [
        replace(s, patient=f"p{int(s.slide_id[1:]) // 2}" if s.split == "test" else s.patient)
        for s in guessing(cohort(12))
    ]
    slides = [replace(s, patient=s.patient if s.slide_id != "t1" else "q") for s in slides]
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    by_slide = {r["slide_id"]: r for r in read_csv(tmp_path / "slides.csv")}
    rows = read_csv(tmp_path / "patients.csv")
    for row in rows:
        own = [by_slide[s] for s in row["slides"].split(";")]
        assert float(row["score"]) == max(float(s["score"]) for s in own)
        assert row["label"] == max(s["label"] for s in own)
        assert row["predicted"] == max(s["predicted"] for s in own)
    assert metrics["patient"]["n"] == len(rows) == 7
    truth, score = [int(r["label"]) for r in rows], [float(r["score"]) for r in rows]
    assert metrics["patient"]["roc_auc"] == pytest.approx(roc_auc_score(truth, score))


def test_micrometastases_are_set_against_the_normal_slides(evaluated):
    out, metrics = evaluated
    figures = metrics["metastasis"]
    assert (figures["micro"]["n"], figures["macro"]["n"], figures["n_normal"]) == (4, 0, 4)
    assert figures["micro"]["roc_auc"] == metrics["slide"]["roc_auc"]
    assert figures["micro"]["sensitivity"] == metrics["slide"]["sensitivity"]
    assert figures["macro"]["roc_auc"] is None
    assert metrics["undefined"]["metastasis.macro.roc_auc"] == "no macro slide"
    assert metrics["undefined"]["metastasis.macro.sensitivity"] == "no macro slide"
    rows = {r["slide_id"]: r for r in read_csv(out / "cohort.csv")}
    diagonal = np.hypot(2048, 2048) * 0.25
    assert float(rows["t1"]["largest_lesion_um"]) == pytest.approx(diagonal)
    assert (rows["t0"]["metastasis"], rows["t1"]["metastasis"]) == ("", "micro")


def test_bands_hold_the_curves_where_the_slides_are_alike(evaluated):
    out, metrics = evaluated
    for of in ("patches", "slides"):
        band = [r for r in read_csv(out / "roc_band.csv") if r["of"] == of]
        assert len(band) == 101
        assert all(0 <= float(r["low"]) <= float(r["high"]) <= 1 for r in band)
    for name in ("camelyon16", "patch"):
        band = read_csv(out / f"froc_{name}_band.csv")
        assert [float(r["avg_fps"]) for r in band] == metrics[f"froc_{name}"]["band"]["avg_fps"]
        at_8 = metrics[f"froc_{name}"]["bootstrap"]["sensitivity_at_ci95"]["8"]
        assert [float(band[-1]["low"]), float(band[-1]["high"])] == at_8
