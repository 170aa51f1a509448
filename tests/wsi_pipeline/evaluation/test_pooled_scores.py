"""Held-out scores of several runs, pooled."""

import pytest

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.pooled_scores import figures_of, pool_scores

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
