"""Sizes of the pictures that `tile` writes: of a large cohort, a sample of them is drawn.

Drawing and compressing a picture takes 60 ms, whatever the size of its slide: three quarters of the
plan of a tiny slide. Everything else of a plan is computed for every slide.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from wsi_pipeline.planning.figures import SlidePlan

MOST_DRAWN = 32  # of a cohort


@dataclass(frozen=True)
class Picture:
    """A picture that was drawn, for its size alone."""

    bytes: int
    seconds: float


def choose_drawn(n_slides: int) -> set[int]:
    """Choose the slides whose pictures are drawn: all of a few, evenly spaced ones of many.

    Examples
    --------
    >>> choose_drawn(3), len(choose_drawn(1000))
    ({0, 1, 2}, 32)
    """
    n_drawn = min(n_slides, MOST_DRAWN)
    return {number * n_slides // n_drawn for number in range(n_drawn)}


def add_pictures(
    plans: Sequence[SlidePlan], drawn: Sequence[Picture | None]
) -> tuple[list[SlidePlan], int]:
    """Add the bytes and seconds of the pictures to the plans: as drawn, or their mean.

    Parameters
    ----------
    plans : sequence of SlidePlan
    drawn : sequence of Picture or None
        None: not drawn.

    Returns
    -------
    plans : list of SlidePlan
    error : int
        Two standard errors of the bytes of those that are not drawn and would be written; 0 where
        all were drawn.
    """
    known = [picture for picture in drawn if picture is not None]
    if not known:  # every slide would fail
        return list(plans), 0
    mean = Picture(
        round(statistics.fmean(p.bytes for p in known)), statistics.fmean(p.seconds for p in known)
    )
    filled = [
        plan if plan.problem else _add_picture(plan, picture or mean, is_estimated=not picture)
        for plan, picture in zip(plans, drawn, strict=True)
    ]
    n_guessed = sum(plan.is_picture_estimated and plan.state != "finished" for plan in filled)
    # The sum of the others varies by itself, and their mean is known from the sample alone.
    spread = statistics.stdev(p.bytes for p in known) if len(known) > 1 else float(mean.bytes)
    error = 2 * spread * math.sqrt(n_guessed * (1 + n_guessed / len(known)))
    return filled, math.ceil(error)


def _add_picture(plan: SlidePlan, picture: Picture, *, is_estimated: bool) -> SlidePlan:
    return replace(
        plan,
        bytes=plan.bytes + picture.bytes,
        files=plan.files + 1,
        seconds=0.0 if plan.state == "finished" else plan.seconds + picture.seconds,
        is_picture_estimated=is_estimated,
    )
