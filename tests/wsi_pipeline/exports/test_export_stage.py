"""The command on a whole run: metrics are recomputed from the files; resuming and failures."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import zarr

from tests.helpers.printed import summaries
from tests.helpers.quick_pictures import quick_pictures
from tests.helpers.tiny_cohort import TUMOUR, draw_cohort
from tiling.files import digest_file
from wsi_pipeline.cli.app import main
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.evaluation.detections import write_detections
from wsi_pipeline.exports import COORDS_ONLY, FORMATS
from wsi_pipeline.heatmaps.files import read_heatmap
from wsi_pipeline.heatmaps.nms import detect, radius_in_px
from wsi_pipeline.inference.scores import read_scores, write_scores
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import read_mark, write_mark
from wsi_pipeline.run.state import clear_mark, record_failure

MPP = 3.0  # by the manifest: the tumour of 140 px is no isolated cell
# Overlapping patches, combined by their maximum, and detections that are not the default ones.
CONFIG = """
input: {data}/manifest.csv
out: {run}
stages: [tile, train, predict]
tile: {{target_mpp: 3.0, patch_px: 32, stride_px: 16, tissue: {{mpp: 12.0}}}}
train:
  patchnet:
    model: {{options: {{m: 5, stride: 5, filters: 4, depth: 2}}}}
    batch_size: 8
    steps_per_epoch: 1
    max_epochs: 1
predict: {{splits: [val, test]}}
heatmap: {{overlap: max}}
evaluate: {{bootstrap: 0, detection_threshold: 0.3, detection_radius_um: 72.0,
           reference_downsample: 4.0}}
