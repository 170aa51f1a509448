"""The label audit: in tile's output, right however the stores came to be."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.annotation_files import write_geojson
from tests.helpers.printed import summaries
from tests.helpers.tiny_cohort import draw_cohort
from tiling.store import PatchStore
from tiling.wording import pluralize
from wsi_pipeline.cli.app import main
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.stages.label_audit import SHOWN, update_audit

pytestmark = pytest.mark.real_pictures

SETTINGS = (
    "--set", "patch_px=32", "--set", "tile.tissue.mpp=2", "--set", "tile.tissue.min_object_um2=100",
)  # fmt: skip
FILES = {
    "slides.csv", "patients.csv", "classes.csv", "histogram.csv", "histogram.png",
    "ambiguous.csv", "ambiguous.png", "audit.json",
}  # fmt: skip
OUTLINE = np.array([(121, 101), (259, 105), (255, 229), (118, 226)], float)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six slides of four patients; the outlines cut through squares."""
    folder = tmp_path_factory.mktemp("audit") / "data"
    draw_cohort(folder)
    rows = list(csv.DictReader((folder / "manifest.csv").read_text().splitlines()))
    for number, row in enumerate(rows):
        row["patient"] = f"p{number // 2 if number < 4 else number}"
        row["split"] = "train"
        if row["annotation"]:
            row["annotation"] = write_geojson(
                folder / f"s{number}.geojson", {"Tumor": OUTLINE}
            ).name
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def whole(data: Path) -> Path:
    assert tile(data, data.parent / "whole") == 0
    return data.parent / "whole"


@pytest.fixture
def copy(data: Path, whole: Path) -> Path:
    shutil.copytree(whole, data.parent / "copy")
    yield data.parent / "copy"
    shutil.rmtree(data.parent / "copy")


def tile(data: Path, run: Path, *more: str) -> int:
    return main(["tile", str(data / "manifest.csv"), "--out", str(run), *SETTINGS, *more])


def contents(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "tiles/label_audit").iterdir()}


