"""Runs at a URL, on a real S3 server: kept where finished, and the same files as a local run."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.s3_server import Server, serve_s3
from tests.helpers.tiny_cohort import contents, draw_cohort, write_config
from tiling.files import digest_file, write_text
from tiling.store import PatchStore
from tiling.urls import RemotePath, as_path
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.mark_index import index_marks
from wsi_pipeline.run.marks import read_mark
from wsi_pipeline.run.state import (
    clear_mark,
    examine_unit,
    mark_finished,
    record_failure,
    write_failures,
)

ROOT = Path(__file__).parents[3]
COMMAND = """
import sys
from tests.helpers.quick_pictures import quick_pictures
from wsi_pipeline.cli.app import main
with quick_pictures():
    sys.exit(main(sys.argv[1:]))
"""
STAGES = "stages=[tile,predict,heatmap,evaluate,export,report]"


@pytest.fixture(scope="module")
def server():
    with serve_s3() as found:
        yield found


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    draw_cohort(folder / "data")
    write_config(folder, folder / "data", folder / "run")
    return folder


def test_a_mark_is_written_last_and_compared_with_the_objects(server, tmp_path):
    run, unit = RunFolder(as_path(f"{server.url}/marks")), Unit("tile", "s1")
    picture = run.qc("s1")
    with pytest.raises(StageError, match=r"ended without writing tiles/s1\.png"):
        mark_finished(run, unit, "of settings", [picture])
    assert examine_unit(run, unit, "of settings").state == "missing"

    write_text(picture, "a picture")
    mark_finished(run, unit, "of settings", [picture])
    assert examine_unit(run, unit, "of settings").state == "finished"
    assert examine_unit(run, unit, "of others").state == "stale"
    mark = read_mark(unit.mark(run, "done"))
    assert mark.files == {"tiles/s1.png": 9}
    write_text(tmp_path / "s1.png", "a picture")
    assert mark.sha256 == {"tiles/s1.png": digest_file(tmp_path / "s1.png")}

    write_text(picture, "another picture")
    assert examine_unit(run, unit, "of settings").problems == ("tiles/s1.png has 15 bytes, not 9",)
    picture.unlink()
    assert examine_unit(run, unit, "of settings").state == "missing"
    record_failure(run, unit, "SlideError", "unreadable")
    assert write_failures(run) == 1
    marks = index_marks(run, ["tile", "train"])
    assert marks.is_marked(unit)
    assert marks.of("tile").failed == {"s1"}
    assert not marks.of("train").has_files
    clear_mark(run, unit)
    assert not unit.is_marked(run)


@pytest.mark.slow
def test_a_finished_slide_is_kept_and_a_cut_off_one_is_built_again(
    server, cohort, capsys, monkeypatch
):
    run = RunFolder(as_path(f"{server.url}/one"))
    words = ["tile", str(cohort / "data/s1.tif"), "--out", str(run.path)]
    words += ["--config", str(cohort / "config.yaml"), "--set", "edge=drop"]
    put = RemotePath.put

    def cut_off(self: RemotePath, source: Path) -> None:
        if ".state/tile/s1.done" in str(self):  # the mark, which is last
            raise ConnectionError("connection lost")
        put(self, source)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "put", cut_off)
        assert main(words) == 1
    assert "connection lost" in capsys.readouterr().err
    assert not Unit("tile", "s1").is_marked(run)

    assert main(words) == 0
    assert "tile: 1 done; output: s3://tests/one/tiles" in capsys.readouterr().out
    server.requests.clear()
    assert main(words) == 0
    assert "tile: 0 done, 1 kept from before" in capsys.readouterr().out
    assert server.count("PUT") == 0
    with PatchStore.open(run.store("s1")) as store:
        assert store[0].shape == (32, 32, 3)

    (run.store("s1") / "coords/c/0/0").unlink()
    assert main(words) == 0
    printed = capsys.readouterr()
    assert re.search(r"tiles/s1\.zarr has \d+ bytes, not \d+; rebuilding", printed.err)


def test_training_in_a_bucket_is_refused_before_anything_is_done(tmp_path, capsys):
    run, config = "s3://bucket/run", str(write_config(tmp_path, tmp_path, tmp_path))

    assert main(["run", config, "--out", run]) == 1
    assert "train needs a run folder on a file system (training reads" in capsys.readouterr().err
    assert main(["plan", config, "--out", run]) == 1
    assert f"LocalOnlyError: {run}: plan takes no URL" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_in_a_bucket_that_is_killed_and_resumed_equals_a_local_one(
    server, cohort, tmp_path, capsys
):
    config, here, there = cohort / "config.yaml", tmp_path / "run", as_path(f"{server.url}/run")
    both = ["--set", STAGES, "--set", "export.formats=[qupath, ome-zarr]"]
    assert main(["run", str(config), "--out", str(here), "--set", "stages=[tile, train]"]) == 0
    models = [path for path in (here / "models").rglob("*") if path.is_file()]
    there.put_all(here, [path.relative_to(here).as_posix() for path in models])
    assert main(["run", str(config), "--out", str(here), *both]) == 0

    random = np.random.default_rng(0)
    words = ["run", str(config), "--out", str(there), *both]
    for n_uploads in random.integers(5, 60, 3).tolist():
        _kill_after(n_uploads, words, server)
    assert main(words) == 0
    capsys.readouterr()
    found = _pull(there, tmp_path / "pulled")

    expected = contents(here)
    for path in (here / "models").rglob("*"):
        expected.pop(path.relative_to(here).as_posix(), None)
    differ = {name for name in expected if found.get(name) != expected[name]}
    # Of the place where slides are, the stages that ran here, and the training, which was not there
    assert {re.sub(r"^\.state/content/s\d\.digest$", "content", name) for name in differ} == {
        *("slides.csv", "run.json", "content", "report.html"),
        ".state/train/patchnet/patchnet.done.json",
    }

    server.requests.clear()
    assert main(words) == 0
    assert "6 kept from before" in capsys.readouterr().out
    # Each stage moves its settings to the end of run.json.
    uploaded = {key.partition("?")[0] for kind, key in server.requests if kind == "PUT"}
    assert uploaded <= {"/tests/run/run.json"}
    assert main(["collect", str(there), "--verify"]) == 0


def _kill_after(n_uploads: int, words: list[str], server: Server) -> None:
    """Run a command, and kill it by SIGKILL after so many uploads."""
    server.requests.clear()
    with subprocess.Popen([sys.executable, "-c", COMMAND, *words], cwd=ROOT) as process:
        while server.count("PUT") < n_uploads and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def _pull(url: RemotePath, folder: Path) -> dict[str, bytes]:
    """Download a run; read what it holds as of a local run."""
    for name in url.measure_all():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((url / name).read_bytes())
    return contents(folder)
