"""Numbers, counts and lists of names in messages and reports: rounded, but never to something else.

Messages that count things or show a measured number are formatted here, so that a score of
0.99998951 is not printed as 1.000, nor one slide as "1 slides".
"""

import math
from collections.abc import Iterable

MOST_DECIMALS = 12  # more are written in full


def pluralize(n: int, noun: str) -> str:
    """Write a count with its noun.

    Examples
    --------
    >>> pluralize(1, "slide"), pluralize(0, "patch"), pluralize(2, "unreadable patch")
    ('1 slide', '0 patches', '2 unreadable patches')
    """
    return f"{n} {noun if n == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """Return the regular plural of a noun.

    Examples
    --------
    >>> plural("epoch"), plural("box"), plural("patch"), plural("category"), plural("array")
    ('epochs', 'boxes', 'patches', 'categories', 'arrays')
    """
    if noun.endswith(("s", "x", "sh", "ch")) and not noun.endswith("och"):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def name_some(names: Iterable[str], most: int = 5) -> str:
    """List the first `most` names and count the others.

    Examples
    --------
    >>> name_some(["a", "b", "c"], 2), name_some(["a", "b"], 2)
    ('a, b and 1 more', 'a, b')
    """
    known = list(names)
    more = f" and {len(known) - most} more" if len(known) > most else ""
    return ", ".join(known[:most]) + more


def format_number(value: float, digits: int = 3) -> str:
    """Round to some decimals; to more where the result would be a 0 or a 1 that it is not.

    Parameters
    ----------
    value : float
        Finite or not.
    digits : int
        Decimals.

    Examples
    --------
    >>> format_number(0.98765), format_number(1), format_number(0.0)
    ('0.988', '1.000', '0.000')
    >>> format_number(0.99998951), format_number(0.00012), format_number(-0.00002)
    ('0.999990', '0.00012', '-0.000020')
    >>> format_number(3e-20)
    '3.0e-20'
    """
    return _format_away_from(value, digits, (0.0, 1.0, -1.0))


def format_percent(share: float, digits: int = 0) -> str:
    """Write a share as a percentage; 0 % and 100 % only where it is exactly that.

    Examples
    --------
    >>> format_percent(0.256), format_percent(1), format_percent(0)
    ('26 %', '100 %', '0 %')
    >>> format_percent(0.99998), format_percent(0.0003)
    ('99.9980 %', '0.030 %')
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    return f"{_format_away_from(100 * share, digits, (0.0, 100.0))} %"


def _format_away_from(value: float, digits: int, marks: tuple[float, ...]) -> str:
    """Round, but show how far a value lies from a mark that it would be rounded to."""
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    shown = f"{value:.{digits}f}"
    for mark in marks:
        distance = abs(value - mark)
        if not distance or shown.lstrip("-") != f"{abs(mark):.{digits}f}" or value * mark < 0:
            continue
        decimals = 1 - math.floor(math.log10(distance))  # two digits of the distance
        if decimals <= MOST_DECIMALS:
            return f"{value:.{decimals}f}"
        return f"{value:.1e}" if mark == 0 else repr(value)
    return shown.replace("-", "") if value == 0 else shown


def format_rate(per_second: float, noun: str) -> str:
    """Write how fast something goes; below one per second, how long each takes.

    Examples
    --------
    >>> format_rate(347.2, "patch"), format_rate(3.21, "patch")
    ('347/s', '3.2/s')
    >>> format_rate(0.27, "batch"), format_rate(1 / 600, "slide")
    ('3.7 s per batch', '10 min per slide')
    """
    if per_second >= 10:
        return f"{per_second:.0f}/s"
    if per_second >= 1:
        return f"{per_second:.1f}/s"
    return f"{format_duration(1 / per_second)} per {noun}" if per_second > 0 else "0/s"


def format_duration(seconds: float) -> str:
    """Write a duration in the unit that people use for it.

    Examples
    --------
    >>> format_duration(0.0004), format_duration(4.26), format_duration(73)
    ('0.0004 s', '4.3 s', '73 s')
    >>> format_duration(600), format_duration(9000), format_duration(400_000)
    ('10 min', '2.5 h', '4.6 days')
    """
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
