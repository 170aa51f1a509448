"""Marks of a review in `evaluate`, and in the manifest and annotations that `slides` writes."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.helpers.tiny_cohort import contents
from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.compare import compare_pair
from wsi_pipeline.evaluation.compare_slides import read_evaluated_slides
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.review import Reviews


def mark_patch(run, slide_id, row, verdict, truth=""):
    store = PatchStore.open(run.store(slide_id))
    (x, y), side = store.coords[row].tolist(), store.geometry.patch_l0
    points = [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]
    mark = {"points": points, "verdict": verdict, "truth": truth, "row": int(row)}
    Reviews(run).change(slide_id, {"add": mark}, store.info.size)


def rows_of(run, slide_id, label):
    return np.flatnonzero(PatchStore.open(run.store(slide_id)).label == label)


@pytest.fixture
def run(copy):
    """A reviewed run: of s4 (normal) a patch is tumour, of s5 one is normal and one is unsure."""
    run = RunFolder(copy / "run")
    mark_patch(run, "s4", rows_of(run, "s4", 0)[0], "wrong", "tumour")
    mark_patch(run, "s4", rows_of(run, "s4", 0)[1], "right", "normal")
    mark_patch(run, "s5", rows_of(run, "s5", 1)[0], "wrong", "normal")
    mark_patch(run, "s5", rows_of(run, "s5", 0)[0], "unsure")
    mark_patch(run, "s5", rows_of(run, "s5", 1)[1], "wrong")
    return run


def read_metrics(run):
    return json.loads((run.evaluation("patchnet") / "metrics.json").read_text())


def read_labels(run, slide_id):
    with (run.evaluation("patchnet") / "patches.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["slide_id"] == slide_id]
    return [int(row["label"]) for row in rows], [row["lesions"] for row in rows]


def test_an_evaluation_by_reviews_has_corrected_labels_and_says_so(run, capsys):
    before, untouched = contents(run.path / "evaluation"), rows_of(run, "s5", 1)[1]
    assert main(["evaluate", str(run.path)]) == 0
    assert "reviews of 2 slides not used; --reviews uses them" in capsys.readouterr().out
    assert main(["evaluate", str(run.path), "--reviews"]) == 0

    metrics = read_metrics(run)
    digests = metrics["reviews"].pop("digests")
    assert set(digests) == {"s4", "s5"}
    assert metrics["reviews"] == {
        "n_marks": 4,
        "n_slides": 2,
        "n_without_truth": 1,
        "n_changed_patches": 3,
    }
    assert metrics["notes"][0].startswith("labels corrected by 4 review marks on 2 slides")
    s4, lesions = read_labels(run, "s4")
    assert (s4[0], s4[1], lesions[0], sum(s4)) == (1, 0, "1", 1)
    was, (now, lesions) = PatchStore.open(run.store("s5")).label, read_labels(run, "s5")
    changed = np.flatnonzero(was != now)
    assert changed.tolist() == sorted([rows_of(run, "s5", 0)[0], rows_of(run, "s5", 1)[0]])
    assert sorted(np.array(now)[changed]) == [-1, 0]
    assert now[untouched] == 1
    assert (metrics["slide"]["n_positive"], metrics["patch"]["n_ignored"]) == (2, 1)
    assert metrics["froc_patch"]["n_lesions"] == 2

    assert main(["report", str(run.path)]) == 0
    corrected = read_evaluated_slides(run.evaluation("patchnet"))
    assert compare_pair(corrected, corrected, replicates=20)
    with pytest.raises(EvaluationError, match="number of lesions or review"):
        compare_pair(corrected, replace(corrected, reviews={}), replicates=20)

    page = re.sub("<.*?>", "", run.report.read_text())
    assert "Labels corrected by 4 review marks on 2 slides, so" in page
    assert main(["evaluate", str(run.path), "--reviews"]) == 0
    assert "kept" in capsys.readouterr().out.splitlines()[-2]
    mark_patch(run, "s5", rows_of(run, "s5", 0)[1], "unsure")
    assert main(["evaluate", str(run.path), "--reviews"]) == 0
    assert "out of date" in capsys.readouterr().err
    assert read_metrics(run)["reviews"]["n_marks"] == 5
    assert main(["evaluate", str(run.path), "--no-reviews"]) == 0
    assert contents(run.path / "evaluation") == before


@pytest.mark.slow
def test_tiles_of_the_corrected_manifest_have_the_labels_of_the_evaluation(run, capsys, tmp_path):
    data, csv_file = run.path.parent / "data", tmp_path / "next.csv"
    before = contents(run.path)
    command = ["slides", str(data / "manifest.csv"), "--reviews", str(run.path)]
    command += ["--csv", str(csv_file), "--workers", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "tumour added, 0 -> 1 lesion, label 0 -> 1" in printed
    assert "2 review marks (and 1 without a truth): " in printed
    assert contents(run.path) == before
    with csv_file.open() as file:
        rows = {row["slide_id"]: row for row in csv.DictReader(file)}
    assert (rows["s4"]["label"], rows["s4"]["annotation"]) == ("1", "next_corrected/s4.geojson")
    assert rows["s3"]["annotation"].endswith("data/s3.xml")
    first = {path: path.read_bytes() for path in tmp_path.glob("next*/*")} | {
        csv_file: csv_file.read_bytes()
    }
    assert main([*command, "--overwrite"]) == 0
    assert all(path.read_bytes() == data for path, data in first.items())

    itself = ["slides", str(csv_file), *command[2:], "--overwrite"]
    assert main(itself) == 1
    assert "write to another --csv" in capsys.readouterr().err

    assert main(["evaluate", str(run.path), "--reviews"]) == 0
    again = RunFolder(tmp_path / "again")
    config = ["--config", str(run.path.parent / "config.yaml")]
    assert main(["tile", str(csv_file), "--out", str(again.path), "--workers", "1", *config]) == 0
    for slide_id, n_unsure in (("s4", 0), ("s5", 1)):
        store = PatchStore.open(again.store(slide_id))
        evaluated, lesions = read_labels(run, slide_id)
        differ = np.flatnonzero(store.label != evaluated)
        assert [evaluated[row] for row in differ] == [-1] * n_unsure
        pairs = {row: store.lesion_ids[lesion] for row, lesion in store.lesion_pairs.tolist()}
        assert {row: name for row, name in enumerate(lesions) if name} == pairs


def test_a_slide_of_which_only_the_label_is_known_stays_as_it_is(run, capsys, tmp_path):
    text = (run.path.parent / "data" / "manifest.csv").read_text()
    manifest = run.path.parent / "data" / "weak.csv"
    manifest.write_text(text.replace("s5.xml", ""))
    out = tmp_path / "next.csv"
    assert (
        main(
            [
                "slides",
                str(manifest),
                "--reviews",
                str(run.path),
                "--csv",
                str(out),
                "--workers",
                "1",
            ]
        )
        == 0
    )
    assert "not used, as the slide has neither an annotation nor label 0" in capsys.readouterr().out
    assert [path.name for path in out.with_name("next_corrected").iterdir()] == ["s4.geojson"]


def test_a_file_counted_from_the_bounds_is_written_so(run):
    """What tile reads by annotation_origin=bounds is the same area of the slide."""
    import shapely

    from tiling.annotation.slide_annotation import read_annotation_of_store
    from wsi_pipeline.cohort.reviews import correct_annotation, read_marks, resolve_marks
    from wsi_pipeline.planning.corrected import _as_geojson

    store = PatchStore.open(run.store("s4"))
    store.info = replace(store.info, bounds=(30, 10, 200, 200))
    store.tiling = {**store.tiling, "annotation_origin": "bounds"}
    corrections = resolve_marks(read_marks(run.review("s4")))
    path = run.path / "s4.geojson"
    path.write_text(json.dumps(_as_geojson(None, corrections, store)))
    found = read_annotation_of_store(path, store)
    assert shapely.equals(found.tumour, correct_annotation(None, corrections).tumour)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["{data}", "--reviews", "{run}"], "no effect without --csv"),
        (["{data}", "--reviews", "{run}", "--csv", "{run}/x.csv"], "is in the reviewed run"),
        (["{data}", "--reviews", "{data}", "--csv", "{new}"], "not a run folder"),
        (["{data}", "--reviews", "{bare}", "--csv", "{new}"], "no slide has a review"),
        (["{data}", "--reviews", "{run}", "--csv", "{old}"], "exists already"),
    ],
    ids=["no-csv", "in-the-run", "no-run", "no-reviews", "exists"],
)
def test_what_cannot_be_corrected_is_refused(run, finished, tmp_path, capsys, arguments, printed):
    (tmp_path / "old_corrected").mkdir()
    places = {
        "data": run.path.parent / "data",
        "run": run.path,
        "bare": finished / "run",
        "new": tmp_path / "new.csv",
        "old": tmp_path / "old.csv",
    }
    assert main(["slides", *(text.format(**places) for text in arguments)]) != 0
    assert printed in capsys.readouterr().err
    assert not (tmp_path / "new.csv").exists()


@pytest.mark.parametrize("command", ["evaluate", "slides"])
def test_a_damaged_review_is_named(run, tmp_path, capsys, command):
    run.review("s5").write_text("{")
    data = run.path.parent / "data" / "manifest.csv"
    slides = ["slides", str(data), "--csv", str(tmp_path / "x.csv"), "--reviews", str(run.path)]
    assert main(["evaluate", str(run.path), "--reviews"] if command == "evaluate" else slides) == 1
    assert "review/s5.geojson: is not well-formed JSON" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_draws_patches_that_were_wrong_more_often(run, capsys):
    """By the marks on its own slides; another mark makes it out of date."""

    def losses():
        lines = (run.model("patchnet") / "history.csv").read_text().splitlines()
        return [line.rpartition(",")[0] for line in lines]  # without the seconds

    plain = losses()
    command = ["train", str(run.path), "--set", "hard_share=0.9"]
    assert main(command) == 0
    assert "hard_share has no effect, as no review" in capsys.readouterr().err
    assert losses() == plain
    mark_patch(run, "s1", rows_of(run, "s1", 1)[0], "wrong", "tumour")
    mark_patch(run, "s1", rows_of(run, "s1", 0)[0], "wrong", "tumour")  # its label is wrong
    assert main(command) == 0
    printed = capsys.readouterr().err
    assert "out of date" in printed
    assert "1 hard patch on 1 slide by the review" in printed
    assert losses() != plain
    assert main(["train", str(run.path), "--set", "hard_share=0"]) == 0
    assert losses() == plain
    capsys.readouterr()
    assert main(command[:2]) == 0
    assert "1 kept" in capsys.readouterr().out
    assert main([*command, "--set", "sampling=shuffle"]) == 1
    assert "hard_share=0.9 has no effect, as sampling is shuffle" in capsys.readouterr().err
