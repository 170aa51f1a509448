"""Commands import what they use: each package here takes longer to import than their own work."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.slides import halve, tissue, write_slide
from tiling.store import PatchStore
from wsi_pipeline.contracts import Scores
from wsi_pipeline.inference.scores import write_scores
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.state import mark_finished

PROGRAM = """
import json, sys
from wsi_pipeline.cli.app import main
code = main(sys.argv[1:])
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"dask", "distributed", "matplotlib", "numba", "pandas", "scipy", "shapely", "skimage"}
HEAVY |= {"sklearn", "torch", "zarr"}


def packages_of(*arguments: object) -> set[str]:
    """Run a command in a process of its own; returns the packages it imported."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    code, names = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return set(names)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    folder = tmp_path_factory.mktemp("imports")
    pixels = tissue(400, 340)
    write_slide(folder / "s.tif", [pixels, halve(pixels)])
    found = packages_of(
        "tile", folder / "s.tif", "--out", folder / "run", "--set", "patch_px=32",
        "--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100",
    )  # fmt: skip
    (folder / "packages.json").write_text(json.dumps(sorted(found)))
    return RunFolder(folder / "run")


def test_tile(run: RunFolder):
    assert (run.qc("s")).is_file()
    found = set(json.loads((run.path.parent / "packages.json").read_text()))
    assert not found & HEAVY


def test_heatmap_of_stored_scores(run: RunFolder):
    with PatchStore.open(run.store("s")) as store:
        values = np.linspace(0, 1, len(store), dtype=np.float32)
        attributes = {"slide_id": "s", "model": "vgg16", "fingerprint": "f"}
        write_scores(run.scores("vgg16", "s"), Scores(store.coords, values, attributes, {}))
    mark_finished(run, Unit("predict", "s", "vgg16"), "f", [run.scores("vgg16", "s")])
    found = packages_of("heatmap", run.path)
    assert run.overlay("vgg16", "s").is_file()
    assert not found & HEAVY


def test_what_is_listed_would_be_seen(tmp_path: Path):
    """The check itself: a package that is imported is found, one that is not is not."""
    code = PROGRAM.replace("from wsi_pipeline.cli.app import main", "import shapely").replace(
        "main(sys.argv[1:])", "0"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = set(json.loads(done.stdout.splitlines()[-1])[1])
    assert names & HEAVY == {"shapely"}
