"""One page about a FROC made from plain files: the report of someone without a run folder."""

from pathlib import Path
from typing import Any

from tiling.files import write_text
from wsi_pipeline.errors import ReportError
from wsi_pipeline.report import curves
from wsi_pipeline.report.figures import write_chart
from wsi_pipeline.report.gather import ModelFiles, read_json, read_rows
from wsi_pipeline.report.page import read_score_figure, read_sensitivity_figure, render_page


def build_froc_page(folder: Path) -> Path:
    """Write ``froc.html`` and the figure for papers, ``froc_curve.svg``, ``.png`` and ``.csv``.

    Parameters
    ----------
    folder : Path
        What ``wsi_pipeline.evaluation.froc_files.run_froc`` wrote.

    Returns
    -------
    page : Path
        One HTML file that needs no other file and no network. Equal files give equal bytes.

    Raises
    ------
    ReportError
        If there is no result, or a file is broken.
    """
    result = read_json(folder / "froc.json")
    if result is None:
        raise ReportError(f"{folder.name}: no froc.json; run: wsi-pipeline froc")
    definition = str(result["definition"])
    model = _as_model(folder, result)
    chart = curves.chart_froc([model], definition)
    if chart is not None:
        write_chart(folder / "froc_curve", chart)
    values: dict[str, Any] = {
        "definition": definition,
        "result": result,
        # Why there is no interval is shown where the interval would be.
        "undefined": {k: v for k, v in result["undefined"].items() if not k.endswith("_ci95")},
        "chart": chart,
        "rates": list(result["sensitivity_at"]),
        "line": {
            "model": "sensitivity",
            "result": result,
            "at": {
                rate: read_sensitivity_figure(result, rate) for rate in result["sensitivity_at"]
            },
            "score": read_score_figure(result),
        },
        "lesions": model.lesions[definition],
        "inputs": read_json(folder / "inputs.json") or {"inputs": [], "settings": {}, "notes": []},
    }
    page = folder / "froc.html"
    write_text(page, render_page("froc.html.j2", values))
    return page


def _as_model(folder: Path, result: dict[str, Any]) -> ModelFiles:
    definition = str(result["definition"])
    return ModelFiles(
        "detections" if definition == "camelyon16" else "patches",
        froc={definition: result},
        lesions={definition: read_rows(folder / "lesions.csv")},
    )
