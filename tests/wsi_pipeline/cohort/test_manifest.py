"""What a data set may be, and how it is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.contracts import TileConfig
from wsi_pipeline.cohort.listing import read_input
from wsi_pipeline.cohort.manifest import read_manifest, with_splits, write_manifest
from wsi_pipeline.cohort.splits import assign_splits
from wsi_pipeline.contracts import SPLITS, SlideEntry
from wsi_pipeline.errors import ConfigError, ManifestError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_only_slide_is_required_and_paths_follow_the_manifest(tmp_path):
    (entry,) = read_manifest(write(tmp_path, "slide\nslides/a.svs\n"))
    assert entry == SlideEntry("a", tmp_path / "slides/a.svs", patient="a")


def test_every_column_is_read(tmp_path):
    text = (
        "slide,slide_id,patient,label,annotation,split,mpp,note\n"
        "a.svs,s1,p1,1,a.xml,train,0.25,mine\n"
        "b.svs,,,0,,,,\n"
    )
    first, second = read_manifest(write(tmp_path, text))
    assert first == SlideEntry("s1", tmp_path / "a.svs", "p1", 1, tmp_path / "a.xml", "train", 0.25)
    assert second == SlideEntry("b", tmp_path / "b.svs", "b", label=0)


def test_labels_that_pandas_wrote_as_floats_are_read(tmp_path):
    entries = read_manifest(write(tmp_path, "slide,label\na.svs,1.0\nb.svs,0.0\nc.svs,\n"))
    assert [e.label for e in entries] == [1, 0, None]


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "m.csv"
    path.write_bytes(b"\xef\xbb\xbfslide,label\r\na.svs,1\r\n")
    assert read_manifest(path)[0].label == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("file\na.svs\n", "no column 'slide'", id="no-slide-column"),
        pytest.param("slide;label\na.svs;1\n", "use commas", id="semicolons"),
        pytest.param("a.svs,1\nb.svs,0\n", "first line looks like data", id="no-header"),
        pytest.param("slide,anotation\na.svs,a.xml\n", "did you mean 'annotation'", id="typo"),
        pytest.param("slide,label\na.svs,tumor\n", "line 2: label 'tumor'", id="label"),
        pytest.param("slide,split\na.svs,training\n", "split 'training'", id="split"),
        pytest.param("slide,mpp\na.svs,-1\n", "mpp '-1'", id="mpp"),
        pytest.param("slide,mpp\na.svs,nan\n", "mpp 'nan'", id="mpp-nan"),
        pytest.param(
            "slide,unclassified\na.svs,tumor\n",
            "unclassified must be one of auto, tumour, region or empty, got 'tumor'",
            id="unclassified",
        ),
        pytest.param("slide\n", "no rows", id="no-rows"),
        pytest.param("slide,label\n,1\n", "'slide' is empty", id="empty-slide"),
        pytest.param("slide,label\na.svs,1,x\n", "more fields", id="too-many-fields"),
        pytest.param("slide,slide_id\na.svs,../a\n", "is not a valid name", id="path-as-id"),
        pytest.param("slide,slide\na,b\n", "is repeated in the header", id="doubled-column"),
    ],
)
def test_a_wrong_manifest_is_refused_with_a_sentence(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_input(write(tmp_path, text))


def test_two_slides_with_one_id_are_both_named(tmp_path):
    with pytest.raises(ManifestError, match=r"id 'a'.*a\.svs and .*a\.tif"):
        read_input(write(tmp_path, "slide\nx/a.svs\ny/a.tif\n"))


def test_a_folder_with_two_files_of_one_stem_is_refused(tmp_path):
    for name in ("a.svs", "a.tif"):
        (tmp_path / name).touch()
    with pytest.raises(ManifestError, match="slide_id column"):
        read_input(tmp_path)


def test_a_patient_in_two_splits_is_refused(tmp_path):
    text = "slide,patient,split\na.svs,p1,train\nb.svs,p1,test\n"
    with pytest.raises(
        ManifestError, match=r"patient 'p1' is in 2 splits: test \(b\), train \(a\)"
    ):
        read_input(write(tmp_path, text))


def test_a_folder_lists_its_slides_and_nothing_else(tmp_path):
    for name in ("b.SVS", "a.tif", "notes.txt", ".hidden.svs", "a.xml"):
        (tmp_path / name).touch()
    assert [e.slide_id for e in read_input(tmp_path).entries] == ["a", "b"]


def test_a_folder_of_folders_of_slides_says_which(tmp_path):
    for name in ("notes", "slides"):
        (tmp_path / name).mkdir()
    (tmp_path / "slides/a.tif").touch()
    with pytest.raises(ManifestError, match="its folder slides has some: give that"):
        read_input(tmp_path)


def test_a_folder_without_slides_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no slides in this folder"):
        read_input(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "cat/a.JPG", "train/cat/a.jpeg"])
def test_a_folder_of_images_says_how_it_can_be_used(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(ManifestError, match=r"no slides.*use --set 'images={}'.*images_folder"):
        read_input(tmp_path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="no such file"):
        read_input(tmp_path / "nowhere.svs")


def test_the_manifest_decides_on_annotations_without_class(tmp_path):
    text = "slide,unclassified\na.svs,region\nb.svs,\n"
    a, b = read_manifest(write(tmp_path, text))
    config = TileConfig(unclassified="tumour")
    assert a.tile_config(config) == TileConfig(unclassified="region")
    assert b.tile_config(config) == config
    write_manifest(tmp_path / "again.csv", [a, b])
    assert read_manifest(tmp_path / "again.csv") == [a, b]


def test_a_manifest_written_elsewhere_reads_back_the_same(tmp_path):
    source = tmp_path / "data"
    source.mkdir()
    path = write(source, "slide,patient,label,annotation,split,mpp\na.svs,p,1,a.xml,val,0.243\n")
    entries = read_input(path).entries
    run = tmp_path / "deep" / "run" / "slides.csv"
    write_manifest(run, entries)

    (back,) = read_manifest(run)
    assert back.path.resolve() == entries[0].path.resolve()
    assert back.annotation.resolve() == entries[0].annotation.resolve()
    assert (back.slide_id, back.patient, back.label, back.split, back.mpp) == (
        "a", "p", 1, "val", 0.243,
    )  # fmt: skip
    assert str(tmp_path) not in run.read_text()


def test_a_link_to_a_slide_keeps_its_own_name(tmp_path):
    """Its target was written, which may be named after the patient."""
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic/jane_doe.svs").write_bytes(b"")
    (tmp_path / "case1.svs").symlink_to("clinic/jane_doe.svs")
    run = tmp_path / "run" / "slides.csv"
    write_manifest(run, read_input(tmp_path / "case1.svs").entries)
    assert [entry.path.name for entry in read_manifest(run)] == ["case1.svs"]
    assert "jane" not in run.read_text()


@given(
    labels=st.lists(st.integers(0, 1), min_size=3, max_size=40),
    per_patient=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_split_never_shares_a_patient(labels, per_patient, seed):
    entries = [
        SlideEntry(f"s{i}", Path(), f"p{i // per_patient}", label=label)
        for i, label in enumerate(labels)
    ]
    splits = assign_splits(entries, val_fraction=0.2, test_fraction=0.3, seed=seed)
    dealt = with_splits(entries, splits)

    assert {e.patient for e in entries} == set(splits)
    for patient in splits:
        assert len({e.split for e in dealt if e.patient == patient}) == 1
    assert splits == assign_splits(entries, val_fraction=0.2, test_fraction=0.3, seed=seed)


def test_each_split_gets_both_kinds_of_patients():
    entries = [SlideEntry(f"s{i}", Path(), f"p{i}", label=int(i < 5)) for i in range(20)]
    dealt = with_splits(
        entries, assign_splits(entries, val_fraction=0.2, test_fraction=0.2, seed=3)
    )
    for split in SPLITS:
        assert {e.label for e in dealt if e.split == split} == {0, 1}


def test_half_a_split_is_refused():
    entries = [SlideEntry("a", Path(), "a", split="train"), SlideEntry("b", Path(), "b")]
    with pytest.raises(ManifestError, match="has splits already"):
        assign_splits(entries, val_fraction=0.1, test_fraction=0.1, seed=0)


def test_fractions_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(ConfigError, match="leave patients"):
        assign_splits([], val_fraction=0.5, test_fraction=0.5, seed=0)
