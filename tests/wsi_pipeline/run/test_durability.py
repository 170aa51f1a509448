"""What is marked finished is on the disk: a power loss takes nothing that was reported as done."""

import os
from pathlib import Path

import pytest

from tests.helpers.disks import disk_with_a_switch
from tests.helpers.tiny_cohort import contents, draw_cohort
from tiling import files
from wsi_pipeline.cli.app import main
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.marks import find_problems, read_mark
from wsi_pipeline.run.state import clear_mark, mark_finished

SETTINGS = [
    word
    for setting in ("target_mpp=0.5", "patch_px=32", "tissue.mpp=2.0", "tissue.min_object_um2=100")
    for word in ("--set", setting)
]


@pytest.fixture
def events(monkeypatch) -> list[tuple[str, str]]:
    """What is flushed and what is renamed, in order, by name."""
    found: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    def flush(descriptor: int) -> None:
        found.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        found.append(("rename", target.name))
        return replace(path, target)

    def remove(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            found.append(("remove", path.name))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "unlink", remove)
    return found


def test_data_are_flushed_before_their_mark_and_the_mark_after(tmp_path, events):
    run, unit = RunFolder(tmp_path / "run"), Unit("predict", "s1", "vgg16")
    folder = run.path / "scores" / "vgg16"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.h5").write_bytes(b"scores")
    (folder / "b.csv").write_bytes(b"table")

    mark_finished(run, unit, "f", [folder / "deep", folder / "b.csv"])

    marked = events.index(("rename", "s1.done.json"))
    before, after = events[:marked], events[marked + 1 :]
    assert {name for _, name in before} == {
        *("a.h5", "b.csv", "deep", "vgg16", "scores", "run", tmp_path.name)
    }
    n_files = 2
    assert {name for _, name in before[:n_files]} == {"a.h5", "b.csv"}  # then the folders
    assert after[0] == ("flush", "s1.done.json")
    assert {name for _, name in after} == {
        *("s1.done.json", "vgg16", "predict", ".state", "run", tmp_path.name)
    }


def test_a_mark_is_gone_from_the_disk_before_its_files_are_replaced(tmp_path, events):
    run, unit = RunFolder(tmp_path / "run"), Unit("tile", "s1")
    run.path.mkdir()
    (run.path / "s1.png").write_bytes(b"picture")
    mark_finished(run, unit, "f", [run.path / "s1.png"])
    events.clear()

    clear_mark(run, unit)

    removed = events.index(("remove", "s1.done.json"))
    assert ("flush", "tile") in events[removed:]


@pytest.mark.slow
def test_the_power_may_be_lost_at_once_after_a_slide_is_done(tmp_path, capsys):
    draw_cohort(tmp_path / "data")
    with disk_with_a_switch(tmp_path / "disk", mib=48) as disk:
        run = RunFolder(disk.folder / "run")
        command = ["tile", str(tmp_path / "data/manifest.csv"), "--out", str(run.path), *SETTINGS]
        assert main(command) == 0
        before = contents(run.path)
        disk.lose_power()
        for number in range(6):
            path = Unit("tile", f"s{number}").mark(run, "done")
            mark = read_mark(path)
            assert mark is not None
            assert find_problems(run.path, path, mark) == []
        kept = {name for name in before if name.startswith(("tiles/s", ".state/tile/s"))}
        after = contents(run.path)
        assert {name: after.get(name) for name in kept} == {name: before[name] for name in kept}

        assert main(command) == 0
        assert "tile: 0 done, 6 kept" in capsys.readouterr().out
        assert contents(run.path) == before


@pytest.mark.slow
def test_without_flushing_the_same_power_loss_takes_finished_slides(tmp_path, monkeypatch, capsys):
    """The simulated power loss is one; what it left is never taken for whole."""
    draw_cohort(tmp_path / "data")
    monkeypatch.setattr(files, "_flush", lambda path: None)
    with disk_with_a_switch(tmp_path / "disk", mib=48) as disk:
        run = disk.folder / "run"
        command = ["tile", str(tmp_path / "data/manifest.csv"), "--out", str(run), *SETTINGS]
        assert main(command) == 0
        before = contents(run)
        disk.lose_power()
        assert main(command) == 0
        assert "tile: 0 done" not in capsys.readouterr().out
        assert contents(run) == before
