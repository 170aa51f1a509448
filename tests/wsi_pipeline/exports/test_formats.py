"""Each format, read back by another reader."""

import csv
import gzip
import json
import uuid
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import pytest
import shapely
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box, shape

from tests.helpers.odd_slide import BOUNDS, SIZE, make_job, make_slide
from tests.helpers.slides import tissue, write_slide
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.coords_hdf5 import read_coords
from tiling.geometry import resolve_geometry
from tiling.store import PatchStore
from tiling.wording import pluralize
from wsi_pipeline.contracts import Scores
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.evaluation.detections import read_detection_file
from wsi_pipeline.exports import COORDS_ONLY, FORMATS, check_format, load_format
from wsi_pipeline.exports.base import ExportSlide, leave_unscored
from wsi_pipeline.inference.scores import clam_attributes

formats = pytest.mark.parametrize("name", FORMATS)


def export(name, job, folder):
    (path,), line = load_format(name)(job, folder)
    return path, line


def read_bytes(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}


# ------------------------------------------------------------ every format


@formats
def test_equal_scores_give_equal_bytes(name, slide, tmp_path):
    first, _ = export(name, make_job(slide, compression="gzip"), tmp_path / "a")
    second, _ = export(name, make_job(slide, compression="gzip"), tmp_path / "b")
    assert read_bytes(first) == read_bytes(second)


@formats
def test_nothing_but_the_file_is_left(name, slide, tmp_path):
    path, _ = export(name, make_job(slide), tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.name.startswith(slide.info.slide_id)


@formats
def test_a_slide_without_any_score_can_be_written(name, tmp_path):
    slide = make_slide()
    slide.scores.scores[:] = np.nan
    path, _ = export(name, make_job(slide, qupath="both"), tmp_path)
    assert path.exists()


@formats
def test_no_path_is_written(name, slide, tmp_path):
    path, _ = export(name, make_job(slide), tmp_path)
    for content in read_bytes(path).values():
        assert str(tmp_path).encode() not in content


def test_an_unknown_format_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"'quapth'; known: qupath, wsinfer"):
        check_format("quapth")


# ------------------------------------------------------------ QuPath


