"""One listing for all commands: a slide is listed once, and its copies never lie in two splits."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers.dicoms import write_series
from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.listing import describe_copies, list_input, read_input
from wsi_pipeline.cohort.manifest import COLUMNS, FACTS, read_manifest, write_manifest
from wsi_pipeline.config.reading import Config, SplitConfig
from wsi_pipeline.errors import ManifestError
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta, save_checkpoint
from wsi_pipeline.stages.tile import list_entries

TILE = (
    "patch_px=32",
    "target_mpp=1.0",
    "store=coords",
    "tissue.mpp=4",
    "tissue.min_object_um2=100",
)
NOT_UTF8 = os.fsdecode(b"caf\xe9.tif")


def tile(source: Path, run: Path, *more: str) -> int:
    settings = [part for setting in (*TILE, *more) for part in ("--set", setting)]
    return main(["tile", str(source), "--out", str(run), "--quiet", *settings])


def slide(path: Path, *, seed: int = 0) -> Path:
    pixels = tissue(300, 240, seed=seed)
    return write_slide(path, [pixels, halve(pixels)])


def ids(run: Path) -> list[str]:
    return [entry.slide_id for entry in read_manifest(run / "slides.csv")]


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A DICOM series, a slide and its copy, and a file of a format that is not read."""
    folder = tmp_path / "data"
    write_series(folder)
    slide(folder / "b.tif")
    shutil.copy(folder / "b.tif", folder / "copy of b.tif")
    (folder / "c.vsi").write_bytes(b"x")
    (folder / "deep").mkdir()
    slide(folder / "deep" / "d.tif", seed=1)
    return folder


# ------------------------------------------------------------ every command


def test_every_command_lists_the_same_slides(mixed, tmp_path, capsys, caplog):
    expected = [path.stem for path in sorted(mixed.glob("*.*")) if path.stem.endswith(".5")]
    expected += ["b", "copy of b"]
    assert tile(mixed, tmp_path / "tile") == 0
    assert ids(tmp_path / "tile") == expected
    printed = caplog.text
    assert "skipped c.vsi: Olympus VSI" in printed
    assert "there are slides in deep: give such a folder" in printed
    assert "b.tif and copy of b.tif have the same content" in printed

    sections = yaml.safe_load("patch_px: 32\ntarget_mpp: 1.0\nstore: coords")
    capsys.readouterr()
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"input": str(mixed), "stages": ["tile"], "tile": sections}))
    assert main(["plan", str(config), "--format", "json", "--quiet"]) == 0
    assert [s["slide_id"] for s in json.loads(capsys.readouterr().out)["slides"]] == expected
    assert main(["run", str(config), "--out", str(tmp_path / "run"), "--quiet"]) == 0
    assert ids(tmp_path / "run") == expected

    capsys.readouterr()
    assert main(["slides", str(mixed), "--csv", str(tmp_path / "m.csv"), "--workers", "2"]) == 0
    assert "skipped c.vsi" in capsys.readouterr().out
    assert [e.slide_id for e in read_manifest(tmp_path / "m.csv")] == expected
    options = {"m": 5, "stride": 5, "filters": 4, "depth": 2}
    meta = CheckpointMeta("patchnet", options, patch_px=32, target_mpp=1.0)
    save_checkpoint(tmp_path / "p.safetensors", build_model("patchnet", **options), meta)
    predict = ["predict", str(tmp_path / "predict"), "--slides", str(mixed), "--quiet"]
    assert main([*predict, "--checkpoint", str(tmp_path / "p.safetensors")]) == 0
    assert ids(tmp_path / "predict") == expected
    assert len(list((tmp_path / "predict" / "scores" / "p").iterdir())) == 3


def test_a_series_in_a_folder_is_one_slide_of_one_patient_in_one_split(tmp_path):
    for seed in range(3):
        write_series(tmp_path / "data", seed=seed)
    splits = ("splits.val_fraction=0.34", "splits.test_fraction=0.34")
    assert tile(tmp_path / "data", tmp_path / "run", *splits) == 0
    entries = read_manifest(tmp_path / "run" / "slides.csv")
    assert len(entries) == len({e.patient for e in entries}) == 3
    assert sorted(e.split for e in entries) == ["test", "train", "val"]


def test_the_id_of_a_series_is_that_which_a_manifest_gives_its_finest_file(tmp_path):
    finest = write_series(tmp_path / "data")
    (tmp_path / "m.csv").write_text(f"slide\ndata/{finest.name}\n")
    (of_manifest,) = read_input(tmp_path / "m.csv").entries
    (of_folder,) = read_input(tmp_path / "data").entries
    assert of_manifest.slide_id == of_folder.slide_id == finest.stem


