"""Which images a folder or a table holds."""

from dataclasses import replace

import pytest
from PIL import Image

from wsi_pipeline.cohort.image_folder import (
    as_slides,
    describe_copies,
    list_images,
    read_images,
    split_images,
    write_images,
)
from wsi_pipeline.cohort.splits import assign_folds, assign_splits
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.errors import ConfigError, ManifestError


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 3)).save(folder / name)


def test_folders_name_the_classes(tmp_path):
    touch(tmp_path, "b/2.png", "b/1.png", "a/x.tif", "a/.hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    entries, classes = list_images(tmp_path, ImagesConfig())
    assert classes == ("a", "b")
    assert [(e.image_id, e.label, e.split) for e in entries] == [
        ("a__x", 0, None), ("b__1", 1, None), ("b__2", 1, None),
    ]  # fmt: skip


def test_folders_may_name_the_splits_too(tmp_path):
    touch(tmp_path, "train/a/1.png", "train/b/1.png", "valid/a/2.png", "test/b/3.png")
    entries, _ = list_images(tmp_path, ImagesConfig())
    assert [(e.class_name, e.split) for e in entries] == [
        ("b", "test"), ("a", "train"), ("b", "train"), ("a", "val"),
    ]  # fmt: skip


def test_of_many_classes_two_are_named(tmp_path):
    touch(tmp_path, "cracked/1.png", "perforated/1.png", "zigzag/1.png")
    with pytest.raises(ManifestError, match=r"3 classes \(cracked, perforated, zigzag\)"):
        list_images(tmp_path, ImagesConfig())
    with pytest.raises(ManifestError, match="are not two of its classes"):
        list_images(tmp_path, ImagesConfig(classes=("cracked", "dotted")))
    entries, _ = list_images(tmp_path, ImagesConfig(classes=("perforated", "cracked")))
    assert [(e.class_name, e.label) for e in entries] == [("cracked", 1), ("perforated", 0)]


def test_an_empty_folder_is_reported(tmp_path):
    with pytest.raises(ManifestError, match="no images in it"):
        list_images(tmp_path, ImagesConfig())
    with pytest.raises(ManifestError, match="no such folder"):
        list_images(tmp_path / "none", ImagesConfig())


def test_two_files_of_one_name_are_both_named(tmp_path):
    touch(tmp_path, "a/1.png", "a/1.tif", "b/1.png")
    with pytest.raises(ManifestError, match=r"a__1.*1\.png and .*1\.tif"):
        list_images(tmp_path, ImagesConfig())


def table(folder, text):
    path = folder / "images.csv"
    path.write_text(text)
    return ImagesConfig(table=path)


def test_a_table_gives_classes_patients_splits_and_masks(tmp_path):
    touch(tmp_path, "1.png", "2.png", "3.png", "m.png")
    config = table(
        tmp_path,
        "file,class,patient,split,mask\n1.png,x,p1,train,m.png\n2.png,y,p2,test,\n3.png,,,,\n",
    )
    entries, classes = list_images(tmp_path, config)
    assert classes == ("x", "y")
    assert [(e.label, e.patient, e.split, e.mask) for e in entries] == [
        (0, "p1", "train", "m.png"), (1, "p2", "test", None), (-1, "3", None, None),
    ]  # fmt: skip


def test_a_table_without_classes_takes_those_of_the_folders(tmp_path):
    touch(tmp_path, "a/1.png", "b/2.png")
    entries, _ = list_images(tmp_path, table(tmp_path, "file,patient\na/1.png,p\nb/2.png,p\n"))
    assert [(e.class_name, e.patient) for e in entries] == [("a", "p"), ("b", "p")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\n1.png,x\n", "no column 'file'"),
        ("file,klass\n1.png,x\n", "did you mean 'class'"),
        ("file,class,pacient\n1.png,x,p1\n", "did you mean 'patient'"),
        ("file,class\nnone.png,x\n", "no such file"),
        ("file,class\n../1.png,x\n", "path within the folder"),
        ("file,class,split\n1.png,x,training\n", "split 'training' is none of"),
        ("file,class,patient,split\n1.png,x,p,train\n2.png,y,p,test\n", "patient 'p' is in 2"),
    ],
)
def test_a_wrong_table_names_what_is_wrong(tmp_path, text, message):
    folder = tmp_path / "images"
    touch(folder, "1.png", "2.png", "../1.png")
    with pytest.raises(ManifestError, match=message):
        list_images(folder, table(tmp_path, text))


def test_the_data_set_as_used_reads_back_the_same(tmp_path):
    touch(tmp_path, "1.png", "2.png", "3.png", "m.png")
    config = table(tmp_path, "file,class,split,mask\n1.png,x,train,m.png\n2.png,y,,\n3.png,,,\n")
    entries, _ = list_images(tmp_path, config)
    write_images(tmp_path / "out.csv", entries)
    assert read_images(tmp_path / "out.csv") == entries


def some_entries(folder, n=24):
    touch(folder, *(f"{'ab'[i % 3 == 0]}/{i:02d}.png" for i in range(n)))
    return list_images(folder, ImagesConfig())[0]


