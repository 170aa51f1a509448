"""All stages on a tiny cohort: what they write, resume, shards, what they keep to themselves."""

import contextlib
import csv
import hashlib
import json
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr

from tests.helpers.slides import write_slide
from tests.helpers.tiny_cohort import again, contents, write_config
from tiling.files import digest_file
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.config.reading import digest_settings
from wsi_pipeline.config.settings import (
    EvaluateConfig,
    HeatmapConfig,
    PredictConfig,
    evaluation_settings,
)
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.models.checkpoint import load_checkpoint, save_checkpoint
from wsi_pipeline.run.tasks import Job, perform
from wsi_pipeline.stages.predict import PredictSlide


def test_every_file_of_the_contract_is_there(finished):
    run = finished / "run"
    for name in (
        "run.json",
        "slides.csv",
        "report.html",
        "failures.csv",
        "models/patchnet/history.csv",
    ):
        assert (run / name).is_file(), name
    assert (run / "logs").is_dir()
    for slide in ("s2", "s3", "s4", "s5"):
        for path in (
            run / f"tiles/{slide}.zarr/zarr.json",
            run / f"scores/patchnet/{slide}.h5",
            run / f"heatmaps/patchnet/{slide}.ome.tif",
            run / f"heatmaps/patchnet/{slide}.png",
        ):
            assert path.is_file(), path
    for name in ("metrics.json", "slides.csv", "patches.csv", "confusion.csv", "froc.json"):
        assert (run / "evaluation/patchnet" / name).is_file(), name