def test_slides_that_cannot_be_opened_fail_by_themselves(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    slide(folder / "good.tif")
    (folder / "empty.svs").touch()
    (folder / "broken.svs").symlink_to("nowhere.svs")
    assert tile(folder, tmp_path / "run") == 3
    with (tmp_path / "run" / "failures.csv").open(newline="") as file:
        found = {row["slide_id"]: row["message"] for row in csv.DictReader(file)}
    assert sorted(found) == ["broken", "empty"]
    assert "a broken link" in found["broken"]
    assert "0 bytes" in found["empty"]


@pytest.mark.parametrize(
    ("files", "printed"),
    [
        (["a/x.svs"], "its folder a has some: give that"),
        (["a/x.svs", "b/x.svs"], "its folders a, b have some: give one of them, or list"),
        (["x.vsi"], "x.vsi: Olympus VSI"),
        (["x.txt"], "looked for"),
    ],
)
def test_a_folder_without_slides_says_what_is_there(tmp_path, files, printed):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ManifestError, match=f"no slides in this folder.*{printed}"):
        read_input(tmp_path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ManifestError, match=r"cannot be listed \(Permission denied\)"):
        list_input(tmp_path)


# ------------------------------------------------------------ copies


def test_a_copy_in_a_folder_gets_the_patient_of_its_original(tmp_path):
    for number in range(8):
        slide(tmp_path / f"s{number}.tif", seed=number)
        shutil.copy(tmp_path / f"s{number}.tif", tmp_path / f"z{number}.tif")
    for seed in range(5):
        config = Config(input=tmp_path, seed=seed, splits=SplitConfig())
        found = {e.slide_id: e for e in list_entries(config)}
        for number in range(8):
            original, copy = found[f"s{number}"], found[f"z{number}"]
            assert (original.patient, original.split) == (copy.patient, copy.split)


@pytest.mark.parametrize("kind", ["copy", "hard link", "link", "series", "same file"])
def test_one_slide_in_two_splits_of_a_manifest_is_refused(tmp_path, kind, capsys):
    if kind == "series":
        write_series(tmp_path / "d")
        one, other = sorted((tmp_path / "d").iterdir())[:2]
    else:
        one = other = slide(tmp_path / "a.tif")
        if kind != "same file":
            other = tmp_path / "b.tif"
            make = {"copy": shutil.copy, "hard link": os.link, "link": os.symlink}[kind]
            make(one, other)
    (tmp_path / "m.csv").write_text(
        "slide,slide_id,split\n"
        f"{one.relative_to(tmp_path)},one,train\n{other.relative_to(tmp_path)},other,test\n"
    )
    assert tile(tmp_path / "m.csv", tmp_path / "run") == 1
    printed = capsys.readouterr().err
    for part in (one.name, other.name, "train and test", "give both the same patient"):
        assert part in printed
    assert not (tmp_path / "run").exists()


def test_one_slide_in_two_splits_drawn_by_us_is_refused(tmp_path):
    for number in range(10):
        slide(tmp_path / f"s{number}.tif", seed=number % 5)
    rows = "".join(f"s{number}.tif\n" for number in range(10))
    (tmp_path / "m.csv").write_text(f"slide\n{rows}")
    config = Config(input=tmp_path / "m.csv", splits=SplitConfig())
    with pytest.raises(ManifestError, match="have the same content, and are in two splits"):
        list_entries(config)
    (tmp_path / "m.csv").write_text(
        "slide,patient\n" + "".join(f"s{n}.tif,p{n % 5}\n" for n in range(10))
    )
    assert len({(e.patient, e.split) for e in list_entries(config)}) == 5


def test_copies_of_one_patient_in_one_split_are_named(tmp_path):
    slide(tmp_path / "a.tif")
    shutil.copy(tmp_path / "a.tif", tmp_path / "b.tif")
    (tmp_path / "m.csv").write_text("slide,patient,split\na.tif,p,val\nb.tif,p,val\n")
    (printed,) = describe_copies(read_input(tmp_path / "m.csv"))
    assert printed.startswith("a.tif and b.tif have the same content: leave one out")


def test_a_third_copy_is_compared_with_the_second(tmp_path):
    """The first is in no split, so that it agrees with both."""
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.svs").write_bytes(b"same")
    rows = "a/s.svs,,1\nb/s.svs,val,2\nc/s.svs,test,3\n"
    (tmp_path / "m.csv").write_text(f"slide,split,slide_id\n{rows}")
    with pytest.raises(ManifestError, match=r"b/s\.svs \(2\) and .*c/s\.svs \(3\) have the same"):
        read_input(tmp_path / "m.csv")


