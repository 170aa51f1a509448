"""What users really have: broken, empty, contradictory input. Each gives a sentence that names
file, cause and remedy, the right exit code, the other slides done, and nothing half-written."""

import csv
import errno
from pathlib import Path

import pytest

from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import main

SIZE = (260, 210)
SETTINGS = (
    "target_mpp=0.5",
    "patch_px=32",
    "tissue.mpp=2.0",
    "tissue.min_object_um2=100.0",
)
TUMOUR = [(100, 80), (140, 80), (140, 120), (100, 120)]
ASAP = (
    '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
    '<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>{}</Coordinates>'
    '</Annotation></Annotations><AnnotationGroups><Group Name="Tumor"/></AnnotationGroups>'
    "</ASAP_Annotations>"
)


def asap(polygon) -> str:
    points = (f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(polygon))
    return ASAP.format("".join(points))


def good_slide(path: Path, *, seed: int = 0, **options) -> Path:
    pixels = tissue(*SIZE, seed=seed)
    return write_slide(path, [pixels, halve(pixels)], **options)


def manifest(
    folder: Path, *rows: str, columns: str = "slide,label,annotation,split,patient"
) -> Path:
    path = folder / "manifest.csv"
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def tile(given: Path, run: Path, *more: str) -> int:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return main(["tile", str(given), "--out", str(run), "--quiet", *settings, *more])


def failures(run: Path) -> dict[str, dict[str, str]]:
    with (run / "failures.csv").open(newline="") as file:
        return {row["slide_id"]: row for row in csv.DictReader(file)}


def assert_one_bad_one_good(run: Path, code: int, bad: str, *printed: str) -> None:
    """The bad slide is reported, the good one is processed, and nothing is left in between."""
    assert code == 3
    row = failures(run)[bad]
    assert row["stage"] == "tile"
    for text in printed:
        assert text in row["message"]
    assert (run / "tiles" / "good.zarr" / "zarr.json").is_file()
    assert not (run / "tiles" / f"{bad}.zarr").exists()
    assert not list(run.rglob("*.part"))
    assert list((run / "logs").glob(f"tile-*-{bad}.log"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    good_slide(folder / "good.tif")
    return folder


def write_garbage(path: Path) -> None:
    path.write_bytes(b"this is no slide" * 100)


def write_empty(path: Path) -> None:
    path.touch()


def write_truncated(path: Path) -> None:
    good_slide(path)
    path.write_bytes(path.read_bytes()[:2000])


def write_glass(path: Path) -> None:
    pixels = tissue(*SIZE)
    pixels[:] = 245
    write_slide(path, [pixels])


def write_without_mpp(path: Path) -> None:
    good_slide(path, mpp=None)


@pytest.mark.parametrize(
    ("make", "printed"),
    [
        pytest.param(write_garbage, "check that it is a slide", id="garbage"),
        pytest.param(write_empty, "empty", id="empty-file"),
        pytest.param(write_truncated, "bad.tif", id="truncated"),
        pytest.param(write_glass, "tissue", id="no-tissue"),
        pytest.param(write_without_mpp, "give it in the manifest's mpp column", id="no-mpp"),
    ],
)
def test_a_bad_slide_does_not_stop_the_others(data, tmp_path, make, printed):
    make(data / "bad.tif")
    assert_one_bad_one_good(
        tmp_path / "run", tile(data, tmp_path / "run"), "bad", "bad.tif", printed
    )


def test_a_missing_slide_does_not_stop_the_others(data, tmp_path):
    given = manifest(data, "good.tif,0", "bad.tif,0", columns="slide,label")
    code = tile(given, tmp_path / "run")
    assert_one_bad_one_good(tmp_path / "run", code, "bad", "bad.tif")


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">'
    '<!ENTITY c "&b;&b;&b;&b;">]><ASAP_Annotations>&c;</ASAP_Annotations>'
)


@pytest.mark.parametrize(
    ("annotation", "printed"),
    [
        pytest.param("<ASAP_Annotations><Annot", "XML", id="malformed"),
        pytest.param(LAUGHS, "entit", id="billion-laughs"),
        pytest.param("", "empty", id="empty-file"),
        pytest.param(asap([(9000, 9000), (9100, 9000), (9100, 9100)]), "outside", id="outside"),
    ],
)
def test_a_bad_annotation_does_not_stop_the_others(data, tmp_path, annotation, printed):
    good_slide(data / "bad.tif")
    (data / "bad.xml").write_text(annotation)
    given = manifest(data, "good.tif,0,,,", "bad.tif,1,bad.xml,,")
    code = tile(given, tmp_path / "run")
    assert_one_bad_one_good(tmp_path / "run", code, "bad", printed)


def test_a_missing_annotation_does_not_stop_the_others(data, tmp_path):
    good_slide(data / "bad.tif")
    given = manifest(data, "good.tif,0,,,", "bad.tif,1,none.xml,,")
    assert_one_bad_one_good(tmp_path / "run", tile(given, tmp_path / "run"), "bad", "none.xml")


def test_where_nothing_can_be_done_the_exit_code_is_one(tmp_path):
    write_garbage(tmp_path / "bad.tif")
    assert tile(tmp_path / "bad.tif", tmp_path / "run") == 1


def test_a_slide_that_is_mended_is_no_longer_a_failure(data, tmp_path):
    write_garbage(data / "bad.tif")
    assert tile(data, tmp_path / "run") == 3
    good_slide(data / "bad.tif")
    assert tile(data, tmp_path / "run") == 0
    assert failures(tmp_path / "run") == {}


@pytest.mark.parametrize(
    ("rows", "printed"),
    [
        (("good.tif,0,,,p", "x/good.tif,0,,,q"), "two slides have the id 'good'"),
        (("good.tif,0,,train,p", "b.tif,0,,test,p"), "patient 'p' is in 2 splits"),
    ],
    ids=["duplicate-ids", "patient-in-two-splits"],
)
def test_a_contradictory_data_set_is_refused_before_any_work(data, tmp_path, capsys, rows, printed):
    assert tile(manifest(data, *rows), tmp_path / "run") == 1
    assert printed in capsys.readouterr().err
    assert not (tmp_path / "run" / "tiles").exists()


def test_a_folder_of_files_with_one_stem_is_refused(data, tmp_path, capsys):
    good_slide(data / "good.tiff")
    assert tile(data, tmp_path / "run") == 1
    assert "good.tif and" in capsys.readouterr().err


def test_an_unknown_key_is_refused_with_a_suggestion(data, tmp_path, capsys):
    assert tile(data, tmp_path / "run", "--set", "tile.patch_pixels=64") == 1
    assert "did you mean 'patch_px'?" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_two(capsys):
    assert main(["tile"]) == 2
    assert main(["tile", "x", "--out", "y", "--colour", "red"]) == 2
    assert main(["fly"]) == 2
    capsys.readouterr()


@pytest.mark.parametrize(
    ("labels", "printed"),
    [
        pytest.param(
            {"a": 0, "b": 0},
            "train has no readable patch of class tumour",
            id="no-tumour-to-train-on",
        ),
        pytest.param(
            {"a": 1, "b": 0},
            "val has no readable patch of class tumour",
            id="no-tumour-to-validate-on",
        ),
    ],
)
def test_a_class_that_a_split_lacks_is_named(tmp_path, capsys, labels, printed):
    for seed, name in enumerate(labels):
        good_slide(tmp_path / f"{name}.tif", seed=seed)
    (tmp_path / "a.xml").write_text(asap(TUMOUR))
    annotated = "a.tif,1,a.xml,train," if labels["a"] else "a.tif,0,,train,"
    assert tile(manifest(tmp_path, annotated, "b.tif,0,,val,"), tmp_path / "run") == 0
    assert main(["train", str(tmp_path / "run"), "--model", "patchnet", "--quiet"]) == 1
    message = failures(tmp_path / "run")["patchnet"]["message"]
    assert f"split {printed}" in message


def test_a_split_that_is_not_there_is_named(data, tmp_path, capsys):
    assert tile(data, tmp_path / "run") == 0
    assert main(["train", str(tmp_path / "run"), "--model", "patchnet", "--quiet"]) == 1
    assert "no slide in split train: 1 patient is too few" in capsys.readouterr().err


def test_a_full_disk_is_reported_and_the_others_are_done(data, tmp_path, monkeypatch):
    from tiling import build

    real = build.write_table

    def full(folder, table):
        if ".bad.zarr" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, table)

    good_slide(data / "bad.tif")
    monkeypatch.setattr(build, "write_table", full)
    code = tile(data, tmp_path / "run")
    assert_one_bad_one_good(tmp_path / "run", code, "bad", "space")


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_halves(data, tmp_path, monkeypatch, capsys):
    from tiling import build

    real = build.write_table

    def interrupted(folder, table):
        if ".later.zarr" in folder.name:
            raise KeyboardInterrupt
        real(folder, table)

    good_slide(data / "later.tif")
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(build, "write_table", interrupted)
        assert tile(data, run) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (run / "tiles" / "good.zarr").is_dir()
    assert not (run / "tiles" / "later.zarr").exists()
    assert not list(run.rglob("*.part"))

    assert tile(data, run) == 0
    assert "1 kept from before" in capsys.readouterr().out


