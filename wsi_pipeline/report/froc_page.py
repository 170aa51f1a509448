"""One page about a FROC made from plain files: the report of someone without a run folder."""

from pathlib import Path
from typing import Any

from tiling.files import write_text
from wsi_pipeline.errors import ReportError
from wsi_pipeline.evaluation.froc_teams import FILE as TEAMS_FILE
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
    result = _read_result(folder)
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


def build_ranking_page(folder: Path) -> Path:
    """Write ``teams.html``: the ranked table of several teams, and their curves.

    Parameters
    ----------
    folder : Path
        What ``wsi_pipeline.evaluation.froc_teams.run_teams`` wrote.

    Raises
    ------
    ReportError
        If there is no ranking, or a file is broken.
    """
    ranking = read_json(folder / TEAMS_FILE)
    if ranking is None:
        raise ReportError(f"{folder.name}: no {TEAMS_FILE}; run: wsi-pipeline froc")
    rows: list[dict[str, Any]] = ranking["teams"]
    models = []
    for row in rows:
        result = _read_result(folder / row["team"])
        models.append(_as_model(folder / row["team"], result, name=row["team"]))
    values = {
        "rows": rows,
        "result": _read_result(folder / rows[0]["team"]),
        "rates": list(rows[0]["sensitivity_at"]),
        "chart": curves.chart_froc(models, str(result["definition"])),
    }
    page = folder / "teams.html"
    write_text(page, render_page("teams.html.j2", values))
    return page


def _read_result(folder: Path) -> dict[str, Any]:
    result = read_json(folder / "froc.json")
    if result is None:
        raise ReportError(f"{folder.name}: no froc.json; run: wsi-pipeline froc")
    return result


def _as_model(folder: Path, result: dict[str, Any], *, name: str | None = None) -> ModelFiles:
    definition = str(result["definition"])
    return ModelFiles(
        name or ("detections" if definition == "camelyon16" else "patches"),
        froc={definition: result},
        lesions={definition: read_rows(folder / "lesions.csv")},
    )