def test_scores_and_heatmap_agree_with_the_store(finished):
    """Read by plain zarr, h5py and tifffile: each patch's score is at its own position."""
    run = finished / "run"
    coords = zarr.open_group(run / "tiles/s5.zarr", mode="r")["coords"][:]
    with h5py.File(run / "scores/patchnet/s5.h5") as file:
        assert np.array_equal(file["coords"][:], coords)
        scores = file["scores"][:]
    heatmap = tifffile.imread(run / "heatmaps/patchnet/s5.ome.tif")
    for (x, y), score in zip(coords, scores, strict=True):
        assert heatmap[y // 32, x // 32] == pytest.approx(score, abs=1e-6)


def test_another_split_is_evaluated_and_the_default_is_kept(copy, capsys):
    run = copy / "run"
    path = run / "evaluation/patchnet/metrics.json"
    assert main(["evaluate", str(run), "--set", "split=val", "--quiet"]) == 0
    metrics = json.loads(path.read_text())
    assert metrics["evaluated"] == "val"
    with (path.parent / "slides.csv").open(newline="") as file:
        assert [row["slide_id"] for row in csv.DictReader(file)] == ["s2", "s3"]
    assert main(["evaluate", str(run), "--set", "split=train", "--quiet"]) == 1
    error = capsys.readouterr().err
    assert "no scores of patchnet yet for 2 of 4 slides: s0, s1; run: wsi-pipeline " in error
    command = shlex.split(error.partition("run: wsi-pipeline ")[2])
    assert command == ["predict", str(run), "--set", "predict.splits=[val, test, train]"]
    assert main([*command, "--quiet"]) == 0  # what the message advises helps
    assert main(["evaluate", str(run), "--set", "split=train", "--quiet"]) == 0
    assert json.loads(path.read_text())["evaluated"] == "train"


def test_outlined_slides_of_another_split_are_named(copy):
    """Heatmaps of the test were compared with nothing, and nothing was said of the others."""
    run = copy / "run"
    manifest = copy / "data/manifest.csv"
    manifest.write_text(manifest.read_text().replace("s5.tif,1,s5.xml", "s5.tif,1,"))
    assert again(copy, "--quiet") == 0
    metrics = json.loads((run / "evaluation/patchnet/metrics.json").read_text())
    assert metrics["localisation"]["elsewhere"] == {"train": 1, "val": 1}
    assert any("outlined slide is in the split val" in note for note in metrics["notes"])


def test_fingerprints_of_evaluations_are_those_of_run_folders_that_exist():
    settings = evaluation_settings(EvaluateConfig())
    assert digest_settings(settings, HeatmapConfig().overlap) == "2f303551490b8738"
    other = evaluation_settings(EvaluateConfig(split="test"))
    assert digest_settings(other, HeatmapConfig().overlap) != "2f303551490b8738"


def test_the_froc_command_finds_the_same_from_the_detections_written(finished, tmp_path):
    """Anyone can redo the figure from plain files, without the run folder."""
    evaluation = finished / "run/evaluation/patchnet"
    (tmp_path / "reference").mkdir()
    shutil.copy(finished / "data/s5.xml", tmp_path / "reference/s5.xml")
    (tmp_path / "slides.csv").write_text("slide_id,label\ns4,0\ns5,1\n")
    options = {
        "--detections": evaluation / "detections",
        "--reference": tmp_path / "reference",
        "--slides": tmp_path / "slides.csv",
        "--out": tmp_path / "out",
        "--mpp": "0.5",
    }
    arguments = [str(part) for pair in options.items() for part in pair]
    assert main(["froc", "--definition", "camelyon16", "--quiet", *arguments]) == 0
    ours = json.loads((evaluation / "froc_camelyon16.json").read_text())
    again = json.loads((tmp_path / "out/froc.json").read_text())
    for name in ("curve", "score", "sensitivity_at", "n_lesions", "n_itc", "n_slides"):
        assert again[name] == ours[name], name


def test_the_manifest_as_used_is_a_manifest(finished):
    with (finished / "run/slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == [f"s{i}" for i in range(6)]
    assert all((finished / "run" / row["slide"]).is_file() for row in rows)


def test_no_folder_of_this_machine_is_written(finished):
    run = finished / "run"
    secret = str(finished).encode()
    for name, content in contents(run).items():
        assert secret not in content, name


def test_a_second_run_keeps_everything(copy, capsys):
    before = contents(copy / "run")
    assert again(copy) == 0
    out = capsys.readouterr().out
    assert "0 done" in out
    assert contents(copy / "run") == before


@pytest.mark.parametrize(
    ("command", "output", "following"),
    [
        (["train"], "models", "predict RUN"),
        (["predict"], "scores", "heatmap RUN"),
        (["heatmap"], "heatmaps", "evaluate RUN"),
        (["evaluate"], "evaluation", "report RUN"),
        (["report"], "report.html", ""),
    ],
)
def test_a_stage_ends_with_its_output_and_the_next_command(
    copy, capsys, command, output, following
):
    run = str(copy / "run")
    assert main([*command, run]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith(f"; output: {run}/{output}")
    assert (copy / "run" / output).exists()
    nexts = [f"next: wsi-pipeline {following.replace('RUN', run)}"] if following else []
    assert [line for line in printed if line.startswith("next:")] == nexts

    assert main([*command, run, "--quiet"]) == 0
    assert "next:" not in capsys.readouterr().out


def test_after_tiling_the_next_command_is_one_that_can_run(copy, capsys):
    """Training needs labels, and a model where the config has none."""
    data, run = copy / "data", copy / "new"
    how = ["--out", str(run), "--config", str(copy / "config.yaml")]
    assert main(["tile", str(data / "manifest.csv"), *how]) == 0
    assert f"next: wsi-pipeline train {run}\n" in capsys.readouterr().out
    settings = ["--set", "patch_px=32", "--set", "target_mpp=0.5", "--set", "tissue.mpp=2.0"]
    settings += ["--set", "tissue.min_object_um2=100.0"]
    assert main(["tile", str(data / "manifest.csv"), "--out", str(run), *settings]) == 0
    assert f"next: wsi-pipeline train {run} --model vgg16\n" in capsys.readouterr().out
    assert main(["tile", str(data / "s0.tif"), "--out", str(copy / "one"), *settings]) == 0
    assert f"next: wsi-pipeline predict {copy / 'one'} --checkpoint FILE\n" in (
        capsys.readouterr().out
    )
    assert main(["tile", str(data / "manifest.csv"), *how, "--shard", "0/2"]) == 0
    assert f"next: wsi-pipeline collect {run}\n" in capsys.readouterr().out


def test_a_changed_setting_is_named_stale_and_only_what_depends_on_it_is_built(copy, capsys):
    assert again(copy, "--set", "evaluate.threshold=0.6") == 0
    captured = capsys.readouterr()
    assert "out of date" in captured.err
    for stage in ("tile", "train", "predict", "heatmap"):
        assert f"{stage}: 0 done" in captured.out
    assert (
        json.loads((copy / "run/evaluation/patchnet/metrics.json").read_text())["threshold"] == 0.6
    )


def test_a_refused_evaluation_leaves_no_metrics_of_an_earlier_one(copy, monkeypatch):
    def refuse(*_, **__):
        raise EvaluationError("refused")

    monkeypatch.setattr("wsi_pipeline.evaluation.run_evaluation.evaluate_run", refuse)
    assert again(copy, "--set", "evaluate.threshold=0.6") != 0
    assert not (copy / "run/evaluation/patchnet/metrics.json").exists()


@pytest.mark.parametrize(
    "lost",
    [
        "tiles/s2.zarr",
        "tiles/s2.zarr/zarr.json",  # without it the store is none, and was kept all the same
        "tiles/s2.zarr/patches",
        "scores/patchnet/s4.h5",
        "heatmaps/patchnet/s5.ome.tif",
        "evaluation/patchnet/metrics.json",
        "evaluation/patchnet/patches.csv",
        "report.html",
    ],
)
def test_what_is_lost_is_built_again_the_same(copy, lost):
    before = contents(copy / "run")
    path = copy / "run" / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert again(copy, "--quiet") == 0
    assert contents(copy / "run") == before


def test_a_cut_score_file_is_built_again(copy):
    path = copy / "run/scores/patchnet/s4.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert again(copy, "--quiet") == 0
    assert path.read_bytes() == whole


def test_what_a_killed_process_left_is_cleared_and_changes_nothing(copy):
    """A half-written figure stayed for good, and was counted among the report's files."""
    before = contents(copy / "run")
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    for folder in ("tiles", "scores/patchnet", "figures/patchnet", ".state/tile"):
        (copy / "run" / folder / f".x.{host}-{killed.pid}-0123abcd.part").touch()
    (copy / "run/report.html").unlink()
    assert again(copy, "--quiet") == 0
    assert contents(copy / "run") == before


def test_overwrite_gives_the_same_bytes(copy):
    before = contents(copy / "run")
    assert again(copy, "--quiet", "--overwrite") == 0
    assert contents(copy / "run") == before


def test_shards_together_are_the_whole(finished, tmp_path, capsys):
    config = write_config(tmp_path, finished / "data", tmp_path / "run")
    arguments = ["tile", str(finished / "data/manifest.csv"), "--out", str(tmp_path / "run"),
                 "--config", str(config), "--quiet"]  # fmt: skip
    for index in (2, 0):
        assert main([*arguments, "--shard", f"{index}/3"]) == 0
    capsys.readouterr()

    assert main(["collect", str(tmp_path / "run")]) == 3
    printed = capsys.readouterr().out
    assert "4 of 6 slides done, 2 missing" in printed
    assert "tile: 1 shard of 3 never ended: 1" in printed

    assert main([*arguments, "--shard", "1/3"]) == 0
    assert main(["collect", str(tmp_path / "run")]) == 0
    ours, theirs = (contents(run / "tiles") for run in (tmp_path / "run", finished / "run"))
    assert ours == theirs


def test_collect_lists_the_stages_that_work_on_models(copy, capsys):
    run = copy / "run"
    shutil.copytree(run / "models/patchnet", run / "models/copied_in")
    assert main(["train", str(run), "--set", "model.options.m=4"]) == 1
    (run / "models/stopped").mkdir()
    (run / "models/stopped/resume.safetensors").touch()
    (run / ".state/evaluate/patchnet/patchnet.done.json").unlink()
    capsys.readouterr()
    assert main(["collect", str(run)]) == 3
    printed = capsys.readouterr().out.splitlines()
    assert {"train patchnet: failed", "train stopped: missing"} <= set(printed)
    assert {"evaluate patchnet: missing", "report: done"} <= set(printed)
    assert not any("copied_in" in line for line in printed)


def test_an_array_that_must_not_see_only_a_part_is_refused(copy, capsys):
    assert again(copy, "--shard", "0/2") == 1
    assert "need all slides" in capsys.readouterr().err


def test_a_slide_that_failed_is_left_out_of_the_figures_and_noted(copy, capsys):
    (copy / "data/s5.tif").write_bytes(b"no slide")
    assert again(copy) == 3
    capsys.readouterr()
    metrics = json.loads((copy / "run/evaluation/patchnet/metrics.json").read_text())
    assert any("s5" in note for note in metrics["notes"])


def test_half_a_test_set_is_not_evaluated(copy, capsys):
    for path in (copy / "run/.state/predict/patchnet").glob("s5.*"):
        path.unlink()
    assert main(["evaluate", str(copy / "run")]) == 1
    assert "s5" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["heatmap"], ["export", "--format", "qupath"]])
def test_scores_that_are_not_finished_are_named_with_the_remedy(copy, capsys, command):
    run = copy / "run"
    for kind in ("predict", "tile"):
        for mark in (run / ".state" / kind).rglob("*.done.json"):
            mark.unlink()
        assert main([command[0], str(run), *command[1:]]) == 1
        printed = capsys.readouterr().err
        assert f"nothing to {command[0]}: " in printed
        cause = "scores of patchnet were not finished; run: wsi-pipeline predict"
        assert (cause if kind == "predict" else "run tile again") in printed


def test_where_predict_failed_on_every_slide_a_heatmap_says_so(copy, capsys):
    for name in ("s2", "s3", "s4", "s5"):
        (copy / f"data/{name}.tif").unlink()
        shutil.rmtree(copy / f"run/tiles/{name}.zarr/patches")
    assert main(["predict", str(copy / "run"), "--overwrite"]) == 1
    assert main(["heatmap", str(copy / "run")]) == 1
    printed = capsys.readouterr().err
    assert "nothing to heatmap: s2, s3, s4, s5: prediction with patchnet failed" in printed
    assert "failures.csv); then" in printed


def test_scores_with_nothing_to_compare_them_with_are_reported(copy, capsys):
    manifest = copy / "run/slides.csv"
    rows = [row.split(",") for row in manifest.read_text().splitlines()]
    names = rows[0]
    for hidden, problem in (
        ({"test", "val"}, "no slide in the splits test and val has a label"),
        ({"test", "val", "train"}, "wsi-pipeline slides SLIDES --annotations DIR"),
    ):
        for row in rows[1:]:
            if row[names.index("split")] in hidden:
                for name in ("label", "annotation"):
                    row[names.index(name)] = ""
        manifest.write_text("\n".join(",".join(row) for row in rows) + "\n")
        assert main(["evaluate", str(copy / "run")]) == 1
        assert problem in capsys.readouterr().err


def test_a_checkpoint_for_other_patches_is_refused_with_the_remedy(copy, capsys):
    other = copy / "other"
    assert main(["tile", str(copy / "data/s4.tif"), "--out", str(other), "--quiet",
                 "--set", "patch_px=64", "--set", "tissue.mpp=2.0"]) == 0  # fmt: skip
    checkpoint = copy / "run/models/patchnet/checkpoint.safetensors"
    assert main(["predict", str(other), "--checkpoint", str(checkpoint)]) == 1
    assert "32 px" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("predict", "--checkpoint", "none.safetensors"), "no such checkpoint"),
        (("predict", "--device", "cuda:7"), "not found"),
        (("predict", "--device", "cpu", "--set", "precision=fp16"), "fp16 needs a GPU"),
        (("train", "--device", "cpu", "--set", "precision=fp16"), "fp16 needs a GPU"),
        (("train", "--weights", "none.pth", "--set", "precision=bf16"), "no such weights file"),
        (("predict", "--set", "batch_size=0"), "predict.batch_size: "),
        (("evaluate", "--set", "rates=[]"), "no rate given"),
    ],
)
def test_a_wrong_option_is_reported_once_and_destroys_nothing(copy, capsys, arguments, printed):
    before = contents(copy / "run")
    command, *more = arguments
    assert main([command, str(copy / "run"), *more, "--overwrite"]) == 1
    assert capsys.readouterr().err.count(printed) == 1
    assert contents(copy / "run") == before


