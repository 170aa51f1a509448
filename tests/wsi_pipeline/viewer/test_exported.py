"""Pages that open from their files: what they hold, and that they say the same as the viewer."""

import base64
import csv
import json
import re
import shutil
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest

from tests.helpers.browser import Browser
from tests.helpers.html_pages import CHROMIUM
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import ViewError
from wsi_pipeline.heatmaps.files import read_heatmap
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.exported import _find_highest, export_pages
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.shown_run import ShownRun
from wsi_pipeline.viewer.shown_slide import PATCH


def export(run, out, **options):
    shown = ShownRun(RunFolder(run))
    try:
        return export_pages(shown, Reviews(RunFolder(run)), out, **options)
    finally:
        shown.close()


class Inside(HTMLParser):
    """What a page holds."""

    def __init__(self, path):
        super().__init__()
        self.text, self.elements, self.is_data = "", [], False
        self.feed(path.read_text("utf-8"))
        self.value = json.loads(self.text)
        self.answers = self.value["answers"]

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.is_data = dict(attributes).get("id") == "inside"

    def handle_endtag(self, tag):
        self.is_data = False

    def handle_data(self, data):
        self.text += data if self.is_data else ""

    def tiles(self, zoom=""):
        return [request for request in self.answers if re.match(rf"tile/\w+/{zoom}", request)]


