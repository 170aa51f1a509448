"""The page in a real browser: real clicks and keys."""

import csv
import io
import json
import shutil
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from tests.helpers.browser import Browser
from tests.helpers.html_pages import CHROMIUM
from tests.helpers.slides import break_file_tile, tissue, write_slide
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.readers import openslide_reader
from tiling.store import PatchStore
from wsi_pipeline.contracts import Heatmap
from wsi_pipeline.heatmaps.files import read_heatmap, write_heatmap
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.answers import Answers
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.server import Viewer
from wsi_pipeline.viewer.shown_run import ShownRun

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium"),
]
IS_DRAWN = "viewer.state.slide && document.body.dataset.busy === '0'"


@contextmanager
def serve(folder):
    run = RunFolder(folder)
    viewer = Viewer(Answers(ShownRun(run), Reviews(run)))
    threading.Thread(target=viewer.serve_forever, daemon=True).start()
    try:
        yield viewer.address.url
    finally:
        viewer.shutdown()
        viewer.server_close()


@pytest.fixture(scope="module")
def browser():
    one = Browser((1200, 800))
    yield one
    one.close()


@pytest.fixture
def page(browser, copy):
    browser.problems.clear()
    with serve(copy / "run") as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s5")
        browser.wait(IS_DRAWN)
        yield browser
        browser.open("about:blank")
    assert browser.problems == []


def pane_box(browser):
    script = "JSON.stringify(viewer.panes[0].canvas.getBoundingClientRect())"
    box = json.loads(browser.run(script))
    return box["x"], box["y"], box["width"], box["height"]


def to_page(browser, x, y):
    """Where a level-0 position is on the page, from the view alone."""
    left, top, width, height = pane_box(browser)
    view = browser.run("({...viewer.state.view, mpp: viewer.state.slide.mpp})")
    ratio = view["mpp"][0] / view["mpp"][1]
    return (
        left + width / 2 + (x - view["x"]) / view["scale"],
        top + height / 2 + (y - view["y"]) / view["scale"] / ratio,
    )


def click_slide(browser, x, y):
    browser.run("viewer.state.found = null")
    browser.click(*to_page(browser, x, y))
    return browser.wait("viewer.state.found")


