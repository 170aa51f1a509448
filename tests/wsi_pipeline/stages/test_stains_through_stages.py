"""A model with normalised stains sees them normalised in every stage."""

import json

import numpy as np
import pytest
import tifffile
import torch

from tests.helpers.tiny_cohort import contents
from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.stain_view import NormalisedPatches
from wsi_pipeline.explain import load_method
from wsi_pipeline.inference.scores import read_scores
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.stages import predict


def test_training_prediction_maps_and_explanations_see_the_same_pixels(copy, monkeypatch):
    run = copy / "run"
    tiles = contents(run / "tiles")
    before = read_scores(run / "scores/patchnet/s4.h5")
    stain = ["--set", "model.preprocess.stain=macenko", "--set", "max_epochs=1"]
    assert main(["train", str(run), "--model", "patchnet", "--quiet", *stain]) == 0
    compared = []  # with the colours of the training
    monkeypatch.setattr(predict, "find_far", lambda store, _: compared.append(store) or "")
    assert main(["predict", str(run), "--quiet"]) == 0
    assert compared
    assert all(isinstance(store, NormalisedPatches) for store in compared)
    maps = ["--set", "dense_step_px=4", "--set", "method=saliency"]
    assert main(["heatmap", str(run), "--quiet", *maps]) == 0
    explain = ["--method", "saliency", "--top", "1", "--errors", "1", "--quiet"]
    assert main(["explain", str(run), *explain]) == 0

    model, meta = load_checkpoint(run / "models/patchnet/checkpoint.safetensors")
    assert meta.options["preprocess"]["stain"] == "macenko"
    scores = read_scores(run / "scores/patchnet/s4.h5")
    assert not np.array_equal(scores.scores, before.scores)
    with PatchStore.open(run / "tiles/s4.zarr") as store:
        patches = NormalisedPatches(store, "macenko")
        assert patches.slide_map() is not None
        pixels = np.empty((len(store), *store.kind.shape), np.uint8)
        patches.read_into(np.arange(len(store)), pixels)
        (x, y), side = store.coords[0], store.geometry.patch_l0 // 4
        assert not np.array_equal(pixels, store.read(np.arange(len(store))))
    with torch.no_grad():
        expected = model.score(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).numpy()
    np.testing.assert_allclose(scores.scores, expected, atol=1e-5)
    values = tifffile.imread(run / "heatmaps/patchnet/s4.saliency.ome.tif")
    shown = values[y // 4 : y // 4 + side, x // 4 : x // 4 + side]
    (of_patch,) = load_method("saliency")(model, pixels[:1])
    blocks = of_patch.reshape(side, 4, side, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(shown, blocks, rtol=1e-4, atol=1e-9)
    about = json.loads((run / "explanations/patchnet/saliency/explain.json").read_text())
    for one in about["explained"]:
        assert 1 / (1 + np.exp(-one["logit"])) == pytest.approx(one["score"], abs=1e-5)
    assert contents(run / "tiles") == tiles  # stores keep the slide's own colours