"""


def rescore(path: Path, seed: int) -> None:
    """Score patches as a fair model would: high on the tumour, noise, one unreadable."""
    found = read_scores(path)
    rng = np.random.default_rng(seed)
    scores = rng.beta(1, 4, len(found.coords)).astype(np.float32)
    low, high = np.array(TUMOUR).min(axis=0), np.array(TUMOUR).max(axis=0)
    inside = ((found.coords >= low - 16) & (found.coords + 16 < high)).all(axis=1)
    if seed % 2:
        scores[inside] = rng.beta(4, 2, int(inside.sum()))
    scores[7] = np.nan
    found.scores[:] = scores
    write_scores(path, found)


def adopt_scores(run: RunFolder, slide_id: str) -> None:
    """Mark scores as written by predict: edited ones are checked in a process of their own."""
    path, mark = run.scores("patchnet", slide_id), Unit("predict", slide_id, "patchnet")
    name, done = path.relative_to(run.path).as_posix(), read_mark(mark.mark(run, "done"))
    assert done is not None
    assert list(done.files) == [name]
    files, sha256 = {name: path.stat().st_size}, {name: digest_file(path)}
    write_mark(mark.mark(run, "done"), replace(done, files=files, sha256=sha256))


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory) -> Path:
    """A run with heatmaps and figures; not to be changed but for its exports."""
    folder = tmp_path_factory.mktemp("export")
    draw_cohort(folder / "data")
    manifest = folder / "data/manifest.csv"
    head, *rows = manifest.read_text().splitlines()
    manifest.write_text("\n".join([f"{head},mpp", *(f"{row},{MPP}" for row in rows)]) + "\n")
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(data=folder / "data", run=folder / "run"))
    with quick_pictures():
        assert main(["run", str(config), "--quiet"]) == 0
        for number in range(2, 6):
            rescore(folder / f"run/scores/patchnet/s{number}.h5", number)
            adopt_scores(RunFolder(folder / "run"), f"s{number}")
        for stage in ("heatmap", "evaluate"):
            assert main([stage, str(folder / "run"), "--config", str(config), "--quiet"]) == 0
    return folder


@pytest.fixture
def run(scored_run, tmp_path) -> Path:
    """A copy of that run, to be changed."""
    shutil.copytree(scored_run, tmp_path / "copy")
    return tmp_path / "copy/run"


def export(run: Path, name: str, *more: str) -> int:
    return main(["export", str(run), "--format", name, "--quiet", *more])


# ------------------------------------------------------------ metrics recomputed


def count_froc(folder: Path, detections: Path, out: Path) -> dict:
    """Count the FROC of plain files, by the command."""
    reference = out.parent / "reference"
    reference.mkdir(exist_ok=True)
    shutil.copy(folder / "data/s5.xml", reference / "s5.xml")
    (out.parent / "slides.csv").write_text("slide_id,label\ns4,0\ns5,1\n")
    options = {
        "--detections": detections,
        "--reference": reference,
        "--slides": out.parent / "slides.csv",
        "--mpp": MPP,
        "--mask-downsample": 4.0,
        "--out": out,
    }
    words = [str(part) for pair in options.items() for part in pair]
    assert main(["froc", "--definition", "camelyon16", "--quiet", *words]) == 0
    return json.loads((out / "froc.json").read_text())


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "run/evaluation/patchnet/metrics.json").read_text())


def assert_same_froc(again: dict, metrics: dict) -> None:
    ours = metrics["froc"]
    assert ours["n_lesions"] == 1
    last = ours["curve"][-1]  # there is something to be found, and to be wrong about
    assert last["sensitivity"] > 0
    assert last["avg_fps"] > 0
    for name in ("curve", "score", "sensitivity_at", "n_lesions", "n_itc", "n_slides"):
        assert again[name] == ours[name], name


def test_froc_of_the_exported_detections_is_the_runs_own(scored_run, tmp_path):
    detections = tmp_path / "detections"
    assert (
        export(
            scored_run / "run",
            "camelyon16",
            "--set",
            "export.splits=[test]",
            "--out",
            str(detections),
        )
        == 0
    )
    assert sorted(p.name for p in detections.iterdir()) == ["s4.csv", "s5.csv"]
    assert_same_froc(count_froc(scored_run, detections, tmp_path / "out"), read_metrics(scored_run))


@pytest.mark.parametrize("kind", ["ome-tiff", "ome-zarr"])
def test_froc_of_the_heatmap_file_is_the_runs_own(scored_run, tmp_path, kind):
    """The metric of the report can be computed from the heatmap alone, in either format."""
    run = scored_run / "run"
    assert export(run, "ome-zarr", "--out", str(tmp_path / "zarr")) == 0
    for slide_id in ("s4", "s5"):
        ours = read_heatmap(run / f"heatmaps/patchnet/{slide_id}.ome.tif")
        if kind == "ome-tiff":
            values = tifffile.imread(run / f"heatmaps/patchnet/{slide_id}.ome.tif")
        else:
            values = zarr.open_group(tmp_path / f"zarr/{slide_id}.ome.zarr", mode="r")["0"][:]
        np.testing.assert_array_equal(values, ours.values)
        heatmap = Heatmap(values, ours.pixel_l0, ours.slide_size)
        radius = radius_in_px(72.0, heatmap, (MPP, MPP))
        found = detect(heatmap, threshold=0.3, radius_px=radius)
        write_detections(tmp_path / f"detections/{slide_id}.csv", found)
    again = count_froc(scored_run, tmp_path / "detections", tmp_path / "out")
    assert_same_froc(again, read_metrics(scored_run))


@pytest.mark.parametrize("name", ["wsinfer", "clam", "qupath"])
def test_slide_score_of_the_exported_patches_is_that_of_the_evaluation(scored_run, tmp_path, name):
    assert export(scored_run / "run", name, "--out", str(tmp_path)) == 0
    with (scored_run / "run/evaluation/patchnet/slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["s4", "s5"]
    for row in rows:
        if name == "clam":
            with h5py.File(tmp_path / f"{row['slide_id']}.h5") as file:
                scores = file["attention_scores"][:, 0]
        elif name == "wsinfer":
            path = tmp_path / f"{row['slide_id']}.csv"
            scores = np.loadtxt(path, delimiter=",", skiprows=1)[:, 4]
        else:
            found = json.loads((tmp_path / f"{row['slide_id']}.geojson").read_text())
            scores = [f["properties"]["measurements"]["score"] for f in found["features"]]
        assert np.float32(max(scores)) == np.float32(row["score"])


# ------------------------------------------------------------ round trip


@pytest.mark.parametrize("name", ["clam", *COORDS_ONLY])
def test_exported_coordinates_cut_the_same_patches_again(scored_run, tmp_path, name):
    run = scored_run / "run"
    if name in COORDS_ONLY:  # of a run that went no further than tile
        run = tmp_path / "tiled"
        for part in ("tiles", ".state/tile"):
            shutil.copytree(scored_run / "run" / part, run / part)
        shutil.copy(scored_run / "run/slides.csv", run)
    assert export(run, name, "--out", str(tmp_path / "coords")) == 0
    settings = (f"coords={tmp_path / 'coords'}", "target_mpp=3.0", "patch_px=32", "tissue.mpp=12.0")
    words = [part for setting in settings for part in ("--set", setting)]
    manifest = tmp_path / "one.csv"
    manifest.write_text(f"slide,mpp\n{scored_run / 'data/s5.tif'},{MPP}\n")
    assert main(["tile", str(manifest), "--out", str(tmp_path / "again"), "--quiet", *words]) == 0
    ours = zarr.open_group(scored_run / "run/tiles/s5.zarr", mode="r")
    again = zarr.open_group(tmp_path / "again/tiles/s5.zarr", mode="r")
    kept = np.delete(np.arange(ours["coords"].shape[0]), 7) if name == "clam" else slice(None)
    np.testing.assert_array_equal(again["coords"][:], ours["coords"][:][kept])
    np.testing.assert_array_equal(again["patches"][:], ours["patches"][:][kept])


# ------------------------------------------------------------ as a stage


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_written_kept_and_mended(run, capsys, name):
    n = 6 if name in COORDS_ONLY else 4  # two slides are tiled and not scored
    assert export(run, name) == 0
    assert f"export {name}: {n} done" in capsys.readouterr().out
    folder = run / "exports" / name / ("" if name in COORDS_ONLY else "patchnet")
    before = files_of(folder)
    assert len(list(folder.iterdir())) == n

    assert export(run, name) == 0
    assert f"0 done, {n} kept from before" in capsys.readouterr().out
    lost = next(path for path in sorted(folder.iterdir()) if path.name.startswith("s3"))
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    assert export(run, name) == 0
    assert f"1 done, {n - 1} kept from before" in capsys.readouterr().out
    assert files_of(folder) == before


def test_every_format_that_is_named_is_written(run, capsys):
    """Of two, only the last was written."""
    formats = ["--format", "qupath", "--format", "wsinfer-coords", "--format", "qupath"]
    assert main(["export", str(run), *formats, "--model", "patchnet"]) == 0
    printed = summaries(capsys.readouterr().out)
    assert [line for line in printed if "done" in line] == [
        "export qupath: 4 done",
        "export wsinfer-coords: 6 done",
    ]
    assert len(list((run / "exports/qupath/patchnet").iterdir())) == 4
    assert len(list((run / "exports/wsinfer-coords").iterdir())) == 6


def test_several_formats_have_a_folder_each_in_the_one_that_is_named(run, tmp_path, capsys):
    out = tmp_path / "out"
    formats = ["--format", "clam", "--format", "wsinfer"]
    assert main(["export", str(run), *formats, "--out", str(out), "--quiet"]) == 0
    assert {path.relative_to(out).as_posix() for path in out.rglob("s4*")} == {
        "clam/s4.h5", "wsinfer/s4.csv"
    }  # fmt: skip
    capsys.readouterr()


def test_no_format_is_written_where_one_is_not_known(run, capsys):
    assert main(["export", str(run), "--format", "qupath", "--format", "cytomine"]) == 2
    assert "cytomine" in capsys.readouterr().err
    assert not (run / "exports").exists()


def test_formats_do_not_touch_each_other_nor_the_report(run, capsys):
    assert main(["report", str(run), "--quiet"]) == 0
    assert export(run, "wsinfer") == 0
    assert export(run, "clam") == 0
    capsys.readouterr()
    assert export(run, "wsinfer") == 0
    assert main(["report", str(run), "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "export wsinfer: 0 done, 4 kept" in out
    assert "report: 0 done, 1 kept" in out


def test_a_changed_setting_is_named_stale(run, capsys):
    assert export(run, "qupath") == 0
    assert main(["export", str(run), "--format", "qupath", "--set", "qupath=regions"]) == 0
    captured = capsys.readouterr()
    assert "out of date" in captured.err
    assert "regions" in captured.err


def test_a_file_of_another_compression_does_not_stay_beside_the_new_one(run):
    """It looked as finished as the new one, and no command distinguished them."""
    folder = run / "exports/qupath/patchnet"
    assert export(run, "qupath") == 0
    plain = [path.name for path in sorted(folder.iterdir())]
    assert export(run, "qupath", "--set", "compression=gzip") == 0
    assert [path.name for path in sorted(folder.iterdir())] == [f"{name}.gz" for name in plain]


def test_shards_write_disjoint_parts_of_the_whole(run, tmp_path):
    for index in range(2):
        assert export(run, "wsinfer", "--shard", f"{index}/2") == 0
    assert export(run, "wsinfer", "--out", str(tmp_path / "whole")) == 0
    assert files_of(run / "exports/wsinfer/patchnet") == files_of(tmp_path / "whole")


def test_coordinates_belong_to_no_model(run, capsys):
    assert export(run, "trident", "--model", "patchnet") == 1
    assert "leave out --model" in capsys.readouterr().err
    shutil.rmtree(run / "scores")
    assert export(run, "clam") == 1
    assert "where the patches lie: --format trident or clam-coords" in capsys.readouterr().err
    assert export(run, "clam-coords", "--shard", "0/2") == 0
    capsys.readouterr()
    assert main(["collect", str(run)]) == 3
    out = capsys.readouterr().out
    assert "export clam-coords: 3 of 6 slides done, 3 missing" in out
    assert "export: 1 shard of 2 never ended: 1" in out


def test_collect_lists_the_exports_that_are_missing(run, capsys):
    shutil.rmtree(run / ".state/export", ignore_errors=True)
    assert export(run, "qupath", "--shard", "0/2", "--set", "export.splits=[test]") == 0
    assert export(run, "wsinfer") == 0
    capsys.readouterr()
    assert main(["collect", str(run)]) == 3
    out = capsys.readouterr().out
    assert "export wsinfer patchnet: 4 of 4 slides done\n" in out
    # Of the two slides of the split that this export was asked for, not of all four.
    assert "export qupath patchnet: 1 of 2 slides done, 1 missing (s" in out
    assert "export: 1 shard of 2 never ended: 1" not in out  # a whole export came after it


def test_a_slide_that_fails_is_recorded_and_the_others_are_written(run, capsys):
    (run / "scores/patchnet/s4.h5").write_bytes(b"no HDF5")
    assert export(run, "camelyon16") == 3
    with (run / "failures.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["slide_id"], row["stage"], row["error"]) == ("s4", "export", "ScoresError")
    assert "damaged" in row["message"] or "not" in row["message"]
    written = sorted(p.name for p in (run / "exports/camelyon16/patchnet").iterdir())
    assert written == ["s2.csv", "s3.csv", "s5.csv"]
    assert (run / "logs/export-camelyon16-patchnet-s4.log").is_file()


def test_slides_whose_prediction_failed_are_named(run, capsys):
    """They were ignored silently."""
    unit, folder = Unit("predict", "s4", "patchnet"), RunFolder(run)
    clear_mark(folder, unit)
    record_failure(folder, unit, "StoreError", "has changed")
    assert export(run, "wsinfer") == 0
    assert main(["heatmap", str(run)]) == 0
    out = capsys.readouterr().out
    assert out.count("skipped s4: prediction with patchnet failed") >= 1
    assert "heatmap: 0 done, 3 kept" in out


def test_several_models_have_a_folder_each(run, tmp_path):
    shutil.copytree(run / "scores/patchnet", run / "scores/other")
    shutil.copytree(run / ".state/predict/patchnet", run / ".state/predict/other")
    assert export(run, "wsinfer", "--out", str(tmp_path / "all")) == 0
    assert sorted(p.name for p in (tmp_path / "all").iterdir()) == ["other", "patchnet"]
    assert export(run, "wsinfer", "--out", str(tmp_path / "one"), "--model", "other") == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "all/other")


def test_another_format_does_not_write_over_files_of_the_same_name(run, tmp_path, capsys):
    """WSInfer's and CAMELYON16's files are both called <slide_id>.csv."""
    out = tmp_path / "out"
    assert export(run, "wsinfer", "--out", str(out)) == 0
    before = files_of(out)
    assert export(run, "camelyon16", "--out", str(out)) == 1
    assert "holds the export wsinfer of patchnet (s2.csv)" in capsys.readouterr().err
    assert files_of(out) == before
    shutil.rmtree(out)
    assert export(run, "camelyon16", "--out", str(out)) == 0


def test_files_outside_of_a_linked_run_folder_are_known_again(run, tmp_path, capsys):
    """RUN/.. of a link is not the folder that the link lies in."""
    link = tmp_path / "links/run"
    link.parent.mkdir()
    link.symlink_to(run)
    for expected in ("4 done", "0 done, 4 kept"):
        assert export(link, "clam", "--out", str(tmp_path / "links/out")) == 0
        assert expected in capsys.readouterr().out


def test_what_cannot_be_is_reported(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "qupth"]) == 2
    assert "known: qupath" in capsys.readouterr().err.replace("\n", " ").replace("│ ", "")
    for words, message in (
        ((), "not a run folder"),
        (("--set", "thresholds=[1.5]"), "thresholds.0: input should be less than or equal to 1"),
        (("--set", "thresholds=[]"), "at least one score"),
        (("--set", "class_name="), "class_name"),
        (("--set", "detection_radius_um=0"), "greater than 0"),
        (("--set", "export.splits=[train]"), "nothing to export: no scores of patchnet for s"),
        (("--set", "export.splits=[]"), "nothing to export: no slide is in the splits"),
        (("--model", "absent"), "no scores of absent"),
    ):
        folder = run if words else tmp_path / "nowhere"
        assert main(["export", str(folder), "--format", "qupath", *words]) == 1
        assert message in capsys.readouterr().err


def test_no_folder_of_this_machine_is_written(run):
    for name in FORMATS:
        assert export(run, name) == 0
    secret = str(run.parent).encode()
    for name, content in files_of(run).items():
        if not name.startswith("logs/"):
            assert secret not in content, name


# ------------------------------------------------------------ as a part of `run`


def run_with(run: Path, *settings: str) -> int:
    config = run.parent / "config.yaml"
    config.write_text(CONFIG.format(data=run.parent / "data", run=run))
    words = [word for setting in settings for word in ("--set", setting)]
    return main(["run", str(config), *words])


def test_run_exports_what_the_config_names(run, capsys):
    shutil.rmtree(run / "exports", ignore_errors=True)
    formats = "export.formats=[camelyon16, clam-coords]"
    assert run_with(run, "stages=[export, report]", formats, "export.splits=[test]") == 0
    printed = "\n".join(summaries(capsys.readouterr().out))
    assert "export camelyon16: 2 done\nexport clam-coords: 2 done\nreport: " in printed
    found = {path.name for path in (run / "exports").rglob("*.*")}
    assert found == {"s4.csv", "s5.csv", "s4.h5", "s5.h5"}
    assert run_with(run, "stages=[export, report]", formats, "export.splits=[test]") == 0
    assert "export camelyon16: 0 done, 2 kept" in capsys.readouterr().out
    assert export(run, "camelyon16", "--set", "export.splits=[test]") == 0
    assert "export camelyon16: 0 done, 2 kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "printed"),
    [
        (["stages=[tile, export]"], "export has nothing to do; set export.formats"),
        (["export.formats=[qupth]"], "no format is called 'qupth'"),
    ],
)
def test_an_export_that_cannot_be_is_reported_before_anything_is_done(
    run, capsys, settings, printed
):
    before = (run / "run.json").read_bytes()
    assert run_with(run, *settings) == 1
    assert printed in capsys.readouterr().err
    assert (run / "run.json").read_bytes() == before
