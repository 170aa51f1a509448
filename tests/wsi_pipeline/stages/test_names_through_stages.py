"""Names of slides, patients and models come out of every stage and file as they went in."""

import csv
import html
import json
import shutil
from pathlib import Path

import defusedxml.ElementTree
import numpy as np
import pytest
import tifffile
import yaml
import zarr
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_cohort import CONFIG, draw_cohort
from tiling.errors import SlideError
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.manifest import read_manifest, read_run_manifest, write_manifest
from wsi_pipeline.contracts import Heatmap, Scores, SlideEntry
from wsi_pipeline.csv_files import guard, read_csv, write_csv
from wsi_pipeline.errors import ManifestError
from wsi_pipeline.evaluation.tables import read_rows
from wsi_pipeline.heatmaps.files import read_heatmap, write_heatmap
from wsi_pipeline.heatmaps.overlays import draw_overlay
from wsi_pipeline.inference.scores import read_scores, write_scores
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.names import MOST_BYTES, find_name_problem
from wsi_pipeline.run.state import clear_mark, mark_finished, unit_state, write_failures
from wsi_pipeline.run.tasks import fail

NAMES = [
    "=1+1'\"", "+a,b;e\u0301", "-x $\\alpha$ [red] #%?&amp;".replace("\\", ""), "@🔬 é :smile: <b>",
    "x" * MOST_BYTES, "日本 %41 {{ 7*7 }}",
]  # fmt: skip
MODEL = "_p$a$ '🔬,=<i>"

