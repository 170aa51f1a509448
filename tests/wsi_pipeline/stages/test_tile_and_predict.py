"""Slides are tiled and scored in one command: the next is tiled while one is scored."""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.printed import summaries
from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import main
from wsi_pipeline.csv_files import read_csv
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, save_checkpoint
from wsi_pipeline.stages import predict as stage
from wsi_pipeline.stages.tile import TileSlide

IDS = ("s0", "s1", "s2")
OPTIONS = {"m": 5, "stride": 5, "filters": 4, "depth": 2}
SETTINGS = ("--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    (folder / "slides").mkdir()
    for seed, name in enumerate(IDS):
        pixels = tissue(300, 260, seed=seed)
        write_slide(folder / f"slides/{name}.tif", [pixels, halve(pixels)])
    meta = CheckpointMeta("patchnet", OPTIONS, patch_px=32, target_mpp=0.5)
    for name in ("one", "other"):
        save_checkpoint(folder / f"{name}.safetensors", build_model("patchnet", **OPTIONS), meta)
    return folder


def predict(data: Path, run: Path, *more: str) -> int:
    slides, checkpoint = str(data / "slides"), str(data / "one.safetensors")
    asked = ["predict", str(run), "--slides", slides, "--checkpoint", checkpoint]
    return main([*asked, *SETTINGS, *more])


def test_a_model_of_single_images_has_no_patches_of_slides(data, tmp_path, capsys):
    meta = CheckpointMeta("patchnet", OPTIONS, patch_px=32, target_mpp=0.0, image_shape=(32, 48, 3))
    save_checkpoint(tmp_path / "m.safetensors", build_model("patchnet", **OPTIONS), meta)
    asked = ["apply", str(data / "slides"), "--out", str(tmp_path / "run")]
    assert main([*asked, "--checkpoint", str(tmp_path / "m.safetensors")]) == 1
    assert "was trained on single images" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def scores_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "scores/one").glob("*.h5")}


def test_scores_are_those_of_one_stage_after_the_other(data, tmp_path, capsys):
    assert predict(data, tmp_path / "ahead") == 0
    printed = summaries(capsys.readouterr().out)
    assert printed == ["tile: 3 done", "predict: 3 done"]
    tile = ["tile", str(data / "slides"), "--out", str(tmp_path / "after"), *SETTINGS]
    assert main([*tile, "--set", "tile.store=coords", "--set", "tile.patch_px=32"]) == 0
    checkpoint = str(data / "one.safetensors")
    assert main(["predict", str(tmp_path / "after"), "--checkpoint", checkpoint]) == 0
    found = scores_of(tmp_path / "ahead")
    assert len(found) == 3
    assert found == scores_of(tmp_path / "after")


def apply(data: Path, run: Path, *more: str) -> int:
    asked = ["apply", str(data / "slides"), "--checkpoint", str(data / "one.safetensors")]
    return main([*asked, "--out", str(run), *SETTINGS, *more])


def test_apply_does_what_its_stages_do_one_after_the_other(data, tmp_path, capsys):
    assert apply(data, tmp_path / "one") == 0
    printed = summaries(capsys.readouterr().out)
    assert printed[:4] == [
        "tile: 3 done", "predict: 3 done", "heatmap: 3 done", "export qupath: 3 done"
    ]  # fmt: skip
    assert predict(data, tmp_path / "other") == 0
    assert main(["heatmap", str(tmp_path / "other")]) == 0
    assert main(["export", str(tmp_path / "other"), "--format", "qupath"]) == 0
    for folder in ("scores", "heatmaps", "exports"):
        found = {
            path.relative_to(tmp_path / "one"): path.read_bytes()
            for path in (tmp_path / "one" / folder).rglob("*")
            if path.is_file()
        }
        assert len(found) >= 3
        for path, content in found.items():
            assert (tmp_path / "other" / path).read_bytes() == content, path
    capsys.readouterr()
    assert apply(data, tmp_path / "one") == 0
    printed = capsys.readouterr().out
    assert "export qupath: 0 done, 3 kept from before" in printed
    heatmaps, exports = tmp_path / "one/heatmaps", tmp_path / "one/exports/qupath"
    assert printed.splitlines()[-1] == f"heatmaps: {heatmaps}, qupath: {exports}"
    assert main(["evaluate", str(tmp_path / "one")]) == 1
    problem = capsys.readouterr().err
    assert "no slide has a label or an annotation" in problem
    assert "wsi-pipeline slides SLIDES --annotations DIR --csv manifest.csv" in problem


