"""Nothing unfinished looks finished, even if others write to the same place."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiling import files
from tiling.files import (
    digest_files,
    move_into,
    parse_json,
    read_json_object,
    remove_leftovers,
    remove_leftovers_below,
    scratch_folder,
    update_text,
    write_aside,
)


def write_folder(path, text, n=5, **options):
    with write_aside(path, **{"is_ours": lambda _: True, **options}) as scratch:
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


def test_what_is_not_ours_is_never_replaced_by_a_folder(tmp_path, way):
    """`tile_slide(slide, folder)` once deleted a folder of somebody's with all that was in it."""
    (tmp_path / "store").write_text("a file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years")
    (tmp_path / "link").symlink_to("mine", target_is_directory=True)
    for name, options in (("store", {}), ("link", {}), ("mine", {"is_ours": lambda _: False})):
        with pytest.raises(FileExistsError, match="not replaced"):
            write_folder(tmp_path / name, "new", **options)

    assert (tmp_path / "store").read_text() == "a file"
    assert contents(tmp_path / "link") == contents(tmp_path / "mine") == {"years"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "mine", "store"]


def test_an_empty_folder_is_replaced(tmp_path, way):
    (tmp_path / "store").mkdir()
    with write_aside(tmp_path / "store") as scratch:
        scratch.mkdir()
        (scratch / "0.txt").write_text("new")

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
    with files.write_aside(path, is_ours=lambda _: True) as scratch:
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


def leave(folder, *, host=None, pid=None):
    """A scratch file as a process leaves it that was killed; by default one of this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    if pid is None:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        pid = process.pid
    path = folder / f".x.{host or files._HOST}-{pid}-0123abcd.part"
    path.touch()
    return path


def test_leftovers_are_found_at_any_depth_but_not_inside_a_store(tmp_path):
    """Below the second level they stayed for ever: evaluation/<model>/detections, for one."""
    gone = [leave(tmp_path / name) for name in ("", "a", "evaluation/m/detections", "a/b/c/d")]
    kept = [leave(tmp_path / "tiles/s.zarr/patches")]
    assert remove_leftovers_below(tmp_path) == len(gone)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in kept)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_leftovers_of_a_zombie_are_removed(tmp_path):
    """They stayed in containers whose first process does not wait for orphans."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    left = leave(tmp_path, pid=process.pid)
    assert remove_leftovers(tmp_path) == 1
    assert not left.exists()
    process.communicate()


def test_what_another_machine_or_a_living_process_is_writing_is_left_alone(tmp_path):
    other = "00000000" if files._HOST != "00000000" else "00000001"
    kept = [leave(tmp_path, host=other), leave(tmp_path, pid=os.getpid()), tmp_path / ".y.part"]
    kept[-1].touch()
    assert remove_leftovers_below(tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_files_of_a_scratch_folder_take_their_places_and_others_stay(tmp_path):
    target = tmp_path / "evaluation"
    (target / "errors").mkdir(parents=True)
    (target / "mine.csv").write_text("mine")
    (target / "a.csv").write_text("old")
    with scratch_folder(target) as scratch:
        (scratch / "errors").mkdir()
        for name in ("a.csv", "errors/b.png", "z.json"):
            (scratch / name).write_text("new")
        moved = move_into(scratch, target, last="a.csv")
    assert moved == [target / name for name in ("a.csv", "errors/b.png", "z.json")]
    assert {p.name: p.read_text() for p in target.rglob("*") if p.is_file()} == {
        "mine.csv": "mine", "a.csv": "new", "b.png": "new", "z.json": "new"
    }  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation"]


def test_a_text_that_is_there_already_is_not_written(tmp_path):
    path = tmp_path / "a.txt"
    update_text(path, "one")
    os.utime(path, ns=(0, 0))
    update_text(path, "one")
    assert path.stat().st_mtime_ns == 0
    update_text(path, "two")
    assert path.read_text() == "two"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"[1, 2]", "expected a JSON object, got list"),
        (b"null", "expected a JSON object, got NoneType"),
        (b'{"a": "\xff"}', "utf-8"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "nested more than 50 deep"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1', "delimiter"),
    ],
)
def test_what_is_wrong_with_json_is_one_kind_of_error(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json_object(tmp_path / "a.json")


def test_json_without_faults_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}]}')
    assert read_json_object(tmp_path / "a.json") == {"a": [1, {"b": None}]}
    assert parse_json("[1]") == [1]
    with pytest.raises(FileNotFoundError):
        read_json_object(tmp_path / "b.json")


def test_the_digest_of_files_depends_on_names_and_content(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    both = digest_files(tmp_path, [tmp_path / "a", tmp_path / "b"])
    assert digest_files(tmp_path, [tmp_path / "b", tmp_path / "a"]) == both
    (tmp_path / "a").write_text("2")
    (tmp_path / "b").write_text("1")
    assert digest_files(tmp_path, [tmp_path / "a", tmp_path / "b"]) != both
