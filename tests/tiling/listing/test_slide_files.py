"""Which files are slides, how DICOM files are grouped, and which slides are copies."""

import os
import shutil
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiling.same_content
from tests.helpers.dicoms import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    ROOT,
    describe_instance,
    write_elements,
    write_series,
)
from tests.helpers.slides import tissue, write_slide
from tiling.errors import SlideError
from tiling.listing.dicom_header import DicomHeader, read_dicom_header
from tiling.listing.slide_files import explain_unread, find_deeper, find_slides, slide_stem
from tiling.same_content import find_same_content
from tiling.slide import open_slide


def names(folder: Path) -> list[str]:
    return [path.name for path in find_slides(folder).slides]


def passed_over(folder: Path) -> dict[str, str]:
    return dict(find_slides(folder).passed_over)


# ------------------------------------------------------------ DICOM heads


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG_ENDIAN])
def test_a_head_is_read_in_every_encoding_past_nested_sequences(tmp_path, syntax):
    elements = describe_instance(series=f"{ROOT}.2", instance=f"{ROOT}.3", number=4, size=(70, 50))
    found = read_dicom_header(write_elements(tmp_path / "a.dcm", elements, syntax=syntax))
    image_type = ("ORIGINAL", "PRIMARY", "VOLUME", "NONE")
    whole_slide = elements[0x00080016][1]
    assert found == DicomHeader(whole_slide, f"{ROOT}.3", f"{ROOT}.2", image_type, 4, (70, 50))


def test_the_head_is_that_of_openslide(tmp_path):
    path = write_series(tmp_path)
    found = read_dicom_header(path)
    with openslide.OpenSlide(path) as slide:
        about = slide.properties
        assert found.series == about["dicom.SeriesInstanceUID"]
        assert found.instance == about["dicom.SOPInstanceUID"]
        assert found.size == slide.dimensions


def test_large_private_values_before_the_series_are_passed(tmp_path):
    elements = describe_instance(series=f"{ROOT}.2", instance=f"{ROOT}.3")
    elements |= {0x00091001: ("UN", bytes(300_000))}
    assert read_dicom_header(write_elements(tmp_path / "a", elements)).series == f"{ROOT}.2"


@given(cut=st.integers(0, 600), data=st.binary(max_size=64))
def test_damaged_heads_are_no_error(tmp_path_factory, cut, data):
    whole = write_elements(
        tmp_path_factory.mktemp("cut") / "a.dcm",
        describe_instance(series=f"{ROOT}.2", instance=f"{ROOT}.3"),
    )
    whole.write_bytes(whole.read_bytes()[:cut] + data)
    found = read_dicom_header(whole)
    assert found is None or isinstance(found.series, str)


def test_what_is_no_dicom_has_no_head(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"II*\0" + bytes(500))
    assert read_dicom_header(tmp_path / "a.dcm") is None


# ------------------------------------------------------------ a folder


def test_a_series_is_one_slide_named_by_its_finest_level(tmp_path):
    finest = write_series(tmp_path)
    assert find_slides(tmp_path).slides == (finest,)
    with open_slide(finest) as slide:
        assert len(slide.level_sizes) == 3


def test_series_in_one_folder_stay_apart_whatever_their_files_are_called(tmp_path):
    first, second = write_series(tmp_path, seed=1), write_series(tmp_path, seed=2, levels=2)
    for number, path in enumerate(sorted(tmp_path.iterdir())):
        renamed = path.rename(tmp_path / f"IM{number:04d}")  # as archives write them
        first = renamed if path == first else first
        second = renamed if path == second else second
    assert find_slides(tmp_path).slides == tuple(sorted([first, second]))


def test_labels_and_overviews_belong_to_their_slide(tmp_path):
    finest = write_series(tmp_path)
    for kind in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        about = describe_instance(
            series=f"{ROOT}.0.99", instance=f"{ROOT}.{kind}", kind=kind, size=(9999, 9999)
        )
        write_elements(tmp_path / f"{kind}.dcm", about)
    assert find_slides(tmp_path).slides == (finest,)
    assert passed_over(tmp_path) == {}


def test_a_label_without_its_slide_is_passed_over(tmp_path):
    about = describe_instance(series=f"{ROOT}.1", instance=f"{ROOT}.2", kind="LABEL")
    write_elements(tmp_path / "l.dcm", about)
    assert names(tmp_path) == []
    assert "a label, an overview" in passed_over(tmp_path)["l.dcm"]


