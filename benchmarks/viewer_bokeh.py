"""The viewer's page against one made with bokeh, on the same server, slide and heatmap.

Bokeh is no dependency: ``pip install bokeh`` somewhere, and name the folder by ``--bokeh`` where it
is not importable; without it, nothing is compared. Both pages come from one server pinned to one
core, with the same tiles (`benchmarks/viewer.py` describes the slide) and the same heatmap: bokeh's
as a static page (``WMTSTileSource``, an image glyph with the values, pan and wheel tools), which is
faster than with bokeh's own server in between. In turn, in one headless Chromium without a GPU:

- from navigation to the first tile drawn, and to the last new one (then none for a second);
- a drag by real mouse events, 60 of 10 px: frames in which tiles were drawn, per second; the
  longest pause between two frames; from its end to the last new tile;
- a step of the wheel: from it to the last new tile; then the page's heap.

    python benchmarks/viewer_bokeh.py [--bokeh FOLDER]
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import slides
import viewer as viewer_benchmark
from viewer import GIGA, MAP_PX, draw_run

from tests.helpers.browser import Browser
from tiling.files import write_json
from wsi_pipeline.heatmaps.files import read_heatmap
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.answers import Answers
from wsi_pipeline.viewer.pyramid import TILE_PX, count_zooms
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.server import Viewer
from wsi_pipeline.viewer.shown_run import ShownRun

RESULT = Path(__file__).parent / "results" / "viewer_bokeh.json"
WINDOW = (1200, 800)
AT, SCALE = (75_000, 76_000), 8.0  # the view, level-0 px; level-0 px per px of the screen
N_ZOOMS = count_zooms(slides.GIGA_SIZE)
WATCH = """
window.seen = { first: 0, last: 0, frames: 0, longest: 0 };
{
  const known = new WeakSet();
  let isDrawn = false, before = 0;
  const drawImage = CanvasRenderingContext2D.prototype.drawImage;
  CanvasRenderingContext2D.prototype.drawImage = function (picture, ...place) {
    const isTile = picture instanceof ImageBitmap
      || (picture instanceof HTMLImageElement && picture.naturalWidth === 256);
    if (isTile) {
      isDrawn = true;
      if (!known.has(picture)) {
        known.add(picture);
        window.seen.last = performance.now();
        window.seen.first ||= window.seen.last;
      }
    }
    return drawImage.call(this, picture, ...place);
  };
  const count = (now) => {
    window.seen.frames += isDrawn;
    window.seen.longest = Math.max(window.seen.longest, now - (before || now));
    [isDrawn, before] = [false, now];
    requestAnimationFrame(count);
  };
  requestAnimationFrame(count);
}
"""
IS_QUIET = "window.seen?.first && performance.now() > 1000 + Math.max(window.seen.last, window.at)"


class BothAnswers(Answers):
    """The viewer's, and tiles by bokeh's numbers: zoom 0 is the coarsest."""

    def get(self, path, query):
        """Answer one request."""
        if path[0] == "numbered":
            path = ["tile", path[1], str(N_ZOOMS - 1 - int(path[2])), *path[3:]]
        return super().get(path, query)


def make_pages(run, size):
    """The bokeh page and its two scripts, by name."""
    import bokeh
    from bokeh.embed import json_item
    from bokeh.models import Range1d, WMTSTileSource
    from bokeh.plotting import figure

    side = TILE_PX << (N_ZOOMS - 1)  # of the square that bokeh takes for the world; y is upwards
    half = [SCALE * length / 2 for length in size]
    plot = figure(
        width=size[0],
        height=size[1],
        x_range=Range1d(AT[0] - half[0], AT[0] + half[0]),
        y_range=Range1d(side - AT[1] - half[1], side - AT[1] + half[1]),
        tools="pan,wheel_zoom",
        active_scroll="wheel_zoom",
        toolbar_location=None,
        min_border=0,
    )
    plot.axis.visible = False
    source = WMTSTileSource(
        url=f"numbered/{GIGA[0]}/{{Z}}/{{X}}/{{Y}}",
        tile_size=TILE_PX,
        x_origin_offset=0,
        y_origin_offset=0,
        initial_resolution=2 ** (N_ZOOMS - 1),
        max_zoom=N_ZOOMS - 1,
        wrap_around=False,
    )
    plot.add_tile(source)
    values = read_heatmap(RunFolder(run).heatmap("drawn", GIGA[0])).values
    height, width = (length * MAP_PX for length in values.shape)
    plot.image(
        image=[np.ascontiguousarray(values[::-1])],
        x=0, y=side - height, dw=width, dh=height, palette="Viridis256", global_alpha=0.5,
    )  # fmt: skip
    script = f"Bokeh.embed.embed_item({json.dumps(json_item(plot, 'plot'))});"
    page = (
        '<!doctype html><meta charset="utf-8"><body style="margin:0"><div id="plot"></div>'
        '<script src="bokeh.min.js"></script><script src="plot.js"></script>'
    )
    library = Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js"
    return {
        "bokeh.html": (page.encode(), "text/html; charset=utf-8"),
        "plot.js": (script.encode(), "text/javascript; charset=utf-8"),
        "bokeh.min.js": (library.read_bytes(), "text/javascript; charset=utf-8"),
    }


def serve_both(run, size):
    """Serve the viewer and the bokeh page until killed."""
    folder = RunFolder(run)
    server = Viewer(BothAnswers(ShownRun(folder, budget=384 << 20), Reviews(folder)))
    server.pages |= make_pages(run, size)
    print(f"view: {server.address.url}", flush=True)
    server.serve_forever()


def measure(browser, url, middle):
    """All figures of one page, from a navigation on."""
    browser.open("about:blank")
    browser.call("Network.clearBrowserCache")
    browser.open(url)
    browser.run("window.at = 0")
    browser.wait(IS_QUIET)
    found = {f"{name}_s": browser.run(f"window.seen.{name}") / 1e3 for name in ("first", "last")}

    x, y = middle
    browser.mouse("mouseMoved", x + 300, y)
    browser.mouse("mousePressed", x + 300, y)
    browser.run("Object.assign(window.seen, {frames: 0, longest: 0})")
    start = time.perf_counter()
    for step in range(1, 61):
        browser.mouse("mouseMoved", x + 300 - 10 * step, y, held=True)
        time.sleep(max(0.0, start + step / 60 - time.perf_counter()))
    seconds = time.perf_counter() - start
    frames, longest = browser.run("[window.seen.frames, window.seen.longest]")
    browser.mouse("mouseReleased", x - 300, y)
    found |= {"frames_per_s": frames / seconds, "longest_pause_ms": longest}
    found["after_drag_s"] = after(browser)

    browser.wheel(x, y, -300)
    found["after_wheel_s"] = after(browser)
    browser.call("Performance.enable")
    metrics = browser.call("Performance.getMetrics")["metrics"]
    [heap] = [one["value"] for one in metrics if one["name"] == "JSHeapUsedSize"]
    return found | {"heap_mib": heap / 2**20}


def after(browser):
    """Seconds from now to the last new tile."""
    at = browser.run("window.at = performance.now()")
    browser.wait(IS_QUIET)
    return max(0.0, browser.run("window.seen.last") - at) / 1e3


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0, help="of the server")
    parser.add_argument("--bokeh", help="folder with bokeh's package")
    parser.add_argument("--slide", type=Path, help="made before by slides.make_giga")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bokeh:
        sys.path.append(arguments.bokeh)
    if importlib.util.find_spec("bokeh") is None:
        print("bokeh is not installed: nothing to compare with")
        return
    if arguments.serve:
        run, *size = arguments.serve
        serve_both(Path(run), [int(length) for length in size])
        return
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {arguments.core} or {arguments.core})
    rows = {"ours": [], "bokeh": []}
    with tempfile.TemporaryDirectory() as name:
        slide = arguments.slide or slides.make_giga(Path(name) / "giga.tif")
        run, _ = draw_run(Path(name), slide)
        browser = Browser(WINDOW)
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=WATCH)
        try:
            with viewer_benchmark.serve(run, arguments.core) as server:
                box = find_box(browser, f"{server.url}#slide={GIGA[1]}")
            size = [round(box["width"]), round(box["height"])]
            again = [__file__, "--serve", str(run), *map(str, size)]
            again += ["--bokeh", arguments.bokeh] if arguments.bokeh else []
            middles = {
                "ours": (box["x"] + size[0] / 2, box["y"] + size[1] / 2),
                "bokeh": (size[0] / 2, size[1] / 2),
            }
            paths = {
                "ours": f"#slide={GIGA[0]}&x={AT[0]}&y={AT[1]}&scale={SCALE}",
                "bokeh": "bokeh.html",
            }
            for number in range(arguments.rounds):
                order = ("ours", "bokeh") if number % 2 else ("bokeh", "ours")
                for what in order:  # each with a server of its own: none finds the other's tiles
                    with viewer_benchmark.serve(run, arguments.core, script=again) as server:
                        viewer_benchmark.get(server, f"tile/{GIGA[0]}/9/0/0")  # the slide is open
                        rows[what].append(measure(browser, server.url + paths[what], middles[what]))
                        browser.open("about:blank")
                print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
        finally:
            browser.close()
    for key in rows["ours"][0]:
        cells = [viewer_benchmark.spread([one[key] for one in rows[what]], 2) for what in rows]
        print(f"| {key} | {' | '.join(cells)} |")
    write_json(arguments.out, {"benchmark": "viewer_bokeh", "rows": rows})


def find_box(browser, url):
    """Where the viewer's slide is in the window."""
    browser.open(url)
    browser.wait("window.viewer && viewer.panes.length && viewer.panes[0].size[0]")
    box = browser.run("viewer.panes[0].canvas.getBoundingClientRect().toJSON()")
    browser.open("about:blank")
    return box


if __name__ == "__main__":
    main()