def applied(run: Path) -> dict[Path, bytes]:
    folders = ("scores", "heatmaps", "exports")
    paths = [path for folder in folders for path in (run / folder).rglob("*") if path.is_file()]
    return {path.relative_to(run): path.read_bytes() for path in paths}


def test_shards_of_apply_are_together_what_one_command_does(data, tmp_path, capsys):
    """--shard was in the help and was refused."""
    run = tmp_path / "run"
    assert apply(data, run, "--shard", "1/2") == 0
    assert f"next: wsi-pipeline collect {run}" in capsys.readouterr().out
    assert main(["collect", str(run)]) == 3
    printed = capsys.readouterr().out
    assert printed.count("1 shard of 2 never ended: 0") == 4  # stages
    assert apply(data, run, "--shard", "0/2") == 0
    assert "kept" not in capsys.readouterr().out
    assert main(["collect", str(run)]) == 0
    assert apply(data, tmp_path / "whole", "--quiet") == 0
    assert applied(run) == applied(tmp_path / "whole")


def test_a_shard_none_of_whose_slides_is_to_be_scored_ends_well(data, tmp_path, capsys):
    run, manifest = tmp_path / "run", tmp_path / "manifest.csv"
    slides = data / "slides"
    manifest.write_text(f"slide,split\n{slides}/s0.tif,train\n{slides}/s1.tif,test\n")
    asked = ["predict", str(run), "--slides", str(manifest), *SETTINGS]
    asked += ["--checkpoint", str(data / "one.safetensors"), "--set", "predict.splits=[test]"]
    for index in (0, 1):
        assert main([*asked, "--shard", f"{index}/2"]) == 0
    assert list(scores_of(run)) == ["s1.h5"]
    capsys.readouterr()
    assert main(["collect", str(run)]) == 0


def prepare_run(data, tmp_path):
    """A run folder with a trained model, and a config that tiles into it."""
    run = tmp_path / "run"
    (run / "models/one").mkdir(parents=True)
    content = (data / "one.safetensors").read_bytes()
    (run / "models/one/checkpoint.safetensors").write_bytes(content)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"input: {data / 'slides'}\nout: {run}\n"
        "tile: {target_mpp: 0.5, patch_px: 32, tissue: {mpp: 2.0, min_object_um2: 100.0}}\n"
    )
    return run, config


@pytest.mark.parametrize("first", [[], ["tile"]], ids=["tile too", "tiled before"])
def test_a_shard_of_several_stages_waits_for_no_other_one(data, tmp_path, first):
    run, config = prepare_run(data, tmp_path)
    stages = [stage for stage in ("tile", "predict", "heatmap") if stage not in first]
    if first:
        assert main(["run", str(config), "--set", "stages=[tile]", "--quiet"]) == 0
    for index, n_done in ((1, {1, 2}), (0, {3})):
        words = ["--set", f"stages=[{', '.join(stages)}]", "--quiet", "--shard", f"{index}/2"]
        assert main(["run", str(config), *words]) == 0
        assert len(list((run / "heatmaps/one").glob("*.png"))) in n_done


def test_apply_takes_the_formats_that_export_takes(data, tmp_path, capsys):
    assert apply(data, tmp_path, "--format", "powerpoint") == 2
    assert "powerpoint" in capsys.readouterr().err
    assert apply(data, tmp_path, "--format", "wsinfer", "--quiet") == 0
    assert [path.name for path in (tmp_path / "exports").iterdir()] == ["wsinfer"]


def test_what_is_finished_is_kept(data, tmp_path, capsys):
    assert predict(data, tmp_path) == 0
    before = scores_of(tmp_path)
    capsys.readouterr()
    assert predict(data, tmp_path) == 0
    printed = summaries(capsys.readouterr().out)
    assert printed == ["tile: 0 done, 3 kept from before", "predict: 0 done, 3 kept from before"]
    assert scores_of(tmp_path) == before


def test_the_next_slide_is_tiled_while_one_is_scored(data, tmp_path, monkeypatch):
    run, real = RunFolder(tmp_path), stage.PredictSlide.__call__

    def score(task, job, on_progress):
        number = IDS.index(task.entry.slide_id)
        for following in IDS[number + 1 : number + 2]:
            deadline = time.monotonic() + 30
            while not Unit("tile", following).is_marked(run):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        return real(task, job, on_progress)

    monkeypatch.setattr(stage.PredictSlide, "__call__", score)
    assert predict(data, tmp_path) == 0
    assert len(scores_of(tmp_path)) == 3