def read_features(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        found = json.load(file)
    assert found["type"] == "FeatureCollection"
    return found["features"]


def test_qupath_tiles_are_the_scored_patches(slide, tmp_path):
    path, line = export("qupath", make_job(slide), tmp_path)
    features = read_features(path)

    scored = ~np.isnan(slide.scores.scores)
    assert len(features) == scored.sum()
    assert f"{(~scored).sum()} without a score" in line
    for feature, (x, y), score in zip(
        features, slide.scores.coords[scored], slide.scores.scores[scored], strict=True
    ):
        assert feature["type"] == "Feature"
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        assert feature["properties"]["objectType"] == "tile"
        assert np.float32(feature["properties"]["measurements"]["score"]) == score
        expected = box(x, y, min(x + 66, SIZE[0]), min(y + 62, SIZE[1]))
        assert shape(feature["geometry"]).equals(expected)
    assert len({feature["id"] for feature in features}) == len(features)


def test_qupath_origin_moves_every_object_by_the_corner_of_the_bounds(slide, tmp_path):
    whole, line = export("qupath", make_job(slide, qupath="both"), tmp_path / "level0")
    assert f"begins at x {BOUNDS[0]}, y {BOUNDS[1]}" in line
    cropped, line = export(
        "qupath", make_job(slide, qupath="both", origin="bounds"), tmp_path / "bounds"
    )
    assert "begins at" not in line
    frame = box(BOUNDS[0], BOUNDS[1], BOUNDS[0] + BOUNDS[2], BOUNDS[1] + BOUNDS[3])
    found = {feature["id"]: feature for feature in read_features(cropped)}
    seen = 0
    for a in read_features(whole):
        expected = shape(a["geometry"]) & frame  # all that QuPath shows
        b = found.pop(a["id"], None)
        assert (b is None) == (expected.area == 0)
        if b is None:
            continue
        seen += 1
        moved = shapely.transform(shape(b["geometry"]), lambda points: points + BOUNDS[:2])
        assert moved.is_valid
        assert moved.symmetric_difference(expected).area == 0
        assert {k: v for k, v in a.items() if k != "geometry"} == {
            k: v for k, v in b.items() if k != "geometry"
        }
    assert not found
    assert seen > 600


def test_qupath_gets_no_object_beside_the_scanned_part(tmp_path):
    slide = make_slide(bounds=(200, 200, 300, 300))
    path, line = export("qupath", make_job(slide, qupath="both", origin="bounds"), tmp_path)
    frame = box(0, 0, 300, 300)
    features = read_features(path)
    assert all(frame.covers(shape(f["geometry"])) for f in features)
    assert all(shape(f["geometry"]).area for f in features)
    tiles = sum(f["properties"]["objectType"] == "tile" for f in features)
    n_scored = int(slide.scored.sum())
    assert f"{tiles} tiles" in line
    assert f"{n_scored - tiles} outside the scanned part skipped" in line


def test_qupath_origin_of_a_slide_without_bounds_is_its_corner(tmp_path):
    slide = make_slide(bounds=None)
    a, _ = export("qupath", make_job(slide), tmp_path / "a")
    b, _ = export("qupath", make_job(slide, origin="bounds"), tmp_path / "b")
    assert a.read_bytes() == b.read_bytes()


def test_qupath_regions_are_locked_annotations_with_measurements(slide, tmp_path):
    job = make_job(slide, qupath="regions", thresholds=(0.6, 0.3), compression="gzip")
    path, _ = export("qupath", job, tmp_path)
    assert path.name.endswith(".geojson.gz")
    features = read_features(path)
    names = [feature["properties"]["classification"]["name"] for feature in features]
    assert list(dict.fromkeys(names)) == ["tumour >= 0.3", "tumour >= 0.6"]
    for feature in features:
        properties = feature["properties"]
        assert properties["objectType"] == "annotation"
        assert properties["isLocked"] is True
        measured = properties["measurements"]
        assert measured["threshold"] <= measured["score mean"] <= measured["score max"] <= 1
        geometry = shape(feature["geometry"])
        assert geometry.is_valid
        assert geometry.geom_type == "Polygon"
        assert box(0, 0, *SIZE).covers(geometry)
    assert len({feature["id"] for feature in features}) == len(features)


# ------------------------------------------------------------ WSInfer, CLAM, TRIDENT


def test_wsinfer_csv_holds_the_scored_patches(slide, tmp_path):
    path, _ = export("wsinfer", make_job(slide, class_name="Tumor"), tmp_path)
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["minx", "miny", "width", "height", "prob_Tumor"]
    scored = ~np.isnan(slide.scores.scores)
    numbers = np.array(rows[1:], np.float64)
    np.testing.assert_array_equal(numbers[:, :2], slide.scores.coords[scored])
    assert (numbers[:, 2:4] == (66, 62)).all()
    np.testing.assert_array_equal(numbers[:, 4].astype(np.float32), slide.scores.scores[scored])


def test_clam_file_holds_what_clam_reads(slide, tmp_path):
    path, _ = export("clam", make_job(slide), tmp_path)
    scored = ~np.isnan(slide.scores.scores)
    with h5py.File(path) as file:
        assert sorted(file) == ["attention_scores", "coords"]
        np.testing.assert_array_equal(file["coords"][:], slide.scores.coords[scored])
        assert file["attention_scores"].shape == (scored.sum(), 1)
        np.testing.assert_array_equal(file["attention_scores"][:, 0], slide.scores.scores[scored])
        attributes = dict(file["coords"].attrs)
    assert (attributes["patch_size"], attributes["patch_level"]) == (66, 0)
    assert attributes["level_dim"].tolist() == list(SIZE)
    assert attributes["downsample"].tolist() == [1.0, 1.0]
    assert attributes["name"] == slide.info.slide_id


def test_trident_file_holds_all_patches_and_an_exact_ratio(slide, tmp_path):
    path, line = export("trident", make_job(slide), tmp_path)
    assert path.name == f"{slide.info.slide_id}_patches.h5"
    assert "other tools read 66 px squares, though patches are 62 px high" in line
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["coords"][:], slide.scores.coords)
        attributes = dict(file["coords"].attrs)
    # TRIDENT reads round(patch_size * level0 / target) level-0 px.
    ratio = attributes["level0_magnification"] / attributes["target_magnification"]
    assert round(attributes["patch_size"] * ratio) == attributes["patch_size_level0"] == 66
    assert attributes["overlap"] == 16
    assert (attributes["level0_width"], attributes["level0_height"]) == SIZE


