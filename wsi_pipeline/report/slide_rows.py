"""The slides or images of a report, worst first, and which of them are shown with their picture.

A picture takes some 60 kB of the page, so a large run shows those of the worst slides; the other
pictures are linked. Worst first:

1. evaluated slides on the wrong side of the slide threshold, the farthest from it first;
2. evaluated slides with missed lesions (no patch on the lesion reaches the patch threshold), those
   with most of them first;
3. the other evaluated slides, those whose score is nearest to the slide threshold first;
4. slides that are not evaluated, the highest score first.

Ties keep the order of the table.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from wsi_pipeline.contracts import Rule
from wsi_pipeline.report.gather import CohortSlide, ModelFiles, Row
from wsi_pipeline.report.headline import read_verdict
from wsi_pipeline.report.pictures import embed_picture

_BLANK = dict.fromkeys(("label", "score", "predicted", "tp", "fn", "fp", "tn"), "")


@dataclass(frozen=True)
class SlideRow:
    """A slide or an image: a card, where it has a picture, and a line of the table."""

    cells: Row  # of slides.csv, and the split
    picture: str = ""  # data URI; empty: not shown
    link: str = ""  # URL of the picture, relative to the report; empty: there is none
    shown: str = "and its heatmap"  # what the picture shows in addition to the slide or image
    evaluated: bool = False

    @property
    def verdict(self) -> str:
        """The call compared with the label; empty where one of them is missing."""
        return read_verdict(self.cells)


def list_slides(
    model: ModelFiles,
    cohort: Sequence[CohortSlide],
    thresholds: Mapping[str, float | None],
    *,
    n_pictures: int,
    folder: Path,
) -> list[SlideRow]:
    """List a model's slides, worst first: those evaluated, then others with a heatmap or a score.

    Parameters
    ----------
    thresholds : mapping
        Of a ``patch`` and of a ``slide``.
    n_pictures : int
        Slides that are shown with their picture, at most.
    folder : Path
        The run folder, where the report is.
    """
    rows = _list_rows(model, cohort, thresholds["slide"])
    order = rank_worst(rows, count_missed(model, thresholds["patch"]), thresholds["slide"])
    shown = [i for i in order if rows[i].get("slide_id", "") in model.overlays][:n_pictures]
    found = []
    for i in order:
        path = model.overlays.get(rows[i].get("slide_id", ""))
        link = "" if path is None else quote(path.relative_to(folder).as_posix())
        picture = embed_picture(path) if path is not None and i in shown else ""
        found.append(SlideRow(rows[i], picture, link, evaluated=bool(rows[i]["tp"])))
    return found


def rank_worst(
    rows: Sequence[Row], missed: Mapping[str, int], threshold: float | None
) -> list[int]:
    """Order the rows of `list_slides`, worst first; see the module.

    Parameters
    ----------
    rows : sequence of Row
    missed : slide_id -> number of missed lesions
    threshold : float, optional
        Of slides; without one no slide is on the wrong side or near.

    Returns
    -------
    order : indices of the rows
    """

    def badness(i: int) -> tuple[float, ...]:
        row = rows[i]
        if not row["tp"]:  # not evaluated
            return 3, -float(row["score"] or "-inf"), i
        far = 0.0
        if row["score"] and threshold is not None:
            far = abs(float(row["score"]) - threshold)
        if row["label"] and row["predicted"] and row["label"] != row["predicted"]:
            return 0, -far, i
        n_missed = missed.get(row.get("slide_id", ""), 0)
        return (1, -n_missed, far, i) if n_missed else (2, far, i)

    return sorted(range(len(rows)), key=badness)


def count_missed(model: ModelFiles, threshold: float | None) -> Counter[str]:
    """Count each slide's lesions on which no patch reaches the threshold of patches."""
    lesions = model.lesions.get("patch", [])
    if threshold is None or not lesions:
        return Counter()
    best = np.array([lesion.get("best_score") or "nan" for lesion in lesions], np.float64)
    found = Rule(threshold).decide(best).tolist()
    return Counter(
        lesion["slide_id"] for lesion, is_found in zip(lesions, found, strict=True) if not is_found
    )


def _list_rows(
    model: ModelFiles, cohort: Sequence[CohortSlide], threshold: float | None
) -> list[Row]:
    by_id = {slide.slide_id: slide for slide in cohort}
    rows = [{**_BLANK, **row} for row in model.slides]
    evaluated = {row.get("slide_id") for row in rows}
    validation = {row.get("slide_id"): row for row in model.validation}
    rows += [
        {**_BLANK, **_other_row(by_id.get(name), validation.get(name), threshold), "slide_id": name}
        for name in model.overlays | model.highest
        if name not in evaluated
    ]
    for row in rows:
        if not row["score"] and row.get("slide_id", "") in model.highest:
            row["score"] = repr(model.highest[row.get("slide_id", "")])
    splits = {name: slide.split for name, slide in by_id.items()}
    return [{**row, "split": splits.get(row.get("slide_id", ""), "")} for row in rows]


def _other_row(slide: CohortSlide | None, scored: Row | None, threshold: float | None) -> Row:
    """Return what is known of a slide that is not evaluated: its label, score and call."""
    row = {}
    if slide is not None and slide.label is not None:
        row["label"] = str(slide.label)
    if scored is not None and scored.get("score"):
        row["score"] = scored["score"]
        if threshold is not None:
            row["predicted"] = str(int(Rule(threshold).decide(float(scored["score"]))))
    return row
