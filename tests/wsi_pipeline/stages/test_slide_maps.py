"""Maps of whole slides by the models themselves, next to those of their scores."""

import shutil

import numpy as np
import pytest
import tifffile

from tests.helpers.tiny_cohort import SIZE, contents
from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.explain import load_method
from wsi_pipeline.models.checkpoint import load_checkpoint


@pytest.mark.slow
def test_patchnets_own_map_is_written_beside_the_heatmap(copy):
    ask = ["heatmap", str(copy / "run"), "--quiet", "--set", "dense_step_px=8"]
    assert main(ask) == 0

    folder = copy / "run/heatmaps/patchnet"
    values = tifffile.imread(folder / "s4.patchnet.ome.tif")
    patches = tifffile.imread(folder / "s4.ome.tif")
    assert values.shape == (-(-SIZE[1] // 8), -(-SIZE[0] // 8))
    # It is known where patches were scored, and nowhere else.
    tiles = np.kron(patches, np.ones((4, 4)))[: values.shape[0], : values.shape[1]]
    np.testing.assert_array_equal(np.isnan(values), np.isnan(tiles))
    assert (folder / "s4.patchnet.png").is_file()
    assert main([*ask, "--overwrite"]) == 0
    np.testing.assert_array_equal(tifffile.imread(folder / "s4.patchnet.ome.tif"), values)
    assert main([*ask[:3], "--set", "dense_step_px=null"]) == 0
    assert not list(folder.glob("*.patchnet.*"))  # of settings that are no longer in force
    assert main(ask) == 0
    shutil.rmtree(copy / "run/models")  # as where predict was given a checkpoint from elsewhere
    assert main([*ask, "--overwrite"]) == 1
    printed = (copy / "run/failures.csv").read_text()
    assert "copy the one that predict was given to" in printed


@pytest.mark.slow
def test_slides_are_mapped_by_an_explanation_method(copy, capsys):
    ask = ["heatmap", str(copy / "run"), "--quiet", "--set", "dense_step_px=4"]
    assert main([*ask, "--set", "method=saliency"]) == 0

    folder = copy / "run/heatmaps/patchnet"
    values = tifffile.imread(folder / "s4.saliency.ome.tif")
    patches = tifffile.imread(folder / "s4.ome.tif")
    model = load_checkpoint(copy / "run/models/patchnet/checkpoint.safetensors")[0]
    with PatchStore.open(copy / "run/tiles/s4.zarr") as store:
        (x, y), pixels = store.coords[0], store.read(np.array([0]))
        side = store.geometry.patch_l0 // 4
    (expected,) = load_method("saliency")(model, pixels)
    shown = values[y // 4 : y // 4 + side, x // 4 : x // 4 + side]
    blocks = expected.reshape(side, 4, side, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(shown, blocks, rtol=1e-5, atol=1e-9)
    tiles = np.kron(patches, np.ones((8, 8)))[: values.shape[0], : values.shape[1]]
    np.testing.assert_array_equal(np.isnan(values), np.isnan(tiles))
    assert (folder / "s4.saliency.png").is_file()

    assert main([*ask[:2], *ask[3:], "--set", "method=grad_cam"]) == 0
    assert (
        "no grad_cam of patchnet: it does not explain the architecture" in capsys.readouterr().out
    )
    assert not list(folder.glob("*.saliency.*"))


@pytest.mark.slow
def test_filters_of_patchnet_are_mapped_over_slides(copy, capsys):
    ask = ["heatmap", str(copy / "run"), "--quiet", "--set", "dense_step_px=8"]
    assert main([*ask, "--set", "filters=[0,1]"]) == 0
    folder = copy / "run/heatmaps/patchnet"
    whole, *maps = (
        tifffile.imread(folder / f"s4.patchnet{name}.ome.tif")
        for name in ("", ".filter_0", ".filter_1")
    )
    for one in maps:
        np.testing.assert_array_equal(np.isnan(one), np.isnan(whole))
        assert -1 <= np.nanmin(one) < np.nanmax(one) <= 1
    assert not np.allclose(*maps, equal_nan=True)
    assert main([*ask, "--set", "filters=[99]"]) == 1
    assert "no filter 99; the model has 0 to" in (copy / "run/failures.csv").read_text()
    assert main([*ask, "--set", "method=saliency", "--set", "filters=[0]"]) == 1
    assert "heatmap.filters are PatchNet's" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["heatmap", "run"])
def test_a_slide_named_like_the_dense_map_of_another_is_refused(copy, capsys, stage):
    """Both wrote s4.patchnet.ome.tif, and the heatmap of the slide s4.patchnet was lost."""
    (copy / "data/s5.tif").rename(copy / "data/s4.patchnet.tif")
    for manifest in (copy / "run/slides.csv", copy / "data/manifest.csv"):
        text = manifest.read_text().replace("s5.tif", "s4.patchnet.tif")
        manifest.write_text(text.replace(",s5,", ",s4.patchnet,"))
    before = contents(copy / "run/heatmaps")
    recorded = {"heatmap": copy / "run", "run": copy / "config.yaml"}[stage]
    assert main([stage, str(recorded), "--set", "heatmap.dense_step_px=8"]) == 1
    printed = capsys.readouterr().err
    assert (
        "the model's own map of the slide 's4' and the heatmap of the slide 's4.patchnet'"
        in printed
    )
    assert contents(copy / "run/heatmaps") == before
