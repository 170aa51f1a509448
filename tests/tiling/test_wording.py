"""Numbers in messages are rounded, but never to something else; one thing is not many."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiling.wording import (
    format_duration,
    format_number,
    format_percent,
    format_rate,
    name_some,
    plural,
    pluralize,
)

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.floats(0, 1) | st.floats(-2, 2) | st.sampled_from([0.0, 1.0, -1.0, 1 - 2**-53, 5e-324]))
def test_only_zero_and_one_are_shown_as_zero_and_one(value):
    """A threshold of 0.99998951 was printed as 1.000, as if nothing could reach it."""
    shown = float(format_number(value))

    assert (shown == 0) == (value == 0)
    assert (shown == 1) == (value == 1)
    assert shown == pytest.approx(value, abs=5.1e-4)


@given(finite)
def test_other_numbers_have_the_decimals_asked_for(value):
    if abs(value) < 1e15 and min(abs(abs(value) - mark) for mark in (0, 1)) > 0.5:
        assert format_number(value) == f"{value:.3f}"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.99998951, "0.999990"),
        (0.9996, "0.99960"),
        (0.9994, "0.999"),
        (1.0000004, "1.00000040"),
        (0.0004, "0.00040"),
        (0.0006, "0.001"),
        (-0.0004, "-0.00040"),
        (-0.0, "0.000"),
        (1, "1.000"),
        (1e-30, "1.0e-30"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_numbers(value, shown):
    assert format_number(value) == shown


@given(st.floats(0, 1))
def test_only_all_is_a_hundred_percent_and_only_none_is_zero(share):
    """All of 64 patches was 1e+02 %."""
    shown = format_percent(share)

    assert "e+" not in shown
    assert (float(shown.removesuffix(" %")) == 100) == (100 * share == 100)
    assert (float(shown.removesuffix(" %")) == 0) == (share == 0)


@pytest.mark.parametrize(
    ("share", "shown"), [(1, "100 %"), (0, "0 %"), (0.4567, "46 %"), (0.996, "99.60 %")]
)
def test_percentages(share, shown):
    assert format_percent(share) == shown


def test_percentages_with_decimals_have_none_where_they_are_exact():
    assert format_percent(0.4567, 1) == "45.7 %"
    assert (format_percent(0.0, 1), format_percent(1, 1)) == ("0 %", "100 %")


@given(st.floats(1e-9, 1e9))
def test_a_rate_above_zero_is_never_zero(rate):
    shown = format_rate(rate, "slide")

    assert shown != "0/s"
    amount = float(re.match(r"[\d.e+-]+", shown)[0])
    assert amount > 0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (0.34, "0.34 s"), (3.42, "3.4 s"), (99.4, "99 s"), (150, "2 min"),
     (5900, "98 min"), (9000, "2.5 h"), (200_000, "2.3 days")],
)  # fmt: skip
def test_durations(seconds, shown):
    assert format_duration(seconds) == shown


@given(st.integers(0, 10**9))
def test_one_is_singular_and_everything_else_plural(n):
    assert pluralize(n, "epoch") == (f"{n} epoch" if n == 1 else f"{n} epochs")


@pytest.mark.parametrize(
    ("noun", "nouns"),
    [("unreadable patch", "unreadable patches"), ("epoch", "epochs"), ("box", "boxes"),
     ("CUDA device", "CUDA devices"), ("class", "classes"), ("copy", "copies"), ("day", "days")],
)  # fmt: skip
def test_plurals(noun, nouns):
    assert plural(noun) == nouns


@given(st.lists(st.text("abc", min_size=1)), st.integers(1, 6))
def test_every_name_is_listed_or_counted(names, most):
    shown, _, rest = name_some(iter(names), most).partition(" and ")

    listed = shown.split(", ") if shown else []
    assert listed == names[:most]
    assert len(listed) + int(rest.removesuffix(" more") or 0) == len(names)
