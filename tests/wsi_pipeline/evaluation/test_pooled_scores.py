"""Held-out scores of several runs, pooled."""

import pytest

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.pooled_scores import (
    auc_interval,
    auc_within_runs,
    figures_of,
    main,
    pool_scores,
)

HEAD = "image_id,patient,split,class,label,score,logit,predicted\n"


def write(run, *rows):
    path = run / "scores" / "net" / "images.csv"
    path.parent.mkdir(parents=True)
    path.write_text(HEAD + "".join(f"{row}\n" for row in rows))
    return run


def test_runs_of_one_class_each_are_pooled(tmp_path):
    one = write(tmp_path / "1", "a,p,test,t,1,0.9,2,1", "b,p,test,t,1,0.4,-1,0")
    two = write(tmp_path / "2", "c,q,test,n,0,0.6,1,1", "d,q,test,n,0,,,", "e,q,train,n,0,0.1,-2,0")
    figures = figures_of(pool_scores([one, two], "net"))
    assert figures["accuracy"] == pytest.approx(1 / 3)
    assert (figures["sensitivity"], figures["specificity"], figures["AUC"]) == (0.5, 0.0, 0.5)
    assert figures_of(pool_scores([one], "net"))["AUC"] is None


def test_an_image_tested_twice_is_refused(tmp_path):
    runs = [write(tmp_path / n, "a,p,test,t,1,0.9,2,1") for n in "12"]
    with pytest.raises(EvaluationError, match="tested in two runs"):
        pool_scores(runs, "net")


def rows_of(patients, shift, split="test"):
    """Two images of each patient, one of each class; the positive one scores 0.2 higher."""
    for patient in patients:
        low = shift + 0.01 * int(patient[1:])
        for label, score in enumerate((low, low + 0.2)):
            yield f"{patient}{label},{patient},{split},c,{label},{score:.2f},0,1"


def test_runs_of_another_scale_mix_when_pooled_but_not_within_runs(tmp_path):
    runs = [
        write(tmp_path / "1", *rows_of(["p1", "p2", "p3"], 0.1)),
        write(tmp_path / "2", *rows_of(["p4", "p5", "p6"], 0.5)),
    ]
    pooled = pool_scores(runs, "net")
    assert auc_within_runs(pooled) == 1
    auc = figures_of(pooled)["AUC"]
    assert auc == 27 / 36  # a positive of run 1 is below each negative of run 2
    interval = auc_interval(pooled)
    assert interval.low <= auc < interval.high == 1


def test_settings_are_compared_on_the_validation_images(tmp_path, capsys):
    rows = [*rows_of(["p1"], 0.1), *rows_of([f"p{n}" for n in range(2, 8)], 0.1, "val")]
    run = write(tmp_path / "1", *rows)
    assert len(pool_scores([run], "net").labels) == 2
    assert len(pool_scores([run], "net", split="val").labels) == 12
    assert main([str(run), "--split", "val"]) == 0
    name, n, *_, within = capsys.readouterr().out.splitlines()[1].split()
    assert (name, n, within) == ("net", "12", "1.000")


def test_few_patients_give_no_interval(tmp_path):
    pooled = pool_scores([write(tmp_path / "1", *rows_of(["p1", "p2"], 0.1))], "net")
    assert auc_interval(pooled) is None
