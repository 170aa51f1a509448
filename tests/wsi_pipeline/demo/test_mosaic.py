"""Slides of real patches: each patch once, lesions outlined exactly, patients apart."""

import re

import numpy as np
import openslide
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.real_data import real_data
from tiling.annotation.reading import read_annotation
from wsi_pipeline.cohort.manifest import check_entries, read_manifest
from wsi_pipeline.demo.mosaic import (
    MARGIN,
    choose_splits,
    compose_cohort,
    find_patches,
    main,
    plan_layout,
)
from wsi_pipeline.errors import ManifestError

SIDE = 32


def write_patches(folder, counts):
    """Write plain patches, each of its own colour; returns colour -> (origin, class)."""
    colours = {}
    for origin, by_class in counts.items():
        for name, count in zip(("tumor", "normal"), by_class, strict=True):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = (40 * len(colours) % 200, 10 + 30 * (len(colours) // 5), 90)
                colours[colour] = (origin, name)
                picture = Image.new("RGBA", (SIDE, SIDE), (*colour, 255))
                picture.save(folder / name / f"{origin}_{1000 + i}_{2000}.png")
    return colours


COUNTS = {"tumor_001": (14, 0), "tumor_004": (0, 3), "tumor_064": (3, 6)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mosaic")
    colours = write_patches(folder / "patches", COUNTS)
    entries = read_manifest(compose_cohort(folder / "patches", folder / "out"))
    return colours, entries


def cells_of(path):
    with openslide.OpenSlide(path) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    height, width = (length // SIDE for length in image.shape[:2])
    middle = image.reshape(height, SIDE, width, SIDE, 3)[:, SIDE // 2, :, SIDE // 2]
    return {(x, y): middle[y, x].astype(int) for y, x in np.ndindex(height, width)}


def origin_of(colour, colours):
    if colour.min() > 240:
        return None
    nearest = min(colours, key=lambda known: np.abs(colour - known).sum())
    assert np.abs(colour - nearest).max() < 8
    return colours[nearest], nearest


def test_every_patch_is_used_once_on_a_slide_of_its_own_origin(cohort):
    colours, entries = cohort
    used = []
    for entry in entries:
        for colour in cells_of(entry.path).values():
            found = origin_of(colour, colours)
            if found is not None:
                (origin, _), which = found
                assert origin == entry.patient
                used.append(which)
    assert sorted(used) == sorted(colours)


def test_the_annotation_is_the_union_of_the_tumour_patches(cohort):
    colours, entries = cohort
    for entry in entries:
        squares = []
        for (x, y), colour in cells_of(entry.path).items():
            found = origin_of(colour, colours)
            if found is not None and found[0][1] == "tumor":
                squares.append(shapely.box(x * SIDE, y * SIDE, (x + 1) * SIDE, (y + 1) * SIDE))
        assert entry.label == int(bool(squares))
        if entry.annotation is None:
            assert not squares
            continue
        drawn = read_annotation(entry.annotation).tumour
        assert drawn.symmetric_difference(shapely.union_all(squares)).area == 0


def test_a_patient_is_in_one_split_and_the_test_patient_has_both_classes(cohort):
    _, entries = cohort

    check_entries(entries)

    splits = {e.patient: e.split for e in entries}
    assert splits == {"tumor_001": "train", "tumor_004": "train", "tumor_064": "test"}
    assert sorted(e.label for e in entries if e.split == "test") == [0, 1]


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    write_patches(tmp_path / "patches", COUNTS)
    for run, seed in (("a", 0), ("b", 0), ("c", 1)):
        compose_cohort(tmp_path / "patches", tmp_path / run, seed=seed)

    name = "slides/tumor_001_mosaic_1.tif"
    first, again, other = ((tmp_path / run / name).read_bytes() for run in "abc")
    assert first == again
    assert first != other


@settings(max_examples=60)
@given(st.integers(0, 60), st.integers(0, 60))
def test_a_layout_uses_no_cell_twice_and_keeps_lesions_apart(n_tumour, n_normal):
    if n_tumour + n_normal == 0:
        return

    layout = plan_layout(n_tumour, n_normal)

    tumour = [cell for lesion in layout.lesions for cell in lesion]
    cells = [*tumour, *layout.normal]
    assert (len(tumour), len(layout.normal)) == (n_tumour, n_normal)
    assert len(set(cells)) == len(cells)
    x, y = np.array(cells).T
    assert x.min() == y.min() == MARGIN
    assert (x.max() + 1 + MARGIN, y.max() + 1 + MARGIN) == layout.size
    parts = shapely.union_all([shapely.box(a, b, a + 1, b + 1) for a, b in tumour])
    assert len(shapely.get_parts(parts)) == len(layout.lesions), "each in one piece, none touching"


@given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_every_split_that_is_made_has_both_classes(counts):
    try:
        splits = choose_splits(counts)
    except ManifestError:
        return

    assert set(splits) == set(counts)
    for split in set(splits.values()):
        for kind in (0, 1):
            assert any(counts[p][kind] for p, s in splits.items() if s == split)


def test_with_enough_patients_one_validates():
    splits = choose_splits({"a": (5, 5), "b": (4, 4), "c": (3, 3)})

    assert splits == {"a": "test", "b": "val", "c": "train"}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no patches"),
        ({"a": (3, 3)}, "can be left out"),
        ({"a": (3, 0), "b": (0, 3)}, "can be left out"),
    ],
    ids=["none", "one-patient", "no-patient-with-both"],
)
def test_too_few_patients_are_refused(tmp_path, counts, message):
    write_patches(tmp_path / "patches", counts)

    with pytest.raises(ManifestError, match=message):
        compose_cohort(tmp_path / "patches", tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("nonsense.png", (SIDE, SIDE), "a name like <slide>_<x>_<y>.png"),
        ("tumor_004_9_9.png", (SIDE, SIDE + 1), "squares of one size"),
        ("tumor_004_9_9.png", None, "cannot be read as a picture"),
    ],
    ids=["name", "size", "broken"],
)
def test_a_bad_patch_is_named(tmp_path, name, size, message):
    write_patches(tmp_path, COUNTS)
    path = tmp_path / "normal" / name
    if size is None:
        path.write_bytes(b"no picture")
    else:
        Image.new("RGBA", size).save(path)

    with pytest.raises(ManifestError, match=f"{re.escape(str(path))}.*{re.escape(message)}"):
        compose_cohort(tmp_path, tmp_path / "out")


def test_patches_of_different_patients_have_one_size(tmp_path):
    """Else one grid could not cut every slide's patches out again."""
    write_patches(tmp_path, COUNTS)
    for patch in (tmp_path / "normal").glob("tumor_004*"):
        Image.new("RGBA", (16, 16)).save(patch)

    with pytest.raises(ManifestError, match=r"tumor_004.*32 px.*16"):
        compose_cohort(tmp_path, tmp_path / "out")


def test_transparent_pixels_are_white(tmp_path):
    write_patches(tmp_path, COUNTS)
    for patch in (tmp_path / "normal").glob("tumor_004*"):
        Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0)).save(patch)

    entries = read_manifest(compose_cohort(tmp_path, tmp_path / "out"))

    slide = next(e.path for e in entries if e.patient == "tumor_004")
    assert all(colour.min() == 255 for colour in cells_of(slide).values())


def test_the_command_prints_the_manifest(tmp_path, capsys):
    write_patches(tmp_path, COUNTS)

    assert main(["--patches", str(tmp_path), "--out", str(tmp_path / "out")]) == 0

    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'manifest.csv'}\n"


def test_a_folder_without_patches_is_a_wrong_usage_not_a_traceback(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--patches", str(tmp_path), "--out", str(tmp_path / "out")])

    assert ended.value.code == 2
    assert f"{tmp_path}: no patches; it must hold tumor/*.png" in capsys.readouterr().err


def test_real_patches_make_a_cohort_with_the_patient_of_both_classes_left_out(tmp_path):
    folder = real_data("patches/camelyon16")
    found = find_patches(folder)
    assert {origin: (len(p.tumour), len(p.normal)) for origin, p in found.items()} == {
        "tumor_001": (24, 0),
        "tumor_004": (0, 7),
        "tumor_064": (4, 22),
    }

    entries = read_manifest(compose_cohort(folder, tmp_path))

    assert {e.patient for e in entries if e.split == "test"} == {"tumor_064"}
    for entry in entries:
        with openslide.OpenSlide(entry.path) as slide:
            assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.243)
