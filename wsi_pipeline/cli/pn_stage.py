"""The ``stage`` command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import QuietOption, refuse_idle


class MissingRule(StrEnum):
    """What becomes of nodes without a prediction."""

    error = "error"
    negative = "negative"


def stage(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="CSV: patient,stage, one row per node (p1_node_0.tif,macro) or patient "
            "(p1.zip,pN1).",
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="Run folder: measures heatmaps instead of --predictions."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Whose heatmaps are measured, with --run.")
    ] = None,
    threshold: Annotated[
        float,
        typer.Option("--threshold", help="Least value of tumour in a heatmap, with --run."),
    ] = 0.75,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", metavar="FILE", help="CSV of the same form. Default: stages only."
        ),
    ] = None,
    missing: Annotated[
        MissingRule, typer.Option("--missing", help="Nodes without a prediction.")
    ] = MissingRule.error,
    nodes: Annotated[
        int, typer.Option("--nodes", min=0, help="Nodes of each patient; 0: any number.")
    ] = 5,
    bootstrap: Annotated[
        int | None,
        typer.Option(
            "--bootstrap",
            min=0,
            help="Resampled sets of patients for intervals; 0: no interval. Default: 1000.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of --bootstrap. Default: 0.")
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Stage patients from their lymph nodes (CAMELYON17), and compare stages by weighted kappa."""
    from wsi_pipeline.errors import EvaluationError
    from wsi_pipeline.evaluation.pn_stage_files import (
        REPLICATES,
        StageOptions,
        check_options,
        run_stage,
    )

    def print_line(line: str) -> None:
        if not quiet:
            print(line)

    options = StageOptions(
        out=out,
        predictions=predictions,
        run=run,
        model=model,
        threshold=threshold,
        reference=reference,
        missing=missing.value,
        nodes=nodes,
        bootstrap=REPLICATES if bootstrap is None else bootstrap,
        seed=seed or 0,
    )
    if reference is None:
        refuse_idle("without --reference", {"--bootstrap": bootstrap, "--seed": seed})
    if bootstrap == 0:
        refuse_idle("with --bootstrap 0", {"--seed": seed})
    try:
        check_options(options)
    except EvaluationError as error:
        raise typer.BadParameter(str(error)) from error
    run_stage(options, print_line=print_line)
    print(out / "metrics.json")