def test_many_copies_are_counted(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.svs").write_bytes(b"same")
    notes = describe_copies(read_input(tmp_path))
    assert len(notes) == 6
    assert notes[-1].startswith("and 3 more copies")


# ------------------------------------------------------------ names of files


BAD_NAMES = {
    NOT_UTF8: r"bytes that are not UTF-8 \(\\xe9\)",
    " a.tif": "begins or ends with a space",
    "a .tif": "begins or ends with a space",
    "a\nb.tif": "a control character",
    "a\u202eb.tif": "an invisible character",
    f"{'x' * 240}.tif": "it takes 240 bytes",
    "a\\b.tif": "it contains",
    "nul.tif": "Windows reserves it",
}


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_names_that_cannot_be_ids_are_refused_before_anything_is_written(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "good.tif").touch()
    (folder / name).touch()
    for source in (folder, folder / name):
        with pytest.raises(
            ManifestError, match=f"{BAD_NAMES[name]}.*give a slide_id in the column"
        ):
            read_input(source)
    assert tile(folder, tmp_path / "run") == 1
    assert not (tmp_path / "run").exists()


def test_a_manifest_with_ids_is_the_remedy(tmp_path):
    """`slides` proposes the ids, and the slides go through with them."""
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, name in enumerate([*BAD_NAMES, "good.tif"]):
        slide(folder / "tmp.tif", seed=seed).rename(folder / name)
    shutil.copy(folder / NOT_UTF8, folder / "z.tif")
    target = tmp_path / "m.csv"
    assert main(["slides", str(folder), "--csv", str(target), "--quiet", "--workers", "2"]) == 0
    entries = {e.path.name: e for e in read_input(target).entries}
    assert entries.keys() == {*BAD_NAMES, "good.tif", "z.tif"}
    assert entries["z.tif"].patient == entries[NOT_UTF8].patient == "caf_"  # copies stay together
    assert tile(target, tmp_path / "run") == 0
    kept = read_manifest(tmp_path / "run" / "slides.csv")
    assert all(entry.path.exists() for entry in kept)
    stores = {path.stem for path in (tmp_path / "run" / "tiles").glob("*.zarr")}
    assert stores == {e.slide_id for e in kept} == {e.slide_id for e in entries.values()}


def test_two_files_whose_ids_differ_only_in_case_are_both_named(tmp_path):
    for name in ("A.svs", "a.svs"):
        (tmp_path / name).write_bytes(name.encode())
    with pytest.raises(
        ManifestError, match=r"'A' and 'a' differ only in upper.*A\.svs and .*a\.svs"
    ):
        read_input(tmp_path)


def test_a_failure_of_a_slide_with_bytes_for_a_name_is_recorded(tmp_path):
    (tmp_path / NOT_UTF8).write_bytes(b"rubbish")
    (tmp_path / "m.csv").write_bytes(b"slide,slide_id\ncaf\xe9.tif,ok\n")
    assert tile(tmp_path / "m.csv", tmp_path / "run") == 1
    text = (tmp_path / "run" / "failures.csv").read_text(encoding="utf-8")
    assert "ok,tile,SlideError" in text
    assert main(["slides", str(tmp_path / "m.csv"), "--quiet"]) == 1


def test_a_manifest_in_another_encoding_is_refused_at_once(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"slide\ncaf\xe9.tif\n")
    with pytest.raises(
        ManifestError, match=r"line 2: not in UTF-8, and no file is named 'caf\\xe9"
    ):
        read_manifest(tmp_path / "m.csv")


def test_spaces_around_a_cell_are_of_the_file_only_if_it_is_so_named(tmp_path):
    slide(tmp_path / " a.tif")
    slide(tmp_path / "b.tif", seed=1)
    (tmp_path / " n.xml").touch()
    (tmp_path / "m.csv").write_text(
        'slide,slide_id,annotation\n" a.tif",x," n.xml"\n" b.tif ",y,\n'
    )
    first, second = read_manifest(tmp_path / "m.csv")
    assert (first.path.name, first.annotation.name) == (" a.tif", " n.xml")
    assert second.path.name == "b.tif"


@pytest.mark.parametrize(
    "name", ["=a.tif", "-a.tif", "@a", " a.tif", "\ta.tif", "'=a.tif", NOT_UTF8]
)
def test_paths_in_a_manifest_are_paths_to_other_programs(tmp_path, name):
    (tmp_path / name).touch()
    (tmp_path / "m.csv").write_bytes(b"slide,slide_id\nx.svs,x\n")
    (entry,) = read_manifest(tmp_path / "m.csv")
    write_manifest(tmp_path / "n.csv", [entry.__class__("x", tmp_path / name, "p")])
    with (tmp_path / "n.csv").open(newline="", errors="surrogateescape") as file:
        (row,) = csv.DictReader(file)
    assert (tmp_path / row["slide"]).exists()
    assert read_manifest(tmp_path / "n.csv")[0].path.name == name


def test_a_nul_in_a_path_is_refused(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"slide,slide_id\na\0.svs,x\n")
    with pytest.raises(ManifestError, match="NUL character"):
        read_manifest(tmp_path / "m.csv")


def test_columns_that_nothing_reads_are_named(tmp_path):
    """A column of the user's own, or one with a wrong name; not the findings of `slides`."""
    path = tmp_path / "m.csv"
    path.write_text(",".join(["slide", "age", *COLUMNS[1:], *FACTS, "grade"]) + "\nx.tif\n")
    assert read_input(path).notes == (f"{path}: columns not used: age, grade",)
