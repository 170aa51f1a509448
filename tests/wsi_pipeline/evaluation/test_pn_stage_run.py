"""Classes of nodes from the heatmaps of a run."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import main
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.pn_stage_files import StageOptions, run_stage
from wsi_pipeline.evaluation.pn_stage_run import measure_regions
from wsi_pipeline.heatmaps.files import write_heatmap
from wsi_pipeline.layout import RunFolder

NODES = [f"p{p}_node_{n}" for p in (1, 2) for n in range(2)]


def brute_force(hot, pixel_um):
    """Grow each region pixel by pixel; the longest distance of all pairs of corners."""
    todo, found = {(r, c) for r, c in zip(*np.nonzero(hot), strict=True)}, []
    while todo:
        region, edge = set(), [min(todo)]
        while edge:
            r, c = edge.pop()
            if (r, c) in todo:
                todo.remove((r, c))
                region.add((r, c))
                edge += [(r + a, c + b) for a in (-1, 0, 1) for b in (-1, 0, 1)]
        corners = {(r + a, c + b) for r, c in region for a in (0, 1) for b in (0, 1)}
        found.append(
            max(
                math.hypot((a[1] - b[1]) * pixel_um[0], (a[0] - b[0]) * pixel_um[1])
                for a, b in itertools.product(corners, repeat=2)
            )
        )
    return found


@given(
    st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=5),
    st.sampled_from([(100.0, 100.0), (60.0, 130.0)]),
)
def test_regions_are_measured_as_by_brute_force(rows, pixel_um):
    hot = np.array(rows)
    values = np.where(hot, np.float32(0.75), np.float32(0.74))
    values[~hot & (np.arange(5) % 2 == 0)] = np.nan
    found = measure_regions(values, threshold=0.75, pixel_um=pixel_um)
    assert sorted(found) == pytest.approx(sorted(brute_force(hot, pixel_um)))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    """Four tiled slides of two patients; heatmaps of 100 µm pixels with a bar of known length."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "slides").mkdir()
    for seed, name in enumerate(NODES):
        pixels = tissue(120, 100, seed=seed)
        write_slide(folder / f"slides/{name}.tif", [pixels, halve(pixels)])
    words = ["tile", folder / "slides", "--out", folder / "run", "--set", "patch_px=32"]
    words += [
        "--set",
        "tissue.mpp=2",
        "--set",
        "tissue.min_object_um2=100",
        "--set",
        "store=coords",
    ]
    assert main([*map(str, words), "--quiet"]) == 0
    run = RunFolder(folder / "run")
    for name, n_pixels in zip(NODES, (0, 1, 19, 25), strict=True):
        values = np.full((3, 30), 0.1, np.float32)
        values[1, :n_pixels] = 0.9
        heatmap = Heatmap(values, (200, 200), (6000, 600))
        write_heatmap(run.heatmap("m", name), heatmap, mpp=(0.5, 0.5), name=name)
    return run


def stage(run, tmp_path, **options):
    lines = []
    out = tmp_path / "out"
    options = {"model": "m", "nodes": 2, "run": run.path, **options}
    run_stage(StageOptions(out=out, **options), print_line=lines.append)
    rows = read_csv(out / "stages.csv", error=EvaluationError)
    return {row["patient"]: row["stage"] for row in rows}, lines


def test_nodes_are_classified_by_their_largest_region(run, tmp_path):
    stages, _ = stage(run, tmp_path)
    assert stages == {
        "p1.zip": "pN0(i+)",
        "p1_node_0.tif": "negative",
        "p1_node_1.tif": "itc",  # 141 µm: the diagonal of one pixel
        "p2.zip": "pN1",
        "p2_node_0.tif": "micro",  # 1.9 mm
        "p2_node_1.tif": "macro",  # 2.5 mm
    }
    rows = read_csv(tmp_path / "out/nodes.csv", error=EvaluationError)
    assert float(rows[1]["diameter_um"]) == pytest.approx(100 * 2**0.5)
    assert (rows[0]["n_regions"], rows[0]["diameter_um"], rows[0]["pixel_um"]) == ("0", "", "100.0")
    high, _ = stage(run, tmp_path, threshold=0.95)
    assert {high["p1.zip"], high["p2.zip"]} == {"pN0"}


def test_measured_nodes_are_compared_with_a_reference(run, tmp_path):
    (tmp_path / "r.csv").write_text(
        "patient,stage\np1_node_0.tif,negative\np1_node_1.tif,negative\np2.zip,pN1\n"
    )
    _, lines = stage(run, tmp_path, reference=tmp_path / "r.csv", bootstrap=0)
    assert "nodes, accuracy: 0.5000" in lines
    assert "patients, accuracy: 0.5000" in lines


def test_slides_without_a_heatmap_count_only_on_request(run, tmp_path):
    path = run.heatmap("m", "p2_node_1")
    hidden = path.rename(path.with_suffix(".hidden"))
    try:
        with pytest.raises(EvaluationError, match=r"1 slide without a heatmap by m: p2_node_1"):
            stage(run, tmp_path)
        stages, lines = stage(run, tmp_path, missing="negative")
    finally:
        hidden.rename(path)
    assert stages["p2.zip"] == "pN1mi"
    assert "note: 1 slide without a heatmap, counted as negative: p2_node_1" in lines


def test_a_model_without_heatmaps_is_named(run, tmp_path):
    with pytest.raises(EvaluationError, match=r"no heatmaps of a model 'vgg16'.*heatmaps: m\. Run"):
        stage(run, tmp_path, model="vgg16")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --predictions FILE or --run RUN"),
        (["--predictions", "p.csv", "--run", "r", "--model", "m"], "either --predictions"),
        (["--run", "r"], "--run and --model belong together"),
        (["--predictions", "p.csv", "--threshold", "0.5"], "--threshold is for"),
        (["--run", "r", "--model", "m", "--threshold", "0"], "must be in (0, 1]"),
    ],
)
def test_options_that_contradict_each_other_are_usage_errors(words, message, tmp_path, capsys):
    assert main(["stage", "--out", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", " ").split())