@pytest.fixture(scope="module")
def pages(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("pages") / "out"
    assert export(finished / "run", out, worst=3) == []
    return out


def test_a_page_is_one_file_that_loads_nothing(pages):
    names = sorted(path.name for path in (pages / "slides").iterdir())
    assert len(names) == 3
    for path in (pages / "index.html", *(pages / "slides").iterdir()):
        page = Inside(path)
        for tag, attributes in page.elements:
            assert tag not in ("iframe", "object", "base")
            assert not attributes.get("src")
            assert attributes.get("rel") in (None, "icon")
        assert "default-src 'none'" in path.read_text("utf-8")
        slides = page.answers["api/run"]["json"]["slides"]
        assert sorted(f"{slide['id']}.html" for slide in slides) == names


def test_the_worst_slides_are_those_farthest_from_their_label(finished, pages):
    run = ShownRun(RunFolder(finished / "run"))
    slides = run.describe()["slides"]
    run.close()
    far = {
        slide["id"]: max(abs(slide["label"] - score) for score in slide["scores"].values())
        for slide in slides
        if slide["label"] is not None and None not in slide["scores"].values()
    }
    shown = Inside(pages / "index.html").answers["api/run"]["json"]["slides"]
    worst = sorted(far.values(), reverse=True)[: len(shown)]
    assert [far[slide["id"]] for slide in shown] == pytest.approx(worst)


def test_the_values_are_those_of_the_heatmap(finished, pages):
    path = next((pages / "slides").iterdir())
    slide_id = path.name.removesuffix(".html")
    answers = Inside(path).answers
    values = read_heatmap(RunFolder(finished / "run").heatmap("patchnet", slide_id)).values
    tile = answers[f"map/{slide_id}/patchnet/scores/0/0/0"]["deflated"]
    found = np.frombuffer(zlib.decompress(base64.b64decode(tile)), "<f4").reshape(256, 256)
    np.testing.assert_array_equal(found[: values.shape[0], : values.shape[1]], values)


def test_a_page_keeps_to_its_limit_and_shows_errors_in_detail(copy, tmp_path):
    """Of a slide that does not fit, the place of an error is there down to level 0."""
    run = copy / "run"
    errors = RunFolder(run).evaluation("patchnet") / "errors.csv"
    with errors.open() as file:
        columns = next(csv.reader(file))
    row = {"kind": "false_positive", "rank": "1", "slide_id": "s5", "x": "64", "y": "64"}
    errors.write_text(f"{','.join(columns)}\n{','.join(row.get(c, '') for c in columns)}\n")
    export(run, tmp_path / "all", slides=["s5"], models=["patchnet"])
    whole = (tmp_path / "all/slides/s5.html").stat().st_size
    answers = Inside(tmp_path / "all/slides/s5.html").answers
    whole_tiles = Inside(tmp_path / "all/slides/s5.html").tiles(zoom=0)
    assert "tile/s5/0/0/0" in whole_tiles

    tiles = [len(answers[request]["jpeg"]) for request in whole_tiles]
    limit = whole - len(answers["thumbnail/s5"]["jpeg"]) - min(tiles)
    export(run, tmp_path / "less", slides=["s5"], models=["patchnet"], limit=limit)
    page = tmp_path / "less/slides/s5.html"
    assert page.stat().st_size <= limit
    detail = Inside(page).tiles(zoom=0)
    assert "tile/s5/0/0/0" in detail
    assert len(detail) < len(whole_tiles)
    assert re.search(r"\d+ places? at", Inside(page).value["held"])

    with pytest.raises(ViewError, match="--limit"):
        export(run, tmp_path / "none", slides=["s5"], limit=70_000)


def test_the_highest_scores_are_shown_apart_from_each_other():
    patches = np.zeros(5, PATCH)
    patches["x"], patches["score"] = [0, 20, 100, 400, 800], [0.5, 0.9, 0.8, np.nan, 0.1]
    assert _find_highest(patches, (20, 20)) == [(30, 10), (110, 10), (810, 10)]


def test_names_and_notes_cannot_end_the_script(copy, tmp_path):
    run = RunFolder(copy / "run")
    run.review("s5").parent.mkdir(exist_ok=True)
    note = "</script><script>alert(1)</script>"
    feature = {"type": "Feature", "properties": {"name": note}, "geometry": None}
    run.review("s5").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    export(run.path, tmp_path / "out", slides=["s5"])
    text = (tmp_path / "out/slides/s5.html").read_text("utf-8")
    assert len(re.findall("<script", text)) == 2
    held = Inside(tmp_path / "out/slides/s5.html").answers["api/review/s5"]["json"]
    assert held["features"][0]["properties"]["name"] == note


def test_a_run_without_models_is_exported_with_its_patches(copy, tmp_path):
    for name in ("models", "scores", "heatmaps", "evaluation"):
        shutil.rmtree(copy / "run" / name)
    export(copy / "run", tmp_path / "out", slides=["s5"])
    answers = Inside(tmp_path / "out/slides/s5.html").answers
    records = zlib.decompress(base64.b64decode(answers["patches/s5?model="]["deflated"]))
    patches = np.frombuffer(records, PATCH)
    assert len(patches) > 0
    assert np.isnan(patches["score"]).all()


def test_a_folder_of_other_files_is_left_alone(copy, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/index.html").write_text("mine")
    with pytest.raises(ViewError, match="holds other files"):
        export(copy / "run", tmp_path / "mine", worst=1)
    assert (tmp_path / "mine/index.html").read_text() == "mine"
    for _ in range(2):  # an earlier export is replaced
        export(copy / "run", tmp_path / "out", worst=1)


def test_pages_of_an_earlier_export_go_and_other_files_stay(copy, tmp_path):
    """The folder is sent to others: it must not hold a slide that was not chosen now."""
    out = tmp_path / "out"
    export(copy / "run", out, slides=["s3"])
    (out / "slides/mine.html").write_text("<p>mine")
    export(copy / "run", out, slides=["s4"])
    assert sorted(path.name for path in (out / "slides").iterdir()) == ["mine.html", "s4.html"]


def test_an_export_that_was_stopped_can_be_run_again(copy, tmp_path):
    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(copy / "run", tmp_path / "out", worst=2, print_line=stop)
    assert export(copy / "run", tmp_path / "out", worst=2) == []


def test_the_command_exports_what_can_be_read(copy, tmp_path, capsys):
    (copy / "data/s5.tif").rename(copy / "data/gone.tif")
    (copy / "run/scores/patchnet/s3.h5").write_bytes(b"damaged")
    (copy / "run/heatmaps/patchnet/s4.ome.tif").write_bytes(b"damaged")
    command = ["view", str(copy / "run"), "--export", str(tmp_path / "out")]
    assert main([*command, "--slide", "s3", "--slide", "s4", "--slide", "s5"]) == 3
    printed, problems = capsys.readouterr()
    assert re.search(r"\[1/1\] s4: .*, without 1 map", printed)
    assert printed.splitlines()[-1] == str(tmp_path / "out/index.html")
    assert "s5.tif is not where" in problems
    assert "s3.h5: damaged score file" in problems
    assert main(["view", str(copy / "run"), "--worst", "2"]) == 2
    assert "--worst has no effect without --export" in capsys.readouterr().err
    assert main([*command, "--port", "8000", "--open"]) == 2
    assert "--port and --open have no effect with --export" in capsys.readouterr().err
    assert main([*command, "--slide", "s4", "--worst", "2"]) == 2
    assert "--worst has no effect with --slide" in capsys.readouterr().err
    assert main([*command, "--slide", "nothing"]) == 1
    assert "no such slide" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_page_opened_from_its_file_says_what_the_viewer_says(finished, pages):
    slide_id = Inside(pages / "index.html").answers["api/run"]["json"]["slides"][0]["id"]
    shown = ShownRun(RunFolder(finished / "run"))
    browser = Browser((1100, 700))
    try:
        browser.open(f"file://{pages}/index.html")
        browser.wait("window.viewer?.state.slide && document.body.dataset.busy === '0'")
        assert f"slides/{slide_id}.html" in browser.run("location.href")
        assert browser.run("document.querySelectorAll('#list li').length") == 3
        for x, y in ((210, 170), (150, 110), (40, 300)):
            browser.run("viewer.state.found = null")
            corner = browser.run(
                "(({left, top}) => [left, top])(viewer.panes[0].canvas.getBoundingClientRect())"
            )
            place = browser.run(f"viewer.panes[0].toScreen({x}, {y})")
            browser.click(*np.add(corner, place).tolist())
            found = browser.wait("viewer.state.found")
            expected = shown.slide(slide_id).describe_place(found["x"], found["y"])
            assert found["values"] == expected["values"]
            assert [one["row"] for one in found["patches"]] == [
                one["row"] for one in expected["patches"]
            ]
            for one, other in zip(found["patches"], expected["patches"], strict=True):
                assert one["scores"] == other["scores"]
        browser.key("n")
        browser.wait(f"window.viewer?.state.slide && viewer.state.slide.id !== '{slide_id}'")
        assert browser.problems == []
    finally:
        browser.close()
        shown.close()
