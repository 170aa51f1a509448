"""What all pages share: one style, one script, numbers with their intervals, charts as SVG."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any
from urllib.parse import urlencode

import jinja2
from markupsafe import Markup

from tiling.wording import format_number, format_percent, plural
from wsi_pipeline import __version__
from wsi_pipeline.report.charts import draw_chart


@dataclass(frozen=True)
class Figure:
    """A number with its interval, or why there is none."""

    value: float | None
    interval: tuple[float, float] | None = None
    reason: str = ""  # why there is no value
    method: str = ""  # of the interval
    no_interval: str = ""  # why there is none


def render_page(template: str, values: Mapping[str, Any]) -> str:
    """Render one of the pages as HTML that needs no other file.

    Parameters
    ----------
    template : str
        Name of a file in the folder of this module.
    values : mapping
        What the template shows; strings in it are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("wsi_pipeline.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=show_number,
        figure=show_figure,
        phrase=phrase_figure,
        shared_reason=find_shared_reason,
        chart=draw_chart,
        count=show_count,
        lesion_columns=lesion_columns,
        percent=format_percent,
        rounded=format_number,
        view=link_view,
    )
    css, js = _read_asset("report.css"), _read_asset("report.js")
    shared = {
        "css": css,
        "js": js,
        # A browser that finds anything else in the page, from whatever name it came, ignores it.
        "policy": (
            f"default-src 'none'; style-src {digest_source(css)}; "
            f"script-src {digest_source(js)}; img-src data:; base-uri 'none'; form-action 'none'"
        ),
        "version": __version__,
    }
    return environment.get_template(template).render(shared | dict(values))


def link_view(place: Mapping[str, str | int]) -> str:
    """Write a place as the end of the viewer's address (docs/view.md): slide, position, model.

    A position is looked at as by a click (`look`).

    Examples
    --------
    >>> link_view({"slide": "a b", "x": 12, "y": "0", "model": ""})
    'slide=a+b&x=12&y=0&scale=1&look=1'
    >>> link_view({"slide": "a", "x": "", "y": "", "model": "vgg16"})
    'slide=a&model=vgg16'
    """
    given = {name: value for name, value in place.items() if value != ""}
    return urlencode({**given, "scale": 1, "look": 1} if "x" in given else given)


def digest_source(text: str) -> str:
    """Name an inline script or style by its hash, as a content security policy does.

    References
    ----------
    .. [1] W3C, "Content Security Policy Level 3", section 2.3.1 (hash-source).
    """
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _read_asset(name: str) -> Markup:
    return Markup(files("wsi_pipeline.report").joinpath(name).read_text(encoding="utf-8"))


def show_number(value: float | int | None, digits: int = 3) -> Markup:
    """Show a number rounded, with its full value in the markup.

    What is not 0 or 1 is not shown as 0 or 1 (`tiling.wording.format_number`); what is exactly one
    of them is shown without decimals.

    Examples
    --------
    >>> show_number(0.98765), show_number(None)
    (Markup('<data value="0.98765">0.988</data>'), Markup('–'))
    >>> show_number(0.99998951), show_number(1.0)
    (Markup('<data value="0.99998951">0.999990</data>'), Markup('<data value="1.0">1</data>'))
    """
    if value is None:
        return Markup("–")
    value = int(value) if isinstance(value, int) else float(value)  # NumPy's have another repr
    small = isinstance(value, float) and abs(value) < 2
    shown = format_number(value, digits) if small else f"{value:,}"
    if isinstance(value, float) and not small:
        shown = f"{value:,.{digits}f}"
    elif value in (0, 1, -1):
        shown = str(int(value))
    # Thin spaces between thousands: a comma is a decimal mark to half the world.
    shown = shown.replace(",", "\N{THIN SPACE}")
    return Markup('<data value="{}">{}</data>').format(repr(value), shown)


def show_count(n: int, noun: str) -> Markup:
    """Show a count with its noun.

    Examples
    --------
    >>> show_count(1, "test patch")
    Markup('<data value="1">1</data> test patch')
    """
    return show_number(n) + f" {noun if n == 1 else plural(noun)}"


