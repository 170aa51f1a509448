"""Stages of patients and weighted kappa: the published rule, scikit-learn, CAMELYON17's labels."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from tests.helpers.real_data import real_data
from wsi_pipeline.cli.app import main
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.pn_stage import (
    NODE_CLASSES,
    STAGES,
    count_pairs,
    quadratic_kappa,
    resampled_kappa,
    stage_patient,
)
from wsi_pipeline.evaluation.pn_stage_files import StageOptions, run_stage

# ------------------------------------------------------------ the rule


def stage_by_the_text(nodes):
    """The rule as the challenge words it, sentence by sentence."""
    n_macro, n_micro, n_itc = (nodes.count(name) for name in ("macro", "micro", "itc"))
    stages = []
    if n_macro == n_micro == n_itc == 0:
        stages.append("pN0")
    if n_itc > 0 and n_macro == n_micro == 0:
        stages.append("pN0(i+)")
    if n_micro > 0 and n_macro == 0:
        stages.append("pN1mi")
    if 1 <= n_macro + n_micro <= 3 and n_macro >= 1:
        stages.append("pN1")
    if 4 <= n_macro + n_micro <= 9 and n_macro >= 1:
        stages.append("pN2")
    return stages


def test_every_five_nodes_have_the_one_stage_that_the_text_allows():
    for nodes in itertools.product(NODE_CLASSES, repeat=5):
        assert [stage_patient(nodes)] == stage_by_the_text(nodes)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (["macro"] * 10, "10 metastatic nodes"),
        ([], "no node"),
        (["macro", "huge"], "got huge"),
    ],
)
def test_nodes_that_have_no_stage(nodes, message):
    with pytest.raises(EvaluationError, match=message):
        stage_patient(nodes)


# ------------------------------------------------------------ kappa


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_kappa_is_scikit_learns(pairs):
    reference, predicted = ([STAGES[i] for i in column] for column in zip(*pairs, strict=True))
    kappa = float(quadratic_kappa(count_pairs(reference, predicted, STAGES)))
    if len({*reference, *predicted}) == 1:
        assert np.isnan(kappa)
    else:
        expected = cohen_kappa_score(reference, predicted, labels=list(STAGES), weights="quadratic")
        assert kappa == pytest.approx(expected, abs=1e-12)


def test_a_replicate_has_the_kappa_of_its_rows():
    random = np.random.default_rng(0)
    reference, predicted = random.choice(NODE_CLASSES, (2, 30)).tolist()
    rows = random.integers(30, size=(20, 30))
    weights = np.array([np.bincount(drawn, minlength=30) for drawn in rows])
    expected = [
        cohen_kappa_score(
            *(np.array(side)[drawn] for side in (reference, predicted)),
            labels=list(NODE_CLASSES),
            weights="quadratic",
        )
        for drawn in rows
    ]
    np.testing.assert_allclose(
        resampled_kappa(reference, predicted, NODE_CLASSES, weights), expected
    )


# ------------------------------------------------------------ files


def patient(name, classes, stage=None, suffix=".tif"):
    rows = [f"{name}.zip,{stage}"] if stage else []
    return rows + [f"{name}_node_{i}{suffix},{value}" for i, value in enumerate(classes.split())]


@pytest.fixture
def stage(tmp_path):
    """Run the command's function on rows; returns metrics, lines, and the rows of stages.csv."""

    def run(predictions, reference=None, header="patient,stage", **options):
        paths = {}
        for name, rows in (("predictions", predictions), ("reference", reference)):
            if rows is not None:
                paths[name] = tmp_path / f"{name}.csv"
                paths[name].write_text("\n".join([*([header] if header else []), *rows]) + "\n")
        lines = []
        out = tmp_path / "out"
        run_stage(StageOptions(out=out, **paths, **options), print_line=lines.append)
        metrics = json.loads((out / "metrics.json").read_text())
        return metrics, lines, read_csv(out / "stages.csv", error=EvaluationError)

    return run


A = "negative itc micro macro negative"
B = "negative negative negative negative itc"


def test_stages_from_nodes_alone(stage):
    metrics, lines, rows = stage([*patient("p1", A), *patient("p2", B)])
    stages = {row["patient"]: row["stage"] for row in rows}
    assert (stages["p1.zip"], stages["p2.zip"], stages["p1_node_3.tif"]) == (
        "pN1",
        "pN0(i+)",
        "macro",
    )
    assert metrics["patient"]["kappa"] is None
    assert metrics["undefined"]["patient.kappa"] == "no reference"
    assert "predicted stages: pN0 0, pN0(i+) 1, pN1mi 0, pN1 1, pN2 0" in lines