def test_few_slides_are_tiled_ahead(data, tmp_path, monkeypatch):
    """One that waits and one in the queue, besides the one that is scored: memory and disk."""
    tiled, real, ahead = itertools.count(1), TileSlide.__call__, []
    now = [0]

    def cut(task, job, on_progress):
        done = real(task, job, on_progress)
        now[0] = next(tiled)
        return done

    def score(task, job, on_progress):
        time.sleep(0.3)
        ahead.append(now[0] - IDS.index(task.entry.slide_id) - 1)
        return [], "scored"

    monkeypatch.setattr(TileSlide, "__call__", cut)
    monkeypatch.setattr(stage.PredictSlide, "__call__", score)
    assert predict(data, tmp_path) == 0
    assert max(ahead) <= stage.AHEAD + 1


def test_a_slide_that_cannot_be_tiled_does_not_cost_the_others(data, tmp_path, capsys):
    folder = tmp_path / "slides"
    folder.mkdir()
    for name in IDS:
        (folder / f"{name}.tif").symlink_to(data / "slides" / f"{name}.tif")
    (folder / "s1.tif").unlink()
    (folder / "s1.tif").write_bytes(b"no slide")
    checkpoint = str(data / "one.safetensors")
    asked = ["predict", str(tmp_path / "run"), "--slides", str(folder), *SETTINGS]
    assert main([*asked, "--checkpoint", checkpoint]) == 3
    captured = capsys.readouterr()
    assert "predict: [2/2] s2" in captured.err  # not of three
    printed = summaries(captured.out)
    assert printed == ["tile: 2 done, 1 failed (s1)", "predict: 2 done"]
    (row,) = read_csv(tmp_path / "run/failures.csv", error=StageError)
    assert (row["slide_id"], row["stage"]) == ("s1", "tile")


def test_where_no_slide_can_be_tiled_nothing_is_scored(data, tmp_path, capsys):
    (tmp_path / "slides").mkdir()
    for name in IDS:
        (tmp_path / "slides" / f"{name}.tif").write_bytes(b"no slide")
    asked = ["predict", str(tmp_path / "run"), "--slides", str(tmp_path / "slides")]
    assert main([*asked, "--checkpoint", str(data / "one.safetensors")]) == 1
    assert capsys.readouterr().out.splitlines()[0].startswith("tile: 0 done, 3 failed")


def test_several_models_are_asked_one_after_the_other(data, tmp_path, capsys):
    assert predict(data, tmp_path, "--checkpoint", str(data / "other.safetensors")) == 0
    assert summaries(capsys.readouterr().out) == ["tile: 3 done", "predict: 6 done"]


INTERRUPTED = """
import os, signal, sys, threading, time
from tiling import build
from tiling.threads import check_stopped
from wsi_pipeline.cli.app import main
from wsi_pipeline.stages import predict as stage

def hang(*args, **options):  # a slide that takes for ever to read
    os.kill(os.getpid(), signal.SIGINT)
    while True:
        time.sleep(0.01)
        check_stopped()

real, calls = build.plan_tiles, []
def plan(slide, path, **options):
    calls.append(path)
    return real(slide, path, **options) if len(calls) == 1 else hang()

build.plan_tiles = plan
stage.PredictSlide.__call__ = lambda *args: time.sleep(60)
sys.exit(main(sys.argv[1:]))
"""


def test_an_interrupt_also_ends_what_is_tiled_ahead(data, tmp_path):
    asked = ["predict", str(tmp_path / "run"), "--slides", str(data / "slides"), *SETTINGS]
    asked += ["--checkpoint", str(data / "one.safetensors")]
    command = [sys.executable, "-c", INTERRUPTED, *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 130
    assert "without waiting" not in done.stderr  # it was not ended by force
    assert not list((tmp_path / "run").rglob("*.part"))
    assert Unit("tile", "s0").is_marked(RunFolder(tmp_path / "run"))


def test_run_tiles_and_predicts_together_with_a_given_model(data, tmp_path, monkeypatch, capsys):
    run, config = prepare_run(data, tmp_path)
    assert main(["run", str(config), "--set", "stages=[tile, predict, heatmap]"]) == 0
    printed = summaries(capsys.readouterr().out)
    assert printed == ["tile: 3 done", "predict: 3 done", "heatmap: 3 done"]
    assert len(list((run / "heatmaps/one").glob("*.png"))) == 3
