"""Pages of single slides that open from their files, without a server: `view --export`.

A page is the viewer's own, with what the server would answer inside it, up to a limit of bytes:
all zoom levels that fit, then the surroundings of errors, missed lesions and the highest scores in
full detail.
"""

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tiling.errors import TilingError
from tiling.files import open_file, write_text
from tiling.wording import pluralize
from wsi_pipeline.contracts import PrintLine
from wsi_pipeline.errors import HeatmapError, PipelineError, ViewError
from wsi_pipeline.report.page import digest_source
from wsi_pipeline.viewer import maps
from wsi_pipeline.viewer.answers import finite
from wsi_pipeline.viewer.pyramid import TILE_PX, count_zooms, encode_tile
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.shown_run import ShownRun
from wsi_pipeline.viewer.shown_slide import PATCH, ShownSlide

DEFAULT_WORST = 10  # slides
DEFAULT_LIMIT_MB = 8.0  # of a page
_N_HIGHEST = 12  # scores whose surroundings are shown
_FLAT = 8  # a tile whose values differ by less looks like the coarser one in its place
_MARK = '<meta name="generator" content="wsi-pipeline view">'


def rank_worst(slides: Sequence[Mapping[str, Any]], models: Sequence[str]) -> list[str]:
    """Order slides, the worst first: the largest distance of a model's score from the label.

    At the same distance, those with more missed lesions come first. Slides without a label follow,
    the highest score first, then those without a score.

    Parameters
    ----------
    slides : sequence of mapping
        As `ShownRun.describe` has them.
    models : sequence of str

    Returns
    -------
    slide_ids : list of str

    Examples
    --------
    >>> slides = [{"id": name, "label": label, "scores": {"m": score}, "missed": {"m": 0}}
    ...           for name, label, score in (("a", 1, 0.9), ("b", 0, 0.8), ("c", None, 0.99))]
    >>> rank_worst(slides, ["m"])
    ['b', 'a', 'c']
    """

    def badness(slide: Mapping[str, Any]) -> tuple[float, ...]:
        scores = [s for model in models if (s := slide["scores"].get(model)) is not None]
        if not scores:
            return (2,)
        label = slide["label"]
        if label is None:
            return 1, -max(scores)
        n_missed = max(slide["missed"].get(model) or 0 for model in models)
        return 0, -max(abs(label - score) for score in scores), -n_missed

    return [slide["id"] for slide in sorted(slides, key=badness)]


def export_pages(
    run: ShownRun,
    reviews: Reviews,
    out: Path,
    *,
    slides: Sequence[str] = (),
    worst: int = DEFAULT_WORST,
    models: Sequence[str] = (),
    limit: int = int(DEFAULT_LIMIT_MB * 1e6),
    print_line: PrintLine = lambda line: None,
) -> list[str]:
    """Write a page for each slide, and ``index.html``, which opens the first.

    Parameters
    ----------
    run : ShownRun
    reviews : Reviews
    out : Path
        Folder; new, empty, or of an earlier export, whose pages are replaced.
    slides : sequence of str
        Which slides; none: the `worst`.
    worst : int
    models : sequence of str
        Which models; none: all.
    limit : bytes
        Of each page.
    print_line : function
        Gets a line for each page.

    Returns
    -------
    problems : list of str
        Why slides have no page, one sentence each.

    Raises
    ------
    ViewError
        If a slide or model is not in the run, the folder holds other files, or no slide can be
        shown.
    """
    described = run.describe()
    names = [model["name"] for model in described["models"]]
    if unknown := [name for name in models if name not in names]:
        raise ViewError(
            f"{', '.join(unknown)}: this run has no such model; it has {', '.join(names) or 'none'}"
        )
    _check_folder(out)
    chosen = [*dict.fromkeys(models)] or names
    ids = list(dict.fromkeys(run.check(slide_id) for slide_id in slides))
    ids = ids or rank_worst(described["slides"], chosen)[:worst]
    thumbnails, problems = {}, []
    for slide_id in ids:
        try:
            _add_needed(_Inside(limit, {}, {}), run.slide(slide_id), chosen, reviews)
            thumbnails[slide_id] = run.slide(slide_id).thumbnail()
        except (PipelineError, TilingError) as error:
            problems.append(f"{slide_id}: no page, as {error}")
    if not thumbnails:
        raise ViewError(f"no slide can be shown; {problems[0] if problems else 'there is none'}")
    listed = {slide["id"]: slide for slide in described["slides"]}
    head = {
        **described,
        "has_report": False,
        "problems": [],
        "models": [
            {**model, "methods": []} for model in described["models"] if model["name"] in chosen
        ],
        "slides": [listed[slide_id] for slide_id in thumbnails],
    }
    pages = out / "slides"
    write_text(out / "index.html", _Inside(limit, head, {}).render("", folder="slides/"))
    for path in pages.glob("*.html"):  # of slides of an earlier export
        if path.name.removesuffix(".html") not in thumbnails and _is_ours(path):
            path.unlink()
    for number, slide_id in enumerate(thumbnails, 1):
        inside = _Inside(limit, head, thumbnails)
        held = _fill(inside, run.slide(slide_id), chosen, reviews)
        page = inside.render(held)
        write_text(pages / f"{slide_id}.html", page)
        n_bytes = len(page.encode())
        print_line(f"[{number}/{len(thumbnails)}] {slide_id}: {n_bytes / 1e6:.1f} MB, {held}")
    return problems