def test_a_click_shows_what_the_files_say(page, copy):
    heatmap = read_heatmap(RunFolder(copy / "run").heatmap("patchnet", "s5"))
    for x, y in ((210, 170), (150, 110), (300, 200)):
        found = click_slide(page, x, y)
        assert (found["x"], found["y"]) == pytest.approx((x, y), abs=1)
        row, column = (
            int(at // side) for at, side in zip((y, x), heatmap.pixel_l0[::-1], strict=True)
        )
        value = heatmap.values[row, column]
        shown = page.run("document.querySelector('[data-map=\"patchnet/scores\"]').dataset.value")
        assert shown == "null" if np.isnan(value) else np.float32(shown) == value
        assert "µm" in page.run("document.getElementById('found').textContent")


def test_keys_step_through_slides_and_errors(page):
    page.key("n")
    page.wait("viewer.state.slide.id === 's0'")
    page.key("p")
    page.wait("viewer.state.slide.id === 's5'")
    page.wait(IS_DRAWN)
    for key, layer in (("h", "heatmap"), ("g", "grid"), ("a", "annotation")):
        before = page.run(f"viewer.state.layers.{layer}")
        page.key(key)
        assert page.run(f"viewer.state.layers.{layer}") is not before
    page.key("e")
    page.wait("viewer.state.found || !document.getElementById('problem').hidden")


def test_the_first_error_of_a_slide_is_shown_first(page):
    """It was left out where errors of another slide had been looked at before."""
    page.run("""
      window.fetch = ((fetch) => async (path, options) => {
        const answer = await fetch(path, options);
        if (!/api.model/.test(path)) return answer;
        const errors = [1, 2].map((k) => ({ kind: "false_positive", x: 100 * k, y: 100 }));
        return new Response(JSON.stringify({ ...(await answer.json()), errors }));
      })(window.fetch)
    """)
    for key, slide in (("p", "s4"), ("n", "s5")):
        page.key(key)
        page.wait(f"viewer.state.slide?.id === '{slide}' && viewer.known.findings.patchnet")
        page.key("e")
        page.wait("viewer.state.found")
        assert round(page.run("viewer.state.found.x")) == 100


def test_a_copied_address_restores_the_view(page):
    page.wheel(*to_page(page, 200, 150), -300)
    page.wait("viewer.state.view.scale < 0.5")
    page.key("g")
    link = page.wait("location.hash.includes('grid') && location.href")
    before = page.run("({...viewer.state.view})")
    page.open("about:blank")
    page.open(link)
    page.wait(IS_DRAWN)
    after = page.run("({...viewer.state.view})")
    assert after == pytest.approx(before, rel=1e-3, abs=0.1)
    assert page.run("viewer.state.layers.grid") is True


def test_marks_are_kept_and_shown_again(page, copy):
    click_slide(page, 210, 170)
    page.run("document.getElementById('note').value = 'vessel <b>'")
    page.key("w")
    page.wait("viewer.known.review.features.length === 1")
    start, end = to_page(page, 60, 60), to_page(page, 100, 100)
    page.drag(start, end, shift=True)
    page.wait("viewer.state.region")
    page.key("q")
    page.wait("viewer.known.review.features.length === 2")
    review = json.loads((copy / "run/review/s5.geojson").read_text())
    first, second = review["features"]
    assert first["properties"]["name"] == "vessel <b>"
    assert second["properties"]["classification"]["name"] == "unsure"
    ring = np.array(second["geometry"]["coordinates"][0])
    np.testing.assert_allclose(ring.min(0), (60, 60), atol=1)
    np.testing.assert_allclose(ring.max(0), (100, 100), atol=1)
    page.run("document.querySelector('#review li [aria-label^=Remove]').click()")
    page.wait("viewer.known.review.features.length === 1")

    page.drag(start, end, shift=True)
    page.wait("document.getElementById('truth')")
    page.run("document.getElementById('truth').value = 'normal'")
    page.key("w")
    page.wait("viewer.known.review.features.length === 2")
    last = json.loads((copy / "run/review/s5.geojson").read_text())["features"][-1]
    assert last["properties"]["metadata"]["truth"] == "normal"
    assert "truth" not in second["properties"]["metadata"]


def test_problems_are_sentences_in_the_page(browser, copy):
    (copy / "data/s5.tif").unlink()
    with serve(copy / "run") as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s5")
        shown = browser.wait("document.getElementById('problem').textContent")
        assert "s5.tif is not where" in shown
        current = "document.querySelector('#list [aria-current]').dataset.id"
        assert (
            browser.run(current)
            == browser.run("document.getElementById('title').textContent")
            == "s5"
        )
        browser.key("p")
        browser.wait("viewer.state.slide?.id === 's4'")
        assert browser.run(current) == "s4"
        assert browser.run("document.getElementById('problem').hidden")
        browser.open("about:blank")


def test_answers_that_come_late_are_not_taken_for_the_slide_shown_then(page):
    """The lesions and scores of one slide were drawn on the next."""
    page.key("p")
    page.wait("viewer.state.slide?.id === 's4' && viewer.known.patches.patchnet")
    of_s4 = page.run("[...viewer.known.patches.patchnet.score].join()")
    page.run("""
      window.fetch = ((fetch) => async (path, options) => {
        const answer = await fetch(path, options);
        const isLate = /s5/.test(path) && !/api.slide/.test(path);
        if (isLate) await new Promise((done) => setTimeout(done, 900));
        return answer;
      })(window.fetch)
    """)
    page.key("n")
    page.wait("viewer.state.slide?.id === 's5'")
    page.key("p")
    page.wait("viewer.state.slide?.id === 's4' && viewer.known.patches.patchnet")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    assert page.run("[...viewer.known.patches.patchnet.score].join()") == of_s4
    assert page.run("viewer.known.findings.patchnet.lesions.length") == 0
    assert page.run("viewer.known.outlines.length") == 0


def test_what_qupath_saves_beside_polygons_does_no_harm(browser, copy):
    """A ruler's line in the file of the marks, and no tile was asked for any more."""
    square = [[0, 0], [40, 0], [40, 40], [0, 40], [0, 0]]
    shapes = [
        {"type": "LineString", "coordinates": [[0, 0], [9, 9]]},
        {"type": "Point", "coordinates": [5, 5]},
        None,
        {"type": "Polygon", "coordinates": [["?"]]},
        {"type": "MultiPolygon", "coordinates": [[square], [[[x + 80, y] for x, y in square]]]},
    ]
    features = [{"type": "Feature", "geometry": shape, "properties": None} for shape in shapes]
    path = RunFolder(copy / "run").review("s5")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([*features, None]))  # a bare list, as QuPath can write it
    with serve(copy / "run") as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s5")
        browser.wait("viewer.known.review?.features.length === 6")
        browser.wait("document.querySelectorAll('.marks .go').length === 5")
        browser.wait(IS_DRAWN)
        browser.run("document.querySelectorAll('.marks .go')[0].click()")
        browser.run("document.querySelectorAll('.marks .go')[4].click()")
        assert browser.run("[viewer.state.view.x, viewer.state.view.y]") == [60, 20]
        assert len(np.unique(look(browser)[300:500, 500:700])) > 10, "the slide is drawn"
        browser.open("about:blank")
    assert browser.problems == []


