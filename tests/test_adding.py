"""To add a stage, a model, a format or an explanation takes a file and a line.

They are added to a copy of the tree. A metric takes a function and a line, added to the list.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import test_docs
from tests.helpers.tiny_cohort import draw_cohort, write_config
from tests.wsi_pipeline.evaluation.test_image_evaluation import scored
from tests.wsi_pipeline.evaluation.test_run_evaluation import cohort, guessing
from wsi_pipeline.cohort.image_folder import ImageEntry, write_images
from wsi_pipeline.config.settings import EvaluateConfig
from wsi_pipeline.contracts import Rule
from wsi_pipeline.csv_files import write_csv
from wsi_pipeline.evaluation import metrics
from wsi_pipeline.evaluation.compare import compare_pair
from wsi_pipeline.evaluation.compare_images import EvaluatedImages
from wsi_pipeline.evaluation.image_evaluation import evaluate_images
from wsi_pipeline.evaluation.metrics import Share
from wsi_pipeline.evaluation.run_evaluation import evaluate_run
from wsi_pipeline.report.build import render_report
from wsi_pipeline.report.comparison import build_comparison
from wsi_pipeline.report.gather import gather_run
from wsi_pipeline.report.images import build_image_report

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

METHOD = '''
"""The mean of a pixel's channels."""

from dataclasses import dataclass

from wsi_pipeline.explain.base import Method, Settings


@dataclass(frozen=True)
class BrightnessSettings(Settings):
    factor: float = 2.0


def brightness(model, image, *, target, seed, config):
    return image[0].mean(dim=0) * config.factor


METHOD = Method(brightness, BrightnessSettings, low=0)
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


def call(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": os.pathsep.join([str(tree), str(ROOT)]), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        cwd=tree,
        capture_output=True,
        text=True,
    )