def test_a_small_cohort_by_hand(stage):
    reference = [*patient("p1", A, "pN1"), *patient("p2", B, "pN0(i+)")]
    predicted = [*patient("P1", A, suffix=".svs"), *patient("p2", B.replace("itc", "MACRO"))]
    metrics, _, rows = stage(predicted, reference, bootstrap=0)
    assert metrics["node"]["accuracy"] == 0.9
    assert metrics["node"]["confusion"] == [[6, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert metrics["patient"]["confusion"][1] == [0, 0, 0, 1, 0]
    assert metrics["patient"]["kappa"] == 0.0
    assert metrics["patient"]["kappa_ci95"] is None
    assert metrics["bootstrap"] is None
    assert rows[6] == {"patient": "p2.zip", "stage": "pN1", "reference": "pN0(i+)"}


def test_what_stages_csv_holds_can_be_read_again(stage, tmp_path):
    stage([*patient("p1", A), *patient("p2", B)])
    again = (tmp_path / "out/stages.csv").read_text()
    _, _, rows = stage(again.splitlines()[1:], header="patient,stage,reference")
    assert (tmp_path / "out/stages.csv").read_text() == again
    assert len(rows) == 12


def test_a_stage_that_is_given_counts_even_against_its_nodes(stage):
    """The challenge compares the stages that were submitted."""
    reference = patient("p1", A, "pN1")
    metrics, lines, _ = stage(patient("p1", B, "pN1"), reference)
    assert metrics["patient"]["confusion"][3] == [0, 0, 0, 1, 0]
    assert any("p1 (pN1, by its nodes pN0(i+))" in line for line in lines)


def test_stages_without_nodes_are_compared_by_patient_only(stage):
    metrics, _, _ = stage(["p1.zip,pN0", "p2.zip,pN2"], ["p1.zip,pN0", *patient("p2", A)])
    assert metrics["patient"]["accuracy"] == 0.5
    assert metrics["undefined"]["node.kappa"] == "no nodes in the predictions"


def test_one_stage_everywhere_has_no_kappa(stage):
    metrics, _, _ = stage(["p1.zip,pN0"], ["p1.zip,pN0"])
    assert metrics["patient"]["kappa"] is None
    assert "one and the same class" in metrics["undefined"]["patient.kappa"]
    assert metrics["patient"]["accuracy"] == 1


def test_missing_nodes_count_as_negative_only_on_request(stage):
    reference = patient("p1", "macro macro macro macro macro")
    predicted = patient("p1", "macro macro macro")
    with pytest.raises(EvaluationError, match=r"2 nodes without a prediction: p1_node_3, p1_node"):
        stage(predicted, reference)
    metrics, lines, rows = stage(predicted, reference, missing="negative")
    assert metrics["node"]["confusion"][3] == [2, 0, 0, 3]
    assert rows[0]["stage"] == "pN1"  # pN2 in the reference
    assert any("counted as negative: p1_node_3, p1_node_4" in line for line in lines)
    _, lines, rows = stage(predicted, missing="negative")
    assert [row["stage"] for row in rows] == ["pN1", "macro", "macro", "macro"]
    assert any("p1 (3)" in line for line in lines)


def test_other_numbers_of_nodes_on_request(stage):
    predicted = [*patient("p1", "macro"), *patient("p2", "micro itc")]
    with pytest.raises(EvaluationError, match=r"2 patients without exactly 5 nodes: p1 \(1\), p2"):
        stage(predicted)
    _, _, rows = stage(predicted, nodes=0)
    assert [row["stage"] for row in rows if row["patient"].endswith(".zip")] == ["pN1", "pN1mi"]


def test_patients_that_the_reference_lacks_are_left_out(stage):
    metrics, lines, rows = stage([*patient("p1", A), *patient("p9", A)], patient("p1", A))
    assert metrics["patient"]["n"] == 1
    assert len(rows) == 6
    assert "note: 1 patient not in the reference, left out: p9" in lines


@pytest.mark.parametrize("header", ["patient,stage", "id,Stage,Patient", None])
def test_columns_anywhere_or_no_header(stage, header):
    rows = patient("p1", A)
    if header and header.startswith("id"):
        rows = [",".join(["7", *reversed(row.split(","))]) for row in rows]
    assert stage(rows, header=header)[2][0]["stage"] == "pN1"


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        ([*patient("p1", A)[:4], "p1_node_4.tif,huge"], None, "line 6.*macro, got 'huge'"),
        ([*patient("p1", A)[:4], "p1_node_4.tif,pN1"], None, "node 'p1_node_4.tif' must be"),
        ([*patient("p1", A)[:4], "p1_node_4.tif,"], None, "the field is empty"),
        (["p1.zip,macro"], None, "patient 'p1.zip' must be one of pN0"),
        (["slide_1.tif,macro"], None, "neither a node .* nor a patient"),
        ([*patient("p1", A), "P1_NODE_3.svs,itc"], None, "line 7: .* already listed on line 5"),
        (["p1.zip,pN1", "p1.zip,pN1"], None, "already listed on line 2"),
        ([], None, "no node and no patient"),
        (patient("p1", A), patient("p2", A), "no prediction of 1 patient in .*: p2"),
        (patient("p1", A), patient("p1", A, "pN2"), r"contradict their nodes: p1 \(pN2, by"),
        ([*patient("p1", A)[:4], "p1_node_9.tif,itc"], patient("p1", A), "p1_node_4 without a"),
        ([*patient("p1", A), "p1_node_9.tif,itc"], patient("p1", A), "1 node not in .*: p1_node_9"),
        (patient("p1", A), patient("p1", "macro macro"), "exactly 5 nodes: p1 .2."),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_right(stage, predicted, reference, message):
    with pytest.raises(EvaluationError, match=message):
        stage(predicted, reference)


def test_more_metastatic_nodes_than_the_stages_have(stage):
    with pytest.raises(EvaluationError, match=r"patient p1: 10 metastatic nodes"):
        stage(patient("p1", " ".join(["macro"] * 10)), nodes=0)


def test_a_file_of_another_kind_is_named(stage):
    with pytest.raises(EvaluationError, match=r"predictions.csv: neither a header.*'slide,score'"):
        stage(["a,0.5"], header="slide,score")


def test_the_command(tmp_path, capsys):
    for name, rows in (("p", patient("p1", A)), ("r", ["p1.zip,pN1"])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["patient,stage", *rows]))
    words = ["stage", "--predictions", tmp_path / "p.csv", "--reference", tmp_path / "r.csv"]
    assert main([*map(str, words), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'metrics.json'}\n"
    assert main([*map(str, words[:3]), "--out", str(tmp_path / "out"), "--nodes", "4"]) == 1
    assert "exactly 4 nodes: p1 (5)" in capsys.readouterr().err


# ------------------------------------------------------------ CAMELYON17


def test_real_predictions_on_camelyon17(tmp_path):
    folder = real_data("camelyon17")
    options = StageOptions(
        predictions=folder / "camelyon17_wangyxcv_predict_train.csv",
        reference=folder / "camelyon17_stage_labels.csv",
        out=tmp_path / "out",
    )
    metrics = run_stage(options, print_line=lambda line: None)
    assert metrics["node"]["kappa"] == pytest.approx(0.7629, abs=5e-5)
    assert metrics["patient"]["kappa"] == pytest.approx(0.8272, abs=5e-5)
    low, high = metrics["patient"]["kappa_ci95"]
    assert low < metrics["patient"]["kappa"] < high
    assert (metrics["node"]["n"], metrics["patient"]["n"]) == (500, 100)


@pytest.mark.parametrize(
    "name", ["stage_labels", "wangyxcv_predict_train", "wangyxcv_predict_test"]
)
def test_the_rule_gives_every_stage_of_camelyon17(name, tmp_path):
    """Three of the labels (patients 17, 26, 80) show that nodes with ITC do not count."""
    path = real_data(f"camelyon17/camelyon17_{name}.csv")
    rows = [row for row in path.read_text().splitlines() if ".zip" not in row]
    (tmp_path / "nodes.csv").write_text("\n".join(rows))
    run_stage(
        StageOptions(predictions=tmp_path / "nodes.csv", out=tmp_path / "out"),
        print_line=lambda line: None,
    )
    found = read_csv(tmp_path / "out/stages.csv", error=EvaluationError)
    stages = {row["patient"]: row["stage"] for row in found if ".zip" in row["patient"]}
    listed = {
        r.split(",")[0]: r.split(",")[1] for r in path.read_text().splitlines() if ".zip" in r
    }
    assert len(listed) == 100
    assert stages == listed