def test_other_dicom_is_passed_over(tmp_path):
    about = describe_instance(
        series=f"{ROOT}.1", instance=f"{ROOT}.2", sop_class="1.2.840.10008.5.1.4.1.1.2"
    )
    write_elements(tmp_path / "ct.dcm", about)
    write_elements(tmp_path / "DICOMDIR", {0x00080016: ("UI", "1.2.840.10008.1.3.10")})
    assert passed_over(tmp_path) == {"ct.dcm": "DICOM, but not a whole-slide image"}


def test_a_damaged_dicom_file_is_a_slide_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"rubbish")
    assert names(tmp_path) == ["a.dcm"]
    with pytest.raises(SlideError, match="neither a format that OpenSlide knows"):
        open_slide(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "name",
    ["a.svs", "a.TIF", "a.ome.tiff", "a.btf", "a.ome.btf", "a.tf8", "a.tf2", "a.qptiff", "a.bif",
     "a.ndpi", "a.scn", "a.mrxs", "a.vms", "a.vmu", "a.svslide", "a.czi", "a.svs "],
)  # fmt: skip
def test_slides_are_known_by_their_suffix(tmp_path, name):
    (tmp_path / name).touch()
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("name", ["a.btf", "a.tf8", "a.qptiff"])
def test_tiffs_of_other_suffixes_are_read(tmp_path, name):
    pixels = tissue(200, 150)
    write_slide(tmp_path / "a.tif", [pixels], bigtiff=True)
    with open_slide((tmp_path / "a.tif").rename(tmp_path / name)) as slide:
        assert np.array_equal(slide.read_region((0, 0), 0, (200, 150)), pixels)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a.vsi", "Olympus VSI"),
        ("a.isyntax", "Philips iSyntax"),
        ("a.ZVI", "Zeiss ZVI"),
        ("a.lif", "Leica LIF"),
        ("a.jp2", "JPEG 2000"),
        ("a.ndpis", "a list of the files of a scan"),
        ("a.svs.gz", "a packed file"),
        ("a.svs.part", "an unfinished download"),
        ("a.ndpi.crdownload", "an unfinished download"),
    ],
)
def test_what_looks_like_a_slide_but_is_not_read_is_named_with_the_reason(tmp_path, name, why):
    (tmp_path / name).write_bytes(b"1")
    assert names(tmp_path) == []
    assert why in passed_over(tmp_path)[name]


def test_a_vsi_file_is_not_read_as_the_thumbnail_that_it_holds(tmp_path):
    """It is a TIFF; its slide is in the folder that belongs to it."""
    path = write_slide(tmp_path / "a.tif", [tissue(200, 150)]).rename(tmp_path / "a.vsi")
    with pytest.raises(SlideError, match=r"a\.vsi: Olympus VSI, which is not read here"):
        open_slide(path)


@pytest.mark.parametrize(
    "name", ["a.xml", "a.geojson.gz", "a.png", "notes.txt", "README", ".a.svs"]
)
def test_other_files_are_not_mentioned(tmp_path, name):
    (tmp_path / name).write_bytes(b"1")
    assert find_slides(tmp_path) == find_slides(tmp_path).__class__((), (), ())
    assert explain_unread(name) == ""


def test_folders_pipes_and_broken_links_are_distinguished(tmp_path):
    (tmp_path / "folder.svs").mkdir()
    (tmp_path / "heat.ome.zarr").mkdir()
    os.mkfifo(tmp_path / "pipe.svs")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken.svs").symlink_to("nowhere.svs")
    (tmp_path / "ring.svs").symlink_to("ring.svs")
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "empty.svs").touch()
    assert names(tmp_path) == ["broken.svs", "empty.svs", "ring.svs"]
    assert passed_over(tmp_path) == {
        "folder.svs": "a folder, not a slide file",
        "heat.ome.zarr": "a folder, not a slide file",
        "pipe.svs": "not a regular file",
    }
    with pytest.raises(SlideError, match=r"broken\.svs: a broken link"):
        open_slide(tmp_path / "broken.svs")