def test_a_patch_without_a_score_is_not_taken_for_one_below_the_threshold(page, copy):
    click_slide(page, 210, 170)
    page.run("viewer.state.found.patches[0].scores.patchnet = null, showReview()")
    page.key("w")
    page.wait("viewer.known.review.features.length === 1")
    (mark,) = json.loads((copy / "run/review/s5.geojson").read_text())["features"]
    assert "truth" not in mark["properties"]["metadata"]


def test_a_mark_that_is_changed_keeps_its_note(page, copy):
    for key in ("w", "r"):
        click_slide(page, 210, 170)
        if key == "w":
            page.run("document.getElementById('note').value = 'vessel'")
        page.key(key)
        page.wait(f"viewer.known.review.features[0]?.properties.classification.name[0] === '{key}'")
    (mark,) = json.loads((copy / "run/review/s5.geojson").read_text())["features"]
    assert mark["properties"]["metadata"]["note"] == "vessel"


def test_an_address_put_into_an_open_page_is_followed(page):
    page.run("location.hash = 'slide=s4&x=100&y=90&scale=0.5&opacity=0.2&layers=grid'")
    page.wait("viewer.state.slide?.id === 's4'")
    page.wait(IS_DRAWN)
    assert page.run("document.getElementById('opacity').value") == "0.2"
    assert page.run("document.getElementById('layer-grid').checked") is True
    assert page.run("document.getElementById('layer-heatmap').checked") is False
    assert page.run("[viewer.state.view.x, viewer.state.view.y]") == [100, 90]


def test_as_many_tiles_of_a_map_as_are_seen_are_kept(page):
    """More than 96 were asked for again and again."""
    page.wait("viewer.known.maps['patchnet/scores']?.levels")
    page.run("""
      window.asked = 0;
      window.fetch = ((fetch) => async (path, options) => {
        if (!/map.s5.patchnet.scores.0/.test(path)) return fetch(path, options);
        window.asked += 1;
        return new Response(new Float32Array(65536));
      })(window.fetch)
    """)
    page.run("""
      (() => {
        const map = viewer.known.maps["patchnet/scores"];
        map.levels = [[256 * 12, 256 * 10]];
        map.pixel_l0 = map.pixel_l0.map((side) => side / 400);
        zoomAt(viewer.panes[0], [0, 0], 1);
      })()
    """)
    page.wait("window.asked > 96")
    page.run("new Promise((done) => setTimeout(done, 1500))")
    first = page.run("window.asked")
    page.run("new Promise((done) => setTimeout(done, 700))")
    assert page.run("window.asked") == first


def test_a_phone_has_the_slide_and_drawers(page):
    page.resize((390, 844), 2, mobile=True)
    page.key("0")
    page.wait("viewer.panes[0].size[0] === 390")
    assert page.run("document.documentElement.scrollWidth") == 390
    assert page.run("getComputedStyle(document.getElementById('slides')).display") == "none"
    page.run("document.getElementById('open-slides').click()")
    assert page.run("getComputedStyle(document.getElementById('slides')).display") == "flex"
    page.resize((1200, 800))


