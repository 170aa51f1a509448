"""Line charts: what one shows, and how a page draws it as inline SVG.

A chart is a plain value, so that the page's picture and the paper's (`figures`) show the same.

Colours are the CSS classes ``series-0`` .. ``series-5``, so that charts follow light and dark.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from markupsafe import Markup, escape
from numpy.typing import NDArray

N_COLOURS = 6

_WIDTH, _HEIGHT = 460, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 46
_LEGEND_LINE = 18
_UNSEEN_PX = 0.2
_UNSEEN_SHARE = 5e-5  # half a pixel of a curve printed 8 cm wide at 3000 dots per inch
_SHORT = 2000  # points


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    x: NDArray[np.float64]  # (N,)
    y: NDArray[np.float64]  # (N,) NaN breaks the line
    colour: int = 0  # index of the series' colour
    dashed: bool = False
    marked: bool = False  # a dot at each point
    low: NDArray[np.float64] | None = None  # (M,) lower end of the band around the line
    high: NDArray[np.float64] | None = None  # (M,)
    band_x: NDArray[np.float64] | None = None  # (M,) where the band's ends are known


@dataclass(frozen=True)
class Axis:
    """One axis of a chart."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    scale: Literal["linear", "log"] = "linear"

    def place(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Position in [0, 1]; values beyond the ends are drawn at the ends."""
        clipped = np.clip(values, self.low, self.high)
        if self.scale == "linear":
            return (clipped - self.low) / (self.high - self.low)
        position: NDArray[np.float64] = np.log(clipped / self.low) / math.log(self.high / self.low)
        return position


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    title: str  # read out by screen readers; not drawn on the page
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    diagonal: bool = False  # the line of chance, or of perfect calibration, corner to corner


def share_axis(label: str) -> Axis:
    """Axis of a share: 0 to 1."""
    return Axis(label, 0.0, 1.0, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0))


def fitted_axis(label: str, values: NDArray[np.float64], *, whole: bool = False) -> Axis:
    """Axis with round ticks around `values`; `whole`: only whole numbers get a tick."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / 5)
    if whole:
        step = max(1.0, round(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(label, ticks[0], ticks[-1], ticks)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step - 1e-12)


def draw_chart(chart: Chart) -> Markup:
    """Draw a chart with a legend below; safe HTML, all text in it is escaped."""
    height = _HEIGHT + _LEGEND_LINE * len(chart.series)
    title = escape(chart.title)
    parts = [
        f'<svg class="chart" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{title}"><title>{title}</title>'
    ]
    parts += _draw_frame(chart.x, chart.y)
    if chart.diagonal:
        parts.append(
            f'<path class="chance" d="M{_x(0.0)} {_y(0.0)}L{_x(1.0)} {_y(1.0)}"/>',
        )
    for line in chart.series:
        parts += _draw_band(line, chart.x, chart.y)
    for line in chart.series:
        parts += _draw_series(line, chart.x, chart.y)
    for index, line in enumerate(chart.series):
        parts += _draw_legend(line, _HEIGHT + _LEGEND_LINE * index + 6)
    return Markup("".join(parts) + "</svg>")


def _x_px(position: NDArray[np.float64]) -> NDArray[np.float64]:
    return _LEFT + position * (_WIDTH - _LEFT - _RIGHT)


def _y_px(position: NDArray[np.float64]) -> NDArray[np.float64]:
    return _HEIGHT - _BOTTOM - position * (_HEIGHT - _TOP - _BOTTOM)


def _x(position: float) -> str:
    return f"{_x_px(np.array([position]))[0]:.1f}"


def _y(position: float) -> str:
    return f"{_y_px(np.array([position]))[0]:.1f}"


def _draw_frame(x: Axis, y: Axis) -> list[str]:
    left, right, bottom, top = _x(0), _x(1), _y(0), _y(1)
    parts = []
    for tick, at in zip(x.ticks, x.place(np.array(x.ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{_x(at)} {bottom}V{top}"/>')
        parts.append(f'<text x="{_x(at)}" y="{float(bottom) + 16:.1f}" class="mid">{tick:g}</text>')
    for tick, at in zip(y.ticks, y.place(np.array(y.ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{left} {_y(at)}H{right}"/>')
        position = f'x="{float(left) - 7:.1f}" y="{float(_y(at)) + 4:.1f}"'
        parts.append(f'<text {position} class="end">{tick:g}</text>')
    parts.append(f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>')
    parts.append(
        f'<text x="{_x(0.5)}" y="{_HEIGHT - 10}" class="mid label">{escape(x.label)}</text>'
    )
    middle = _y(0.5)
    parts.append(
        f'<text x="14" y="{middle}" class="mid label" transform="rotate(-90 14 {middle})">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _draw_band(series: Series, x: Axis, y: Axis) -> list[str]:
    if series.band_x is None or series.low is None or series.high is None:
        return []
    known = np.flatnonzero(np.isfinite(series.low) & np.isfinite(series.high))
    if known.size < 2:
        return []
    across = x.place(series.band_x[known])
    low, high = y.place(series.low[known]), y.place(series.high[known])
    outline = _path(np.append(across, across[::-1]), np.append(high, low[::-1]))
    return [f'<path class="band series-{series.colour % N_COLOURS}" d="{outline}Z"/>']


def _draw_series(series: Series, x: Axis, y: Axis) -> list[str]:
    across, up = x.place(series.x), y.place(series.y)
    css = f"line series-{series.colour % N_COLOURS}" + (" dashed" if series.dashed else "")
    parts = [f'<path class="{css}" d="{_path(across, up)}"/>']
    finite = np.isfinite(up)
    beside = np.append(False, finite[:-1]) | np.append(finite[1:], False)
    for a, b, joined in zip(across[finite], up[finite], beside[finite].tolist(), strict=True):
        if series.marked or not joined:  # a line of one point is a dot, filled to be seen
            kind, radius = ("dot", 2.6) if joined else ("dot lone", 4.5)
            parts.append(
                f'<circle class="{kind} series-{series.colour % N_COLOURS}" '
                f'cx="{_x(float(a))}" cy="{_y(float(b))}" r="{radius}"/>'
            )
    return parts


def _path(across: NDArray[np.float64], up: NDArray[np.float64]) -> str:
    """Draw a line through positions in [0, 1]; what is not finite breaks it."""
    points = np.stack([_x_px(across), _y_px(up)], axis=1)
    finite = np.isfinite(points).all(axis=1)
    breaks = np.flatnonzero(np.diff(finite)) + 1
    runs = [run for run in np.split(points, breaks) if run.size and np.isfinite(run).all()]
    return "".join(
        "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in simplify(run).tolist()) for run in runs
    )


def simplify(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out the points of a line that cannot be seen.

    Parameters
    ----------
    points : (N, 2) px

    Returns
    -------
    kept : (M, 2) px
        The ends and all corners; the line is nowhere more than `_UNSEEN_PX` from where it was.
    """
    rounded = points.round(1)
    moved = np.append(True, (np.diff(rounded, axis=0) != 0).any(axis=1))
    kept: NDArray[np.float64] = rounded[moved]
    if len(kept) < 3:
        return kept
    line = shapely.LineString(kept).simplify(_UNSEEN_PX, preserve_topology=False)
    corners: NDArray[np.float64] = np.asarray(line.coords, np.float64)
    return corners


def thin_out(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Leave out points of a long curve of shares that no print shows.

    Parameters
    ----------
    points : (N, 2) in [0, 1]

    Returns
    -------
    kept : (M, 2)
        Some of the points, the ends among them; the line is nowhere more than `_UNSEEN_SHARE` from
        where it was. Curves of at most `_SHORT` points are kept whole.
    """
    if len(points) <= _SHORT:
        return points
    line = shapely.LineString(points).simplify(_UNSEEN_SHARE, preserve_topology=False)
    return np.asarray(line.coords, np.float64)


def _draw_legend(series: Series, y: float) -> list[str]:
    css = f"line series-{series.colour % N_COLOURS}" + (" dashed" if series.dashed else "")
    return [
        f'<path class="{css}" d="M{_LEFT} {y:.1f}h26"/>',
        f'<text x="{_LEFT + 34}" y="{y + 4:.1f}">{escape(series.name)}</text>',
    ]


def sample_curve(
    f: Callable[[NDArray[np.float64]], NDArray[np.float64]], x: Axis, *, n: int = 240
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sample a function evenly along the axis as drawn."""
    space = np.geomspace if x.scale == "log" else np.linspace
    points = np.asarray(space(x.low, x.high, n), np.float64)
    return points, f(points)