def _check_folder(out: Path) -> None:
    """Refuse a folder of other files: some could have the names of pages."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not _is_ours(out / "index.html")):
        raise ViewError(f"{out}: holds other files than an earlier export; give a new folder")


def _is_ours(page: Path) -> bool:
    if not page.is_file():
        return False
    with open_file(page, "rb") as file:
        return _MARK.encode() in file.read(1000)


@dataclass
class _Inside:
    """What a page holds: the viewer's answers, by request as the page writes it."""

    limit: int  # bytes of the page
    head: Mapping[str, Any]  # of the run
    thumbnails: Mapping[str, bytes]
    n_bytes: int = 0
    answers: dict[str, str] = field(default_factory=dict)  # JSON

    def __post_init__(self) -> None:
        """Add what every page has."""
        self.n_bytes = len(_page().encode()) + 2000
        self.must(_request("api", "run"), "json", self.head)
        quarter = self.n_bytes + (self.limit - self.n_bytes) / 4
        for slide_id, jpeg in self.thumbnails.items():  # of many slides, of the first ones
            self.try_all({_request("thumbnail", slide_id): ("jpeg", jpeg)}, limit=quarter)

    def must(self, request: str, kind: str, value: Any) -> None:
        """Add an answer.

        Raises
        ------
        ViewError
            If it passes the limit.
        """
        if not self.try_all({request: (kind, value)}):
            raise ViewError(
                f"a page has no room for {request}; give --limit more than {self.limit / 1e6:g} MB"
            )

    def try_all(self, answers: Mapping[str, tuple[str, Any]], *, limit: float = np.inf) -> bool:
        """Add answers unless they pass the limit together: all or none."""
        texts = {
            request: _encode(kind, value)
            for request, (kind, value) in answers.items()
            if request not in self.answers
        }
        n_bytes = sum(len(request) + len(text) + 8 for request, text in texts.items())
        if self.n_bytes + n_bytes > min(self.limit, limit):
            return False
        self.answers |= texts
        self.n_bytes += n_bytes
        return True

    def render(self, held: str, *, folder: str = "") -> str:
        """Return the page; `folder` is that of the slides' pages, as a link from this one."""
        parts = ", ".join(f"{_script_json(key)}: {text}" for key, text in self.answers.items())
        sentence = f"This page holds the slide with {held}." if held else ""
        inside = (
            f'{{"folder": {_script_json(folder)}, "held": {_script_json(sentence)}, '
            f'"answers": {{{parts}}}}}'
        )
        data = f'<script id="inside" type="application/json">{inside}</script>\n'
        page = _page()
        before = page.index("<script>")
        return page[:before] + data + page[before:]