def run(tree: Path, *arguments: str) -> str:
    done = call(tree, "-c", COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
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


def negative_predictive_value(c):
    """Share of negative decisions that are right."""
    return c.tn, c.tn + c.fn


@pytest.fixture
def added_metric(monkeypatch):
    line = Share("npv", "NPV", negative_predictive_value, "no {unit} is decided negative")
    monkeypatch.setattr(metrics, "SHARES", (*metrics.SHARES, line))


@pytest.mark.slow
@pytest.mark.usefixtures("added_metric")
def test_a_metric_of_slides_takes_a_function_and_a_line(tmp_path):
    runs = [tmp_path / "a", tmp_path / "b"]
    for run, slides in zip(runs, (guessing(cohort(10)), cohort(10)), strict=True):
        evaluation = run / "evaluation/m"
        settings = EvaluateConfig(bootstrap=40, aggregator="mean", slide_threshold=0.515)
        evaluate_run(slides, settings=settings, out=evaluation, model="m")
        rows = [(f"{s.slide_id}.tif", s.slide_id, s.patient, s.label, s.split) for s in slides]
        write_csv(run / "slides.csv", ("slide", "slide_id", "patient", "label", "split"), rows)
    evaluation = runs[0] / "evaluation/m"
    found = json.loads((evaluation / "metrics.json").read_text())
    for section in ("patch", "slide", "patient"):
        low, high = found[section]["npv_ci95"]
        assert low < found[section]["npv"] < high
        assert found[section]["ci95_method"]["npv"].startswith("Wilson")
    patch = found["patch"]
    assert patch["npv"] == patch["tn"] / (patch["tn"] + patch["fn"])
    assert ",npv,youden_j\n" in (evaluation / "sweep.csv").read_text()
    assert "<td>NPV</td>" in render_report(gather_run(runs[0]))

    page = build_comparison(runs, tmp_path / "compared", replicates=40).read_text()
    (pair,) = json.loads((tmp_path / "compared/comparison.json").read_text())
    for level, units in (("patch", "patches"), ("slide", "slides")):
        assert pair["figures"][f"{level}.npv"]["first"] == found[level]["npv"]
        assert pair["figures"][f"{level}.npv"]["p_value"] is not None
        assert f"<td>NPV of {units}</td>" in page


@pytest.mark.usefixtures("added_metric")
def test_a_metric_of_images_takes_the_same_line(tmp_path):
    settings, rule = EvaluateConfig(bootstrap=40), Rule(0.5)
    about = {"classes": ["a", "b"]}
    given = {"rule": rule, "model": "m", "out": tmp_path / "evaluation/m", "settings": settings}
    patch = evaluate_images(scored(), about, **given)["patch"]
    write_images(tmp_path / "images.csv", [ImageEntry("i0", "i0.png", "a", 0, "p0", "test")])
    page = build_image_report(tmp_path, models=["m"]).read_text()
    assert "<th>NPV</th>" in page  # by split
    assert "<td>NPV</td>" in page
    assert all(f'value="{end!r}"' in page for end in patch["npv_ci95"])
    assert patch["npv_ci95"][0] < patch["npv"] < patch["npv_ci95"][1]
    models = [
        EvaluatedImages(name, "test", Rule(threshold), {i.image_id: i for i in scored()})
        for name, threshold in (("a", 0.5), ("b", 0.4))
    ]
    figure = compare_pair(*models, replicates=40)["figures"]["npv"]
    assert figure["first"] == patch["npv"] != figure["second"]
    assert figure["difference_ci95"] is not None


@pytest.mark.usefixtures("added_metric")
def test_the_docs_have_to_list_a_metric():
    with pytest.raises(AssertionError, match="Share of negative decisions that are right"):
        test_docs.test_the_table_of_metrics_is_the_list()


@pytest.mark.slow
def test_an_explanation_takes_a_file_and_a_line(tree, tmp_path):
    add(
        tree,
        "explain/brightness.py",
        METHOD,
        listed="explain/__init__.py",
        before='    "saliency": ',
        line='    "brightness": "mean of a pixel\'s channels",\n',
    )
    assert "brightness: mean of a pixel's" in run(tree, "explain", "--help")
    images = np.random.default_rng(0).integers(0, 256, (8, 9, 10, 3), np.uint8)
    for number, image in enumerate(images):
        path = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config, made = tmp_path / "images.yaml", tmp_path / "image_run"
    config.write_text(
        f"input: {tmp_path}/images\nout: {made}\nimages: {{}}\nsplits: {{folds: 4, fold: 0}}\n"
        "train: {patchnet: {model: {options: {m: 3, filters: 2, depth: 1}}, max_epochs: 1}}\n"
        "stages: [tile, train, predict, heatmap]\nheatmap: {method: brightness}\n"
    )
    assert "heatmap: 1 done" in run(tree, "run", str(config))
    paths = list((made / "heatmaps/patchnet").glob("*.brightness.tif"))
    assert len(paths) == 2
    for path in paths:
        image = images[int(path.name.split(".")[0].split("__")[1])]
        np.testing.assert_allclose(tifffile.imread(path), image.mean(axis=2) / 127.5, rtol=1e-5)
    # What is not described is found by the check of the docs.
    shutil.copytree(ROOT / "docs", tree / "docs")
    (tree / "tests").mkdir()
    shutil.copy(ROOT / "tests/test_docs.py", tree / "tests")
    check = ["-q", "-p", "no:cacheprovider", "-k", "explanation_method", "tests/test_docs.py"]
    done = call(tree, "-m", "pytest", *check)
    assert "| `brightness` | mean of a pixel's channels |" in done.stdout
    assert done.returncode == 1


READER = '''
"""TIFF under another name."""

from tiling.readers.tiff_reader import TiffReader


class PlainReader(TiffReader):
    title = "plain"
    suffixes = frozenset({".vsi"})

    @classmethod
    def accepts(cls, path):
        return path.suffix == ".vsi"
'''

DRAWN = '''
"""A square per line: its corner and its side."""

from tiling.annotation.formats.base import AnnotationFormat


def read_lines(data):
    return data.decode().splitlines(), ()


def parse(lines, drawing):
    for line in lines[1:]:
        x, y, side = map(float, line.split())
        ring = [(x, y), (x + side, y), (x + side, y + side), (x, y + side)]
        drawing.add("square", drawing.classify("Tumor"), [ring])


SQUARES = AnnotationFormat(
    "squares", (".squares",), "a line of squares", read_lines, lambda c: c[0] == "squares", parse
)
'''

ADDED = """
from pathlib import Path

import pytest

import tiling
from tests.test_docs import test_each_reader_and_annotation_format_has_a_row as check_docs
from tests.helpers import slides
from tiling.annotation.formats import FORMATS
from tiling.readers import READERS
from wsi_pipeline.cohort.listing import read_input
from wsi_pipeline.planning.triage import CheckTask, check_slide


def test_added(tmp_path):
    assert Path(tiling.__file__).parents[1] == Path(__file__).parents[1]
    slides.write_slide(tmp_path / "a.tif", [slides.noise(100, 80)]).rename(tmp_path / "a.vsi")
    (tmp_path / "a.squares").write_text("squares\\n10 20 30")
    (entry,) = read_input(tmp_path).entries
    with tiling.open_slide(entry.path) as slide:
        assert type(slide).__name__ == "PlainReader"
        assert (slide.read_region((0, 0), 0, slide.size) == slides.noise(100, 80)).all()
    drawn = check_slide(CheckTask(entry, propose=True)).annotation
    tissue = tiling.TissueConfig(min_fraction=0)
    config = tiling.TileConfig(patch_px=10, inner_px=10, tissue=tissue)
    store = tmp_path / "a.zarr"
    tiling.tile_slide(entry.path, store, annotation_path=drawn, config=config)
    assert tiling.PatchStore.open(store).tumour.sum() == 9
    for page, listed, title in (("readers", READERS, "plain"), ("labels", FORMATS, "squares")):
        with pytest.raises(AssertionError, match=title):
            check_docs(page, listed)
"""


@pytest.mark.slow
def test_a_reader_and_an_annotation_format_take_a_file_and_a_line_each(tmp_path):
    ignored = shutil.ignore_patterns("__pycache__", "wsi_pipeline.egg-info")
    for name in ("tiling", "wsi_pipeline", "tests", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    added = (
        ("tiling/readers/order.py", "    TiffReader,\n", "PlainReader", "plain_reader", READER),
        ("tiling/annotation/formats/__init__.py", "    ASAP_XML,\n", "SQUARES", "squares", DRAWN),
    )
    for listed, before, name, file, text in added:
        path = tmp_path / listed
        (path.parent / f"{file}.py").write_text(text)
        package = ".".join(path.parent.relative_to(tmp_path).parts)
        head, line, tail = path.read_text().partition(before)
        source = f"{head}    {name},\n{line}{tail}".replace("\nfrom ", f"\nfrom {package}.{file} import {name}\nfrom ", 1)  # fmt: skip  # noqa: E501
        path.write_text(source)
    (tmp_path / "tests/test_added.py").write_text(ADDED)
    files = ["tests/test_added.py", "tests/tiling/test_slide_contract.py"]
    chosen = "test_added or (PlainReader and raw and (describes or white))"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 2
