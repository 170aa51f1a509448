"""Folders of images made for the reproduction page."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from wsi_pipeline.demo.camelyon_patches import write_patches
from wsi_pipeline.demo.textures_folder import cut_pieces, write_textures
from wsi_pipeline.demo.toy import toy_image, write_toy
from wsi_pipeline.errors import ManifestError


def test_toy_images_are_black_and_a_quarter_white(tmp_path):
    assert not toy_image(0).any()
    corner = toy_image(1)
    assert corner[:64, :64].min() == 255
    assert np.count_nonzero(corner) == 64 * 64
    write_toy(tmp_path / "toy")
    assert len(list((tmp_path / "toy").rglob("*.png"))) == 6


def test_pieces_of_different_splits_share_no_pixel():
    picture = np.zeros((512, 512), np.uint8)
    owner = {}
    for split, row, column, piece in cut_pieces(picture, side=60):
        assert piece.shape == (60, 60)
        for y in range(row, row + 60):
            assert owner.setdefault((y, column), split) == split
    assert set(owner.values()) == {"train", "val", "test"}


def test_a_piece_higher_than_its_band_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="side of 1 to 128"):
        write_textures(tmp_path / "t", side=200)
    assert not list(tmp_path.iterdir())


def test_a_held_out_slide_is_in_no_training_row(tmp_path):
    for name in ("normal/a_1_2", "tumor/a_3_4", "tumor/b_5_6"):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    assert write_patches(tmp_path / "in", tmp_path / "out") == ["a", "b"]
    table = (tmp_path / "out" / "without_a.csv").read_text()
    rows = list(csv.DictReader(table.splitlines()))
    assert {(r["patient"], r["split"]) for r in rows} == {("a", "test"), ("b", "train")}


def test_patches_of_annotated_slides_get_the_masks_of_their_place(tmp_path):
    for name in ("normal/a_1_2", "tumor/a_30_40", "tumor/b_5_6"):
        path = tmp_path / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(path)
    (tmp_path / "drawn").mkdir()
    corners = [[31, 41], [33, 41], [33, 60], [31, 60]]
    lesion = {"name": "x", "vertices": corners}
    (tmp_path / "drawn/A.json").write_text(json.dumps({"positive": [lesion], "negative": []}))
    write_patches(tmp_path / "in", tmp_path / "out", annotations=tmp_path / "drawn")
    rows = list(csv.DictReader((tmp_path / "out/without_a.csv").read_text().splitlines()))
    assert [row["mask"] for row in rows] == ["masks/a_1_2.png", "masks/a_30_40.png", ""]
    mask = np.asarray(Image.open(tmp_path / "out/masks/a_30_40.png"))
    assert (mask // 255).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    assert not np.asarray(Image.open(tmp_path / "out/masks/a_1_2.png")).any()
    with pytest.raises(ManifestError, match="no annotation of a, b"):
        write_patches(tmp_path / "in", tmp_path / "more", annotations=tmp_path / "in")


def test_a_folder_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ManifestError, match="exists already"):
        write_toy(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "kept"