def _add_needed(
    inside: _Inside, shown: ShownSlide, models: Sequence[str], reviews: Reviews
) -> dict[str, dict[str, Any]]:
    """Add what a page cannot be without; return what is known of each model, and its patches.

    Raises
    ------
    ViewError
        If it passes the limit.
    PipelineError, TilingError
        If something cannot be read.
    """
    slide_id = shown.slide_id
    inside.must(*_tile(shown, count_zooms(shown.size) - 1, 0, 0, flat=True))
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        found[model] = shown.describe_model(model)
        inside.must(_request("api", "model", slide_id, model), "json", found[model])
    for model in models or [""]:  # without one, patches have no scores
        patches = shown.patches(model)
        request = f"{_request('patches', slide_id)}?model={_request(model)}"
        inside.must(request, "deflated", patches)
        found.setdefault(model, {"errors": [], "lesions": []})["patches"] = patches
    inside.must(_request("api", "outlines", slide_id), "json", shown.outlines())
    inside.must(_request("api", "review", slide_id), "json", reviews.read(slide_id))
    return found


def _fill(inside: _Inside, shown: ShownSlide, models: Sequence[str], reviews: Reviews) -> str:
    """Add a slide to its page, and say in how much detail."""
    found = _add_needed(inside, shown, models, reviews)
    slide = shown.describe()
    zoom = count_zooms(shown.size) - 1
    kept, left_out = _add_maps(inside, shown, {m: slide["maps"].get(m, []) for m in models})
    inside.must(_request("api", "slide", shown.slide_id), "json", {**slide, "maps": kept})
    while zoom > 0 and _add_zoom(inside, shown, zoom - 1):
        zoom -= 1
    side = slide["patch_l0"] or (TILE_PX, TILE_PX)
    detail = max(0, int(np.log2(max(side) / TILE_PX)))
    n_places = 0
    if detail < zoom:
        for place in _list_places(found, side):
            n_places += _add_place(inside, shown, detail, place, side)
    held = f"pixels down to {_name_scale(slide['mpp'], zoom)}"
    if n_places:
        held += f", {pluralize(n_places, 'place')} at {_name_scale(slide['mpp'], detail)}"
    return f"{held}, without {pluralize(left_out, 'map')}" if left_out else held


def _add_maps(
    inside: _Inside, shown: ShownSlide, names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], int]:
    """Add the maps that fit into half of the page, scores first; return them, and what did not."""
    kept: dict[str, list[str]] = {model: [] for model in names}
    n_out = 0
    pairs = [(model, name) for model, found in names.items() for name in found]
    pairs.sort(key=lambda pair: pair[1] != names[pair[0]][0])
    for model, name in pairs:
        try:
            about = shown.describe_map(model, name)
        except HeatmapError:  # damaged
            n_out += 1
            continue
        path = ("map", shown.slide_id, model, name)
        answers: dict[str, tuple[str, Any]] = {_request(*path): ("json", about)}
        for level, size in enumerate(about["levels"]):
            for column, row in _tiles_of(size, maps.TILE_PX):
                values = shown.map_tile(model, name, level, column, row)
                if not np.isnan(np.frombuffer(values, "<f4")).all():
                    answers[_request(*path, level, column, row)] = ("deflated", values)
        if inside.try_all(answers, limit=inside.limit / 2):
            kept[model].append(name)
        else:
            n_out += 1
    return kept, n_out


