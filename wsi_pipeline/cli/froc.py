"""The ``froc`` command."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import QuietOption, refuse_idle


class FrocDefinition(StrEnum):
    """Definition of the FROC curve."""

    camelyon16 = "camelyon16"
    patch = "patch"


class FpDenominator(StrEnum):
    """Slides over which false positives are averaged."""

    all = "all"
    normal = "normal"


class UnclassifiedRule(StrEnum):
    """Meaning of annotations without a class."""

    auto = "auto"
    tumour = "tumour"
    region = "region"


class AtRate(StrEnum):
    """Reading of a curve at a rate."""

    linear = "linear"
    step = "step"


def froc(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    definition: Annotated[FrocDefinition, typer.Option("--definition")] = FrocDefinition.camelyon16,
    detections: Annotated[
        list[Path] | None,
        typer.Option(
            "--detections",
            help="Folder of <slide_id>.csv: prob,x,y; or one CSV: slide_id,prob,x,y (camelyon16). "
            "Repeated for several teams: they are ranked.",
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="Folder of polygons (.xml, .geojson, .json, also .gz) or masks (.tif, .png) "
            "(camelyon16).",
        ),
    ] = None,
    patches: Annotated[
        list[Path] | None,
        typer.Option(
            "--patches", help="CSV: slide_id,score,lesions (patch). Repeated for several teams."
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides", help="CSV: slide_id,label (patch: also lesions); patient is optional."
        ),
    ] = None,
    fp_denominator: Annotated[
        FpDenominator | None,
        typer.Option(
            "--fp-denominator",
            help="Slides over which false positives are averaged: all (default for camelyon16) or "
            "normal (default for patch).",
        ),
    ] = None,
    at_rate: Annotated[
        AtRate, typer.Option("--at-rate", help="Reading of the curve at a rate.")
    ] = AtRate.linear,
    rates: Annotated[
        str, typer.Option("--rates", help="False positives per slide, separated by commas.")
    ] = "0.25,0.5,1,2,4,8",
    bootstrap: Annotated[
        int,
        typer.Option(
            "--bootstrap",
            min=0,
            help="Bootstrap resamples for the interval; 0: no interval (of several teams: 1000).",
        ),
    ] = 0,
    stratified: Annotated[
        bool, typer.Option("--stratified", help="Resample tumour and normal slides separately.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of --bootstrap. Default: 0.")
    ] = None,
    mask_downsample: Annotated[
        float | None,
        typer.Option("--mask-downsample", help="Level-0 px per mask px. Default: from the file."),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option("--mpp", help="µm per level-0 px. Default: 0.243 (CAMELYON16).")
    ] = None,
    tumour_value: Annotated[
        int | None, typer.Option("--tumour-value", help="Mask value. Default: all but 0.")
    ] = None,
    unclassified: Annotated[
        UnclassifiedRule | None,
        typer.Option(
            "--unclassified",
            help="Meaning of polygons without a class. Default: auto (region if any other has a "
            "class, else tumour).",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """Compute FROC from plain files (detections and masks, or scored patches), without a run."""
    from wsi_pipeline.errors import EvaluationError
    from wsi_pipeline.evaluation.froc_files import FrocOptions, check_options, run_froc
    from wsi_pipeline.evaluation.froc_teams import describe_ranking, name_teams, run_teams
    from wsi_pipeline.report.froc_page import build_froc_page, build_ranking_page

    def print_line(line: str) -> None:
        if not quiet:
            print(line)

    options = FrocOptions(
        definition=definition.value,
        out=out,
        detections=detections[0] if detections else None,
        reference=reference,
        patches=patches[0] if patches else None,
        slides=slides,
        fp_denominator=fp_denominator.value if fp_denominator else None,
        at_rate=at_rate.value,
        rates=_parse_rates(rates),
        bootstrap=bootstrap,
        seed=seed or 0,
        stratified=stratified,
        mask_downsample=mask_downsample,
        mpp=mpp,
        tumour_value=tumour_value,
        unclassified=unclassified.value if unclassified else None,
    )
    try:
        check_options(options)
        teams = name_teams((detections if options.detections else patches) or [])
    except EvaluationError as error:
        raise typer.BadParameter(str(error)) from error
    if len(teams) == 1 and not bootstrap:
        refuse_idle("without --bootstrap", {"--stratified": stratified, "--seed": seed})
    if len(teams) == 1:
        run_froc(options, print_line=print_line)
        print_line(str(out / "froc.json"))
        print(build_froc_page(out))
        return
    rows = run_teams(teams, options, print_line=print_line)
    for row in rows:
        build_froc_page(out / row["team"])
    for line in describe_ranking(rows):
        print_line(line)
    print(build_ranking_page(out))


def _parse_rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--rates must be numbers separated by commas, got '{text}'"
        ) from error