def test_every_image_is_tested_in_exactly_one_fold(tmp_path):
    slides = as_slides(tmp_path, some_entries(tmp_path))
    tested = []
    for fold in range(4):
        found = assign_splits(slides, val_fraction=0, test_fraction=0, seed=1, folds=4, fold=fold)
        tested += [p for p, split in found.items() if split == "test"]
        sizes = [sum(s == split for s in found.values()) for split in ("train", "val", "test")]
        assert sizes == [12, 6, 6]
        positive = {s.patient for s in slides if s.label == 1}
        assert sum(found[p] == "test" for p in positive) == 2  # of 8, in each of four folds
    assert sorted(tested) == sorted(s.patient for s in slides)


def test_of_two_folds_the_other_trains(tmp_path):
    slides = as_slides(tmp_path, some_entries(tmp_path))
    found = assign_splits(slides, val_fraction=0, test_fraction=0, seed=1, folds=2, fold=0)
    assert set(found.values()) == {"train", "test"}


def test_folds_that_cannot_be_are_refused(tmp_path):
    slides = as_slides(tmp_path, some_entries(tmp_path, 6))
    with pytest.raises(ConfigError, match="7 folds need as many patients, got 6 patients"):
        assign_folds(slides, folds=7, seed=0)
    with pytest.raises(ConfigError, match="fold in 0 to folds - 1, got folds=3, fold=3"):
        assign_splits(slides, val_fraction=0, test_fraction=0, seed=0, folds=3, fold=3)


def test_images_of_a_patient_stay_together(tmp_path):
    touch(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(6)))
    rows = "".join(f"{c}/{i}.png,p{i % 4}\n" for c in "ab" for i in range(6))
    entries, _ = list_images(tmp_path, table(tmp_path, "file,patient\n" + rows))
    found = assign_splits(
        as_slides(tmp_path, entries), val_fraction=0, test_fraction=0, seed=0, folds=4, fold=1
    )
    split = {}
    for e in split_images(entries, found):
        assert split.setdefault(e.patient, e.split) == e.split
    assert sorted(split.values()) == ["test", "train", "train", "val"]


def test_images_without_classes_can_be_predicted_on(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    entries, classes = list_images(tmp_path, ImagesConfig())
    assert [e.label for e in entries] == [-1, -1]
    assert classes == ("0", "1")


def test_of_two_named_classes_one_may_be_absent(tmp_path):
    touch(tmp_path, "b/1.png")
    entries, classes = list_images(tmp_path, ImagesConfig(classes=("a", "b")))
    assert classes == ("a", "b")
    assert [e.label for e in entries] == [1]


def test_patients_may_be_read_off_the_names(tmp_path):
    touch(tmp_path, "a/tumor_001_5_6.png", "a/tumor_001_7_8.png", "b/tumor_064_1_2.png")
    for pattern in (r"^tumor_\d+", r"^(tumor_\d+)_"):
        entries, _ = list_images(tmp_path, ImagesConfig(patient_pattern=pattern))
        assert [e.patient for e in entries] == ["tumor_001", "tumor_001", "tumor_064"]


def test_a_tables_patient_comes_before_the_pattern(tmp_path):
    touch(tmp_path, "a/p1_1.png", "b/p2_1.png")
    config = table(tmp_path, "file,patient\na/p1_1.png,other\nb/p2_1.png,\n")
    entries, _ = list_images(tmp_path, replace(config, patient_pattern="^p[0-9]"))
    assert [e.patient for e in entries] == ["other", "p2"]


@pytest.mark.parametrize(
    ("pattern", "message"), [("^slide", "finds no patient in its name"), ("(", "no regular")]
)
def test_a_pattern_that_does_not_fit_is_named(tmp_path, pattern, message):
    touch(tmp_path, "a/1.png", "b/2.png")
    with pytest.raises(ManifestError, match=message):
        list_images(tmp_path, ImagesConfig(patient_pattern=pattern))


def test_a_table_names_masks_within_the_folder_and_dots_in_names_are_no_way_out(tmp_path):
    touch(tmp_path / "data", "a/x..1.png", "b/2.png", "..m.png")
    touch(tmp_path, "outside.png")
    table = tmp_path / "t.csv"
    config = ImagesConfig(table=table)
    table.write_text("file,mask\na/x..1.png,..m.png\nb/2.png,\n")
    entries, _ = list_images(tmp_path / "data", config)
    assert [(e.file, e.mask) for e in entries] == [("a/x..1.png", "..m.png"), ("b/2.png", None)]
    for outside in ("../outside.png", str(tmp_path / "outside.png")):
        table.write_text(f"file,mask\na/x..1.png,{outside}\nb/2.png,\n")
        with pytest.raises(ManifestError, match="line 2: mask is a path within the folder"):
            list_images(tmp_path / "data", config)


def test_copies_in_two_splits_are_reported(tmp_path):
    """Refused, they would stop ISIC 2017, whose published splits have four."""
    contents = {"a/0.png": b"0", "b/0.png": b"0", "a/1.png": b"1", "b/1.png": b"1"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    rows = "a/0.png,train\nb/0.png,test\na/1.png,train\nb/1.png,train\n"
    entries, _ = list_images(tmp_path, table(tmp_path, f"file,split\n{rows}"))
    message = describe_copies(tmp_path, entries)
    assert "different splits: a/0.png (train) and b/0.png (test); results" in message
    assert describe_copies(tmp_path, entries[2:]) == ""


def test_columns_of_a_table_that_nothing_reads_are_named(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png")
    list_images(tmp_path, table(tmp_path, "file,class,age\n1.png,x,5\n2.png,y,6\n"))
    assert [line.partition(": ")[2] for line in caplog.messages] == ["columns not used: age"]
