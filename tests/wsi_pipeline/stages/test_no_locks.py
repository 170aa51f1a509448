"""On a file system without locks every stage works: files are written aside and renamed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny_cohort import contents

SOURCE = Path(__file__).with_name("noflock.c")
ROOT = Path(__file__).parents[3]
COMMAND = """
import sys
from tests.helpers.quick_pictures import quick_pictures
from wsi_pipeline.cli.app import main
with quick_pictures():
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def noflock(tmp_path_factory) -> Path:
    """A library whose `flock` and `lockf` fail as on such a file system."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and Linux")
    library = tmp_path_factory.mktemp("noflock") / "noflock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE)], check=True)
    return library


def run_without_locks(noflock: Path, *arguments: str, **environment: str):
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": str(noflock), **environment},
        capture_output=True,
        text=True,
    )


def test_the_library_takes_the_locks_away(noflock):
    script = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(SOURCE)],
        env={**os.environ, "LD_PRELOAD": str(noflock)},
        capture_output=True,
        text=True,
    )
    assert "Operation not supported" in done.stderr


@pytest.mark.slow
def test_every_stage_that_reads_or_writes_scores_works(copy, noflock):
    """Every slide failed, and sound files were called damaged: delete them and predict again.

    HDF5 obeys its environment variable over what its caller asks for.
    """
    config, before = str(copy / "config.yaml"), contents(copy / "run")
    stages = "stages=[predict, heatmap, evaluate, report]"
    done = run_without_locks(
        noflock, "run", config, "--overwrite", "--set", stages, HDF5_USE_FILE_LOCKING="TRUE"
    )
    assert done.returncode == 0, done.stderr
    assert "predict: 4 done" in done.stdout
    assert "heatmap: 4 done" in done.stdout
    after = contents(copy / "run")
    assert {name for name in before if after[name] != before[name]} <= {
        "run.json", "report.html", ".state/report/run.done.json"
    }  # fmt: skip


@pytest.mark.slow
def test_workers_need_no_locks_either(copy, noflock):
    (copy / "run/scores/patchnet/s4.h5").unlink()
    done = run_without_locks(noflock, "predict", str(copy / "run"), "--workers", "2", "--overwrite")
    assert done.returncode == 0, done.stderr
    assert "predict: 4 done" in done.stdout