def test_a_run_folder_that_is_none_is_named(tmp_path, capsys):
    for command in ("train", "predict", "heatmap", "evaluate", "report", "collect"):
        assert main([command, str(tmp_path)]) == 1
        assert "not a run folder" in capsys.readouterr().err


def test_the_failure_of_a_slide_that_is_no_longer_listed_is_forgotten(tmp_path):
    """It stayed in failures.csv, and collect ended with 3."""
    good_slide(tmp_path / "good.tif")
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    run = tmp_path / "run"
    assert tile(manifest(tmp_path, "good.tif", "bad.svs", columns="slide"), run) == 3
    assert set(failures(run)) == {"bad"}
    assert tile(manifest(tmp_path, "good.tif", columns="slide"), run) == 0
    assert failures(run) == {}
    assert main(["collect", str(run)]) == 0


def test_a_setting_no_slide_can_be_cut_with_is_reported_once_and_destroys_nothing(
    data, tmp_path, capsys
):
    run = tmp_path / "run"
    assert tile(data, run) == 0
    marks = sorted((run / ".state").rglob("*.done.json"))
    assert tile(data, run, "--set", "target_mpp=-1") == 1
    assert "target_mpp" in capsys.readouterr().err
    assert sorted((run / ".state").rglob("*.done.json")) == marks


@pytest.mark.parametrize("shard", ["x", "3/3", "auto"])
def test_a_shard_that_is_none_is_wrong_usage(data, tmp_path, shard, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    assert tile(data, tmp_path / "run", "--shard", shard) == 2
    assert "--shard" in capsys.readouterr().err
