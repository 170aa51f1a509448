"""Two models on the same slides, from the tables that evaluate wrote."""

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.wsi_pipeline.evaluation.test_run_evaluation import cohort, guessing
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.compare import compare_models, compare_pair
from wsi_pipeline.evaluation.compare_slides import read_evaluated_slides
from wsi_pipeline.evaluation.run_evaluation import evaluate_run

SETTINGS = EvaluateConfig(bootstrap=0)
FIGURES = {
    "patch.roc_auc", "slide.roc_auc", "slide.average_precision",
    "froc_camelyon16.score", "froc_patch.score",
}  # fmt: skip


def compare_evaluations(a, b, **settings):
    return compare_pair(read_evaluated_slides(a), read_evaluated_slides(b), **settings)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A good model and one that guesses, on ten slides."""
    folder = tmp_path_factory.mktemp("run")
    metrics = {}
    for name, slides in (("good", cohort(10)), ("guess", guessing(cohort(10)))):
        metrics[name] = evaluate_run(slides, settings=SETTINGS, out=folder / name, model=name)
    return folder, metrics


def test_figures_are_those_of_metrics_json(models):
    folder, metrics = models
    result = compare_evaluations(folder / "good", folder / "guess", replicates=50)
    assert set(result["figures"]) == FIGURES
    assert (result["first"], result["second"], result["n_slides"]) == ("good", "guess", 10)
    for name, figure in result["figures"].items():
        section, key = name.split(".")
        assert figure["first"] == pytest.approx(metrics["good"][section][key])
        assert figure["second"] == pytest.approx(metrics["guess"][section][key])
        assert figure["difference"] == pytest.approx(figure["first"] - figure["second"])
        if f"{name}.difference_ci95" not in result["undefined"]:
            low, high = figure["difference_ci95"]
            assert low <= figure["difference"] <= high
    assert result["figures"]["patch.roc_auc"]["method"] == "percentile bootstrap by patient"
    json.dumps(result, allow_nan=False)


def test_a_good_model_differs_from_guessing_and_none_from_itself(models):
    folder, _ = models
    better = compare_evaluations(folder / "good", folder / "guess", replicates=200)
    patch = better["figures"]["patch.roc_auc"]
    assert patch["difference_ci95"][0] > 0
    assert patch["p_value"] == pytest.approx(2 / (patch["n_used"] + 1))
    same = compare_evaluations(folder / "good", folder / "good", replicates=50)
    for figure in same["figures"].values():
        assert (figure["difference"], figure["p_value"]) == (0, 1)
    assert same["figures"]["slide.roc_auc"]["p_value_delong"] == 1


def test_turning_the_pair_around_turns_the_sign(models):
    folder, _ = models
    there = compare_evaluations(folder / "good", folder / "guess", replicates=60, seed=4)
    back = compare_evaluations(folder / "guess", folder / "good", replicates=60, seed=4)
    for name in FIGURES:
        one, other = there["figures"][name], back["figures"][name]
        assert one["difference"] == -other["difference"]
        assert one["p_value"] == other["p_value"]
        if one["difference_ci95"] is None:
            assert other["difference_ci95"] is None
            continue
        np.testing.assert_allclose(
            one["difference_ci95"], [-v for v in other["difference_ci95"]][::-1]
        )


def test_a_single_patient_has_neither_interval_nor_p_value(tmp_path):
    """Resampling one patient gives that patient every time: [d, d], p = 2 / (B + 1)."""
    for name, slides in (("a", cohort(6, patient="p")), ("b", guessing(cohort(6, patient="p")))):
        given = [replace(s, scores=replace(s.scores, attributes={})) for s in slides]
        evaluate_run(given, settings=SETTINGS, out=tmp_path / name, model=name)
    result = compare_evaluations(tmp_path / "a", tmp_path / "b", replicates=20)
    assert result["n_patients"] == 1
    for figure in result["figures"].values():
        assert figure["difference"] is not None
        assert figure["difference_ci95"] is figure["p_value"] is None
    reason = "1 patient, at least 5 are needed"
    assert result["undefined"]["slide.roc_auc.difference_ci95"] == reason
    assert result["undefined"]["slide.roc_auc.p_value"] == reason


def test_only_common_slides_are_compared_and_the_others_named(models, tmp_path):
    folder, _ = models
    evaluate_run(cohort(6), settings=SETTINGS, out=tmp_path / "few", model="few")
    result = compare_evaluations(folder / "good", tmp_path / "few", replicates=20)
    assert result["n_slides"] == 6
    assert result["left_out"] == ["t6", "t7", "t8", "t9"]
    assert result["figures"]["patch.roc_auc"]["difference"] == 0


def test_one_class_is_undefined_with_a_reason(tmp_path):
    normal = [s for s in cohort(8) if s.split == "test" and not s.label]
    for name in ("a", "b"):
        evaluate_run(normal, settings=SETTINGS, out=tmp_path / name, model=name)
    result = compare_evaluations(tmp_path / "a", tmp_path / "b", replicates=20)
    assert result["figures"]["slide.roc_auc"]["p_value"] is None
    assert result["figures"]["froc_patch.score"]["difference"] is None
    assert set(result["undefined"]) == FIGURES | {"slide.roc_auc.p_value_delong"}
    assert "one class" in result["undefined"]["patch.roc_auc"]


def test_contradictions_and_missing_tables_are_errors(models, tmp_path):
    folder, _ = models
    slides = [replace(s, patient="other") if s.slide_id == "t3" else s for s in cohort(10)]
    evaluate_run(slides, settings=SETTINGS, out=tmp_path / "moved", model="m")
    with pytest.raises(EvaluationError, match=r"slide t3: .* same reference"):
        compare_evaluations(folder / "good", tmp_path / "moved")
    step = replace(SETTINGS, at_rate="step")
    evaluate_run(cohort(10), settings=step, out=tmp_path / "step", model="m")
    with pytest.raises(EvaluationError, match="different ways"):
        compare_evaluations(folder / "good", tmp_path / "step")
    (tmp_path / "moved" / "cohort.csv").unlink()
    with pytest.raises(EvaluationError, match=r"cohort\.csv: cannot be read"):
        compare_evaluations(folder / "good", tmp_path / "moved")


def test_all_pairs_are_written(models, tmp_path):
    folder, _ = models
    compared = [read_evaluated_slides(folder / name) for name in ("good", "guess", "good")]
    pairs = compare_models(compared, out=tmp_path / "comparison.json", replicates=10)
    assert [(p["first"], p["second"]) for p in pairs] == [
        ("good", "guess"), ("good", "good"), ("guess", "good"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "comparison.json").read_text()) == pairs
