"""`plan` of a run on single images: its figures are those of the run that follows."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.image_folder import read_images

# A config, 18 images of 25 x 18 px in a table with splits and masks, one of them broken, and a run.
STORED = Path(__file__).parents[1] / "stages" / "image_run_of_0.2.zip"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with zipfile.ZipFile(STORED) as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(capsys, *more):
    capsys.readouterr()
    code = main(["plan", "config.yaml", "--format", "json", "--quiet", *more])
    return code, json.loads(capsys.readouterr().out)


def test_files_bytes_and_counts_are_those_that_tile_makes(folder, capsys):
    new = ("--set", "out=new")
    code, found = plan(capsys, *new)
    assert code == 3
    (lost,) = (image for image in found["images"] if image["problem"])
    assert lost["slide_id"] == "rows__broken"
    assert "broken.png: cannot be decoded" in lost["problem"]
    assert not (folder / "new").exists()

    assert main(["run", "config.yaml", "--quiet", *new, "--set", "stages=[tile]"]) == 3
    written = [p for p in (folder / "new").rglob("*") if p.is_file() and p.suffix != ".jsonl"]
    assert found["totals"]["new_files"] == len(written)
    arrays = sum(p.stat().st_size - 128 for p in written if p.suffix == ".npy")
    assert arrays == sum(image["bytes"] for image in found["images"]) == 18 * 18 * 25 * 2
    entries = read_images(folder / "new" / "images.csv")
    assert [image["slide_id"] for image in found["images"]] == [e.image_id for e in entries]
    for key, label in (("negative", 0), ("positive", 1), ("unlabelled", -1)):
        assert sum(image[key] for image in found["images"]) == sum(
            e.label == label for e in entries
        )
    assert plan(capsys, *new)[1]["totals"]["new_bytes"] == 0


def test_models_are_timed_on_images_of_their_size(folder, capsys):
    _, found = plan(capsys)
    by_name = {model["name"]: model for model in found["models"]}
    assert by_name["patchnet"]["train_patches"] == 2 * 4 * 4  # epochs, steps, batch: balanced
    assert by_name["cam"]["train_patches"] == 8  # one pass over the split train
    for model in by_name.values():
        assert model["problem"] == ""  # of one channel: PatchNet was built for it
        assert model["seconds_per_patch"] > 0
        assert model["predict_patches"] == 17
    assert found["totals"]["new_files"] == 0  # this run is finished


def test_what_no_run_could_do_is_reported(folder, capsys):
    Image.new("L", (9, 9)).save(folder / "data" / "rows" / "00.png")
    assert main(["plan", "config.yaml"]) == 1
    assert "set images.size: [height, width]" in capsys.readouterr().err
    assert main(["plan", "config.yaml", "--shard", "0/2"]) == 1
    assert "omit --shard" in capsys.readouterr().err
    table = folder / "data" / "table.csv"
    table.write_text(table.read_text().replace(",val,", ",train,"))
    code, found = plan(capsys, "--set", "images.size=[18, 25]")
    assert code == 3
    assert found["problems"][0].startswith("train: no image in split val: tile again with splits")