@pytest.mark.parametrize(
    ("setting", "printed"),
    [
        ("predict.precision=fp16", "fp16 needs a GPU"),
        ("train.patchnet.precision=fp16", "fp16 needs a GPU"),
        ("train.patchnet.model.weights=none.pth", "no such weights file"),
        ("train.patchnet.model.name=patchnot", "no model is called 'patchnot'"),
    ],
)
def test_what_a_later_stage_cannot_do_is_reported_before_the_first_one(
    tmp_path, capsys, setting, printed
):
    config = write_config(tmp_path, tmp_path, tmp_path / "run")
    assert main(["run", str(config), "--device", "cpu", "--set", setting]) == 1
    assert printed in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("slides", [(), ("--slides",)])
def test_two_checkpoints_of_one_name_are_refused(copy, tmp_path, capsys, slides):
    """They would be scored into the same files, the second over the first."""
    files = [tmp_path / "a/pn.safetensors", tmp_path / "b/pn.safetensors"]
    words = [*slides, str(copy / "data/s4.tif")] if slides else []
    for file in files:
        file.parent.mkdir()
        shutil.copy(copy / "run/models/patchnet/checkpoint.safetensors", file)
        words += ["--checkpoint", str(file)]
    assert main(["predict", str(copy / "other" if slides else copy / "run"), *words]) == 1
    printed = capsys.readouterr().err
    assert f"{files[0]} and {files[1]} both are the model 'pn'; rename" in printed
    assert not (copy / "run/scores/pn").exists()


