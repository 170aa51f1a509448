"""Slides far from those of a training: by colour, from the patches to the report."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from tests.helpers.fake_store import FakeStore
from tests.helpers.html_pages import Page
from tests.helpers.real_data import real_data
from tests.helpers.slides import halve, tissue, write_slide
from tests.helpers.tiny_training import train
from tiling import TileConfig, tile_slide
from tiling.contracts import TissueConfig
from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.colours import (
    FAR,
    compare_colours,
    describe_training_colours,
    find_far,
    measure_tissue,
)
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.inference.slide_scores import predict
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, read_meta, save_checkpoint

PINK = (200, 110, 160)
OPTIONS = {"m": 5, "stride": 5, "filters": 4, "depth": 2}
CUT = TileConfig(patch_px=32, target_mpp=0.5, tissue=TissueConfig(mpp=2, min_object_um2=100))
SETTINGS = ("--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100")


def painted(colour=PINK, *, spread=25, n=6, seed=0, **options) -> FakeStore:
    """A store of patches that are half glass, half speckled tissue of one colour."""
    store = FakeStore("s", [0] * n, patch_px=16, **options)
    random = np.random.default_rng(seed)
    store.pixels[:] = 245
    speckles = random.integers(-spread, spread + 1, (n, 16, 8, 1))
    store.pixels[:, :, :8] = np.clip(np.array(colour) + speckles, 0, 255)
    return store


@given(st.tuples(*[st.integers(0, 170)] * 3))
def test_colour_is_that_of_the_tissue_without_the_glass(colour):
    """As scikit-image computes it, whose white differs in the fourth digit."""
    found = measure_tissue(painted(colour, spread=0, n=1))
    expected = rgb2lab(np.array(colour, np.uint8)[None])[0]
    np.testing.assert_allclose(found.mean, expected, atol=0.05)
    np.testing.assert_allclose(found.deviation, 0, atol=1e-9)


def test_patches_without_tissue_or_pixels_have_no_colour():
    store = painted(spread=0, unreadable=(0,), broken=(1,))
    store.pixels[0] = (0, 255, 0)  # never read
    store.pixels[2] = 245
    assert measure_tissue(store).mean == pytest.approx(measure_tissue(painted(spread=0)).mean)
    assert [row for rows in store.reads for row in rows] == [1, 2, 3, 4, 5]
    blank = painted(colour=(245, 245, 245), spread=0)
    assert measure_tissue(blank) is None
    assert describe_training_colours([blank]) is None
    assert measure_tissue(painted(n=2, unreadable=(0, 1))) is None


def test_a_pen_mark_on_some_patches_changes_nothing():
    store = painted(n=7)
    before = measure_tissue(store).mean
    store.pixels[:3, :, :8] = (20, 60, 200)
    assert measure_tissue(store).mean == pytest.approx(before, abs=3)


@pytest.mark.parametrize(
    ("colour", "words"),
    [
        ((150, 110, 200), "b*"),  # bluer
        ((190, 150, 110), "b*"),  # brown: immunohistochemistry
        ((10, 12, 30), "the slide is dark, as in fluorescence: L*"),
    ],
)
def test_another_stain_is_far(colour, words):
    training = describe_training_colours([painted(seed=1), painted((205, 118, 166), seed=2)])
    warning = compare_colours(measure_tissue(painted(colour, spread=5)), training)
    assert warning.startswith("far from the slides that the model was trained on")
    assert words in warning
    assert find_far(painted((203, 114, 163), seed=9), {"colours": training}) == ""


def test_distance_is_measured_from_the_range_in_deviations_within_slides():
    training = {"low": [50, 10, -10], "high": [60, 20, -5], "deviation": [10, 5, 5], "slides": 3}
    colour = measure_tissue(painted())
    for mean, is_far in (
        ((60 + FAR * 10, 15, -7), False),
        ((60 + FAR * 10 + 0.1, 15, -7), True),
        ((55, 10 - FAR * 5 - 0.1, -7), True),
        ((55, 15, -10 - FAR * 5), False),
    ):
        moved = type(colour)(np.array(mean, float), colour.deviation)
        assert bool(compare_colours(moved, training)) == is_far


@given(st.lists(st.tuples(*[st.integers(0, 200)] * 3), min_size=1, max_size=3))
def test_no_training_slide_is_far_from_its_training(colours):
    stores = [painted(colour, n=2) for colour in colours]
    training = describe_training_colours(stores)
    assert [find_far(store, {"colours": training}) for store in stores] == [""] * len(stores)


def test_a_training_records_colours_that_its_own_slides_are_near_to(fake_store, tmp_path):
    train(fake_store, tmp_path)
    card = read_meta(tmp_path / "checkpoint.safetensors").card
    assert card["colours"]["slides"] == 2
    assert find_far(fake_store("a", [0, 1] * 6), card) == ""
    assert (
        "Mean colour of the tissue of 2 training slides" in (tmp_path / "model_card.md").read_text()
    )


# ------------------------------------------------------------ slides, score files, report


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Two slides of one stain, one of another, and checkpoints with and without colours."""
    folder = tmp_path_factory.mktemp("far")
    (folder / "slides").mkdir()
    for seed, name in enumerate(("near", "same", "blue")):
        pixels = tissue(200, 160, seed=seed)
        if name == "blue":
            pixels = np.ascontiguousarray(pixels[..., ::-1])
        write_slide(folder / f"slides/{name}.tif", [pixels, halve(pixels)])
    tile_slide(folder / "slides/same.tif", folder / "same.zarr", config=CUT, slide_label=0)
    with PatchStore.open(folder / "same.zarr") as store:
        card = {"colours": describe_training_colours([store])}
    for name, known in (("with", card), ("without", {})):
        meta = CheckpointMeta("patchnet", OPTIONS, patch_px=32, target_mpp=0.5, card=known)
        save_checkpoint(folder / f"{name}.safetensors", build_model("patchnet", **OPTIONS), meta)
    return folder


