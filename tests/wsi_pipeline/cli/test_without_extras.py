"""Commands in an installation without extras: most work, the others name the extra they need.

Imports of the extras' modules fail here as they do where they are not installed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_pipeline.config.extras import EXTRAS

PROGRAM = """
import importlib.abc, importlib.util, json, os, sys

hidden, commands = json.loads(sys.argv[1])

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
real_find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: (
    None if name.partition(".")[0] in hidden else real_find_spec(name, package)
)
from wsi_pipeline.cli.app import main

for command in commands:
    sys.stderr.write("\\n$ " + " ".join(command) + "\\n")
    sys.stderr.flush()
    print(json.dumps(main(command)), file=sys.stderr, flush=True)
"""
MODULES = sorted({module for extra in EXTRAS for module in extra.modules})


def run_without(*commands, folder, hidden=MODULES) -> list[tuple[int, str]]:
    """Run commands one after the other in one process; returns exit code and stderr of each."""
    words = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([hidden, words])],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    parts = done.stderr.split("\n$ ")[1:]
    answers = [
        [line for line in part.strip().splitlines() if ": settings " not in line] for part in parts
    ]
    assert len(answers) == len(commands), done.stderr
    return [(int(lines[-1]), "\n".join(lines[1:-1])) for lines in answers]


NODES = "patient,stage\npatient_000_node_0.tif,macro\npatient_000_node_1.tif,negative\n"


@pytest.mark.slow
def test_commands_that_need_no_network_work_without_extras(copy):
    """The scores of the run were computed elsewhere."""
    run, manifest = copy / "run", copy / "data" / "manifest.csv"
    (copy / "nodes.csv").write_text(NODES)
    (copy / "detections").mkdir()
    (copy / "detections" / "s5.csv").write_text("0.9,190,160\n")
    (copy / "reference").mkdir()
    shutil.copy(copy / "data" / "s5.xml", copy / "reference")
    shutil.copytree(run, copy / "again")
    froc = ("froc", "--detections", "detections", "--reference", "reference", "--out", "froc")
    commands = [
        ("doctor",),
        ("settings", "tile"),
        ("init",),
        froc,
        ("stage", "--predictions", "nodes.csv", "--nodes", "0", "--out", "stages"),
        ("collect", run),
        ("heatmap", run, "--overwrite"),
        ("report", run, "--overwrite"),
        ("compare", run, "again", "--out", "compared", "--bootstrap", "2"),
        *(("export", run, "--format", name) for name in ("qupath", "clam", "ome-zarr")),
        ("slides", manifest),
        ("plan", "config.yaml", "--set", "stages=[tile]", "--out", "planned"),
        ("tile", manifest, "--out", "new", "--config", "config.yaml", "--workers", "2"),
        ("evaluate", run, "--overwrite"),
        ("submit", "config.yaml", "--cluster", "slurm", "--out", "jobs"),
    ]
    found = run_without(*commands, folder=copy)
    failed = [answer for answer in zip(commands, found, strict=True) if answer[1][0]]
    assert not failed, "\n".join(map(str, failed))


TORCH = "needs PyTorch: pip install 'wsi-pipeline[torch]'"
CLUSTER = "needs Dask for --dask: pip install 'wsi-pipeline[cluster]'"


@pytest.mark.slow
def test_commands_that_need_an_extra_name_it(copy):
    run, checkpoint = copy / "run", copy / "run/models/patchnet/checkpoint.safetensors"
    before = sorted(run.rglob("*"))
    apply = ("apply", "data", "--out", "applied", "--checkpoint", checkpoint)
    needed = {
        ("train", run): TORCH,
        ("predict", run): TORCH,
        ("explain", run, "--method", "saliency"): TORCH,
        ("heatmap", run, "--set", "method=own"): TORCH,
        apply: TORCH,
        ("demo", "--out", "demo"): TORCH,
        ("run", "config.yaml"): TORCH,
        ("tile", "data", "--out", "new", "--dask", "local"): CLUSTER,
        ("evaluate", run, "--dask", "local", "--overwrite"): CLUSTER,
        ("baselines", "data"): "needs mahotas: pip install 'wsi-pipeline[textures]'",
    }
    found = run_without(*needed, folder=copy)
    wanted = [(1, f"`{command[0]}` {sentence}") for command, sentence in needed.items()]
    assert found == wanted
    assert sorted(run.rglob("*")) == before
    assert not (copy / "demo").exists()


def test_other_missing_packages_are_no_question_of_extras(tmp_path):
    """A broken installation is a bug, with its traceback."""
    with pytest.raises(AssertionError, match="No module named 'pydantic'"):
        run_without(("settings",), folder=tmp_path, hidden=["pydantic"])
