"""`slides`: what it sees, what it proposes, and that the rest takes what it writes."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.slides import break_file_tile, halve, tissue, write_slide, write_svs
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.listing import read_input
from wsi_pipeline.cohort.splits import assign_splits
from wsi_pipeline.errors import StageError
from wsi_pipeline.planning import triage as triage_module
from wsi_pipeline.run.process_pool import map_in_processes

OUTLINE = '{"positive": [{"name": "a", "vertices": [[90, 90], [200, 90], [200, 200]]}]}'


def look(source: Path, target: Path, *more: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = main(["slides", str(source), "--csv", str(target), "--quiet", "--workers", "2", *more])
    with target.open(newline="") as file:
        return code, {row["slide"].rsplit("/", 1)[-1]: row for row in csv.DictReader(file)}


@pytest.fixture
def folder(tmp_path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    pixels = tissue(420, 340)
    write_svs(data / "a.svs", [pixels, halve(pixels)], mpp=0.25)
    write_slide(data / "without.tif", [np.flip(pixels, 0).copy()], mpp=None)
    return data


def test_facts_are_written(folder, tmp_path):
    code, rows = look(folder, tmp_path / "m.csv")
    a = rows["a.svs"]
    assert code == 0
    assert (a["readable"], a["vendor"], a["width"], a["height"]) == ("yes", "aperio", "420", "340")
    assert (a["levels"], a["downsamples"], float(a["mpp"])) == ("2", "1 2", 0.25)
    assert a["probe"] == "10 of 10 read"
    assert rows["without.tif"]["mpp"] == ""
    assert "mpp column" in rows["without.tif"]["notes"]


@pytest.mark.parametrize(
    ("mpp", "note"),
    [((28.969, 28.968), ""), ((0.25, 0.5), "x and y resolution differ")],
    ids=["rounding", "apart"],
)
def test_x_and_y_resolution_differ_only_by_more_than_rounding(tmp_path, mpp, note):
    path = write_slide(tmp_path / "a.tif", [tissue(420, 340)], mpp=mpp)
    _, rows = look(path, tmp_path / "m.csv")
    assert rows["a.tif"]["notes"].startswith(note)
    assert bool(rows["a.tif"]["notes"]) == bool(note)


def test_what_was_decided_about_a_file_and_what_looks_mistaken_is_noted(tmp_path):
    pixels = tissue(420, 340)
    write_svs(tmp_path / "a.svs", [pixels], mpp=1.0)
    write_slide(tmp_path / "b.tif", [pixels], mpp=25_400 / 600)
    _, rows = look(tmp_path, tmp_path / "m.csv")
    assert "objective power 20" in rows["a.svs"]["notes"]
    assert "exactly 600 dpi" in rows["b.tif"]["notes"]


def test_an_edited_mpp_is_what_the_rest_takes(folder, tmp_path):
    target = tmp_path / "m.csv"
    look(folder, target)
    edited = target.read_text().replace("without,without,,,,,,yes", "without,without,,,,0.75,,yes")
    target.write_text(edited)
    entries = {e.slide_id: e for e in read_input(target).entries}
    assert entries["without"].mpp == 0.75
    tile = ["tile", str(target), "--out", str(tmp_path / "run"), "--quiet"]
    settings = ["target_mpp=1", "patch_px=16", "tissue.mpp=4", "tissue.min_object_um2=100"]
    assert main([*tile, *(part for s in settings for part in ("--set", s))]) == 0


def test_a_file_that_may_have_been_edited_is_not_overwritten(folder, tmp_path, capsys):
    target = tmp_path / "m.csv"
    target.write_text("mine")
    assert main(["slides", str(folder), "--csv", str(target)]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert target.read_text() == "mine"


def test_what_a_manifest_says_is_kept(folder, tmp_path):
    source = folder / "m.csv"
    source.write_text(
        "slide,slide_id,patient,label,split,mpp,stain\nwithout.tif,x,p,1,val,0.3,IHC\n"
    )
    _, rows = look(source, source, "--overwrite")
    row = rows["without.tif"]
    message = [row[k] for k in ("slide_id", "patient", "label", "split", "mpp", "stain")]
    assert message == ["x", "p", "1", "val", "0.3", "IHC"]


def test_broken_slides_stay_with_their_problem(folder, tmp_path):
    (folder / "broken.svs").write_bytes(b"rubbish")
    code, rows = look(folder, tmp_path / "m.csv")
    assert code == 3
    assert rows["broken.svs"]["readable"] == "no"
    assert "neither a format" in rows["broken.svs"]["problem"]
    (tmp_path / "only").mkdir()
    shutil.copy(folder / "broken.svs", tmp_path / "only")
    assert look(tmp_path / "only", tmp_path / "n.csv")[0] == 1


def test_unreadable_regions_are_reported(folder, tmp_path):
    break_file_tile(folder / "a.svs", 0)
    _, rows = look(folder, tmp_path / "m.csv")
    assert rows["a.svs"]["probe"] == "9 of 10 read"
    assert "level 0 at (0, 0)" in rows["a.svs"]["notes"]


def test_copies_are_named_and_share_a_patient(folder, tmp_path):
    shutil.copy(folder / "a.svs", folder / "b.svs")
    _, rows = look(folder, tmp_path / "m.csv")
    assert rows["b.svs"]["duplicate_of"] == "a"
    assert rows["b.svs"]["patient"] == "a"


def test_equal_stems_get_ids_that_differ(folder, tmp_path):
    write_slide(folder / "a.tif", [tissue(300, 300, seed=3)])
    _, rows = look(folder, tmp_path / "m.csv")
    assert {rows[name]["slide_id"] for name in ("a.svs", "a.tif")} == {"a_svs", "a_tif"}
    assert "proposal" in rows["a.tif"]["notes"]
    assert len(read_input(tmp_path / "m.csv").entries) == 3


def test_an_annotation_beside_the_slide_is_proposed(folder, tmp_path):
    (folder / "a.json").write_text(OUTLINE)
    (folder / "without.json").write_text("{}")
    _, rows = look(folder, tmp_path / "m.csv")
    assert rows["a.svs"]["annotation"] == "data/a.json"
    assert rows["without.tif"]["annotation"] == ""


def test_guesses_about_an_annotation_are_noted(folder, tmp_path):
    drawn = {"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [50, 50], [0, 0]]]}
    (folder / "a.geojson").write_text(json.dumps(drawn))
    _, rows = look(folder, tmp_path / "m.csv")
    assert "annotations without class taken as tumour" in rows["a.svs"]["notes"]

    text = (tmp_path / "m.csv").read_text().replace(",0.25,,", ",0.25,region,")
    (tmp_path / "m.csv").write_text(text)
    _, rows = look(tmp_path / "m.csv", tmp_path / "n.csv")
    assert rows["a.svs"]["unclassified"] == "region"
    assert "not tumour, as they have no class" in rows["a.svs"]["notes"]


def test_nothing_identifying_is_written(folder, tmp_path):
    target = tmp_path / "m.csv"
    look(folder, target)
    text = target.read_text()
    assert str(tmp_path) not in text
    assert "12/29/09" not in text
    assert "secret" not in text


def test_a_missing_slide_shows_no_folder(tmp_path):
    (tmp_path / "m.csv").write_text("slide\ngone.svs\n")
    code, rows = look(tmp_path / "m.csv", tmp_path / "n.csv")
    assert code == 1
    assert str(tmp_path) not in rows["gone.svs"]["problem"]


def test_without_csv_nothing_is_written(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(["slides", str(folder)]) == 0
    assert sorted(folder.rglob("*")) == before
    assert "--csv FILE" in capsys.readouterr().out


def test_a_slide_that_kills_its_process_is_named_and_the_others_go_on():
    items = ["3", "2 + 2", "__import__('os')._exit(139)", "5", "6"]
    found = dict(map_in_processes(eval, items, workers=2))
    assert isinstance(found.pop(2), StageError)
    assert found == {0: 3, 1: 4, 3: 5, 4: 6}


# ------------------------------------------------------------ what is filled in


NO_TUMOUR = '{"positive": [], "negative": [{"name": "n", "vertices": [[9, 9], [50, 9], [50, 50]]}]}'


@pytest.fixture
def cohort(tmp_path) -> Path:
    """Six slides of three patients; annotations of three of them in a folder of their own."""
    data, outlines = tmp_path / "data", tmp_path / "outlines"
    data.mkdir()
    outlines.mkdir()
    for number in range(6):
        name = f"P{number // 2}_slide_{number}.tif"
        write_slide(data / name, [np.roll(tissue(300, 260), number, axis=1)], mpp=0.5)
    (outlines / "p0_SLIDE_0.json").write_text(OUTLINE)  # another case
    (outlines / "P1_slide_2_mask.json").write_text(OUTLINE)  # the ending of masks
    (outlines / "P2_slide_5.json").write_text(NO_TUMOUR)
    return data


def test_annotations_of_another_folder_are_matched_and_give_labels(cohort, tmp_path, capsys):
    code, rows = look(cohort, tmp_path / "m.csv", "--annotations", str(tmp_path / "outlines"))
    assert code == 0
    found = {name: (row["label"], row["annotation"]) for name, row in rows.items()}
    assert found == {
        "P0_slide_0.tif": ("1", "outlines/p0_SLIDE_0.json"),
        "P0_slide_1.tif": ("", ""),
        "P1_slide_2.tif": ("1", "outlines/P1_slide_2_mask.json"),
        "P1_slide_3.tif": ("", ""),
        "P2_slide_4.tif": ("", ""),
        "P2_slide_5.tif": ("0", "outlines/P2_slide_5.json"),
    }
    assert "outlines no tumour" in rows["P2_slide_5.tif"]["notes"]


def test_patients_and_splits_are_filled_in(cohort, tmp_path, capsys):
    code, rows = look(
        cohort, tmp_path / "m.csv", "--annotations", str(tmp_path / "outlines"),
        "--unannotated", "normal", "--patient-from", r"^(P\d)_", "--splits", "0.3,0.3",
    )  # fmt: skip
    assert code == 0
    assert [row["patient"] for row in rows.values()] == ["P0", "P0", "P1", "P1", "P2", "P2"]
    assert [row["label"] for row in rows.values()] == ["1", "0", "1", "0", "0", "0"]
    splits = {row["patient"]: row["split"] for row in rows.values()}
    assert all(row["split"] == splits[row["patient"]] for row in rows.values())
    entries = read_input(tmp_path / "m.csv").entries
    expected = assign_splits(
        [replace(e, split=None) for e in entries], val_fraction=0.3, test_fraction=0.3, seed=0
    )
    assert splits == expected


def test_what_a_manifest_has_is_not_proposed_anew(cohort, tmp_path, capsys):
    look(cohort, tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    rows[0] |= {"label": "0", "patient": "other"}
    with (tmp_path / "m.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    _, found = look(
        tmp_path / "m.csv", tmp_path / "filled.csv", "--patient-from", r"^P\d",
        "--annotations", str(tmp_path / "outlines"),
    )  # fmt: skip
    first = found["P0_slide_0.tif"]
    assert (first["label"], first["patient"]) == ("0", "other")
    assert "label 0, but its annotation outlines tumour" in first["notes"]
    assert found["P1_slide_2.tif"]["patient"] == "P1"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--patient-from", "("], "--patient-from '(' is no regular expression"),
        (["--patient-from", "Q"], "P0_slide_0.tif: --patient-from 'Q' finds no patient"),
        (["--annotations", "missing"], "missing: no such folder"),
        (["--splits", "0.6,0.6"], "must be in [0, 1) and leave patients to train on"),
    ],
)
def test_what_cannot_be_filled_in_is_an_error_before_any_slide_is_read(
    cohort, tmp_path, capsys, monkeypatch, options, problem
):
    monkeypatch.setattr(triage_module, "map_in_processes", None)
    target = tmp_path / "m.csv"
    assert main(["slides", str(cohort), "--csv", str(target), "--quiet", *options]) == 1
    assert problem in capsys.readouterr().err
    assert not target.exists()


def test_shares_that_are_no_numbers_are_a_wrong_usage(cohort, capsys):
    assert main(["slides", str(cohort), "--splits", "0.2"]) == 2
    assert "'0.2' is not two numbers" in " ".join(capsys.readouterr().err.split())


def test_annotations_of_no_slide_and_labels_are_counted(cohort, tmp_path, capsys):
    (tmp_path / "outlines/other.json").write_text(OUTLINE)
    main(["slides", str(cohort), "--annotations", str(tmp_path / "outlines")])
    printed = capsys.readouterr().out
    assert "1 annotation of no slide: other.json" in printed
    assert "labels: 2 tumour, 1 normal, 3 unknown" in printed
    assert "--unannotated normal" in printed


def test_two_annotations_of_one_slide_are_an_error(cohort, tmp_path, capsys):
    (tmp_path / "outlines/P0_slide_0.xml").write_text("<x/>")
    assert main(["slides", str(cohort), "--annotations", str(tmp_path / "outlines")]) == 1
    err = capsys.readouterr().err
    assert "slide P0_slide_0.tif has two references, P0_slide_0.xml and p0_SLIDE_0.json" in err


def test_other_files_named_after_a_slide_matter_only_where_it_would_be_normal(
    cohort, tmp_path, capsys
):
    (tmp_path / "outlines/P0_slide_1.png").write_bytes(b"a preview")
    outlines = ["--annotations", str(tmp_path / "outlines")]
    assert main(["slides", str(cohort), *outlines]) == 0
    assert "P0_slide_1.png" in capsys.readouterr().out
    assert main(["slides", str(cohort), *outlines, "--unannotated", "normal"]) == 1
    assert "named after slide P0_slide_1.tif" in capsys.readouterr().err
