"""Faults around a run: files that vanish, clocks that jump, few open files, two runs at once.

After each, what was finished is kept, the message states what to do, and the run that follows ends
as one without the fault. docs/reliability.md lists these and where the others are tested.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from tests.helpers.tiny_cohort import again, contents, draw_cohort, write_config
from wsi_pipeline.cli.app import main
from wsi_pipeline.run import tasks
from wsi_pipeline.stages.tile import TileSlide
from wsi_pipeline.training.loop import _Training

ROOT = Path(__file__).parents[3]
COMMAND = """
import sys
from tests.helpers.quick_pictures import quick_pictures
from wsi_pipeline.cli.app import main
with quick_pictures():
    sys.exit(main(sys.argv[1:]))
"""


def start(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def finish(process: subprocess.Popen) -> tuple[str, int]:
    """What a command printed, and its exit code."""
    return process.communicate()[0], process.returncode


# ------------------------------------------------------------ slides


@pytest.mark.parametrize("how", ["vanishes", pytest.param("changes", marks=pytest.mark.slow)])
def test_a_slide_that_vanishes_or_changes_between_the_others_fails_alone(
    copy, capsys, monkeypatch, how
):
    before = contents(copy / "run")
    slide, kept = copy / "data" / "s4.tif", copy / "kept.tif"
    shutil.copy2(slide, kept)
    work = TileSlide.__call__

    def disturb(self, job, on_progress):
        if self.entry.slide_id == "s3":  # s4 is listed and examined, not yet read
            slide.unlink() if how == "vanishes" else slide.write_bytes(kept.read_bytes()[:-900])
        return work(self, job, on_progress)

    monkeypatch.setattr(TileSlide, "__call__", disturb)
    assert main(["tile", str(copy / "data/manifest.csv"), "--out", str(copy / "run"),
                 "--config", str(copy / "config.yaml"), "--overwrite"]) == 3  # fmt: skip
    printed = capsys.readouterr()
    assert "tile: 5 done, 1 failed (s4)" in printed.out
    assert "s4.tif" in printed.err
    assert "Traceback" not in printed.err
    assert "unexpected" not in printed.err

    monkeypatch.undo()
    shutil.copy2(kept, slide)
    assert again(copy) == 0
    assert "tile: 1 done, 5 kept" in capsys.readouterr().out
    assert contents(copy / "run") == before


# ------------------------------------------------------------ clocks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_data", "of_run", "of_marks"),
    [
        pytest.param(4e9, 4e9, 4e9, id="all-in-the-future"),
        pytest.param(1e8, 1e8, 1e8, id="all-in-the-past"),
        pytest.param(4e9, 1e9, 1e8, id="slides-newer-than-stores"),
        pytest.param(1e8, 1e9, 4e9, id="marks-in-the-future"),
    ],
)
def test_dates_decide_nothing(copy, capsys, of_data, of_run, of_marks):
    def results() -> dict[str, bytes]:  # the digests of slides are kept with the slides' dates
        found = contents(copy / "run")
        return {name: found[name] for name in found if not name.startswith(".state/content/")}

    before = results()
    for path in copy.rglob("*"):
        is_mark = ".state" in path.parts
        seconds = of_data if "data" in path.parts else of_marks if is_mark else of_run
        os.utime(path, (seconds, seconds))
    assert again(copy) == 0
    assert "1 done" not in capsys.readouterr().out
    assert results() == before

    shard = copy / "run/tiles/s4.zarr/patches/c/0/0/0/0"  # damage is found, whatever its date
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    os.utime(shard, (1, 1))
    (copy / "run/.state/predict/patchnet/s4.done.json").unlink()
    codes = [again(copy), again(copy)]
    assert codes in ([0, 0], [3, 0])
    assert "damaged" in capsys.readouterr().err
    assert results() == before


# ------------------------------------------------------------ versions


def _of_a_store(run: Path) -> None:
    path = run / "tiles/s4.zarr/zarr.json"
    path.write_text(path.read_text().replace("patch-store/", "patch-store/9"))


def _of_scores(run: Path) -> None:
    with h5py.File(run / "scores/patchnet/s4.h5", "r+") as file:
        file.attrs["schema"] = "wsi-pipeline/scores/99"


def _of_a_checkpoint(run: Path) -> None:
    path = run / "models/patchnet/checkpoint.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"wsi-pipeline/checkpoint/1", b"wsi-pipeline/checkpoint/7"))
    assert path.read_bytes() != data


def _of_a_mark(run: Path) -> None:
    path = run / ".state/tile/s4.done.json"
    path.write_text(json.dumps({"version": 9, "content": json.loads(path.read_text())}))


@pytest.mark.slow
@pytest.mark.parametrize("change", [_of_a_store, _of_scores, _of_a_checkpoint, _of_a_mark])
def test_a_file_of_another_version_is_named_and_rebuilt(copy, capsys, caplog, change):
    run = copy / "run"
    before = contents(run)
    change(run)
    codes = [again(copy), again(copy)]
    printed = capsys.readouterr()
    text = printed.out + printed.err + caplog.text
    assert codes[-1] == 0, text
    assert "Traceback" not in text
    assert "s4" in text or "checkpoint" in text
    assert contents(run) == before


# ------------------------------------------------------------ memory, open files, processes


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(MemoryError(), marks=pytest.mark.slow),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        pytest.param(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["python", "gpu", "cpu"],
)
def test_a_training_without_memory_states_the_remedy_and_continues(
    copy, capsys, monkeypatch, error
):
    before = contents(copy / "run")
    (copy / "run/.state/train/patchnet/patchnet.done.json").unlink()
    run_epoch, n_epochs = _Training.run_epoch, []

    def fail(self, on_progress):
        if n_epochs:
            raise error
        n_epochs.append(1)
        return run_epoch(self, on_progress)

    monkeypatch.setattr(_Training, "run_epoch", fail)
    assert main(["train", str(copy / "run")]) == 1
    message = capsys.readouterr().err
    assert "patchnet: not enough memory in train; lower" in message
    assert "Traceback" not in message

    monkeypatch.undo()
    assert again(copy) == 0
    printed = capsys.readouterr()
    assert "resumed after 1" in printed.err
    assert contents(copy / "run") == before


def test_a_kill_between_the_files_and_their_mark_costs_no_training(copy, capsys, monkeypatch):
    """The state of the training was removed first: it started over."""
    before = contents(copy / "run")
    (copy / "run/.state/train/patchnet/patchnet.done.json").unlink()

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tasks, "mark_finished", kill)
    assert main(["train", str(copy / "run")]) == 130
    monkeypatch.undo()
    assert again(copy) == 0
    assert "resumed after 2" in capsys.readouterr().err
    assert contents(copy / "run") == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sixty_four_open_files_are_enough(finished, tmp_path, workers):
    config = write_config(tmp_path, finished / "data", tmp_path / "run")
    process = start(
        *("run", str(config), "--workers", str(workers)),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    )
    text, code = finish(process)
    assert code == 0, text


@pytest.mark.slow
def test_two_runs_of_all_stages_in_one_folder_do_no_harm(tmp_path):
    draw_cohort(tmp_path / "data")
    config = str(write_config(tmp_path, tmp_path / "data", tmp_path / "run"))
    text, code = finish(start("run", config))
    assert code == 0, text
    before = contents(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")

    processes = [start("run", config) for _ in range(2)]
    for text, code in map(finish, processes):
        assert code == 0, text
        assert "Traceback" not in text
    assert contents(tmp_path / "run") == before