def test_stores_that_keep_coordinates_give_the_same_scores(copy, capsys):
    """`store: coords` keeps no pixels: every later stage reads the slide instead."""
    with h5py.File(copy / "run/scores/patchnet/s4.h5") as file:
        kept = file["scores"][:]
    assert again(copy, "--quiet", "--set", "tile.store=coords") == 0
    assert "patches" not in zarr.open_group(copy / "run/tiles/s4.zarr", mode="r")
    with h5py.File(copy / "run/scores/patchnet/s4.h5") as file:
        assert np.array_equal(file["scores"][:], kept)


TISSUE = ["--set", "tile.tissue.mpp=2.0", "--set", "tile.tissue.min_object_um2=100.0"]


def test_no_setting_is_advised_that_the_checkpoint_fixes(finished, tmp_path):
    """A slide too small or too coarse got the advice to change patch_px or target_mpp."""
    (tmp_path / "data").mkdir()
    pixels = np.full((300, 300, 3), (200, 110, 160), np.uint8)
    write_slide(tmp_path / "data/small.tif", [pixels[:20, :20]])
    write_slide(tmp_path / "data/coarse.tif", [pixels], mpp=4.0)
    checkpoint = finished / "run/models/patchnet/checkpoint.safetensors"
    asked = ["predict", str(tmp_path / "run"), "--checkpoint", str(checkpoint), "--quiet"]

    assert main([*asked, "--slides", str(tmp_path / "data")]) != 0

    with (tmp_path / "run/failures.csv").open() as file:
        printed = {row["slide_id"]: row["message"] for row in csv.DictReader(file)}
    assert printed["small"].endswith("use --set tile.edge=pad, or leave the slide out")
    assert printed["coarse"].endswith("a checkpoint trained at 4 µm per pixel or coarser")
    for message in printed.values():
        assert "smaller" not in message
        assert "set tile.target_mpp" not in message


