"""Options shared by several commands, and the end of a stage's command."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from wsi_pipeline.config.reading import Config
    from wsi_pipeline.run.runner import Options, StageResult

EXIT_NOTHING_DONE = 1

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
FileOption = Annotated[Path | None, typer.Option("--config", help="Settings, a YAML file.")]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Settings, a YAML file. Default: those recorded in RUN/run.json."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting, overrides the config; repeatable."
    ),
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Slides processed at a time.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:0.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Part I of N (from 0), or auto in a job array."),
]
DaskOption = Annotated[
    str | None,
    typer.Option("--dask", metavar="ADDRESS", help="Address of a scheduler, local or slurm."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Rebuild finished outputs.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Print only errors and the last line.")]
ArchitectureOption = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Network of a state dict with torchvision's names: resnet18, densenet121, ...",
    ),
]
PositiveOption = Annotated[
    list[str] | None,
    typer.Option(
        "--positive",
        metavar="CLASS",
        help="Class of a model with several whose probability is the score; repeatable: the sum.",
    ),
]
ModelOption = Annotated[
    list[str] | None, typer.Option("--model", help="Model name; repeatable. Default: all.")
]


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that all stages share to a command, which takes them as one `options`."""
    own, shared = inspect.signature(command), inspect.signature(make_options).parameters
    parameters = [p for p in own.parameters.values() if p.name != "options"]
    parameters += shared.values()

    @functools.wraps(command)
    def with_one(**values: Any) -> None:
        options = make_options(**{name: values.pop(name) for name in shared})
        command(**values, options=options)

    with_one.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # for typer
    with_one.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_one


def describe_model(architecture: str | None, positive: Sequence[str] | None) -> list[str]:
    """Write options on a model of another program as settings of ``predict``."""
    given = {"architecture": architecture, "positive": list(positive or ())}
    return [f"{key}={json.dumps(value)}" for key, value in given.items() if value]


def check_each(check: Callable[[str], None]) -> Callable[[list[str]], list[str]]:
    """Make the callback of a repeatable option whose values are checked by their own module."""

    def callback(names: list[str]) -> list[str]:
        from wsi_pipeline.errors import ConfigError

        try:
            for name in names:
                check(name)
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
        return names

    return callback


def make_options(
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> "Options":
    """Collect the options common to all stages."""
    from wsi_pipeline.config.settings import DEVICE_NAME
    from wsi_pipeline.errors import ConfigError
    from wsi_pipeline.run.runner import Options
    from wsi_pipeline.run.shards import parse_shard

    if not DEVICE_NAME.fullmatch(device):
        raise typer.BadParameter(f"--device must be auto, cpu, cuda or cuda:0, got {device!r}")
    try:
        part = parse_shard(shard) if shard else None
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    return Options(workers, device, part, dask, overwrite, quiet)


def read_settings(
    run: Path,
    config: Path | None,
    set_: Sequence[str] | None,
    *,
    section: str,
    models: Sequence[str] = (),
    quiet: bool = False,
) -> "Config":
    """Read a stage's settings from a file, or else from the run; ``--set`` overrides."""
    from wsi_pipeline.config.reading import name_changes, read_config
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.run.runner import recall_settings

    recorded = {} if config else recall_settings(RunFolder(run), section)
    settings = read_config(config, set_ or (), section=section, models=models, recorded=recorded)
    of_section = recorded.get(section) or {}
    if section == "train" and models:
        of_section = {name: of_section[name] for name in models if name in of_section}
    recalled = name_changes(of_section, section)
    recalled = [change for change in recalled if not change.startswith("formats=")]  # of run alone
    if recalled and not quiet:
        print(
            f"{section}: settings from {run / 'run.json'}: {', '.join(recalled)}", file=sys.stderr
        )
    return settings


def finish(
    results: Sequence["StageResult"],
    run: Path,
    last_line: str = "",
    *,
    next_line: str = "",
    quiet: bool,
) -> NoReturn:
    """Print what was done, and what to do next, and exit with the matching code."""
    lines = [line for result in results for line in str(result).splitlines()]
    if next_line and all(result.exit_code != EXIT_NOTHING_DONE for result in results):
        lines.append(next_line)
    if quiet:  # one line: the report's path, else the summary of the last stage
        lines = [] if last_line or not results else str(results[-1]).splitlines()[:1]
    for line in lines:
        print(line)
    codes = {result.exit_code for result in results}
    code = EXIT_NOTHING_DONE if EXIT_NOTHING_DONE in codes else max(codes, default=0)
    if code:
        print(f"failures: {run / 'failures.csv'}; tracebacks: {run / 'logs'}", file=sys.stderr)
    if last_line:
        print(last_line)
    raise typer.Exit(code)
