"""The scores that `evaluate_run` refuses together, or on patients of the training."""

from dataclasses import replace

import pytest

from tests.helpers.evaluated_slides import cohort, seen
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.run_evaluation import evaluate_run

SETTINGS = EvaluateConfig(bootstrap=60)


@pytest.mark.parametrize("split", ["test", None])
@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"train_patients": ["someone", "t2"]}, "trained on 1 patient that .*: t2;"),
        ({"train_slides": ["t2", "t0"]}, "trained on 2 patients that .*: t0, t2;"),
        ({"val_patients": ["t1"]}, "validated on 1 patient that .*: t1;"),
    ],
)
def test_a_patient_that_the_model_has_seen_is_refused(tmp_path, split, lists, message):
    slides = seen([replace(s, split=split) for s in cohort(4) if s.split == "test"], **lists)
    with pytest.raises(EvaluationError, match=message):
        evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert not list(tmp_path.iterdir())


def test_scores_without_the_slides_of_the_training_are_noted(tmp_path):
    slides = [replace(s, scores=replace(s.scores, attributes={})) for s in cohort(4)]
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert any("leaks could not be checked" in note for note in metrics["notes"])


def test_validation_slides_that_were_trained_on_are_noted(tmp_path):
    slides = seen(cohort(4), train_slides=["v1"])
    metrics = evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="m")
    assert any("too optimistic: v1" in note for note in metrics["notes"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"checkpoint": "abc"}, {"checkpoint": "abc", "temperature": 2.5}),
        ({"checkpoint": "abc"}, {"checkpoint": "def"}),
    ],
    ids=["calibrated-and-plain", "two-checkpoints"],
)
def test_scores_of_two_kinds_are_not_evaluated_together(one, other, tmp_path):
    """A threshold chosen on plain scores of val was applied to calibrated ones of test."""
    slides = [
        replace(s, scores=replace(s.scores, attributes=one if s.split == "val" else other))
        for s in cohort()
    ]
    with pytest.raises(EvaluationError, match=r"2 kinds.* plain: v0, v1") as raised:
        evaluate_run(slides, settings=SETTINGS, out=tmp_path, model="vgg16")
    if "temperature" in other:
        assert "calibrated (temperature 2.5): t0" in str(raised.value)
    assert not list(tmp_path.iterdir())
