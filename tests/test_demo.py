"""The README's first command: every stage on the drawn cohort, honestly learned."""

import csv
import json
import os
import subprocess
import sys

import pytest
from sklearn.metrics import roc_auc_score


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(1800)
def test_the_demo_learns_and_ends_with_its_report(tmp_path):
    """Both rank patches well, and miss lesions; the ROC AUC is computed from the table, too."""
    out = tmp_path / "demo"
    code = "import sys; from wsi_pipeline.cli.app import main; sys.exit(main(sys.argv[1:]))"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(out / "report.html")
    assert (out / "report.html").is_file()

    auc, froc = {}, {}
    for model in ("vgg16", "patchnet"):
        with (out / "evaluation" / model / "patches.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["label"] != "-1"]
        auc[model] = roc_auc_score(
            [int(row["label"]) for row in rows], [float(row["score"]) for row in rows]
        )
        metrics = json.loads((out / "evaluation" / model / "metrics.json").read_text())
        assert metrics["patch"]["roc_auc"] == pytest.approx(auc[model])
        for name in ("camelyon16", "patch"):
            path = out / "evaluation" / model / f"froc_{name}.json"
            froc[model, name] = json.loads(path.read_text())["score"]
    assert auc["vgg16"] >= 0.9
    assert auc["patchnet"] >= 0.8
    assert min(froc.values()) > 0.3
    assert min(froc.values()) < 0.95, "no lesion is hard to find"
