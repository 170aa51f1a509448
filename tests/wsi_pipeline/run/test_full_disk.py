"""A full disk: what was finished is kept, the message states the remedy, the rest resumes."""

import os
from pathlib import Path

import pytest

from tests.helpers.disks import small_disk
from tests.helpers.tiny_cohort import contents, draw_cohort
from wsi_pipeline.cli.app import main

SETTINGS = [
    word
    for setting in ("target_mpp=0.5", "patch_px=32", "tissue.mpp=2.0", "tissue.min_object_um2=100")
    for word in ("--set", setting)
]


def fill(folder: Path, *, leave_kib: int = 0) -> Path:
    """Take the space that is left."""
    path = folder / "somebody's file"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    os.truncate(path, max(0, path.stat().st_size - 1024 * leave_kib))
    return path


@pytest.fixture
def cohort(tmp_path):
    draw_cohort(tmp_path / "data")
    (tmp_path / "disk").mkdir()
    return tmp_path / "data" / "manifest.csv"


def tile(cohort: Path, run: Path) -> int:
    return main(["tile", str(cohort), "--out", str(run), *SETTINGS])


@pytest.mark.slow
def test_slides_that_were_finished_before_the_disk_was_full_are_kept(cohort, tmp_path, capsys):
    """It ended with a bare line of the system and code 1: no remedy."""
    run = tmp_path / "disk" / "run"
    assert tile(cohort, tmp_path / "other" / "whole") == 0
    with small_disk(tmp_path / "disk", kib=8000):
        taken = fill(tmp_path / "disk", leave_kib=1000)  # two or three slides
        capsys.readouterr()
        assert tile(cohort, run) == 3
        printed = capsys.readouterr()
        assert " failed (" in printed.out
        assert "Traceback" not in printed.err
        assert "no space left on" in printed.err
        assert not list(run.rglob("*.part"))

        taken.unlink()
        assert tile(cohort, run) == 0
        assert "tile: 0 done" not in capsys.readouterr().out
        resumed, whole = contents(run), contents(tmp_path / "other" / "whole")
        assert resumed | {"run.json": b""} == whole | {"run.json": b""}  # it names the folder


@pytest.mark.parametrize(
    "leave_kib", [0, *(pytest.param(kib, marks=pytest.mark.slow) for kib in (8, 40))]
)
def test_a_disk_without_room_for_the_failures_themselves(cohort, tmp_path, capsys, leave_kib):
    run = tmp_path / "disk" / "run"
    with small_disk(tmp_path / "disk", kib=8000):
        assert tile(cohort, run) == 0
        before = contents(run)
        done = [f"s{number}" for number in range(2)]
        for name in done:  # these have to be made again
            (run / ".state" / "tile" / f"{name}.done.json").unlink()
        taken = fill(tmp_path / "disk", leave_kib=leave_kib)
        capsys.readouterr()

        assert tile(cohort, run) == 3
        printed = capsys.readouterr()
        assert "tile: 0 done, 4 kept from before, 2 failed (s0, s1)" in printed.out
        assert "no space left" in printed.err.lower()
        assert "free some" in printed.err
        assert str(run) in printed.err
        assert "Traceback" not in printed.err
        recorded = len(list((run / ".state").rglob("*.failed.json"))) == 2
        assert recorded or f"No space left in {run} (0.0 MiB free)" in printed.err
        assert not recorded or leave_kib

        taken.unlink()
        assert tile(cohort, run) == 0
        assert "2 done, 4 kept" in capsys.readouterr().out
        assert contents(run) == before


def test_a_disk_without_room_for_anything(cohort, tmp_path, capsys):
    with small_disk(tmp_path / "disk", kib=64) as disk:
        fill(disk)
        assert tile(cohort, disk / "run") == 1
        message = capsys.readouterr().err
        assert f"No space left in {disk}" in message
        assert "free some" in message