def test_slides_are_scored_straight_from_their_files_as_the_checkpoint_needs(finished, tmp_path):
    checkpoint = finished / "run/models/patchnet/checkpoint.safetensors"
    new = tmp_path / "new"
    asked = ["predict", str(new), "--checkpoint", str(checkpoint), "--quiet", *TISSUE]

    assert main([*asked, "--slides", str(finished / "data/s4.tif")]) == 0

    assert "patches" not in zarr.open_group(new / "tiles/s4.zarr")
    with (
        h5py.File(new / "scores/patchnet/s4.h5") as straight,
        h5py.File(finished / "run/scores/patchnet/s4.h5") as stored,
    ):
        np.testing.assert_array_equal(straight["coords"], stored["coords"])
        np.testing.assert_array_equal(straight["scores"], stored["scores"])
    assert not any(path.is_file() for path in (new / ".state/journals").rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (
            ["{run}", "--checkpoint", "{file}", "--slides", "{data}"],
            "contains patches written by tile",
        ),
        (["{new}", "--slides", "{data}"], "--slides needs a --checkpoint"),
    ],
    ids=["patches", "no checkpoint"],
)
def test_slides_that_cannot_be_scored_so_are_refused(copy, tmp_path, capsys, arguments, printed):
    places = {
        "run": copy / "run",
        "new": tmp_path / "new",
        "data": copy / "data",
        "file": copy / "run/models/patchnet/checkpoint.safetensors",
    }
    before = contents(copy / "run")

    assert main(["predict", *(a.format(**places) for a in arguments)]) == 1

    assert printed in capsys.readouterr().err
    assert contents(copy / "run") == before
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_dask_workers_write_the_same_bytes(finished, tmp_path):
    config = write_config(tmp_path, finished / "data", tmp_path / "run")
    assert main(["tile", str(finished / "data/manifest.csv"), "--out", str(tmp_path / "run"),
                 "--config", str(config), "--quiet", "--workers", "2"]) == 0  # fmt: skip
    assert contents(tmp_path / "run/tiles") == contents(finished / "run/tiles")