def table(run: Path, name: str) -> list[dict[str, str]]:
    with (run / "tiles/label_audit" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def stores(run: Path) -> dict[str, PatchStore]:
    return {path.stem: PatchStore.open(path) for path in sorted(run.glob("tiles/*.zarr"))}


def test_counts_are_those_of_the_stores(whole):
    assert set(contents(whole)) == FILES
    labels = {slide: store.label for slide, store in stores(whole).items()}
    rows = table(whole, "slides.csv")
    assert {row["slide_id"]: int(row["positive"]) for row in rows} == {
        slide: int((label == 1).sum()) for slide, label in labels.items()
    }
    for row in table(whole, "patients.csv"):
        own = [r for r in rows if r["patient"] == row["patient"]]
        assert int(row["slides"]) == len(own)
        assert int(row["negative"]) == sum(int(r["negative"]) for r in own)
    every = np.concatenate(list(labels.values()))
    by_label = {row["label"]: row for row in table(whole, "classes.csv")}
    assert int(by_label["positive"]["patches"]) == (every == 1).sum()
    assert (by_label["positive"]["slides"], by_label["positive"]["patients"]) == ("3", "3")
    histogram = table(whole, "histogram.csv")
    assert sum(int(row["positive"]) for row in histogram) == (every == 1).sum()
    assert int(histogram[0]["negative"]) == (every == 0).sum()  # the inner rule: no tumour at all


def test_the_patches_shown_are_the_least_certain_of_all_slides(whole):
    rows = table(whole, "ambiguous.csv")
    shown = [float(row["tumour"]) for row in rows if row["label"] == "positive"]
    every = np.concatenate([s.tumour[s.label == 1] for s in stores(whole).values()])
    np.testing.assert_array_equal(shown, np.sort(every[every < 1])[: SHOWN // 2].astype(float))
    for row in rows:
        store = stores(whole)[row["slide_id"]]
        assert store.coords[int(row["patch"])].tolist() == [int(row["x"]), int(row["y"])]
    with Image.open(whole / "tiles/label_audit/ambiguous.png") as picture:
        pixels = np.asarray(picture)
    assert (pixels == (255, 225, 0)).all(axis=2).any()  # inner squares
    assert (pixels == (0, 235, 60)).all(axis=2).any()  # outlines


def test_the_json_says_what_the_tables_say(whole):
    found = json.loads((whole / "tiles/label_audit/audit.json").read_text())
    assert [str(row["positive"]) for row in found["slides"]] == [
        row["positive"] for row in table(whole, "slides.csv")
    ]
    assert found["total"]["patches"] == sum(len(store) for store in stores(whole).values())


def test_one_line_is_reported_at_the_end(data, whole, capsys):
    assert tile(data, whole) == 0
    last = summaries(capsys.readouterr().out)[-1]
    assert last.startswith("labels: 480 patches of 6 slides, 4 patients: 57 positive (12 %), ")
    assert last.endswith("review them in tiles/label_audit/")


def test_it_is_kept_where_nothing_changed_and_made_again_where_a_file_is_lost(copy, monkeypatch):
    before = contents(copy)
    audited = []
    import wsi_pipeline.stages.label_audit as module

    audit = module._audit
    monkeypatch.setattr(module, "_audit", lambda *a: audited.append(1) or audit(*a))
    update_audit(RunFolder(copy))
    assert not audited
    (copy / "tiles/label_audit/slides.csv").unlink()
    update_audit(RunFolder(copy))
    assert len(audited) == 6
    assert contents(copy) == before


@pytest.mark.slow
def test_shards_give_none_and_collect_makes_the_same(data, whole, tmp_path, capsys):
    run = data.parent / "shards"
    for shard in ("0/2", "1/2"):
        assert tile(data, run, "--shard", shard) == 0
        assert not (run / "tiles/label_audit").exists()
    assert main(["collect", str(run)]) == 0
    assert "labels: " in capsys.readouterr().out
    assert contents(run) == contents(whole)


@pytest.mark.slow
def test_overwrite_gives_the_same_bytes(data, copy, whole):
    assert tile(data, copy, "--overwrite") == 0
    assert contents(copy) == contents(whole)


@pytest.mark.slow
def test_coordinates_without_pixels_give_the_same_pictures(data, whole):
    run = data.parent / "coords"
    assert tile(data, run, "--set", "store=coords") == 0
    assert contents(run) == contents(whole)


@pytest.mark.slow
def test_a_changed_rule_changes_it(data, copy, whole):
    more = ("--set", "label_rule=fraction", "--set", "negative_fraction=0.001")
    assert tile(data, copy, *more) == 0
    by_label = {row["label"]: int(row["patches"]) for row in table(copy, "classes.csv")}
    assert by_label["ignored"] > 0
    assert {row["label"] for row in table(copy, "ambiguous.csv")} >= {"positive", "ignored"}


@pytest.mark.parametrize(
    ("rule", "missed"),
    [
        pytest.param((), 0, id="inner"),
        pytest.param(("label_rule=fraction", "positive_fraction=1"), 3, id="fraction"),
    ],
)
def test_lesions_without_a_positive_patch_are_counted_by_the_labels(
    data, tmp_path, capsys, rule, missed
):
    """Those that no inner square meets were counted, under whatever rule."""
    strip = OUTLINE * (0.1, 1) + np.array([120, 0])  # 14 px wide, less than an inner square
    outlines = [write_geojson(tmp_path / f"s{n}.geojson", {"Tumor": strip}) for n in (1, 3, 5)]
    rows = [f"{data}/s{n}.tif,{path}" for n, path in zip((1, 3, 5), outlines, strict=True)]
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("\n".join(["slide,annotation", *rows]) + "\n")
    run = tmp_path / "run"
    chosen = [part for setting in rule for part in ("--set", setting)]
    assert main(["tile", str(manifest), "--out", str(run), *SETTINGS, *chosen]) == 0
    message = capsys.readouterr().out
    assert (f"{pluralize(missed, 'lesion')} without a positive patch" in message) == bool(missed)
    by_slide = {row["slide_id"]: row for row in table(run, "slides.csv")}
    assert [int(row["lesions"]) - int(row["lesions_hit"]) for row in by_slide.values()] == [
        missed // 3
    ] * 3


def test_nothing_is_printed_about_labels_where_every_slide_failed(tmp_path, capsys):
    """It bade its reader look over the labels of 0 patches of 0 slides."""
    (tmp_path / "s.tif").write_bytes(b"no slide")
    run = tmp_path / "run"
    assert main(["tile", str(tmp_path / "s.tif"), "--out", str(run)]) == 1
    assert "labels:" not in capsys.readouterr().out
    assert not (run / "tiles/label_audit").exists()


def test_a_slide_that_is_away_leaves_a_grey_cell(data, whole):
    run = data.parent / "away"
    assert tile(data, run, "--set", "store=coords") == 0
    (data / "s1.tif").rename(data / "away.tif")
    try:
        message = update_audit(RunFolder(run), overwrite=True)
    finally:
        (data / "away.tif").rename(data / "s1.tif")
    assert message.startswith("labels: ")
    assert contents(run)["slides.csv"] == contents(whole)["slides.csv"]
    assert contents(run)["ambiguous.png"] != contents(whole)["ambiguous.png"]


def test_a_damaged_store_costs_the_audit_not_the_stage(data, copy):
    (copy / "tiles/label_audit/slides.csv").unlink()
    shutil.rmtree(copy / "tiles/s1.zarr/label")
    message = update_audit(RunFolder(copy))
    assert message.startswith("label audit: not made: s1.zarr: damaged")


def test_slides_without_labels_have_no_audit(data, tmp_path, capsys):
    """Nothing but counts of unlabelled patches was in it, at two thirds of a second."""
    alone = shutil.copy(data / "s1.tif", tmp_path / "s1.tif")
    run = tmp_path / "run"
    assert main(["tile", str(alone), "--out", str(run), *SETTINGS]) == 0
    last = summaries(capsys.readouterr().out)[-1]
    assert last.startswith("labels: no slide has a label or an annotation, so these can be scored")
    assert not (run / "tiles/label_audit").exists()
