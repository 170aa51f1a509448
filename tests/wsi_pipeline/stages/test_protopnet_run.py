"""ProtoPNet from slides, and from a folder of images, to the report."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.striped_images import make_folder
from tests.helpers.tiny_cohort import draw_cohort
from tiling.slide import open_slide
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.image_folder import read_images
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import load_checkpoint

TRAIN = """
train:
  protopnet:
    model:
      options: {base: vgg11, width: 0.03125, depth: 8, prototypes_per_class: 2}
      weights: WEIGHTS
    batch_size: 8
    sampling: shuffle
    max_epochs: 2
    protopnet: {warm_epochs: 1, push_from: 2, solver_steps: 50, prune: PRUNE}
"""


def write_config(folder, first, *, prune):
    weights = folder / "vgg11.pth"
    torch.save(build_model("vgg11_pooled", width=1 / 32).state_dict(), weights)
    path = folder / "c.yaml"
    lines = TRAIN.replace("WEIGHTS", str(weights)).replace("PRUNE", prune)
    path.write_text(first + lines)
    return path


def sources_of(model):
    return json.loads((model / "prototypes.json").read_text())["prototypes"]


@pytest.mark.slow
def test_on_slides_prototypes_are_places_of_the_training_slides(tmp_path):
    draw_cohort(tmp_path / "data")
    first = (
        f"input: {tmp_path}/data/manifest.csv\nout: {tmp_path}/run\n"
        "tile: {target_mpp: 0.5, patch_px: 64, tissue: {mpp: 2.0, "
        "min_object_um2: 100.0}}\n"
        "stages: [tile, train, predict]\n"
    )
    assert main(["run", str(write_config(tmp_path, first, prune="false")), "--quiet"]) == 0

    folder = tmp_path / "run" / "models" / "protopnet"
    model, meta = load_checkpoint(folder / "checkpoint.safetensors")
    found = sources_of(folder)
    assert len(found) == 4
    assert {row["source_id"] for row in found} <= set(meta.train_slides)
    for number, row in enumerate(found):
        x, y, width, height = row["box_l0"]
        with open_slide(tmp_path / "data" / f"{row['source_id']}.tif") as slide:
            scale = 0.5 / slide.mpp[0]
            region = slide.read_region((x, y), 0, (width, height))
        left, top, wide, tall = row["box_px"]
        assert (width, height) == (round(wide * scale), round(tall * scale))
        shown = model.sources.pixels[number].numpy()[top : top + tall, left : left + wide]
        assert region.mean() == pytest.approx(shown.mean(), abs=3)
    assert (tmp_path / "run" / "scores" / "protopnet" / "s4.h5").is_file()


def test_on_images_prototypes_are_training_images_and_pruning_is_listed(tmp_path, capsys):
    data = make_folder(tmp_path / "data", n=8, channels=3, height=64, width=96)
    first = (
        "input: data\nout: run\nimages: {classes: [rows, columns]}\n"
        "splits: {folds: 4, fold: 1}\n"
        "stages: [tile, train, predict, heatmap, explain, evaluate, report]\n"
        "heatmap: {maps_per_class: 1}\nexplain: {methods: [prototypes], top: 1, errors: 0}\n"
    )
    config = write_config(tmp_path, first, prune="true")
    assert main(["run", str(config), "--quiet"]) == 0

    folder = tmp_path / "run" / "models" / "protopnet"
    model, meta = load_checkpoint(folder / "checkpoint.safetensors")
    assert (folder / "pruning.csv").read_text().startswith("prototype,label,nearest")
    images = read_images(tmp_path / "run" / "images.csv")
    images_of = sources_of(folder)
    for number, row in enumerate(images_of):
        assert row["source_id"] in meta.train_patients
        assert images[row["row"]].image_id == row["source_id"]
        assert row["source_id"].startswith("rows" if row["class"] == 0 else "columns")
        assert row["box_l0"] is None
        with Image.open(data / f"{row['source_id'].replace('__', '/')}.png") as image:
            assert np.array_equal(model.sources.pixels[number].numpy(), np.asarray(image))
    metrics = json.loads((tmp_path / "run/evaluation/protopnet/metrics.json").read_text())
    assert metrics["patch"]["n"] > 0

    drawn = tmp_path / "run" / "explanations" / "protopnet" / "prototypes"
    assert list(drawn.glob("*_prototypes.png"))
    for table in drawn.glob("*.csv"):  # what prototypes add is the logit
        rows = list(csv.DictReader(table.read_text().splitlines()))
        about = json.loads(table.with_suffix(".json").read_text())
        assert len(rows) == len(images_of)
        assert sum(float(row["contribution"]) for row in rows) == pytest.approx(
            about["logit"], abs=1e-5
        )

    # The files are outputs of the stage: a change is noticed, and training repairs it.
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".csv"}
    (folder / "prototypes.json").write_text("{}")
    capsys.readouterr()
    assert main(["run", str(config), "--quiet"]) == 0
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".csv"} == before


def test_settings_that_cannot_be_are_refused_before_anything_is_tiled(tmp_path, capsys):
    make_folder(tmp_path / "data", n=3, channels=3, height=64, width=96)
    first = "input: data\nout: run\nsplits: {folds: 3}\n"
    config = write_config(tmp_path, first, prune="false")
    assert main(["run", str(config), "--quiet", "--set", "train.protopnet.max_epochs=1"]) == 1
    assert "max_epochs=1 ends before the first push" in capsys.readouterr().err
    assert not (tmp_path / "run" / "tiles").exists()