def test_the_report_opens_the_slides_that_it_names(browser, copy):
    """Only where the viewer serves it: opened from its file, its names are no links."""
    links = "document.querySelectorAll('[data-view] a').length"
    browser.open(f"file://{copy}/run/report.html")
    browser.wait("document.querySelectorAll('[data-view]').length")
    assert browser.run(links) == 0
    with serve(copy / "run") as url:
        browser.open(url)
        browser.wait(IS_DRAWN)
        browser.run("document.getElementById('to-report').click()")
        browser.wait(links)
        place = browser.run("document.querySelector('#per-slide [data-view] a').textContent")
        browser.run("document.querySelector('#per-slide [data-view] a').click()")
        browser.wait("window.viewer?.state.slide && !location.pathname.includes('view')")
        assert browser.run("viewer.state.id") == place

        with (copy / "run/evaluation/patchnet/errors.csv").open(newline="") as file:
            error = next(csv.DictReader(file))
        browser.open(f"{url}report.html")
        browser.wait("document.querySelectorAll('#errors [data-view] a').length")
        browser.run("document.querySelector('#errors [data-view] a').click()")
        browser.wait("window.viewer?.state.found")
        (patch,) = browser.run("viewer.state.found.patches")
        assert [str(patch["x"]), str(patch["y"])] == [error["x"], error["y"]]
        assert browser.run("viewer.state.id") == error["slide_id"]
        browser.open("about:blank")


PALETTE = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)


SIZE = (2001, 800)