accepted = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1, max_size=30
).filter(lambda name: not find_name_problem(name))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run through every stage, of slides and a model with unusual names."""
    folder = tmp_path_factory.mktemp("names")
    draw_cohort(folder / "data")
    rows = read_csv(folder / "data" / "manifest.csv", error=ManifestError)
    with (folder / "data" / "m.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["slide", "slide_id", "patient", "label", "annotation", "split"])
        for row, name in zip(rows, NAMES, strict=True):
            cells = [row["slide"], guard(name), guard(f"={name}")]
            writer.writerow([*cells, row["label"], row["annotation"], row["split"]])
        writer.writerow(["gone.tif", guard("=gone"), "", 0, "", "test"])
    values = yaml.safe_load(CONFIG.format(data=folder / "data", run=folder / "run"))
    values["input"] = str(folder / "data" / "m.csv")
    values["train"] = {MODEL: {**values["train"]["patchnet"]}}
    values["train"][MODEL]["model"]["name"] = "patchnet"
    values["export"] = {"formats": ["qupath", "trident"]}
    (folder / "c.yaml").write_text(yaml.safe_dump(values, allow_unicode=True))
    assert main(["run", str(folder / "c.yaml"), "--quiet"]) == 3  # gone.tif
    return folder


@pytest.mark.slow
class TestAWholeRun:
    def test_files_are_called_as_the_slides(self, folder):
        run = RunFolder(folder / "run")
        assert {p.stem for p in run.tiles.glob("*.zarr")} == set(NAMES)
        scored = set(NAMES[2:])
        for kind, suffix in (("scores", ".h5"), ("heatmaps", ".ome.tif"), ("heatmaps", ".png")):
            there = (p.name for p in (run.path / kind / MODEL).iterdir())
            assert {n.removesuffix(suffix) for n in there if n.endswith(suffix)} == scored, kind
        assert {p.stem for p in (run.path / "exports/qupath" / MODEL).iterdir()} == scored

    def test_tables_name_the_slides(self, folder):
        run = RunFolder(folder / "run")
        entries = {e.slide_id: e for e in read_run_manifest(run)}
        assert set(entries) == {*NAMES, "=gone"}
        assert all(entries[name].patient == f"={name}" for name in NAMES)
        (failure,) = read_csv(run.failures, error=ManifestError)
        assert (failure["slide_id"], failure["stage"]) == ("=gone", "tile")
        evaluated = run.evaluation(MODEL)
        for table in ("slides.csv", "patches.csv", "cohort.csv"):
            found = {row["slide_id"] for row in read_csv(evaluated / table, error=ManifestError)}
            assert found - {"all"} == set(NAMES[4:]), table
        assert {p.stem for p in (evaluated / "detections").iterdir()} == set(NAMES[4:])

    def test_metadata_holds_the_slides(self, folder):
        run = RunFolder(folder / "run")
        for name in NAMES[2:]:
            assert zarr.open_group(run.store(name), mode="r").attrs["slide"]["slide_id"] == name
            assert read_scores(run.scores(MODEL, name)).attributes["slide_id"] == name
            with tifffile.TiffFile(run.heatmap(MODEL, name)) as tiff:
                root = defusedxml.ElementTree.fromstring(tiff.ome_metadata)
            assert root.find("{*}Image").get("Name") == name
        meta = json.loads((run.model(MODEL) / "config.json").read_text())
        assert set(meta["train_slides"]) == set(NAMES[:2])

    def test_the_report_shows_them_and_runs_none(self, folder):
        text = (folder / "run" / "report.html").read_text(encoding="utf-8")
        for name in (*NAMES, MODEL):
            assert (
                html.escape(name, quote=False).replace('"', "&#34;").replace("'", "&#39;") in text
            )
        assert "<b>" not in text.split("</script>")[-1].replace("<body>", "")
        assert "<i>" not in text

    def test_no_cell_is_a_formula(self, folder):
        for path in (folder / "run").rglob("*.csv"):
            with path.open(newline="", encoding="utf-8") as file:
                for cell in (cell for row in csv.reader(file) for cell in row):
                    if cell.startswith(tuple("=+-@\t\r\n")):
                        float(cell)

    def test_it_resumes_and_is_collected(self, folder, tmp_path, capsys):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        RunFolder(tmp_path / "run").overlay(MODEL, NAMES[3]).unlink()
        assert main(["heatmap", str(tmp_path / "run"), "--model", MODEL]) == 0
        assert "1 done, 3 kept from before" in capsys.readouterr().out
        assert main(["collect", str(tmp_path / "run")]) == 3
        assert "6 of 7 slides done, 1 failed (=gone)" in capsys.readouterr().out


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=accepted, model=accepted)
@example(name="x" * MOST_BYTES, model="y" * MOST_BYTES)
@example(name="a.failed", model="shards.1")
@example(name="'=a", model="''=a")
def test_an_accepted_name_survives_every_file(tmp_path_factory, name, model):
    run = RunFolder(tmp_path_factory.mktemp("run"))
    unit = Unit("predict", name, model)

    write_manifest(run.manifest, [SlideEntry(name, run.path / "a.svs", f"{name} p")])
    (entry,) = read_manifest(run.manifest)
    assert (entry.slide_id, entry.patient) == (name, f"{name} p")

    fail(run, unit, SlideError(f"{name}: gone"))
    assert write_failures(run) == 1
    (row,) = read_csv(run.failures, error=ManifestError)
    assert row == {
        "slide_id": name, "stage": "predict", "error": "SlideError", "message": f"{name}: gone",
    }  # fmt: skip
    assert len(list(run.logs.iterdir())) == 1

    scores = Scores(
        np.zeros((1, 2), np.int64), np.zeros(1, np.float32), {"slide_id": name, "model": model}, {}
    )
    write_scores(run.scores(model, name), scores)
    found = read_scores(run.scores(model, name)).attributes
    assert (found["slide_id"], found["model"]) == (name, model)
    assert run.models_with("scores") == [model]

    heatmap = Heatmap(np.zeros((2, 2), np.float32), (8, 8), (16, 16))
    write_heatmap(run.heatmap(model, name), heatmap, mpp=(1.0, 1.0), name=name)
    assert read_heatmap(run.heatmap(model, name)).slide_size == (16, 16)
    with tifffile.TiffFile(run.heatmap(model, name)) as tiff:
        root = defusedxml.ElementTree.fromstring(tiff.ome_metadata)
    assert root.find("{*}Image").get("Name") == name

    mark_finished(run, unit, "f", [run.scores(model, name)])
    assert unit_state(run, unit, "f") == "finished"
    clear_mark(run, unit)
    assert unit_state(run, unit, "f") == "missing"

    write_csv(run.path / "t.csv", ("slide_id",), [(name,)])
    assert [fields for _, fields in read_rows(run.path / "t.csv")] == [["slide_id"], [name]]


@pytest.mark.parametrize("name", [*NAMES, MODEL], ids=ascii)
def test_pictures_take_any_title(tmp_path, name):
    heatmap = Heatmap(np.zeros((2, 2), np.float32), (8, 8), (16, 16))
    draw_overlay(tmp_path / "a.png", heatmap, np.zeros((16, 16, 3), np.uint8), title=name)