def predict_all(data, run, checkpoint):
    words = ["predict", run, "--slides", data / "slides", "--checkpoint", data / checkpoint]
    assert main([*map(str, words), *SETTINGS]) == 0
    found = {path.stem: read_scores(path) for path in sorted(run.glob("scores/*/*.h5"))}
    return {name: scores.attributes.get("far_from_training") for name, scores in found.items()}


def test_predict_warns_once_and_score_file_and_report_keep_it(data, tmp_path, caplog):
    run = tmp_path / "run"
    found = predict_all(data, run, "with.safetensors")
    assert [name for name, warning in found.items() if warning] == ["blue"]
    warnings = [r.getMessage() for r in caplog.records if "far from" in r.getMessage()]
    assert warnings == [f"blue by with: {found['blue']}"]
    assert main(["report", str(run)]) == 0
    page = Page((run / "report.html").read_text()).text
    assert "Unlike the training slides." in page
    assert f"blue: {found['blue']}" in page


def test_checkpoints_without_colours_give_no_warning(data, tmp_path, caplog):
    assert set(predict_all(data, tmp_path / "run", "without.safetensors").values()) == {None}
    assert "far from" not in caplog.text
    assert main(["report", str(tmp_path / "run")]) == 0
    assert "Unlike the training" not in (tmp_path / "run/report.html").read_text()


def test_prediction_from_python_keeps_the_warning(data):
    scores = predict(data / "with.safetensors", data / "slides/blue.tif", tile=CUT)
    assert "b*" in scores.attributes["far_from_training"]


def test_fluorescence_is_far_from_real_stained_tissue(tmp_path):
    config = TileConfig(patch_px=128, target_mpp=0.5, store="coords")
    for name in ("CMU-1-Small-Region.svs", "nuclei-dapi.ndpi"):
        tile_slide(real_data(f"slides/{name}"), tmp_path / name, config=config, slide_label=0)
    with PatchStore.open(
        tmp_path / "CMU-1-Small-Region.svs",
        slide_path=real_data("slides/CMU-1-Small-Region.svs"),
    ) as stained:
        card = {"colours": describe_training_colours([stained])}
        assert find_far(stained, card) == ""
    with PatchStore.open(
        tmp_path / "nuclei-dapi.ndpi", slide_path=real_data("slides/nuclei-dapi.ndpi")
    ) as fluorescent:
        assert "the slide is dark, as in fluorescence" in find_far(fluorescent, card)