@pytest.mark.parametrize("name", ["clam", *COORDS_ONLY])
def test_coordinates_come_back_as_another_tools(name, slide, tmp_path):
    path, line = export(name, make_job(slide), tmp_path)
    assert "66 px squares, though patches are 62 px high" in line
    found = read_coords(path)
    chosen = ~np.isnan(slide.scores.scores) if name == "clam" else slice(None)
    np.testing.assert_array_equal(found.coords, slide.scores.coords[chosen])
    assert (found.tool, found.patch_l0) == (name.removesuffix("-coords"), (66, 62))
    if name in COORDS_ONLY:
        with h5py.File(path) as file:
            assert list(file) == ["coords"]


FOOTPRINTS = ("qupath", "wsinfer", "clam", *COORDS_ONLY)


def read_footprints(name, path):
    """Corner and sides of every patch in a file, level-0 px: (N, 4)."""
    if name == "qupath":
        found = [shape(feature["geometry"]).bounds for feature in read_features(path)]
        return np.array([(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in found])
    if name == "wsinfer":
        return np.loadtxt(path, delimiter=",", skiprows=1, usecols=range(4), ndmin=2)
    found = read_coords(path)
    sides = np.broadcast_to(found.patch_l0, found.coords.shape)
    return np.concatenate([found.coords, sides], axis=1)


@pytest.mark.parametrize("name", FOOTPRINTS)
@settings(max_examples=12)
@given(
    mpp=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)),
    target_mpp=st.floats(0.2, 4),
    patch_px=st.integers(1, 300),
)
def test_footprints_of_pixels_that_are_not_square_come_back(name, mpp, target_mpp, patch_px):
    """The HDF5 files kept one side only, and tile refused them."""
    config = TileConfig(target_mpp=max(target_mpp, *mpp), patch_px=patch_px)
    geometry = resolve_geometry(config, slide_mpp=mpp)
    width, height = geometry.patch_l0, geometry.patch_l0_y
    coords = np.array([(0, 0), (7, 3), (2 * width, height)], np.int64)
    info = replace(make_slide().info, mpp=mpp, size=(4 * width + 7, 4 * height + 7))
    scores = Scores(coords, np.full(3, 0.5, np.float32), {}, clam_attributes(info, geometry))
    with TemporaryDirectory() as folder:
        slide = ExportSlide(info, geometry, "m", scores)
        path, _ = export(name, make_job(slide), Path(folder))
        expected = [(x, y, width, height) for x, y in coords.tolist()]
        np.testing.assert_array_equal(read_footprints(name, path), expected)


@pytest.mark.parametrize("name", ["clam", *COORDS_ONLY])
def test_tile_cuts_the_same_patches_again_where_pixels_are_not_square(name, tmp_path):
    slide_path = write_slide(tmp_path / "s.tif", [tissue(300, 240)], mpp=(0.5, 0.61))
    tissue_config = TissueConfig(mpp=4.0, min_object_um2=100.0)
    config = TileConfig(target_mpp=0.9, patch_px=24, stride_px=17, tissue=tissue_config)
    tile_slide(slide_path, tmp_path / "a.zarr", slide_id="s", config=config)
    with PatchStore.open(tmp_path / "a.zarr") as first:
        assert first.geometry.patch_l0 != first.geometry.patch_l0_y
        scores = leave_unscored(first.coords)
        scores.scores[:] = 0.5
        slide = ExportSlide(first.info, first.geometry, "m", scores)
        export(name, make_job(slide), tmp_path / "coords")
        again = replace(config, coords=tmp_path / "coords")
        tile_slide(slide_path, tmp_path / "b.zarr", slide_id="s", config=again)
        with PatchStore.open(tmp_path / "b.zarr") as second:
            np.testing.assert_array_equal(second.coords, first.coords)
            rows = range(len(first.coords))
            np.testing.assert_array_equal(second.read(rows), first.read(rows))


