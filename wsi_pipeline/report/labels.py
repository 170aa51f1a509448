"""The label audit of a run, as the report shows it: how the patches are labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.errors import ReportError
from wsi_pipeline.report.pictures import embed_picture

_LONGEST_PX = 1300  # names under the patches are still read
_PICTURES = {
    "histogram.png": "Patches by the share of their inner square that is tumour.",
    "ambiguous.png": "The least certain labels, with the inner square (yellow) and the outline "
    "(green). If a label looks wrong, correct the outline and tile again.",
}


@dataclass(frozen=True)
class LabelAudit:
    """What is shown of ``tiles/label_audit/``."""

    missed: tuple[
        tuple[str, int, int], ...
    ]  # slide, its lesions, those that no positive patch meets
    pictures: tuple[tuple[str, str], ...]  # data URI, caption


def read_label_audit(folder: Path, rows: Sequence[dict[str, str]]) -> LabelAudit | None:
    """Put together what is shown.

    Parameters
    ----------
    folder : Path
        ``tiles/label_audit``.
    rows : sequence of dict
        Of its ``slides.csv``.

    Returns
    -------
    audit : LabelAudit
        None where there is no audit, or no patch has a label.

    Raises
    ------
    ReportError
        If a file of it is broken.
    """
    try:
        labelled = sum(int(row["positive"]) + int(row["negative"]) for row in rows)
        counts = [(row["slide_id"], int(row["lesions"]), int(row["lesions_hit"])) for row in rows]
    except (KeyError, ValueError) as error:
        raise ReportError(
            f"{folder.name}/slides.csv: not a label audit ({error}); run tile (or collect) again"
        ) from error
    if not labelled:
        return None
    missed = tuple((name, n, n - hit) for name, n, hit in counts if hit < n)
    pictures = tuple(
        (embed_picture(folder / name, longest_px=_LONGEST_PX), caption)
        for name, caption in _PICTURES.items()
        if (folder / name).is_file()
    )
    return LabelAudit(missed, pictures)