def _tiles_of(size: Sequence[int], side: int) -> Iterator[tuple[int, int]]:
    for row in range(-(-size[1] // side)):
        for column in range(-(-size[0] // side)):
            yield column, row


def _tile(
    shown: ShownSlide, zoom: int, column: int, row: int, *, flat: bool = False
) -> tuple[str, str, bytes]:
    """A tile's request, kind and JPEG; empty where nothing is on it, unless `flat`."""
    pixels = shown.pyramid.read(zoom, column, row)
    jpeg = encode_tile(pixels) if flat or np.ptp(pixels) >= _FLAT else b""
    return _request("tile", shown.slide_id, zoom, column, row), "jpeg", jpeg


def _read_tiles(
    shown: ShownSlide, zoom: int, places: Iterator[tuple[int, int]], most: float
) -> dict[str, tuple[str, Any]] | None:
    """Read tiles; None as soon as they have more than `most` bytes."""
    found: dict[str, tuple[str, Any]] = {}
    n_bytes = 0.0
    for column, row in places:
        try:
            request, kind, jpeg = _tile(shown, zoom, column, row)
        except TilingError:  # damaged there: the coarser tile remains
            continue
        n_bytes += len(jpeg) * 4 / 3
        if n_bytes > most:
            return None
        if jpeg:
            found[request] = (kind, jpeg)
    return found


def _add_zoom(inside: _Inside, shown: ShownSlide, zoom: int) -> bool:
    side = TILE_PX << zoom
    answers = _read_tiles(shown, zoom, _tiles_of(shown.size, side), inside.limit - inside.n_bytes)
    return answers is not None and inside.try_all(answers)


def _list_places(
    found: Mapping[str, Mapping[str, Any]], side: Sequence[float]
) -> Iterator[tuple[float, float]]:
    """Centres of what is looked at, level-0 px: of each model in turn its next place.

    The errors that its evaluation lists, the lesions that it missed, its highest scores.
    """
    lists = [
        [(one["x"], one["y"]) for one in about["errors"]]
        + [(lesion["x"], lesion["y"]) for lesion in about["lesions"] if _is_missed(lesion)]
        + _find_highest(np.frombuffer(about["patches"], PATCH), side)
        for model, about in found.items()
    ]
    for rank in range(max(map(len, lists), default=0)):
        yield from (places[rank] for places in lists if rank < len(places))


def _is_missed(lesion: Mapping[str, Any]) -> bool:
    return lesion["status"] == "missed" and lesion["x"] is not None


def _find_highest(patches: NDArray[np.void], side: Sequence[float]) -> list[tuple[float, float]]:
    """Centres of the patches with the highest scores, three patches apart."""
    scored = patches[~np.isnan(patches["score"])]
    places: list[tuple[float, float]] = []
    for one in scored[np.argsort(-scored["score"], kind="stable")]:
        x, y = float(one["x"]) + side[0] / 2, float(one["y"]) + side[1] / 2
        if all(abs(x - a) >= 3 * side[0] or abs(y - b) >= 3 * side[1] for a, b in places):
            places.append((x, y))
        if len(places) == _N_HIGHEST:
            break
    return places


def _add_place(
    inside: _Inside,
    shown: ShownSlide,
    zoom: int,
    centre: tuple[float, float],
    side: Sequence[float],
) -> bool:
    """Add the tiles of a patch and of one patch around it."""
    tile = TILE_PX << zoom
    first, last = (
        [int((at + sign * 1.5 * length) // tile) for at, length in zip(centre, side, strict=True)]
        for sign in (-1, 1)
    )
    places = (
        (column, row)
        for row in range(first[1], last[1] + 1)
        for column in range(first[0], last[0] + 1)
        if shown.pyramid.has(zoom, column, row)
    )
    answers = _read_tiles(shown, zoom, places, inside.limit - inside.n_bytes)
    return answers is not None and inside.try_all(answers)


def _name_scale(mpp: Sequence[float] | None, zoom: int) -> str:
    """Name the size of a pixel.

    Examples
    --------
    >>> _name_scale((0.25, 0.5), 3), _name_scale(None, 3)
    ('2 µm', '8 px')
    """
    return f"{1 << zoom} px" if mpp is None else f"{float(mpp[0]) * (1 << zoom):.3g} µm"


def _request(*parts: object) -> str:
    """A request as the page writes it: each part as JavaScript's ``encodeURIComponent``."""
    return "/".join(quote(str(part), safe="!~*'()") for part in parts)


def _encode(kind: str, value: Any) -> str:
    if kind == "deflated":
        value = zlib.compress(value, 9)
    return _script_json({kind: value if kind == "json" else base64.b64encode(value).decode()})


def _script_json(value: Any) -> str:
    """JSON that ends no script element."""
    return json.dumps(finite(value), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _page() -> str:
    """The viewer's page as one file, which loads and sends nothing."""
    html, css, js = (
        files("wsi_pipeline.viewer").joinpath(f"viewer.{suffix}").read_text("utf-8")
        for suffix in ("html", "css", "js")
    )
    policy = (
        f"default-src 'none'; script-src {digest_source(js)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    head = f'{_MARK}\n<meta http-equiv="Content-Security-Policy" content="{policy}">'
    return (
        html.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{head}')
        .replace('<link rel="stylesheet" href="viewer.css">', f"<style>{css}</style>")
        .replace('<script src="viewer.js"></script>', f"<script>{js}</script>")
    )
