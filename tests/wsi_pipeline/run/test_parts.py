"""Units done in parts by the tasks of a job array: killed, requeued and simultaneous tasks."""

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tiling.files import write_text
from wsi_pipeline.config.reading import Config
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run import parts
from wsi_pipeline.run.parts import merge_parts, part_path, run_in_parts, write_part
from wsi_pipeline.run.runner import Options
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.tasks import Task

SQUARES = "0 1 4 9 16 25 36 49 64 81"
ABOUT = {"fingerprint": "squares None", "data": "as now"}


@dataclass(frozen=True)
class Squares(Task):
    """Square the numbers 0 to 9."""

    model: str
    part: Shard | None = None

    @property
    def unit(self):
        return parts.unit_of_part(Unit("predict", "images", self.model), self.part)

    def fingerprint(self, run):
        return f"squares {self.part}"

    def __call__(self, job, on_progress):
        numbers = np.array(parts.share_of(range(10), self.part))
        path = part_path(job.run, replace(self, part=None).unit, self.part)
        write_part(path, self.part.count, ABOUT, {"squares": numbers**2})
        return [path], ""


def merge(run, model):
    def write(found):
        path = run.path / f"{model}.txt"
        write_text(path, " ".join(str(n) for part in found for n in part.arrays["squares"]))
        return [path]

    unit = Unit("predict", "images", model)
    return merge_parts(run, unit, write, is_current="as now".__eq__)


def run_shard(run, shard, models=("a", "b")):
    tasks = [Squares(model) for model in models]
    options = Options(shard=shard, quiet=True)
    return run_in_parts("predict", run, tasks, Config(), options, merge=merge)


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


@pytest.mark.parametrize("killed", range(3))
def test_a_killed_task_submitted_again_does_its_own_part(run, monkeypatch, killed):
    """Though one of the models is finished by then, the part of the other is the same."""
    call = Squares.__call__

    def kill_at_b(task, job, on_progress):
        if task.model == "b":
            raise KeyboardInterrupt
        return call(task, job, on_progress)

    with monkeypatch.context() as patch:
        patch.setattr(Squares, "__call__", kill_at_b)
        with pytest.raises(KeyboardInterrupt):
            run_shard(run, Shard(killed, 3))
    for index in {0, 1, 2} - {killed}:
        run_shard(run, Shard(index, 3))
    assert (run.path / "a.txt").read_text() == SQUARES
    assert not (run.path / "b.txt").exists()
    result = run_shard(run, Shard(killed, 3))
    assert result.notes == ("images by b: all parts put together",)
    assert (run.path / "b.txt").read_text() == SQUARES


def test_a_part_that_another_task_removes_meanwhile_is_no_error(run):
    """A link to nothing is listed and then not there, like a part that was just put together."""
    folder = part_path(run, Unit("predict", "images", "a"), Shard(0, 2)).parent
    folder.mkdir(parents=True)
    (folder / "images.2-of-3.npz").symlink_to(folder / "gone")
    assert run_shard(run, Shard(0, 2), ["a"]).notes == ()
    assert run_shard(run, Shard(1, 2), ["a"]).notes == ("images by a: all parts put together",)
    assert (run.path / "a.txt").read_text() == SQUARES


def test_leftover_parts_of_a_finished_unit_may_be_read_only(run, monkeypatch):
    for index in range(2):
        run_shard(run, Shard(index, 2), ["a"])
    left = part_path(run, Unit("predict", "images", "a"), Shard(0, 2))
    write_part(left, 2, ABOUT, {})
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path == left:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert run_shard(run, None, ["a"]).kept == ("images by a",)
