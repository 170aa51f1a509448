"""Files that are not what they were: reported, not used, and rebuilt to the same bytes."""

import csv
import json
import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from tests.helpers.tiny_cohort import again, contents
from wsi_pipeline.cli.app import main
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run import state
from wsi_pipeline.run.marks import Problem
from wsi_pipeline.stages.inputs import digest_scores

SHARD = "tiles/s4.zarr/patches/c/0/0/0/0"
SCORES = "scores/patchnet/s4.h5"

# A file of each kind; of some, what names it in a message.
KINDS = {
    "tiles/s2.zarr/zarr.json": "s2.zarr",
    "tiles/s2.zarr/coords/zarr.json": "s2.zarr",
    "tiles/s3.zarr/label/c/0": "s3.zarr",
    "tiles/s3.zarr/patches/zarr.json": "s3.zarr",
    SHARD: "s4.zarr",
    "tiles/s5.png": "",
    "tiles/label_audit/audit.json": "",
    "models/patchnet/checkpoint.safetensors": "",
    "models/patchnet/history.csv": "",
    SCORES: "",
    "heatmaps/patchnet/s4.ome.tif": "",
    "heatmaps/patchnet/s5.png": "",
    "evaluation/patchnet/metrics.json": "",
    "evaluation/patchnet/patches.csv": "",
    "evaluation/patchnet/detections/s5.csv": "",
    "figures/patchnet/roc_slides.svg": "",
    "report.html": "",
    "run.json": "",
    ".state/tile/s1.done.json": "s1",
    ".state/predict/patchnet/s2.done.json": "s2",
    ".state/heatmap/patchnet/s2.done.json": "s2",
    ".state/evaluate/patchnet/patchnet.done.json": "patchnet",
    ".state/report/run.done.json": "run",
}
# Seen only where nothing that they are made from, or describe, has to be made again.
ALONE = (
    ".state/evaluate/patchnet/patchnet.done.json",
    ".state/report/run.done.json",
    "figures/patchnet/roc_slides.svg",
)
STAGES = ("collect", "train", "predict", "heatmap", "evaluate", "report")


def flip(content: bytes) -> bytes:
    """Change one bit in the middle."""
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 4
    return bytes(changed)


CORRUPTIONS = {
    "flip": flip,
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "garbage": lambda content: random.Random(0).randbytes(len(content)),
    "list": lambda content: b"[1, 2]",
    "shape": lambda content: (
        b'{"fingerprint": 3, "files": [1], "stages": {"tile": 5}, "attributes": 7}'
    ),
    "deep": lambda content: b'{"a": ' + b"[" * 100_000,
}


def corrupt(path: Path, how: str) -> None:
    path.write_bytes(CORRUPTIONS[how](path.read_bytes()))


