"""The page in a real browser: real clicks and keys."""

import io
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from tests.helpers.browser import Browser
from tests.helpers.html_pages import CHROMIUM
from tests.helpers.slides import write_slide
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
        browser.open("about:blank")


PALETTE = np.array([[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)], np.uint8)


@pytest.mark.parametrize("mpp", [(0.5, 0.5), (0.5, 0.25)])
def test_picture_and_heatmap_lie_on_the_same_slide_pixels(browser, tmp_path, mpp):
    """Blocks of 41 px with colours and values of their own; the file's second level is 2.001."""
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 8, (20, 49))
    pixels = np.repeat(np.repeat(PALETTE[blocks], 41, axis=0), 41, axis=1)[:800, :2001]
    level = pixels[1::2, (np.arange(1000) * 2.001 + 1).astype(int)]
    write_slide(tmp_path / "s.tif", [pixels, level], mpp=mpp)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.manifest.write_text("slide,slide_id\n../s.tif,s\n")
    values = rng.uniform(0, 1, (20, 49)).astype(np.float32)
    values[3, 5] = np.nan
    heatmap = Heatmap(values, (41, 41), (2001, 800))
    run.heatmap("m", "s").parent.mkdir(parents=True)
    write_heatmap(run.heatmap("m", "s"), heatmap, mpp=mpp, name="s")
    with serve(run.path) as url:
        for scale in (2.7, 1, 0.3):
            browser.open("about:blank")
            browser.open(f"{url}#slide=s&x=1500&y=500&scale={scale}&layers=&model=m")
            browser.wait(IS_DRAWN)
            browser.wait("viewer.known.maps['m/scores']")
            for x, y in ((1500, 500), (1537, 486), (1463, 522)):
                row, column = y // 41, x // 41
                x, y = 41 * column + 20, 41 * row + 20
                found = click_slide(browser, x, y)
                assert np.float32(found["values"]["m"]["scores"]) == values[row, column]
                browser.key("Escape")
                at = [round(value) for value in to_page(browser, x, y)]
                picture = look(browser)
                near = np.abs(picture[at[1], at[0]].astype(int) - PALETTE[blocks[row, column]])
                assert near.max() < 40, (scale, x, y)
            browser.open("about:blank")


def look(browser):
    browser.wait(IS_DRAWN)
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    return np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB"))
