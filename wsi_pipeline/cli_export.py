"""The command `export`: parse, call."""

from pathlib import Path
from typing import Annotated

import typer

from wsi_pipeline.cli_options import (
    ConfigOption,
    DaskOption,
    DeviceOption,
    ModelOption,
    OverwriteOption,
    QuietOption,
    RunArgument,
    SetOption,
    ShardOption,
    WorkersOption,
    finish,
    make_options,
    read_settings,
)
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.exports import FORMATS, check_format


def _check_format(name: str) -> str:
    try:
        check_format(name)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    return name


def export(
    run: RunArgument,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="F",
            callback=_check_format,
            help="; ".join(f"{name}: {what}" for name, what in FORMATS.items()) + ".",
        ),
    ],
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Output folder. Default: RUN/exports/F/<model>."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write scores and heatmaps in other tools' formats: QuPath, WSInfer, CLAM, OME-Zarr, ..."""
    from wsi_pipeline.export_stage import export as export_stage
    from wsi_pipeline.runfolder import RunFolder

    options = make_options(workers, device, shard, dask, overwrite, quiet)
    settings = read_settings(run, config, set_, section="export", quiet=quiet)
    result = export_stage(
        RunFolder(run), settings, options, name=format_, models=model or (), out=out
    )
    finish([result], run, quiet=quiet)