@pytest.fixture
def workers_elsewhere(tmp_path, monkeypatch) -> Path:
    """Workers of a scheduler, all of them started in another folder; gives that folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def map_there(work, tasks, *, print_line, **_):
        for number, task in enumerate(tasks):
            with contextlib.chdir(folder):
                outcome = work(task, print_line=print_line)
            yield number, outcome

    monkeypatch.setattr("wsi_pipeline.run.runner.map_tasks", map_there)
    return folder


def test_relative_paths_mean_the_same_to_workers_started_elsewhere(
    copy, monkeypatch, workers_elsewhere
):
    """Their outputs used to land in the workers' folder, with exit code 0."""
    before = contents(copy / "run")
    shutil.rmtree(copy / "run")
    monkeypatch.chdir(copy)
    write_config(copy, Path("data"), Path("run"))
    assert main(["run", "config.yaml", "--dask", "tcp://scheduler:8786", "--quiet"]) == 0
    assert not list(workers_elsewhere.iterdir())
    assert contents(copy / "run") == before


def test_failures_of_workers_elsewhere_report_paths_as_they_were_given(
    copy, monkeypatch, workers_elsewhere
):
    (copy / "data/s1.xml").write_text("<not closed")
    monkeypatch.chdir(copy)
    assert again(Path(), "--set", "stages=[tile]", "--dask", "tcp://scheduler:8786") == 3
    failures = Path("run/failures.csv").read_text()
    assert "s1,tile" in failures
    assert str(copy) not in failures


def change_weights(checkpoint: Path) -> str:
    """Put other weights into a checkpoint, at the same path; gives the new file's digest."""
    model, meta = load_checkpoint(checkpoint)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(-0.5)
    save_checkpoint(checkpoint, model, meta)
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest()


def test_a_process_that_stays_alive_scores_with_the_checkpoint_that_is_there_now(copy):
    """A Dask worker that outlived a training used to score with the weights of before."""
    run = copy / "run"
    path = run / "scores/patchnet/s5.h5"
    assert main(["predict", str(run), "--overwrite", "--quiet"]) == 0  # this process knows it now
    before = read_scores(path).scores
    digest = change_weights(run / "models/patchnet/checkpoint.safetensors")
    assert main(["predict", str(run), "--quiet"]) == 0
    after = read_scores(path)
    assert after.attributes["checkpoint"] == digest
    assert not np.array_equal(after.scores, before)


def test_a_checkpoint_replaced_under_a_running_command_is_refused(copy):
    run = RunFolder((copy / "run").absolute())
    entry = next(e for e in read_run_manifest(run) if e.slide_id == "s5")
    checkpoint = run.checkpoint("patchnet")
    task = PredictSlide(
        entry=entry,
        model="patchnet",
        checkpoint=checkpoint,
        digest=digest_file(checkpoint),
        config=PredictConfig(),
        device="cpu",
        threads=1,
    )
    change_weights(checkpoint)
    outcome = perform(Job(run, task, "f" * 16, copy))
    assert not outcome.ok
    printed = (
        "FAILED: run/models/patchnet/checkpoint.safetensors: another file than when this command"
    )
    assert outcome.line.startswith(printed)  # told relative to where the command was given
