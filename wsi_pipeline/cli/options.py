"""Options shared by several commands, and the end of a stage's command."""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args

import typer

from wsi_pipeline.config.extras import require

if TYPE_CHECKING:
    from wsi_pipeline.config.reading import Config
    from wsi_pipeline.run.runner import Options, StageResult

EXIT_NOTHING_DONE = 1

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder.", show_default=False)]
FileOption = Annotated[Path | None, typer.Option("--config", help="Settings, a YAML file.")]
RunInputArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="CONFIG",
        help="YAML file; or, with --config, the slide, folder or manifest in place of its input.",
        show_default=False,
    ),
]
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
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Slides, images or models processed at a time. Default: one where it takes all cores, "
        "as in the stages, else one for each core, at most 8.",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu, cuda:0 or mps.")]
ShardOption = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Part I of N (from 0), or auto in a job array."),
]


def _require_dask(address: str | None) -> str | None:
    """Check that Dask is installed before a command begins any work."""
    if address is not None:
        require("cluster")
    return address


DaskOption = Annotated[
    str | None,
    typer.Option(
        "--dask",
        metavar="ADDRESS",
        callback=_require_dask,
        help="Address of a scheduler, local or slurm.",
    ),
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


def with_options(*, unused: Sequence[str] = ()) -> Callable[..., Callable[..., None]]:
    """Add the options that stages share to a command, which takes them as one `options`.

    Parameters
    ----------
    unused : sequence of str
        Options that have no effect in this command: its help does not offer them. They are taken
        all the same, with a note, so that all stages can be given the same options.
    """
    shared = {
        name: _hide(parameter) if name in unused else parameter
        for name, parameter in inspect.signature(make_options).parameters.items()
    }

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command)
        parameters = [p for p in own.parameters.values() if p.name != "options"]
        parameters += shared.values()

        @functools.wraps(command)
        def with_one(**values: Any) -> None:
            given = {name: values.pop(name) for name in shared}
            for name in unused:
                if given[name] != shared[name].default:
                    print(f"--{name} has no effect in this command", file=sys.stderr)
            command(**values, options=make_options(**given))

        with_one.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]  # for typer
        with_one.__annotations__ = {p.name: p.annotation for p in parameters}
        return with_one

    return decorate


def _hide(parameter: inspect.Parameter) -> inspect.Parameter:
    """Leave an option out of the help."""
    kind, option = get_args(parameter.annotation)
    hidden = copy(option)
    hidden.hidden = True
    return parameter.replace(annotation=Annotated[kind, hidden])


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


def read_run_config(
    given: Path | None, config: Path | None, set_: Sequence[str] | None, out: Path | None
) -> "Config":
    """Read the settings of a whole run: of ``CONFIG``, or of ``INPUT --config CONFIG`` as in tile.

    Parameters
    ----------
    given, config : Path, optional
        The argument, and the value of ``--config``.
    set_ : sequence of str, optional
    out : Path, optional
        Overrides the config's run folder.
    """
    from wsi_pipeline.config.reading import read_config

    if given is None and config is None:
        raise typer.BadParameter("give a CONFIG, a YAML file (wsi-pipeline init prints one)")
    settings = read_config(config or given, set_ or ())
    settings = replace(settings, input=given) if config and given else settings
    return replace(settings, out=out) if out else settings


def refuse_idle(why: str, given: Mapping[str, object]) -> None:
    """Refuse options that were given and have no effect.

    Parameters
    ----------
    why : str
        What they need or contradict, for example ``without --bootstrap``.
    given : mapping
        Values by option; None and False: it was not given.
    """
    idle = [name for name, value in given.items() if value is not None and value is not False]
    if idle:
        verb = "has" if len(idle) == 1 else "have"
        raise typer.BadParameter(f"{' and '.join(idle)} {verb} no effect {why}")


def make_options(
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> "Options":
    """Collect the options common to all stages."""
    from wsi_pipeline.config.settings import DEVICE_NAME
    from wsi_pipeline.errors import ConfigError
    from wsi_pipeline.run.process_pool import choose_workers
    from wsi_pipeline.run.runner import Options
    from wsi_pipeline.run.shards import parse_shard

    if not DEVICE_NAME.fullmatch(device):
        raise typer.BadParameter(f"--device must be auto, cpu, cuda, cuda:0 or mps, got {device!r}")
    try:
        part = parse_shard(shard) if shard else None
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    n_workers = choose_workers(workers, takes_all_cores=True)
    return Options(n_workers, device, part, dask, overwrite, quiet)


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
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.run.runner import recall_settings

    found = {} if config else recall_settings(RunFolder(run), section)
    recorded = {name: value for name, (value, _) in found.items()}
    settings = read_config(config, set_ or (), section=section, models=models, recorded=recorded)
    recalled = list(_describe_recalled(found, settings, section, models))
    if recalled and not quiet:
        print(
            f"{section}: settings that differ from the defaults, from {run / 'run.json'}: "
            f"{'; '.join(recalled)}",
            file=sys.stderr,
        )
    return settings


def _describe_recalled(
    found: Mapping[str, tuple[Any, str]], settings: "Config", section: str, models: Sequence[str]
) -> Iterator[str]:
    """Name the recorded settings that a command uses, and which stage they were set by.

    Those that the command line sets otherwise are not used.
    """
    from wsi_pipeline.config.reading import as_plain, name_changes
    from wsi_pipeline.config.stages import find_stage

    for name in (section, *find_stage(section).reads):
        if name not in found:
            continue
        value, stage = found[name]
        used = as_plain(getattr(settings, name))
        if name == "train" and models:
            value, used = ({m: of[m] for m in models if m in of} for of in (value or {}, used))
        if isinstance(used, dict):
            now = name_changes(used, name)
            same = [change for change in name_changes(value, name) if change in now]
            same = [change for change in same if not change.startswith("formats=")]  # of run alone
            prefix = "" if name == section else f"{name}."
        else:
            same, prefix = ([f"={used}"] if used and used == value else []), name
        if same:
            yield f"{', '.join(prefix + change for change in same)} (set by {stage})"


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
    unrecorded = dict.fromkeys(result.unrecorded for result in results if result.unrecorded)
    if unrecorded:
        print(*unrecorded, sep="\n", file=sys.stderr)
    elif code:
        print(f"failures: {run / 'failures.csv'}; tracebacks: {run / 'logs'}", file=sys.stderr)
    if last_line:
        print(last_line)
    raise typer.Exit(code)
