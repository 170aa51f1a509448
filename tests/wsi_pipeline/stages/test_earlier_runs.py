"""A run folder of an earlier version is kept, not rebuilt, by this one."""

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.data import to_unit_range
from wsi_pipeline.cohort.image_folder import read_images
from wsi_pipeline.models.checkpoint import load_checkpoint

# Four slides of 160 x 128 px, and 18 images of 25 x 18 px with patients, masks and one broken file,
# taken through tile, train, predict, heatmap and evaluate: by 0.1 and by 0.2.
STAGES = ("tile", "train", "predict", "heatmap", "evaluate")
RUNS = {"run_of_0.1": (4, 1, 2, 2, 1), "image_run_of_0.2": (1, 2, 2, 2, 2)}
# Maps of images carry their method's name since, so they and their comparison are made anew.
ANEW = {"run_of_0.1": (), "image_run_of_0.2": ("heatmap", "evaluate")}
KNOWN_ANEW = {".json", ".digest"}  # run.json, and when a slide's bytes were last read
CPU = torch.device("cpu")


def unpack(name, folder):
    with zipfile.ZipFile(Path(__file__).with_name(f"{name}.zip")) as file:
        file.extractall(folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_an_earlier_version_is_kept(name, tmp_path, monkeypatch, capsys):
    unpack(name, tmp_path)
    monkeypatch.chdir(tmp_path)
    files = [p for p in Path("run").rglob("*") if p.is_file() and p.suffix not in KNOWN_ANEW]
    anew = [Path("run", {"heatmap": "heatmaps", "evaluate": "evaluation"}[s]) for s in ANEW[name]]
    kept = [path for path in files if not {*path.parents} & {*anew}]
    before = {path: path.read_bytes() for path in kept}
    maps = {p: p.read_bytes() for p in {*files} - {*kept} if p.suffix == ".tif"}
    assert main(["run", "config.yaml"]) == (3 if "image" in name else 0)  # one is broken
    message = capsys.readouterr().out.splitlines()
    summaries = [line.partition("; output: ")[0] for line in message if " done" in line]
    assert [line.split(", 1 failed")[0] for line in summaries] == [
        f"{stage}: {n} done" if stage in ANEW[name] else f"{stage}: 0 done, {n} kept from before"
        for stage, n in zip(STAGES, RUNS[name], strict=True)
    ]
    for path, content in maps.items():  # of another name, by the method, which is the model's
        assert not path.exists()
        made = tifffile.imread(path.with_name(f"{path.stem}.{path.parent.name}.tif"))
        # The run was made on another processor, whose convolutions round otherwise.
        np.testing.assert_allclose(made, tifffile.imread(io.BytesIO(content)), rtol=0, atol=1e-5)
    assert not [path for path, content in before.items() if path.read_bytes() != content]


def test_scores_of_images_are_those_of_earlier_versions_to_the_bit(tmp_path, monkeypatch):
    """Float64 of the float32 logit of each image, passed in batches of `batch_size` in order."""
    unpack("image_run_of_0.2", tmp_path)
    monkeypatch.chdir(tmp_path)
    run = Path("run")
    assert main(["predict", "run", "--set", "batch_size=3", "--overwrite", "--quiet"]) == 0
    readable = [e for e in read_images(run / "images.csv") if e.image_id != "rows__broken"]
    for name in ("patchnet", "cam"):
        model, meta = load_checkpoint(run / f"models/{name}/checkpoint.safetensors")
        model.to(memory_format=torch.channels_last)
        mode = "L" if meta.image_shape[2] == 1 else "RGB"
        pixels = [np.asarray(Image.open(Path("data", e.file)).convert(mode)) for e in readable]
        stacked = torch.from_numpy(np.stack(pixels)).reshape(-1, *meta.image_shape)
        with torch.inference_mode():
            logits = torch.cat([model(to_unit_range(x, CPU)) for x in stacked.split(3)]).double()
        with (run / f"scores/{name}/images.csv").open(newline="") as file:
            found = {row["image_id"]: float(row["logit"] or "nan") for row in csv.DictReader(file)}
        assert np.isnan(found.pop("rows__broken"))
        assert found == dict(zip((e.image_id for e in readable), logits.tolist(), strict=True))