def flip_unseen(path: Path, at: int = 1000) -> None:
    """Flip a byte as a disk does: without a new time of change."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def failures(run: Path) -> dict[tuple[str, str], str]:
    with (run / "failures.csv").open(newline="") as file:
        return {(row["stage"], row["slide_id"]): row["message"] for row in csv.DictReader(file)}


def assert_no_surprise(run: Path, printed: str) -> None:
    assert "Traceback" not in printed
    messages = [*failures(run).values(), printed]
    assert not [message for message in messages if "unexpected " in message]


@pytest.mark.parametrize(
    "how",
    [
        "flip",
        pytest.param("cut", marks=pytest.mark.slow),
        pytest.param("empty", marks=pytest.mark.slow),
        pytest.param("garbage", marks=pytest.mark.slow),
        pytest.param("list", marks=pytest.mark.slow),
        "shape",
        pytest.param("deep", marks=pytest.mark.slow),
    ],
)
def test_a_run_whose_every_kind_of_file_is_damaged_is_rebuilt_the_same(copy, capsys, caplog, how):
    before = contents(copy / "run")
    names = [name for name in KINDS if name not in ALONE]
    for name in names:
        corrupt(copy / "run" / name, how)
    code = again(copy)
    captured = capsys.readouterr()
    printed = captured.out + captured.err + caplog.text
    assert_no_surprise(copy / "run", printed)
    if code:  # what a stage met before the one that makes it had its turn
        assert again(copy, "--quiet") == 0
    for name in names:
        assert (KINDS[name] or Path(name).name) in printed, name
    assert contents(copy / "run") == before


# Each kind of file in two ways, each way on many kinds.
SOME_DAMAGE = [
    (name, list(CORRUPTIONS)[(number + step) % len(CORRUPTIONS)])
    for number, name in enumerate(KINDS)
    for step in (0, 3)
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "how"), SOME_DAMAGE)
def test_every_command_after_the_damage_goes_on_or_names_it(copy, capsys, caplog, name, how):
    run = copy / "run"
    before = contents(run)
    corrupt(run / name, how)
    for stage in STAGES:
        assert main([stage, str(run)]) in (0, 1, 3)
    assert main(["plan", str(copy / "config.yaml")]) in (0, 1, 3)
    captured = capsys.readouterr()
    printed = captured.out + captured.err + caplog.text
    assert_no_surprise(run, printed)
    assert (KINDS[name] or Path(name).name) in printed
    # `report` shows the settings that each command recorded, so its own file may differ.
    reported = {"report.html", ".state/report/run.done.json"}
    assert again(copy, "--quiet") == 0 or again(copy, "--quiet") == 0
    after = contents(run)
    assert set(after) == set(before)
    assert {n for n in before if after[n] != before[n]} <= reported


# ---------------------------------------------------------------- patch stores


def test_a_flipped_byte_of_a_patch_fails_that_slide_and_is_rebuilt_by_tile(copy, capsys):
    """29 of 91 scores changed silently."""
    run, before = copy / "run", contents(copy / "run")
    flip_unseen(run / SHARD)

    assert main(["predict", str(run), "--overwrite"]) == 3
    assert set(failures(run)) == {("predict", "s4")}
    message = failures(run)["predict", "s4"]
    assert message == (
        "s4.zarr: damaged: shard 0: the checksum of patch 0 does not match; run tile again"
    )
    assert main(["collect", str(run)]) == 3
    assert "tiles/s4.zarr was found damaged by predict" in capsys.readouterr().out

    assert again(copy) == 0
    printed = capsys.readouterr().err
    assert "s4: tiles/s4.zarr was found damaged by predict" in printed
    assert failures(run) == {}
    assert contents(run) == before


def test_a_shard_that_was_written_to_after_its_mark_is_verified_by_tile(copy, capsys):
    before = contents(copy / "run")
    corrupt(copy / "run" / SHARD, "flip")
    assert again(copy) == 0
    assert "s4: tiles/s4.zarr is damaged: shard 0" in capsys.readouterr().err
    assert contents(copy / "run") == before


def test_a_shard_with_another_time_but_the_same_bytes_is_kept(copy, capsys):
    (copy / "run" / SHARD).touch()
    assert again(copy) == 0
    assert "tile: 0 done, 6 kept" in capsys.readouterr().out


def test_training_and_evaluation_stop_at_a_damaged_store(copy, capsys):
    run = copy / "run"
    corrupt(run / "tiles/s1.zarr/label/c/0", "flip")
    corrupt(run / "tiles/s5.zarr/label/c/0", "flip")
    assert main(["train", str(run), "--overwrite"]) == 1
    assert main(["evaluate", str(run), "--overwrite"]) == 1
    assert failures(run) == {
        ("train", "patchnet"): "tiles/s1.zarr has changed since it was written; run tile again",
        ("evaluate", "patchnet"): "tiles/s5.zarr has changed since it was written; run tile again",
    }
    capsys.readouterr()


@pytest.mark.parametrize("stage", ["predict", "export"])
def test_models_of_one_command_share_what_is_read_of_a_store(copy, monkeypatch, stage):
    """Each store was read and verified again for each model."""
    read: list[str] = []
    find_problems = state.find_problems

    def count(run: Path, path: Path, *of) -> list[Problem]:
        if path.parent.name == "tile":
            read.append(path.name.removesuffix(".done.json"))
        return find_problems(run, path, *of)

    shutil.copytree(copy / "run/models/patchnet", copy / "run/models/second")
    assert main(["predict", str(copy / "run")]) == 0
    monkeypatch.setattr(state, "find_problems", count)
    more = ["--format", "wsinfer"] if stage == "export" else []
    assert main([stage, str(copy / "run"), *more]) == 0
    assert sorted(read) == ["s2", "s3", "s4", "s5"]


def test_a_damaged_patch_in_the_error_gallery_fails_the_evaluation(copy, capsys):
    """It was merely left out of the gallery."""
    run = copy / "run"
    flip_unseen(run / "tiles/s5.zarr/patches/c/0/0/0/0", 100)
    for at in range(3 * 32**2 + 4, 80 * (3 * 32**2 + 4), 3 * 32**2 + 4):
        flip_unseen(run / "tiles/s5.zarr/patches/c/0/0/0/0", at)
    assert main(["evaluate", str(run), "--set", "threshold=0.0"]) == 1
    assert "s5.zarr: damaged: shard 0" in failures(run)["evaluate", "patchnet"]
    capsys.readouterr()


def test_pixels_are_verified_where_that_is_asked_for(copy, capsys):
    run = copy / "run"
    flip_unseen(run / SHARD)
    assert main(["collect", str(run)]) == 0
    assert main(["collect", str(run), "--verify"]) == 3
    assert "tile: 5 of 6 slides done, 1 damaged (s4)" in capsys.readouterr().out
    assert again(copy, "--quiet") == 0
    assert main(["collect", str(run), "--verify"]) == 0


# ---------------------------------------------------------------- scores


def damage_scores(path: Path) -> None:
    with h5py.File(path) as file:
        [chunk] = [file["scores"].id.get_chunk_info(0)]
    flip_unseen(path, chunk.byte_offset + 6)


@pytest.mark.parametrize("command", [["heatmap"], ["export", "--format", "qupath"]])
def test_a_damaged_score_file_fails_that_slide_and_names_the_remedy(copy, capsys, command):
    run = copy / "run"
    damage_scores(run / SCORES)
    assert main([command[0], str(run), *command[1:], "--overwrite"]) == 3
    assert set(failures(run)) == {(command[0], "s4")}
    message = failures(run)[command[0], "s4"]
    assert "s4.h5: damaged score file" in message
    assert message.endswith("run predict again")
    before = (run / "scores/patchnet/s5.h5").read_bytes()
    assert main(["predict", str(run)]) == 0
    assert "predict: 1 done, 3 kept" in capsys.readouterr().out
    assert main([command[0], str(run), *command[1:]]) == 0
    assert failures(run) == {}
    assert (run / "scores/patchnet/s5.h5").read_bytes() == before


def test_damaged_scores_of_a_test_slide_stop_the_evaluation(copy, capsys):
    damage_scores(copy / "run" / SCORES)
    assert main(["evaluate", str(copy / "run")]) == 1
    assert "s4.h5: damaged score file" in failures(copy / "run")["evaluate", "patchnet"]
    capsys.readouterr()


@pytest.mark.slow
def test_scores_that_were_edited_are_used_by_later_stages_and_restored_by_predict(
    copy, capsys, caplog
):
    """They counted as finished: the digest was that of their settings, not of their content."""
    run = copy / "run"
    before = contents(run)
    with h5py.File(run / SCORES, "r+") as file:
        file["scores"][...] = np.where(np.isnan(file["scores"][...]), np.nan, 0.25)

    assert main(["heatmap", str(run)]) == 0
    captured = capsys.readouterr()
    assert "heatmap: 1 done, 3 kept" in captured.out
    assert "s4 by patchnet: out of date" in captured.err
    assert "not as predict wrote it, but consistent: used as an edited file" in caplog.text
    heatmap = tifffile.imread(run / "heatmaps/patchnet/s4.ome.tif")
    assert set(heatmap[~np.isnan(heatmap)].tolist()) == {0.25}
    assert main(["evaluate", str(run)]) == 0
    assert "evaluate: 1 done" in capsys.readouterr().out

    assert again(copy) == 0
    assert "s4 by patchnet: scores/patchnet/s4.h5 has changed" in capsys.readouterr().err
    assert contents(run) == before


def test_scores_of_another_device_make_later_stages_stale(copy, capsys):
    """Their settings are the same, but not one float need be."""
    run = RunFolder(copy / "run")
    before = digest_scores(run, "patchnet", "s4")
    path, mark = run.scores("patchnet", "s4"), Unit("predict", "s4", "patchnet").mark(run, "done")
    with h5py.File(path, "r+") as file:
        file["scores"][0] = np.nextafter(file["scores"][0], np.float32(0.5), dtype=np.float32)
    found = json.loads(mark.read_text())
    found["sha256"] = {}  # as if predict had written it
    mark.write_text(json.dumps(found))
    assert digest_scores(run, "patchnet", "s4") != before


@pytest.mark.parametrize("attribute", ["model", "fingerprint", "settings"])
def test_an_edited_attribute_is_damage(copy, capsys, attribute):
    path = copy / "run" / SCORES
    with h5py.File(path, "r+") as file:
        file.attrs[attribute] = file.attrs[attribute].replace("a", "b").replace("5", "6")
    assert main(["heatmap", str(copy / "run")]) == 3
    message = failures(copy / "run")["heatmap", "s4"]
    assert "its attributes are not those that were written" in message
    capsys.readouterr()


# ---------------------------------------------------------------- heatmaps, settings, the rest


@pytest.mark.parametrize("name", ["heatmaps/patchnet/s4.ome.tif", "heatmaps/patchnet/s4.png"])
def test_a_flipped_byte_of_a_heatmap_is_named_and_rebuilt(copy, capsys, name):
    before = contents(copy / "run")
    flip_unseen(copy / "run" / name)
    assert main(["collect", str(copy / "run")]) == 3
    assert f"{name} has changed since it was written" in capsys.readouterr().out
    assert main(["heatmap", str(copy / "run")]) == 0
    captured = capsys.readouterr()
    assert f"s4 by patchnet: {name} has changed since it was written; rebuilding" in captured.err
    assert "heatmap: 1 done, 3 kept" in captured.out
    assert contents(copy / "run")[name] == before[name]


def test_a_report_is_not_made_from_damaged_files(copy, capsys):
    run = copy / "run"
    corrupt(run / "evaluation/patchnet/slides.csv", "flip")
    assert main(["report", str(run), "--overwrite"]) == 1
    assert failures(run)["report", "run"] == (
        "evaluation/patchnet/slides.csv has changed since it was written; run evaluate again"
    )
    capsys.readouterr()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"stages": []}', '{"stages": {"tile": {"config": 1}}}']
)
def test_a_damaged_run_json_does_not_mean_the_defaults(copy, capsys, text):
    """The heatmaps would have been rebuilt with unrequested settings."""
    run = copy / "run"
    (run / "run.json").write_text(text)
    before = contents(run)
    for stage in ("train", "predict", "heatmap", "evaluate", "report"):
        assert main([stage, str(run)]) == 1
        assert "run.json: damaged" in capsys.readouterr().err
    assert main(["collect", str(run)]) == 3
    assert "run.json: damaged" in capsys.readouterr().out
    assert contents(run) == before
    assert main(["heatmap", str(run), "--config", str(copy / "config.yaml")]) == 0


def test_one_unit_that_cannot_be_looked_at_does_not_stop_the_others(copy, capsys, monkeypatch):
    """Whatever went wrong there, and not only what was foreseen."""
    from wsi_pipeline.stages import heatmap as heatmap_stage

    real = heatmap_stage.digest_scores

    def odd(run, model, slide_id):
        if slide_id == "s4":
            raise ZeroDivisionError
        return real(run, model, slide_id)

    monkeypatch.setattr(heatmap_stage, "digest_scores", odd)
    shutil.rmtree(copy / "run/heatmaps")
    assert main(["heatmap", str(copy / "run")]) == 3
    assert set(failures(copy / "run")) == {("heatmap", "s4")}
    assert (copy / "run/heatmaps/patchnet/s5.png").is_file()
    capsys.readouterr()
