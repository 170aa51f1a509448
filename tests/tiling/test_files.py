"""Nothing unfinished looks finished, whoever else writes to the same place."""

import subprocess
import sys
import time

import pytest

from tiling import files
from tiling.files import remove_leftovers, write_aside


def write_folder(path, text, n=5):
    with write_aside(path) as scratch:
        scratch.mkdir()
        for number in range(n):
            (scratch / f"{number}.txt").write_text(text)


def contents(path):
    return {file.read_text() for file in path.iterdir()}


@pytest.fixture(params=["swapped", "moved aside"])
def way(request, monkeypatch):
    """Both ways of replacing a folder: in one step, and on file systems that cannot."""
    if request.param == "moved aside":
        monkeypatch.setattr(files, "_swap", lambda a, b: False)
    return request.param


def test_a_folder_is_replaced_and_nothing_is_left(tmp_path, way):
    write_folder(tmp_path / "store", "old", n=7)
    write_folder(tmp_path / "store", "new")

    assert contents(tmp_path / "store") == {"new"}
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_a_file_where_the_folder_goes_is_replaced(tmp_path, way):
    (tmp_path / "store").write_text("a file")
    write_folder(tmp_path / "store", "new")

    assert contents(tmp_path / "store") == {"new"}


def test_an_error_leaves_the_old_folder(tmp_path, way):
    write_folder(tmp_path / "store", "old")
    with pytest.raises(ZeroDivisionError), write_aside(tmp_path / "store") as scratch:
        scratch.mkdir(mode=0o777 // 0)

    assert contents(tmp_path / "store") == {"old"}
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_another_process_that_moves_the_folder_aside_first_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_swap", lambda a, b: False)
    write_folder(tmp_path / "store", "old")
    rename, meddled = type(tmp_path).rename, []

    def meddling(self, target):
        """Right before the old folder is moved aside, another process does so itself."""
        if self.name == "store" and not meddled:
            meddled.append(rename(self, tmp_path / "theirs"))
            write_folder(tmp_path / "store", "theirs")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", meddling)
    write_folder(tmp_path / "store", "ours")

    assert meddled
    assert contents(tmp_path / "store") == {"ours"}


WRITER = """
import sys
from pathlib import Path
from tiling import files

path, text, times, swaps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "True"
if not swaps:
    files._swap = lambda a, b: False
print("begun", flush=True)
for _ in range(times):
    with files.write_aside(path) as scratch:
        scratch.mkdir()
        for number in range(5):
            (scratch / f"{number}.txt").write_text(text)
"""


def start_writer(path, text, *, times, swaps=True):
    """A process that replaces a folder again and again."""
    command = [sys.executable, "-c", WRITER, str(path), text, str(times), str(swaps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize("swaps", [True, False])
def test_processes_that_replace_one_folder_at_once_all_succeed(tmp_path, swaps):
    path = tmp_path / "store"
    workers = [start_writer(path, text, times=60, swaps=swaps) for text in ("one", "two", "three")]
    for worker in workers:
        worker.communicate()

    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert contents(path) in ({"one"}, {"two"}, {"three"})
    assert len(list(path.iterdir())) == 5
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_at_every_moment_and_after_a_kill_there_is_a_whole_folder(tmp_path):
    path = tmp_path / "store"
    write_folder(path, "old")
    for round_ in range(3):
        with start_writer(path, "new", times=10**9) as worker:
            until = time.monotonic() + 0.2 + 0.1 * round_
            while time.monotonic() < until:
                assert path.is_dir()
            assert worker.poll() is None
            worker.kill()
        assert len(list(path.iterdir())) == 5
        assert contents(path) == {"new"}

    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
