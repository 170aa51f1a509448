"""What the viewer answers to each request: the routes, and the form of each answer."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from wsi_pipeline.errors import ViewError
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.shown_run import ShownRun

_TILE_AGE_S = 3600  # pixels of a slide do not change while it is looked at; heatmaps may
_MAX_NUMBER = 1 << 31


@dataclass(frozen=True)
class Answer:
    """The body of a response, and how long a browser may keep it."""

    body: bytes
    kind: str = "application/octet-stream"
    status: HTTPStatus = HTTPStatus.OK
    max_age: int = 0  # seconds
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_json(cls, value: Any) -> "Answer":
        """JSON; numbers that are not finite are null."""
        return cls(json.dumps(finite(value), allow_nan=False).encode(), "application/json")

    @classmethod
    def sentence(cls, text: str, status: HTTPStatus) -> "Answer":
        """What is wrong, for the page to show."""
        return cls(json.dumps({"error": text}).encode(), "application/json", status)


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks.

    Examples
    --------
    >>> finite({"a": [1, float("nan")]})
    {'a': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class Answers:
    """The routes of the viewer.

    Parameters
    ----------
    run : ShownRun
    reviews : Reviews
    """

    def __init__(self, run: ShownRun, reviews: Reviews) -> None:
        self._run = run
        self._reviews = reviews

    def get(self, path: list[str], query: Mapping[str, str]) -> Answer:
        """Answer a request that changes nothing.

        Raises
        ------
        PipelineError, TilingError
            With the sentence that the page shows.
        """
        match path:
            case ["report.html"]:
                return _page_of_run(self._run.report())
            case ["heatmaps", model, name]:  # which the report links
                return Answer(self._run.heatmap_picture(model, name), "image/png")
            case ["view", "index.html"]:  # where the report's links lead
                return Answer(b"", status=HTTPStatus.FOUND, headers={"Location": "../"})
            case ["api", "run"]:
                return self._with_problems(self._run.describe())
            case ["api", "slide", slide_id]:
                return Answer.of_json(self._run.slide(slide_id).describe())
            case ["api", "at", slide_id]:
                x, y = (_coordinate(query, name) for name in "xy")
                return self._with_problems(self._run.slide(slide_id).describe_place(x, y))
            case ["api", "model", slide_id, model]:
                return Answer.of_json(self._run.slide(slide_id).describe_model(model))
            case ["api", "review", slide_id]:
                return Answer.of_json(self._reviews.read(self._run.check(slide_id)))
            case ["api", "outlines", slide_id]:
                return Answer.of_json(self._run.slide(slide_id).outlines())
            case ["patches", slide_id]:
                return Answer(self._run.slide(slide_id).patches(query.get("model", "")))
            case ["thumbnail", slide_id]:
                return _picture(self._run.slide(slide_id).thumbnail())
            case ["tile", slide_id, zoom, column, row]:
                place = (_number(zoom), _number(column), _number(row))
                return _picture(self._run.slide(slide_id).tile(*place))
            case ["map", slide_id, model, name]:
                return Answer.of_json(self._run.slide(slide_id).describe_map(model, name))
            case ["map", slide_id, model, name, level, column, row]:
                place = (_number(level), _number(column), _number(row))
                return Answer(self._run.slide(slide_id).map_tile(model, name, *place))
            case ["patch", slide_id, patch]:
                return _picture(self._run.slide(slide_id).patch(_number(patch)))
            case ["explain", slide_id, patch, model, method]:
                picture = self._run.explain(slide_id, _number(patch), model, method)
                return Answer(picture, "image/png")
        raise ViewError("the viewer has no such page; open the address that it printed")

    def _with_problems(self, found: Mapping[str, Any]) -> Answer:
        problems = [self._run.hide_folders(text) for text in found["problems"]]
        return Answer.of_json({**found, "problems": problems})

    def describe(self, error: Exception) -> str:
        """What went wrong, for the page: files by their names, without the folders they are in."""
        return self._run.hide_folders(str(error))

    def close(self) -> None:
        """Close all files."""
        self._run.close()

    def post(self, path: list[str], value: Any) -> Answer:
        """Change a review.

        Raises
        ------
        ViewError
            If the value is no review.
        """
        match path:
            case ["api", "review", slide_id]:
                shown = self._run.slide(slide_id)
                return Answer.of_json(self._reviews.change(shown.slide_id, value, shown.size))
        raise ViewError("the viewer takes nothing but reviews")


def _page_of_run(html: bytes) -> Answer:
    """A page that a stage has written: it has a policy of its own, and no access to the viewer."""
    policy = (
        "sandbox allow-scripts allow-popups allow-popups-to-escape-sandbox; frame-ancestors 'none'"
    )
    return Answer(html, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy})


def _picture(jpeg: bytes) -> Answer:
    return Answer(jpeg, "image/jpeg", max_age=_TILE_AGE_S)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) >= _MAX_NUMBER:
        raise ViewError(f"{text!r} is no number of a tile or a patch")
    return int(text)


def _coordinate(query: Mapping[str, str], name: str) -> float:
    try:
        value = float(query[name])
    except (KeyError, ValueError) as error:
        raise ViewError("a place is x=NUMBER&y=NUMBER in level-0 px") from error
    if not math.isfinite(value):
        raise ViewError(f"{name} must be finite, got {value}")
    return value
