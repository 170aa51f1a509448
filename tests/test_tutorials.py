"""The commands of each tutorial run, in order, and print what the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(sh|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROGRAM = "import sys; from wsi_pipeline.cli.app import entry; entry()"
# Runs a job, or the tasks of an array one after another, as Slurm would start them.
SBATCH = """#!/bin/bash
script=${@: -1}
range=$(sed -n 's/^#SBATCH --array=//p' "$script")
if [ -z "$range" ]; then
  bash "$script" > logs/slurm-1.out 2>&1 && echo 1
  exit
fi
first=${range%-*} last=${range#*-}
export SLURM_ARRAY_TASK_MIN=$first SLURM_ARRAY_TASK_MAX=$last SLURM_ARRAY_TASK_STEP=1
export SLURM_ARRAY_TASK_COUNT=$((last - first + 1))
for task in $(seq "$first" "$last"); do
  SLURM_ARRAY_TASK_ID=$task bash "$script" > "logs/slurm-1_$task.out" 2>&1 || exit
done
echo 1
"""


@pytest.fixture
def shell(tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (
        ("wsi-pipeline", f"#!/bin/sh\nexec '{sys.executable}' -c '{PROGRAM}' \"$@\"\n"),
        ("sbatch", SBATCH),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = dict(
        os.environ, PATH=f"{programs}:{os.environ['PATH']}", PYTHONPATH=str(ROOT), COLUMNS="200"
    )
    folder = tmp_path / "work"
    folder.mkdir()

    def run(page: str) -> Path:
        blocks = FENCE.findall((ROOT / f"docs/tutorials/{page}.md").read_text(encoding="utf-8"))
        printed = ""
        for kind, block in blocks:
            if kind == "sh":
                done = subprocess.run(
                    ["bash", "-euc", block],
                    cwd=folder,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    check=False,
                )
                assert done.returncode == 0, f"{block}\n{done.stdout}"
                printed += done.stdout
            else:
                assert [line for line in block.splitlines() if line not in printed] == []
        return folder

    return run


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_slides_and_their_model_on_a_cluster(shell):
    folder = shell("slides")
    assert (folder / "run/report.html").is_file()
    shell("viewer")
    assert len(list((folder / "pages/slides").glob("*.html"))) == 3
    shell("cluster")
    assert len(list((folder / "applied/exports/qupath").rglob("*.geojson"))) == 16
    assert len(list((folder / "applied/heatmaps/patchnet").glob("*.tif"))) == 16


@pytest.mark.slow
def test_teams(shell):
    folder = shell("froc")
    assert (folder / "ranking/teams.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_images(shell):
    folder = shell("images")
    assert (folder / "run_images/report.html").is_file()
    assert (folder / "run_images/heatmaps/patchnet/overview.png").is_file()
    assert (folder / "baselines/predictions.csv").is_file()
