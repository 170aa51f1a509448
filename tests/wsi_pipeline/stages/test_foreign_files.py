"""Files of others in a run folder stay; of ours, what was not made again goes."""

import json
from pathlib import Path

import pytest

from tests.helpers.tiny_cohort import again, contents
from wsi_pipeline.cli.app import main

MINE = (
    "evaluation/patchnet/notes.txt",
    "evaluation/patchnet/detections/radiologist.csv",
    "evaluation/patchnet/errors/mine.png",
    "evaluation/patchnet/mine.csv",
    "figures/patchnet/mine.svg",
    "figures/patchnet/mine.png",
    "tiles/label_audit/comments.csv",
    "heatmaps/patchnet/mine.png",
    "scores/patchnet/mine.h5",
    "models/patchnet/notes.csv",
    "tiles/notes.csv",
)


def put(run: Path) -> dict[str, str]:
    for name in MINE:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(f"mine: {name}")
    return {name: (run / name).read_text() for name in MINE}


def test_files_that_no_mark_names_stay(copy, capsys):
    """An evaluation deleted every CSV in detections/ and PNG in errors/, a report every picture."""
    mine, before = put(copy / "run"), contents(copy / "run")
    assert again(copy, "--quiet", "--overwrite") == 0
    assert {name: (copy / "run" / name).read_text() for name in MINE} == mine
    assert contents(copy / "run") == before


@pytest.mark.slow
def test_files_of_others_are_not_taken_for_ours_by_a_mark(copy, capsys):
    """They would be removed as those of earlier settings."""
    mine = put(copy / "run")
    for _ in range(2):
        assert again(copy, "--quiet", "--overwrite") == 0
    for mark in (copy / "run/.state").rglob("*.done.json"):
        assert not set(json.loads(mark.read_text())["files"]) & set(mine), mark


def test_figures_that_a_report_does_not_make_again_go(copy, capsys):
    run = copy / "run"
    old = [run / f"figures/patchnet/training_loss.{kind}" for kind in ("svg", "png", "csv")]
    assert all(path.is_file() for path in old)
    (run / "models/patchnet/history.csv").unlink()
    assert main(["report", str(run), "--overwrite"]) == 0
    assert not any(path.exists() for path in old)
    capsys.readouterr()


def test_detections_of_a_slide_that_is_no_longer_tested_go(copy, capsys):
    """The command froc would count them."""
    run = copy / "run"
    assert (run / "evaluation/patchnet/detections/s4.csv").is_file()
    manifest = run / "slides.csv"
    manifest.write_text(
        "".join(
            line.replace(",test", ",val") if ",s4," in line else line
            for line in manifest.read_text().splitlines(keepends=True)
        )
    )
    put(run)
    assert main(["evaluate", str(run)]) == 0
    left = {path.name for path in (run / "evaluation/patchnet/detections").iterdir()}
    assert left == {"s5.csv", "radiologist.csv"}
    capsys.readouterr()