def test_the_data_of_mirax_and_vsi_are_no_folders_of_slides(tmp_path):
    for folder in ("a", "_b_", "deep", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a.mrxs").touch()
    (tmp_path / "deep" / "c.svs").touch()
    found = find_slides(tmp_path)
    assert found.folders == ("deep", "empty")
    assert find_deeper(tmp_path, found.folders) == ["deep"]


def test_a_name_that_is_a_uid_is_kept_whole():
    assert slide_stem("1.2.826.0.1.3680043.8.498.69") == "1.2.826.0.1.3680043.8.498.69"
    assert slide_stem("1.2.826.dcm") == "1.2.826"
    assert slide_stem("a.ome.tif") == "a.ome"


# ------------------------------------------------------------ copies


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_copies_links_and_the_same_file_are_found(tmp_path):
    a = write(tmp_path / "a.svs", b"a" * 9000)
    paths = [a, write(tmp_path / "b.svs", b"b" * 9000), shutil.copy(a, tmp_path / "c.tif"), a]
    (tmp_path / "soft.svs").symlink_to(a)
    (tmp_path / "hard.svs").hardlink_to(a)
    paths += [tmp_path / "soft.svs", tmp_path / "hard.svs", tmp_path / "gone.svs"]
    paths += [write(tmp_path / "e.svs", b""), write(tmp_path / "f.svs", b"")]
    assert find_same_content(paths) == [None, None, 0, 0, 0, 0, None, None, None]


@given(st.lists(st.binary(max_size=6), max_size=8))
def test_copies_are_those_of_equal_bytes(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("copies")
    paths = [write(folder / f"{n}.svs", content) for n, content in enumerate(contents)]
    expected = [
        contents.index(c) if c and contents.index(c) < n else None for n, c in enumerate(contents)
    ]
    assert find_same_content(paths) == expected


def test_scans_of_one_size_are_distinguished_by_samples(tmp_path, monkeypatch):
    """Uncompressed slides are all of one size: their fingerprints would take a pass over each."""
    rng = np.random.default_rng(0)
    paths = [write(tmp_path / f"{n}.svs", rng.bytes(100_000)) for n in range(20)]
    monkeypatch.setattr(tiling.same_content, "_fingerprint", pytest.fail)
    assert find_same_content(paths) == [None] * 20


def test_samples_that_agree_are_not_enough(tmp_path):
    content = bytearray(2_000_000)
    one = write(tmp_path / "a.svs", bytes(content))
    content[100_001] = 1  # in the head, which the fingerprint reads whole
    assert find_same_content([one, write(tmp_path / "b.svs", bytes(content))]) == [None, None]


def test_a_series_is_the_same_whichever_file_names_it(tmp_path):
    write_series(tmp_path / "one")
    write_series(tmp_path / "other", seed=1)
    paths = sorted((tmp_path / "one").iterdir()) + sorted((tmp_path / "other").iterdir())
    assert find_same_content(paths) == [None, 0, 0, None, 3, 3]


@pytest.mark.parametrize("change", ["Slidedat.ini", "Data0001.dat", ""])
def test_mirax_slides_are_compared_with_their_folders(tmp_path, change):
    """Their leading files may be the same picture of nothing."""
    for name in ("a", "b"):
        write(tmp_path / f"{name}.mrxs", b"same")
        (tmp_path / name).mkdir()
        for part in ("Slidedat.ini", "Data0001.dat"):
            differs = name == "b" and part == change
            write(tmp_path / name / part, b"2" if differs else b"1")
    paths = [tmp_path / "a.mrxs", tmp_path / "b.mrxs"]
    assert find_same_content(paths) == [None, None if change else 0]


@pytest.mark.parametrize("differs", [True, False])
def test_vms_slides_are_compared_with_the_files_they_name(tmp_path, differs):
    lines = ["[Virtual Microscope Specimen]", "ImageFile=a.jpg", r"ImageFile(1,0)=..\x\b.jpg"]
    text = "\n".join([*lines, "MapFile=gone.jpg"])
    for name, content in (("one", b"1"), ("other", b"2" if differs else b"1")):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "s.vms", text.encode())
        write(tmp_path / name / "a.jpg", b"same")
        write(tmp_path / name / "b.jpg", content)
    paths = [tmp_path / "one" / "s.vms", tmp_path / "other" / "s.vms"]
    assert find_same_content(paths) == [None, None if differs else 0]


def test_unreadable_files_are_copies_of_none(tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{n}.svs", b"same") for n in range(2)]

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(tiling.same_content, "_sample", refuse)
    assert find_same_content(paths) == [None, None]
