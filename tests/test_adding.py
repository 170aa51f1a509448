"""To add a stage, a model or a format takes one file and one line: shown in a copy of the tree."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wsi_pipeline.tiny_cohort import draw_cohort, write_config

ROOT = Path(__file__).parents[1]
COMMAND = "import sys; from wsi_pipeline.cli.app import main; sys.exit(main(sys.argv[1:]))"

STAGE = '''
"""Count the slides of a run."""

from dataclasses import dataclass

from wsi_pipeline.config.reading import digest_settings
from wsi_pipeline.layout import Unit
from wsi_pipeline.run.runner import run_stage
from wsi_pipeline.run.tasks import Task


@dataclass(frozen=True)
class Count(Task):
    @property
    def unit(self):
        return Unit("count")

    def fingerprint(self, run):
        return digest_settings(run.manifest.read_text())

    def __call__(self, job, on_progress):
        path = job.run.path / "count.txt"
        path.write_text(str(len(job.run.manifest.read_text().splitlines()) - 1))
        return [path], "counted"


def count(run, config, options, *, models=()):
    return run_stage("count", run, [Count()], config, options)
'''

MODEL = '''
"""The mean of all pixels."""

import torch

from wsi_pipeline.models.base import PatchClassifier


class MeanPixel(PatchClassifier):
    def __init__(self):
        super().__init__()
        self.options = {}
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.mean(dim=(1, 2, 3)) * self.weight
'''

FORMAT = '''
"""The number of scores."""

from tiling.files import write_text


def write(job, folder):
    path = folder / f"{job.slide.info.slide_id}.count"
    write_text(path, str(len(job.slide.scores.scores)))
    return [path], "counted"
'''


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the package, to add to."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "wsi_pipeline", tmp_path / "tree/wsi_pipeline", ignore=ignored)
    draw_cohort(tmp_path / "data")
    write_config(tmp_path, tmp_path / "data", tmp_path / "run")
    return tmp_path / "tree"


def add(tree: Path, file: str, text: str, *, listed: str, before: str, line: str) -> None:
    (tree / "wsi_pipeline" / file).write_text(text)
    path = tree / "wsi_pipeline" / listed
    source = path.read_text()
    assert source.count(before) == 1
    path.write_text(source.replace(before, line + before))


def run(tree: Path, *arguments: str) -> str:
    environment = {"PYTHONPATH": os.pathsep.join([str(tree), str(ROOT)]), "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        env=os.environ | environment,
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_a_stage_takes_a_file_and_a_line(tree, tmp_path):
    add(
        tree,
        "stages/count.py",
        STAGE,
        listed="config/stages.py",
        before='    Stage("report",',
        line='    Stage("count", "Count the slides of a run.", "run"),\n',
    )
    assert "Count the slides of a run." in run(tree, "--help")
    config, folder = str(tmp_path / "config.yaml"), str(tmp_path / "run")
    assert "count: 1 done" in run(tree, "run", config, "--set", "stages=[tile,count]")
    assert (tmp_path / "run/count.txt").read_text() == "6"
    assert "count: 0 done, 1 kept from before" in run(tree, "count", folder)
    assert "count: done" in run(tree, "collect", folder)
    (tmp_path / "run/count.txt").write_text("7 or so")
    assert "count: 1 done" in run(tree, "count", folder)


def test_a_model_and_a_format_take_a_file_and_a_line_each(tree, tmp_path):
    add(
        tree,
        "models/mean_pixel.py",
        MODEL,
        listed="models/__init__.py",
        before='    "patchnet": PatchNet,\n',
        line='    "mean_pixel": MeanPixel,\n',
    )
    listed = tree / "wsi_pipeline/models/__init__.py"
    line = "from wsi_pipeline.models.mean_pixel import MeanPixel\n"
    listed.write_text(listed.read_text().replace("from wsi_pipeline.models.pat", line + "from wsi_pipeline.models.pat", 1))  # fmt: skip  # noqa: E501
    add(
        tree,
        "exports/count.py",
        FORMAT,
        listed="exports/__init__.py",
        before='    "qupath": ',
        line='    "count": "the number of scores",\n',
    )
    config, folder = str(tmp_path / "config.yaml"), str(tmp_path / "run")
    settings = "train={mean: {model: {name: mean_pixel}, lr: 0.01, batch_size: 8, max_epochs: 1, steps_per_epoch: 2}}"  # fmt: skip  # noqa: E501
    stages = "stages=[tile,train,predict,export]"
    formats = "export.formats=[count]"
    message = run(tree, "run", config, "--set", settings, "--set", stages, "--set", formats)
    assert "predict: 4 done" in message
    assert "export count: 4 done" in message
    assert int((tmp_path / "run/exports/count/mean/s4.count").read_text()) > 0
    assert "count" in run(tree, "export", "--help")
    run(tree, "report", folder)
    assert "mean" in (tmp_path / "run/report.html").read_text()