@pytest.mark.parametrize(
    ("mpp", "side", "bounds"),
    [
        ((0.5, 0.5), (41, 41), None),
        ((0.5, 0.25), (41, 41), None),
        ((0.26, 0.5), (37, 29), (1201, 333, 555, 301)),
    ],
    ids=["square", "half as high", "odd bounds and stride"],
)
def test_picture_and_heatmap_lie_on_the_same_slide_pixels(
    browser, tmp_path, monkeypatch, mpp, side, bounds
):
    """Blocks with colours and values of their own; the file's second level is 2.001."""
    monkeypatch.setattr(openslide_reader, "_read_bounds", lambda properties: bounds)
    rng = np.random.default_rng(1)
    shape = [-(-length // step) for length, step in zip(SIZE[::-1], side[::-1], strict=True)]
    blocks = rng.integers(0, 8, shape)
    pixels = np.repeat(np.repeat(PALETTE[blocks], side[1], axis=0), side[0], axis=1)
    pixels = pixels[: SIZE[1], : SIZE[0]]
    level = pixels[1::2, (np.arange(1000) * 2.001 + 1).astype(int)]
    write_slide(tmp_path / "s.tif", [pixels, level], mpp=mpp)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.manifest.write_text("slide,slide_id\n../s.tif,s\n")
    values = rng.uniform(0, 1, shape).astype(np.float32)
    values[3, 5] = np.nan
    heatmap = Heatmap(values, side, SIZE)
    run.heatmap("m", "s").parent.mkdir(parents=True)
    write_heatmap(run.heatmap("m", "s"), heatmap, mpp=mpp, name="s")
    with serve(run.path) as url:
        for scale in (2.7, 1, 0.3):
            browser.open("about:blank")
            browser.open(f"{url}#slide=s&x=1500&y=500&scale={scale}&layers=&model=m")
            browser.wait(IS_DRAWN)
            browser.wait("viewer.known.maps['m/scores']")
            assert browser.run("viewer.state.slide.bounds") == (bounds and list(bounds))
            for x, y in ((1500, 500), (1537, 486), (1463, 522)):
                column, row = x // side[0], y // side[1]
                x, y = side[0] * column + side[0] // 2, side[1] * row + side[1] // 2
                found = click_slide(browser, x, y)
                assert (found["x"], found["y"]) == pytest.approx((x, y), abs=2 * scale)
                assert np.float32(found["values"]["m"]["scores"]) == values[row, column]
                browser.key("Escape")
                at = [round(value) for value in to_page(browser, x, y)]
                picture = look(browser)
                near = np.abs(picture[at[1], at[0]].astype(int) - PALETTE[blocks[row, column]])
                assert near.max() < 40, (scale, x, y)
        # Enlarged, the values change exactly where the blocks do.
        column, row = 1500 // side[0], 500 // side[1]
        for x, y in ((0.6, 0.6), (side[0] - 0.6, side[1] - 0.6), (-0.6, 5), (5, -0.6)):
            found = click_slide(browser, side[0] * column + x, side[1] * row + y)
            value = values[row - (y < 0), column - (x < 0)]
            assert np.float32(found["values"]["m"]["scores"]) == value, (x, y)
        browser.open("about:blank")


@pytest.fixture
def tiled(tmp_path):
    """A run of one slide, tiled while one of its file tiles was damaged."""
    path = write_slide(tmp_path / "s.tif", [tissue(420, 340)], mpp=0.5)
    intact = path.read_bytes()
    break_file_tile(path, 16)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.manifest.write_text("slide,slide_id\n../s.tif,s\n")
    config = TileConfig(
        target_mpp=0.5, patch_px=32, tissue=TissueConfig(mpp=2.0, min_object_um2=100.0)
    )
    run.store("s").parent.mkdir()
    tile_slide(path, run.store("s"), slide_id="s", config=config, threads=1)
    return run, path, intact


def test_unreadable_patches_are_hatched(browser, tiled):
    run, path, intact = tiled
    path.write_bytes(intact)
    with PatchStore.open(run.store("s")) as store:
        places = store.coords[store.unreadable]
    assert len(places) >= 4
    with serve(run.path) as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s&x=210&y=170&scale=0.6")
        browser.wait(IS_DRAWN)
        browser.wait("viewer.known.patches['']")
        hatched = look(browser).astype(int)
        browser.key("u")
        plain = look(browser).astype(int)
        left, top, width, height = (round(value) for value in pane_box(browser))
        changed = (np.abs(hatched - plain).max(-1) > 8)[top : top + height, left : left + width]
        expected = np.zeros_like(changed)
        for x, y in places:
            x0, y0 = (round(at) for at in to_page(browser, x, y))
            x1, y1 = (round(at) for at in to_page(browser, x + 32, y + 32))
            expected[y0 - top : y1 - top, x0 - left : x1 - left] = True
        assert (changed & expected).sum() > 0.9 * expected.sum()
        inside = binary_dilation(expected, iterations=2)
        assert not (changed & ~inside).any()
        browser.open("about:blank")


def test_a_part_of_a_slide_that_cannot_be_read_is_named(browser, tiled):
    with serve(tiled[0].path) as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s&x=210&y=170&scale=0.6")
        said = browser.wait("document.getElementById('problem').textContent")
        assert "s.tif: cannot decode level 0" in said
        browser.open("about:blank")


def test_a_heatmap_that_is_not_whole_is_a_sentence_in_the_page(browser, copy):
    path = RunFolder(copy / "run").heatmap("patchnet", "s5")
    path.write_bytes(path.read_bytes()[:200])
    with serve(copy / "run") as url:
        browser.open("about:blank")
        browser.open(f"{url}#slide=s5")
        said = browser.wait("document.getElementById('problem').textContent")
        assert "s5.ome.tif" in said
        path.unlink()
        browser.open("about:blank")
        browser.open(f"{url}#slide=s5")
        browser.wait(IS_DRAWN)
        assert "wsi-pipeline heatmap" in browser.run("document.getElementById('map').textContent")
        browser.open("about:blank")


def test_a_run_that_is_removed_meanwhile_is_a_sentence_in_the_page(page, copy):
    shutil.rmtree(copy / "run")
    page.click(*to_page(page, 210, 170))
    said = page.wait("document.getElementById('problem').textContent")
    assert "the folder run of this run is not there any more" in said
    page.key("n")
    page.wait("viewer.state.id === 's0' && document.getElementById('problem').textContent")
    assert str(copy) not in page.run("document.body.textContent")
    page.problems.clear()  # the browser's own lines about the status 404


def look(browser):
    browser.wait(IS_DRAWN)
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
