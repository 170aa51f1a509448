"""Example data of the tutorials: what it promises, from a seed."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import wsi_pipeline as wsi
from wsi_pipeline.cli.app import main
from wsi_pipeline.demo import example


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(example, "PATIENTS", 1)


def test_slides_are_read_and_their_annotations_are_tumour(few, tmp_path):
    example.write_example("slides", tmp_path / "data")
    (annotation,) = (tmp_path / "data/annotations").iterdir()
    with wsi.open_slide(tmp_path / "data/slides/p01_a.tif") as slide:
        assert (slide.size, slide.mpp) == (example.SLIDE_SIZE, (0.5, 0.5))
    assert annotation.name == "p01_a.xml"
    assert (tmp_path / "data/slides/p01_b.tif").is_file()


def test_the_better_team_has_the_higher_froc_score(tmp_path):
    data, out = tmp_path / "data", tmp_path / "ranking"
    example.write_example("teams", data)
    teams = [word for team in example.TEAMS for word in ("--detections", str(data / team))]
    files = ["--reference", str(data / "reference"), "--slides", str(data / "slides.csv")]
    numbers = ["--mpp", "0.25", "--bootstrap", "10"]
    assert main(["froc", *teams, *files, *numbers, "--out", str(out)]) == 0
    score = {
        team: json.loads((out / team / "froc.json").read_text())["score"] for team in example.TEAMS
    }
    assert min(score["team_a"], score["team_b"]) > score["team_c"] > 0


def test_images_have_masks_of_their_class(few, tmp_path, capsys):
    assert main(["example", "images", str(tmp_path / "data")]) == 0
    with (tmp_path / "data/table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"normal", "tumour"}
    for row in rows:
        assert bool(row["mask"]) == (row["class"] == "tumour")
        if row["mask"]:
            mask = np.asarray(Image.open(tmp_path / "data" / row["mask"]))
            assert mask.mean() / 255 >= example.MIN_TUMOUR
    assert f"{len(list(tmp_path.glob('data/tumour/*')))} images" in capsys.readouterr().out


def test_an_existing_folder_is_kept(tmp_path, capsys):
    assert main(["example", "teams", str(tmp_path)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_same_seed_gives_the_same_files(tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        example.write_example("teams", tmp_path / folder, seed=seed)
    files = {
        folder: {p.relative_to(tmp_path / folder): p.read_bytes() for p in folder_files}
        for folder in "abc"
        if (folder_files := [p for p in (tmp_path / folder).rglob("*") if p.is_file()])
    }
    assert files["a"] == files["b"] != files["c"]


@pytest.mark.parametrize("kind", example.EXAMPLES)
def test_each_seed_has_patients_of_its_own(kind, monkeypatch, tmp_path):
    """New slides were refused next to the trained ones: both were of patient p01."""
    drawn = []
    monkeypatch.setattr(example, "_draw_each", lambda draw, specs, workers: drawn.extend(specs))
    named = []
    for seed in (0, 1):
        drawn.clear()
        out = tmp_path / str(seed)
        example.write_example(kind, out, seed=seed)
        named.append({s.patient for s in drawn} | {path.stem for path in out.rglob("case_*")})
    assert len(named[0]) == len(named[1]) > 1
    assert not named[0] & named[1]
