"""The Python API: from one import to scores, heatmap, detections and FROC."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

import wsi_pipeline as wsi
from tests.helpers.slides import halve, tissue, write_slide
from tests.helpers.tiny_cohort import ASAP
from tiling.errors import GridError, SlideError
from tiling.geometry import resolve_geometry
from wsi_pipeline.cli.app import main
from wsi_pipeline.contracts import Detections, Heatmap, Scores
from wsi_pipeline.errors import ConfigError, EvaluationError, HeatmapError, InferenceError
from wsi_pipeline.evaluation.detections import write_detections
from wsi_pipeline.evaluation.froc_files import FrocOptions, run_froc
from wsi_pipeline.heatmaps.nms import detect, radius_in_px
from wsi_pipeline.heatmaps.rasters import rasterise_scores
from wsi_pipeline.inference.scores import read_scores, write_scores
from wsi_pipeline.models.checkpoint import CheckpointMeta, digest, digest_model, save_checkpoint

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NOTEBOOK = ROOT / "docs" / "notebooks" / "slide_to_detections.ipynb"
PATCH_PX, MPP = 128, 0.5
SIZE = (1000, 900)
TUMOUR = (260, 230, 700, 650)  # x0, y0, x1, y1: level-0 px; larger than ITC


def draw_tumour_slide(folder: Path, name: str, *, seed: int, tumour: bool) -> None:
    pixels = tissue(*SIZE, seed=seed)
    if tumour:
        x0, y0, x1, y1 = TUMOUR
        pixels[y0:y1, x0:x1] //= 2
        corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        points = "".join(
            f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(corners)
        )
        (folder / f"{name}.xml").write_text(ASAP.format(points))
    write_slide(folder / f"{name}.tif", [pixels, halve(pixels)], mpp=MPP)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three slides and a checkpoint, as docs/python.md names them; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("tumor_001", "tumor_002", "normal_001")):
        draw_tumour_slide(folder, name, seed=seed, tumour=name.startswith("tumor"))
    torch.manual_seed(1)
    model = wsi.build_model("patchnet", m=17, stride=16, filters=4, depth=2)
    meta = CheckpointMeta("patchnet", model.options, patch_px=PATCH_PX, target_mpp=MPP)
    save_checkpoint(folder / "checkpoint.safetensors", model, meta)
    return folder


@pytest.fixture(scope="module")
def scores(data) -> Scores:
    return wsi.predict(str(data / "checkpoint.safetensors"), str(data / "tumor_001.tif"))


# --- importing -------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["wsi_pipeline", "tiling"])
def test_importing_a_package_imports_nothing_heavy(package):
    code = f"import sys, {package}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    roots = {name.partition(".")[0] for name in done.stdout.split()}

    assert package in roots
    assert not roots & {"torch", "zarr", "openslide", "numpy", "pydantic"}


def test_names_are_resolved_when_they_are_used():
    code = (
        "import sys, wsi_pipeline as wsi; wsi.TileConfig; assert 'torch' not in sys.modules; "
        "wsi.load_checkpoint; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'wsi_pipeline' has no attribute 'predikt'"):
        wsi.predikt  # noqa: B018
    assert not hasattr(wsi, "torch")


@pytest.mark.parametrize("name", wsi.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(wsi, name)

    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")  # written by a dataclass
    table = PAGE.partition("## The names")[2].partition("\n## ")[0]
    assert re.search(rf"`{name}[.(]", table)


# --- predict ---------------------------------------------------------------------------------


def test_scores_are_those_of_the_command(data, scores, tmp_path):
    """Bit for bit and with the same attributes, though there is no run folder."""
    checkpoint, slide = data / "checkpoint.safetensors", data / "tumor_001.tif"
    run = tmp_path / "run"
    arguments = ["predict", str(run), "--checkpoint", str(checkpoint), "--slides", str(slide)]
    assert main([*arguments, "--quiet"]) == 0
    [path] = run.glob("scores/*/*.h5")
    theirs = read_scores(path)

    assert scores.coords.dtype == np.int64
    assert scores.scores.dtype == np.float32
    assert len(scores.scores) > 8
    assert np.ptp(scores.scores) > 0
    assert np.array_equal(scores.coords, theirs.coords)
    assert np.array_equal(scores.scores, theirs.scores)
    write_scores(tmp_path / "own.h5", scores)
    own = read_scores(tmp_path / "own.h5")
    assert own.attributes == theirs.attributes
    assert own.coords_attributes == theirs.coords_attributes


def test_nothing_is_left_behind(data, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = {path.name for path in data.iterdir()}
    wsi.predict(data / "checkpoint.safetensors", data / "normal_001.tif")

    assert not list(tmp_path.iterdir())
    assert {path.name for path in data.iterdir()} == before


def test_a_loaded_model_scores_as_its_file_does_and_again(data, scores):
    trained = wsi.load_checkpoint(str(data / "checkpoint.safetensors"))
    for _ in range(2):  # the first call moves the model and changes its layout
        found = wsi.predict(trained, data / "tumor_001.tif")
        assert np.array_equal(found.scores, scores.scores)
        assert found.attributes == scores.attributes


def test_a_model_is_hashed_as_its_file_is(data):
    path = data / "checkpoint.safetensors"
    model, meta = wsi.load_checkpoint(path)

    assert digest_model(model, meta) == digest(path)
    assert digest_model(model, replace(meta, epoch=9)) != digest(path)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert digest_model(model, meta) != digest(path)


def test_an_open_store_is_scored_as_it_is(data, scores, tmp_path):
    config = wsi.TileConfig(target_mpp=MPP, patch_px=PATCH_PX)
    wsi.tile_slide(str(data / "tumor_001.tif"), str(tmp_path / "a.zarr"), config=config)
    store = wsi.PatchStore.open(str(tmp_path / "a.zarr"))
    found = wsi.predict(data / "checkpoint.safetensors", store, batch_size=3, device="cpu")

    assert np.array_equal(found.coords, scores.coords)
    assert np.allclose(found.scores, scores.scores, atol=1e-6)
    assert store[0].shape == (PATCH_PX, PATCH_PX, 3)  # still open
    for wrong in ({"tile": config}, {"mpp": 0.25}):
        [name] = wrong
        with pytest.raises(ConfigError, match=f"tumor_001: {name} cannot be combined"):
            wsi.predict(data / "checkpoint.safetensors", store, **wrong)


def test_tile_settings_are_used_but_patches_are_the_checkpoints(data, scores):
    cut = wsi.TileConfig(target_mpp=2.0, patch_px=512, stride_px=64, store="patches")
    found = wsi.predict(data / "checkpoint.safetensors", data / "tumor_001.tif", tile=cut)

    assert found.coords_attributes["patch_l0"] == [128, 128]
    assert found.coords_attributes["stride_l0"] == [64, 64]
    assert len(found.scores) > 2 * len(scores.scores)


def test_a_resolution_that_the_file_lacks_can_be_given(data, scores, tmp_path):
    pixels = tissue(*SIZE)
    pixels[TUMOUR[1] : TUMOUR[3], TUMOUR[0] : TUMOUR[2]] //= 2
    slide = write_slide(tmp_path / "bare.tif", [pixels], mpp=None)
    with pytest.raises(SlideError, match=r"bare.tif: .*microns"):
        wsi.predict(data / "checkpoint.safetensors", slide)
    found = wsi.predict(data / "checkpoint.safetensors", slide, mpp=MPP)

    assert np.array_equal(found.scores, scores.scores)


def test_what_cannot_be_scored_is_refused(data, tmp_path):
    checkpoint = data / "checkpoint.safetensors"
    model, meta = wsi.load_checkpoint(checkpoint)
    slide = data / "tumor_001.tif"
    with pytest.raises(SlideError, match=r"nowhere.tif"):
        wsi.predict(checkpoint, str(tmp_path / "nowhere.tif"))
    with pytest.raises(InferenceError, match=r"tumor_001.tif: .* single images"):
        wsi.predict((model, replace(meta, target_mpp=0.0)), slide)
    with pytest.raises(GridError, match=r"too few for one tile .*; use --set tile.edge|leave"):
        wsi.predict((model, replace(meta, patch_px=2000)), slide)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        wsi.predict(checkpoint, slide, batch_size=0)
    with pytest.raises(ConfigError, match="unknown device 'tpu'"):
        wsi.predict(checkpoint, slide, device="tpu")


# --- heatmap and detections ------------------------------------------------------------------


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.243, 0.243), (0.25, 0.5), (1 / 3, 0.2527)])
def test_a_heatmap_is_made_of_what_scores_carry(fake_store, mpp):
    """Patches that are not square in level-0 pixels too."""
    config = wsi.TileConfig(target_mpp=0.5, patch_px=15, stride_px=10)
    geometry = resolve_geometry(config, slide_mpp=mpp)
    patch = (geometry.patch_l0, geometry.patch_l0_y)
    stride = (geometry.stride_l0, geometry.stride_l0_y)
    rng = np.random.default_rng(0)
    coords = np.array([[i * stride[0], j * stride[1]] for j in range(4) for i in range(5)])
    values = rng.random(20, dtype=np.float32)
    values[3] = np.nan
    tiling = {"target_mpp": 0.5, "scale": list(geometry.scale)}
    made = Scores(
        coords=coords,
        scores=values,
        attributes={"slide_id": "a", "settings": {"tiling": tiling}},
        coords_attributes={"level_dim": [400, 300], "patch_l0": patch, "stride_l0": stride},
    )
    for overlap in ("mean", "max", "centre"):
        found = wsi.build_heatmap(made, overlap=overlap)
        expected = rasterise_scores(
            coords, values, slide_size=(400, 300), patch_l0=patch, stride_l0=stride, overlap=overlap
        )
        assert np.array_equal(found.values, expected.values, equal_nan=True)
        assert found.pixel_l0 == expected.pixel_l0
        assert found.slide_size == (400, 300)
        assert found.mpp == pytest.approx(mpp, rel=1e-12)
    assert wsi.build_heatmap(made, pixel_l0=(5, 6)).pixel_l0 == (5, 6)


def test_scores_from_a_file_give_the_same_heatmap(scores, tmp_path):
    write_scores(tmp_path / "a.h5", scores)
    found, own = (wsi.build_heatmap(s) for s in (read_scores(tmp_path / "a.h5"), scores))

    assert np.array_equal(found.values, own.values, equal_nan=True)
    assert (found.pixel_l0, found.slide_size, found.mpp) == (own.pixel_l0, own.slide_size, own.mpp)


@pytest.mark.parametrize("name", ["level_dim", "patch_l0", "stride_l0"])
def test_scores_without_geometry_are_refused(scores, name):
    bare = {k: v for k, v in scores.coords_attributes.items() if k != name}
    with pytest.raises(HeatmapError, match=f"scores of tumor_001: no .*'{name}'"):
        wsi.build_heatmap(replace(scores, coords_attributes=bare))
    with pytest.raises(HeatmapError, match=f"'{name}'.* got 'x'"):
        wsi.build_heatmap(replace(scores, coords_attributes=bare | {name: "x"}))


def test_a_heatmap_of_scores_without_a_scale_has_no_resolution(scores):
    heatmap = wsi.build_heatmap(replace(scores, attributes={"slide_id": "tumor_001"}))

    assert heatmap.mpp is None
    with pytest.raises(HeatmapError, match=r"no resolution .* radius_px"):
        wsi.detect(heatmap)
    assert len(wsi.detect(heatmap, radius_px=1, threshold=0.0).x)


@pytest.mark.parametrize("radius_um", [None, 20.0, 75.0, 300.0])
def test_a_radius_in_microns_is_that_of_the_evaluation(radius_um):
    values = np.random.default_rng(2).random((30, 40)).astype(np.float32)
    heatmap = Heatmap(values, (16, 32), (640, 960), (0.5, 0.25))
    found = detect(heatmap, radius_um=radius_um)
    expected = detect(heatmap, radius_px=radius_in_px(radius_um or 75.0, heatmap, (0.5, 0.25)))

    assert found.x.tolist() == expected.x.tolist()
    assert found.scores.tolist() == expected.scores.tolist()
    assert len(found.x)


def test_a_radius_is_given_once_and_positive():
    heatmap = Heatmap(np.ones((2, 2), np.float32), (1, 1), (2, 2), (1.0, 1.0))
    with pytest.raises(HeatmapError, match=r"not both; got radius_um=5.0 and radius_px=2"):
        wsi.detect(heatmap, radius_um=5.0, radius_px=2)
    for radius in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(HeatmapError, match="radius_um must be positive"):
            wsi.detect(heatmap, radius_um=radius)


# --- FROC ------------------------------------------------------------------------------------


@pytest.fixture
def found() -> dict[str, Detections]:
    return {
        "tumor_001": Detections(
            np.array([400, 20, 410]), np.array([400, 20, 410]), np.array([0.9, 0.8, 0.7])
        ),
        "normal_001": Detections(np.array([5]), np.array([6]), np.array([0.95])),
    }


@pytest.mark.parametrize("bootstrap", [0, 20])
def test_froc_is_that_of_the_command(data, tmp_path, found, bootstrap):
    """A lesion missed on a slide without detections; a false positive on each of the others."""
    references = tmp_path / "reference"
    references.mkdir()
    for name in ("tumor_001.xml", "tumor_002.xml"):
        (references / name).write_bytes((data / name).read_bytes())
    (tmp_path / "detections").mkdir()
    for name, detections in found.items():
        write_detections(tmp_path / "detections" / f"{name}.csv", detections)
    (tmp_path / "slides.csv").write_text("slide_id,label\ntumor_001,1\ntumor_002,1\nnormal_001,0\n")
    (tmp_path / "detections" / "tumor_002.csv").write_text("")
    theirs = run_froc(
        FrocOptions(
            "camelyon16",
            out=tmp_path / "out",
            detections=tmp_path / "detections",
            reference=references,
            slides=tmp_path / "slides.csv",
            mpp=MPP,
            bootstrap=bootstrap,
        )
    )
    reference = {
        "tumor_001": str(references / "tumor_001.xml"),
        "tumor_002": references / "tumor_002.xml",
        "normal_001": None,
    }
    own = wsi.froc(reference, found, mpp=MPP, bootstrap=bootstrap)

    assert (own.n_slides, own.n_normal, own.n_lesions) == (3, 1, 2)
    assert own.sensitivity_at["1"] == 0.5
    assert own.score == theirs.score
    assert own.sensitivity_at == theirs.sensitivity_at
    assert own.score_ci95 == theirs.score_ci95
    assert own.thresholds.tolist() == theirs.thresholds.tolist()
    by_slide = dict.fromkeys(reference, MPP)
    assert wsi.froc(reference, found, mpp=by_slide, bootstrap=bootstrap).score == own.score


def test_patients_are_resampled_together(data, found):
    reference = {"tumor_001": data / "tumor_001.xml", "normal_001": None}
    one, each = (
        wsi.froc(reference, found, mpp=MPP, bootstrap=30, patients=patients)
        for patients in (dict.fromkeys(reference, "p"), None)
    )
    assert one.bootstrap["unit"] == "patient"
    assert each.bootstrap["unit"] == "slide"


def test_froc_refuses_what_does_not_fit_together(data, found, tmp_path):
    drawn = data / "tumor_001.xml"
    with pytest.raises(EvaluationError, match="1 of 2 slides have detections but no reference: n"):
        wsi.froc({"tumor_001": drawn}, found, mpp=MPP)
    with pytest.raises(EvaluationError, match=r"tumor_001: no µm .*tumor_001.xml; give mpp"):
        wsi.froc({"tumor_001": drawn, "normal_001": None}, found)
    with pytest.raises(EvaluationError, match="tumor_001: no µm"):
        wsi.froc({"tumor_001": drawn}, {}, mpp={"tumor_002": 0.5})
    with pytest.raises(EvaluationError, match=r"tumor_001: no reference file .*gone.xml"):
        wsi.froc({"tumor_001": tmp_path / "gone.xml"}, {}, mpp=MPP)
    outside = Detections(np.array([-5]), np.array([0]), np.array([0.5]))
    with pytest.raises(EvaluationError, match=r"slide normal_001: the detection at x -5"):
        wsi.froc({"normal_001": None}, {"normal_001": outside})
    with pytest.raises(EvaluationError, match="bootstrap must not be negative, got -1"):
        wsi.froc({"normal_001": None}, {}, bootstrap=-1)
    with pytest.raises(EvaluationError, match="no slides"):
        wsi.froc({}, {})


# --- training --------------------------------------------------------------------------------


def test_a_model_is_trained_from_stores_alone(fake_store, tmp_path):
    """Without patients, device or fingerprint: each slide is its own patient."""
    config = wsi.train_config(
        "patchnet",
        options={"m": 5, "stride": 5, "filters": 4, "depth": 2},
        batch_size=4,
        steps_per_epoch=2,
        max_epochs=1,
    )
    train, val = fake_store("a", [0, 1] * 4), fake_store("b", [0, 1] * 2)
    summary = wsi.train_model(config, train=[train], val=[val], out=str(tmp_path / "model"))
    model, meta = wsi.load_checkpoint(str(summary.checkpoint))

    assert summary.checkpoint == tmp_path / "model" / "checkpoint.safetensors"
    assert meta.train_patients == ("a",)
    assert meta.val_patients == ("b",)
    assert model.options["m"] == 5


def test_training_needs_no_validation_where_nothing_is_monitored(fake_store, tmp_path):
    config = wsi.train_config(
        "patchnet", options={"m": 5, "filters": 4, "depth": 2}, monitor="none",
        batch_size=4, steps_per_epoch=1, max_epochs=1,
    )  # fmt: skip
    summary = wsi.train_model(config, train=[fake_store("a", [0, 1] * 4)], out=tmp_path)

    assert summary.checkpoint.is_file()


def test_settings_of_a_training_are_the_recipe_and_what_is_set():
    config = wsi.train_config("patchnet", lr=0.01, augment={"flips": False})

    assert (config.optimizer, config.batch_size, config.lr) == ("adam", 4, 0.01)
    assert (config.augment.flips, config.augment.hue) == (False, 0.0)  # hue by the recipe
    assert wsi.train_config("vgg16").optimizer == "rmsprop"
    assert wsi.train_config("vgg16", weights="w.pth").model.weights == Path("w.pth")
    assert wsi.train_config("vgg16", preprocess={"gamma": 2.2}).model.preprocess.gamma == 2.2
    for wrong, message in (
        ({"lr": -1}, "lr"),
        ({"learning_rate": 1}, "learning_rate"),
        ({"preprocess": {"gama": 2}}, "gama"),
        ({"max_epochs": 0}, "max_epochs"),
    ):
        with pytest.raises(ConfigError, match=f"train.patchnet: .*{message}"):
            wsi.train_config("patchnet", **wrong)


# --- the page and the notebook ---------------------------------------------------------------


FENCE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = FENCE.findall(PAGE)


def test_code_of_the_page_runs(data, tmp_path, monkeypatch, capsys):
    for path in data.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/python.md", "exec"), names)

    assert len(names["scores"].scores)
    assert names["curve"].n_lesions == 1
    assert tuple(names["patches"].shape[1:]) == (3, 128, 128)
    assert (tmp_path / "model" / "checkpoint.safetensors").is_file()
    assert "torch.float32" in capsys.readouterr().out


def test_code_of_the_readme_runs(data, monkeypatch):
    monkeypatch.chdir(data)
    names: dict[str, object] = {}
    for block in FENCE.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        exec(compile(block, "README.md", "exec"), names)

    assert isinstance(names["detections"], Detections)


def test_slide_to_detections_takes_twelve_lines_from_one_import():
    lines = [line for line in BLOCKS[0].splitlines() if line.strip()]

    assert len(lines) <= 12
    assert sum("import" in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.real_pictures
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells in order, in one namespace, as a kernel would run them."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(cells, start=1):
        exec(compile(cell, f"{NOTEBOOK.name}, cell {number}", "exec"), names)

    assert names["curve"].score > 0.5  # it found what was drawn
    assert len(matplotlib.pyplot.get_fignums()) >= 3
    matplotlib.pyplot.close("all")


def test_the_notebook_is_stored_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))

    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