def show_figure(figure: Figure, name: str = "95 % CI") -> Markup:
    """Show a figure with its interval, called `name`, or the reason why there is none."""
    if figure.value is None:
        reason = figure.reason or "not computed"
        return Markup('<span class="undefined">undefined: {}</span>').format(reason)
    shown = show_number(figure.value)
    if figure.interval is None:
        if not figure.no_interval:
            return shown
        return shown + Markup(' <span class="ci reason">no interval: {}</span>').format(
            figure.no_interval
        )
    low, high = (show_number(float(end)) for end in figure.interval)
    title = Markup(' title="{}"').format(figure.method) if figure.method else ""
    return shown + Markup(' <span class="ci"{}>{} {} to {}</span>').format(title, name, low, high)


def find_shared_reason(figures: Iterable[Figure]) -> str:
    """Return why none of the figures has an interval, if it is the same reason; else nothing.

    Examples
    --------
    >>> few = Figure(0.25, no_interval="3 patients, at least 5 are needed")
    >>> find_shared_reason([few, few, Figure(None)])
    '3 patients, at least 5 are needed'
    >>> find_shared_reason([few, Figure(0.5, interval=(0.4, 0.6))])
    ''
    """
    known = [figure for figure in figures if figure.value is not None]
    reasons = {figure.no_interval for figure in known}
    alike = len(known) > 1 and len(reasons) == 1 and not any(figure.interval for figure in known)
    return reasons.pop() if alike else ""


def phrase_figure(figure: Figure, with_interval: bool = True) -> Markup:
    """Show a figure within a sentence, with its interval or why there is none in parentheses.

    Examples
    --------
    >>> print(phrase_figure(Figure(0.25, no_interval="3 patients, at least 5 are needed")))
    <data value="0.25">0.250</data> (no interval: 3 patients, at least 5 are needed)
    >>> print(phrase_figure(Figure(1.0)))
    <data value="1.0">1</data> (no interval: none was computed)
    """
    if figure.value is None:
        return show_figure(figure)
    if not with_interval:
        return show_number(figure.value)
    if figure.interval is None:
        why = figure.no_interval or "none was computed"
        return show_number(figure.value) + Markup(" (no interval: {})").format(why)
    low, high = (show_number(float(end)) for end in figure.interval)
    return show_number(figure.value) + Markup(" (95 % CI {} to {})").format(low, high)


def read_figure(section: Mapping[str, Any], key: str, reasons: Mapping[str, str]) -> Figure:
    """Read one figure of ``metrics.json`` or ``froc.json``, with its interval or its reason."""
    value, interval = section.get(key), section.get(f"{key}_ci95")
    return Figure(
        value=value,
        interval=(interval[0], interval[1]) if interval else None,
        reason=reasons.get(key, ""),
        method=str((section.get("ci95_method") or {}).get(key) or ""),
        no_interval=reasons.get(f"{key}_ci95", ""),
    )


def read_difference(pair: Mapping[str, Any], key: str) -> Figure:
    """Read the difference of one figure of ``comparison.json``."""
    figure, undefined = pair["figures"][key], pair["undefined"]
    interval = figure["difference_ci95"]
    return Figure(
        value=figure["difference"],
        interval=(interval[0], interval[1]) if interval else None,
        reason=undefined.get(key, ""),
        method=figure["method"] or "",
        no_interval=undefined.get(f"{key}.difference_ci95", ""),
    )


def lesion_columns(lesions: Sequence[Mapping[str, str]]) -> list[str]:
    """Choose the columns of a lesion list that are not empty."""
    names = list(lesions[0]) if lesions else []
    return [name for name in names if any(lesion[name] for lesion in lesions)]


def read_sensitivity_figure(result: Mapping[str, Any], rate: str) -> Figure:
    """Read the sensitivity at one rate of a ``froc.json``, with its interval or its reason."""
    bootstrap = result.get("bootstrap") or {}
    interval = (bootstrap.get("sensitivity_at_ci95") or {}).get(rate)
    undefined = result.get("undefined") or {}
    return Figure(
        value=(result.get("sensitivity_at") or {}).get(rate),
        interval=(interval[0], interval[1]) if interval else None,
        reason=str(undefined.get("sensitivity_at") or undefined.get("score") or ""),
        method=str((bootstrap.get("method") or {}).get("sensitivity_at") or ""),
        no_interval=str(undefined.get("sensitivity_at_ci95") or ""),
    )


def read_score_figure(result: Mapping[str, Any]) -> Figure:
    """Read the score of a ``froc.json``, with its interval or its reason."""
    methods = (result.get("bootstrap") or {}).get("method") or {}
    figure = read_figure(result, "score", result.get("undefined") or {})
    return replace(figure, method=str(methods.get("score") or ""))
