"""Commands before a run: ``slides`` and ``plan``."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli.options import (
    DaskOption,
    DeviceOption,
    FileOption,
    QuietOption,
    RunInputArgument,
    SetOption,
    ShardOption,
    WorkersOption,
    make_options,
    read_run_config,
    refuse_idle,
)


class Unannotated(StrEnum):
    """What slides without label and annotation are."""

    unknown = "unknown"
    normal = "normal"


def slides(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Slide, folder or manifest.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a manifest to edit.")
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations",
            metavar="DIR",
            help="Annotations named after the slides (also _mask, in any case); they give labels.",
        ),
    ] = None,
    unannotated: Annotated[
        Unannotated,
        typer.Option("--unannotated", help="Label of slides without label and annotation."),
    ] = Unannotated.unknown,
    patient_from: Annotated[
        str | None,
        typer.Option(
            "--patient-from",
            metavar="REGEX",
            help="Patient in a file's name: the first group, or the match.",
        ),
    ] = None,
    splits: Annotated[
        str | None,
        typer.Option(
            "--splits",
            metavar="VAL,TEST",
            help="Divide the patients between splits: shares for val and test, e.g. 0.2,0.2.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, help="Seed of --splits. Default: 0.")
    ] = None,
    reviews: Annotated[
        Path | None,
        typer.Option(
            "--reviews",
            metavar="RUN",
            help="Correct annotations and labels by the marks in RUN/review/; into a folder next "
            "to --csv.",
        ),
    ] = None,
    workers: WorkersOption = None,
    dask: DaskOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite an existing --csv file.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Check each slide (readable, size, resolution, duplicates); write a manifest to edit."""
    from wsi_pipeline.planning.proposals import Proposals
    from wsi_pipeline.planning.triage import check_target, describe, triage, write_triage
    from wsi_pipeline.run.process_pool import choose_workers

    corrected = Path()
    if splits is None:
        refuse_idle("without --splits", {"--seed": seed})
    if csv is None:
        refuse_idle("without --csv", {"--overwrite": overwrite, "--reviews": reviews})
    elif reviews is None:
        check_target(csv, overwrite=overwrite)
    else:
        corrected = csv.with_name(f"{csv.stem}_corrected")
        check_target(csv, overwrite=overwrite, corrected=corrected, reviewed=reviews)
    proposals = Proposals(
        annotations=annotations,
        unannotated=unannotated.value,
        patient_pattern=patient_from,
        splits=None if splits is None else _parse_shares(splits),
        seed=seed or 0,
        reviews=reviews,
        corrected=corrected,
    )
    n_workers = choose_workers(workers, takes_all_cores=False)
    found = triage(input, proposals, workers=n_workers, dask=dask, quiet=quiet)
    lines = describe(found)
    print("\n".join(lines[-1:] if quiet else lines))
    if csv is not None:
        write_triage(csv, found, source=input)
        print(f"written: {csv}; edit it and use it as INPUT")
    elif not quiet:
        print("nothing written; use --csv FILE to write a manifest to edit")
    raise typer.Exit(found.exit_code)


def _parse_shares(text: str) -> tuple[float, float]:
    try:
        val, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"'{text}' is not two numbers, the shares of patients for val and test: 0.2,0.2",
            param_hint="--splits",
        ) from error
    return val, test


class PlanFormat(StrEnum):
    """Output format of a plan."""

    table = "table"
    json = "json"


def plan(
    given: RunInputArgument = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder, overrides the config's."),
    ] = None,
    config: FileOption = None,
    set_: SetOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    format_: Annotated[
        PlanFormat, typer.Option("--format", help="Format of the output.")
    ] = PlanFormat.table,
    quiet: QuietOption = False,
) -> None:
    """Preview a run on slides or images: what it does, what fails, disk space and time it needs."""
    from wsi_pipeline.planning.plan import plan_run
    from wsi_pipeline.planning.plan_text import describe, summarise
    from wsi_pipeline.run.process_pool import choose_workers

    settings = read_run_config(given, config, set_, out)
    n_workers = choose_workers(workers, takes_all_cores=False)
    part = make_options(n_workers, device, shard, None, False, quiet).shard
    found = plan_run(settings, workers=n_workers, device=device, shard=part, quiet=quiet)
    if format_ is PlanFormat.json:
        print(json.dumps(found.as_plain(), indent=2, allow_nan=False))
    else:
        print("\n".join(summarise(found) if quiet else describe(found)))
    raise typer.Exit(found.exit_code)