# ------------------------------------------------------------ detections


def test_detections_lie_on_the_hottest_patches(tmp_path):
    slide = make_slide()
    slide.scores.scores[:] = 0.1
    hot = 123
    slide.scores.scores[hot] = 1.0
    path, line = export(
        "camelyon16", make_job(slide, overlap="max", detection_threshold=0.5), tmp_path
    )
    found = read_detection_file(path).detections
    assert path.read_text().splitlines()[0] == "prob,x,y"
    assert line == pluralize(len(found.scores), "detection")
    assert found.scores.tolist() == [1.0] * len(found.scores)
    x, y = slide.scores.coords[hot]
    assert ((found.x >= x) & (found.x < x + 66) & (found.y >= y) & (found.y < y + 62)).all()


# ------------------------------------------------------------ OME-Zarr


def check_ome_zarr(path):
    """The rules of OME-Zarr 0.5 that an image of a pyramid must keep; gives its levels."""
    metadata = json.loads((path / "zarr.json").read_text())
    assert (metadata["zarr_format"], metadata["node_type"]) == (3, "group")
    ome = metadata["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (multiscale,) = ome["multiscales"]
    axes = multiscale["axes"]
    assert [axis["name"] for axis in axes] == ["y", "x"]
    assert {axis["type"] for axis in axes} == {"space"}
    assert {axis["unit"] for axis in axes} == {"micrometer"}
    levels = []
    for dataset in multiscale["datasets"]:
        array = json.loads((path / dataset["path"] / "zarr.json").read_text())
        assert array["dimension_names"] == ["y", "x"]
        assert array["data_type"] == "float32"
        assert array["fill_value"] == "NaN"
        kinds = [transformation["type"] for transformation in dataset["coordinateTransformations"]]
        assert kinds == ["scale", "translation"]  # one scale, then at most one translation
        scale, translation = dataset["coordinateTransformations"]
        assert len(scale["scale"]) == len(translation["translation"]) == 2
        levels.append((array["shape"], scale["scale"], translation["translation"]))
    assert levels == sorted(levels, key=lambda level: level[1])  # the finest first
    window = ome["omero"]["channels"][0]["window"]
    assert (window["min"], window["start"], window["end"], window["max"]) == (0, 0, 1, 1)
    return levels


def test_ome_zarr_keeps_the_rules_and_the_values(slide, tmp_path):
    job = make_job(slide)
    path, _ = export("ome-zarr", job, tmp_path)
    levels = check_ome_zarr(path)
    group = zarr.open_group(path, mode="r", zarr_format=3)
    values = group["0"][:]
    assert np.isnan(values).any()
    np.testing.assert_array_equal(values, job.heatmap.values)
    assert [list(group[str(i)].shape) for i in range(len(levels))] == [s for s, _, _ in levels]


def test_every_level_of_ome_zarr_covers_the_same_place(slide, tmp_path):
    """The outer edge of the first pixel, half a pixel before its centre, is the slide's."""
    path, _ = export("ome-zarr", make_job(slide), tmp_path)
    edge = -0.5 * np.array(slide.info.mpp[::-1])  # of level-0 px (0, 0), whose centre is 0
    for shape_, scale, translation in check_ome_zarr(path):
        np.testing.assert_allclose(np.array(translation) - np.array(scale) / 2, edge, rtol=1e-12)
        far = np.array(translation) + (np.array(shape_) - 0.5) * scale
        slide_um = np.array(SIZE[::-1]) * slide.info.mpp[::-1]
        assert (far >= slide_um + edge).all()
        assert (far - scale < slide_um + edge).all()
