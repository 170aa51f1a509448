"""Parse, call, print. Everything worth testing lives below this file.

Heavy packages (torch, dask, zarr) are imported by the command that needs them, so that ``--help``
answers at once.
"""

import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from tiling.errors import ExpectedError
from wsi_pipeline import __version__
from wsi_pipeline.cli.baselines import baselines
from wsi_pipeline.cli.export import export
from wsi_pipeline.cli.interrupt import describe_interrupt
from wsi_pipeline.cli.options import (
    EXIT_NOTHING_DONE,
    ConfigOption,
    DaskOption,
    DeviceOption,
    FileOption,
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
from wsi_pipeline.config.stages import STAGES, find_stage
from wsi_pipeline.run.interrupts import EXIT_INTERRUPTED, end_now, watch_signals

if TYPE_CHECKING:
    from wsi_pipeline.config.reading import Config
    from wsi_pipeline.run.runner import Options, StageResult


class FrocDefinition(StrEnum):
    """Which FROC."""

    camelyon16 = "camelyon16"
    patch = "patch"


class FpDenominator(StrEnum):
    """Slides that false positives are averaged over."""

    all = "all"
    normal = "normal"


class UnclassifiedRule(StrEnum):
    """What annotations without a class are."""

    auto = "auto"
    tumour = "tumour"
    region = "region"


class AtRate(StrEnum):
    """How a curve is read at a rate."""

    linear = "linear"
    step = "step"


class Program(TyperGroup):
    """All commands; the one place where an error becomes a sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line, and keep it for the message of an interrupt."""
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except ExpectedError as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise typer.Exit(EXIT_NOTHING_DONE) from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            print(f"{where}{error.strerror or error}", file=sys.stderr)
            raise typer.Exit(EXIT_NOTHING_DONE) from error
        except KeyboardInterrupt as error:
            said = describe_interrupt(ctx.invoked_subcommand, ctx.meta["words"])
            print(said, file=sys.stderr)
            raise typer.Exit(EXIT_INTERRUPTED) from error


app = typer.Typer(
    cls=Program,
    name="wsi-pipeline",
    help="Whole-slide images in, heatmaps and a FROC report out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# ------------------------------------------------------------ before a run

LookersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Slides processed at a time. Default: the number of cores, at most 8.",
    ),
]


@app.command()
def slides(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Slide, folder or manifest.")],
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a manifest to edit.")
    ] = None,
    workers: LookersOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Overwrite an existing --csv file.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Check each slide: readable, size, resolution, duplicates; write a manifest to edit."""
    from wsi_pipeline.planning.lookers import default_workers
    from wsi_pipeline.planning.triage import check_target, describe, triage, write_triage

    if csv is not None:
        check_target(csv, overwrite=overwrite)
    found = triage(input, workers=workers or default_workers(), quiet=quiet)
    lines = describe(found)
    print("\n".join(lines[-1:] if quiet else lines))
    if csv is not None:
        write_triage(csv, found, source=input)
        print(f"written: {csv}; edit it and use it as INPUT")
    elif not quiet:
        print("nothing written; use --csv FILE to write a manifest to edit")
    raise typer.Exit(found.exit_code)


class PlanFormat(StrEnum):
    """How a plan is printed."""

    table = "table"
    json = "json"


@app.command()
def plan(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder, overrides the config's."),
    ] = None,
    set_: SetOption = None,
    workers: LookersOption = None,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    format_: Annotated[
        PlanFormat, typer.Option("--format", help="Format of the output.")
    ] = PlanFormat.table,
    quiet: QuietOption = False,
) -> None:
    """Preview a run on slides or images: what it does, what fails, disk space and time it needs."""
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.planning.lookers import default_workers
    from wsi_pipeline.planning.plan import plan_run
    from wsi_pipeline.planning.plan_text import describe, summarise

    settings = read_config(config, set_ or ())
    settings = replace(settings, out=out) if out else settings
    n_workers = workers or default_workers()
    part = make_options(n_workers, device, shard, None, False, quiet).shard
    found = plan_run(settings, workers=n_workers, device=device, shard=part, quiet=quiet)
    if format_ is PlanFormat.json:
        print(json.dumps(found.as_plain(), indent=2, allow_nan=False))
    else:
        print("\n".join(summarise(found) if quiet else describe(found)))
    raise typer.Exit(found.exit_code)


# ------------------------------------------------------------ the stages


@app.command(help=find_stage("tile").summary)
def tile(
    input: Annotated[Path, typer.Argument(metavar="INPUT", help="Slide, folder or manifest.")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Run folder.")],
    config: FileOption = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import tile as tile_stage

    # It begins a run: recorded settings are for the stages that continue it.
    settings = replace(read_config(config, set_ or (), section="tile"), input=input, out=out)
    options = make_options(workers, device, shard, dask, overwrite, quiet)
    finish([tile_stage.tile(RunFolder(out), settings, options)], out, quiet=quiet)


def _stage_command(
    section: str,
    run: Path,
    config: Path | None,
    set_: list[str] | None,
    options: "Options",
    stage: Callable[..., "StageResult"],
    **chosen: Sequence[str] | Sequence[Path],
) -> NoReturn:
    from wsi_pipeline.layout import RunFolder

    models = [str(name) for name in chosen["models"]] if section == "train" else []
    settings = read_settings(run, config, set_, section=section, models=models, quiet=options.quiet)
    result = stage(RunFolder(run), replace(settings, out=run), options, **chosen)
    finish([result], run, quiet=options.quiet)


def _add_model_stage(name: str, summary: str) -> None:
    """Add the command of a stage that works on a run's models: all of them, or those named."""

    @app.command(name, help=summary)
    def command(
        run: RunArgument,
        model: ModelOption = None,
        config: ConfigOption = None,
        set_: SetOption = None,
        workers: WorkersOption = 1,
        device: DeviceOption = "auto",
        shard: ShardOption = None,
        dask: DaskOption = None,
        overwrite: OverwriteOption = False,
        quiet: QuietOption = False,
    ) -> None:
        from wsi_pipeline.stages import load_stage

        options = make_options(workers, device, shard, dask, overwrite, quiet)
        _stage_command(name, run, config, set_, options, load_stage(name), models=model or ())


@app.command(help=find_stage("train").summary)
def train(
    run: RunArgument,
    model: ModelOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Initial weights: a state dict in torchvision's layout (.pth, .pt, .safetensors); "
            "for VGG and CAM models.",
        ),
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
    """Run the stage with the options given."""
    from wsi_pipeline.stages import train as train_stage

    chosen = [f"model.weights={json.dumps(str(weights))}"] if weights else []
    options = make_options(workers, device, shard, dask, overwrite, quiet)
    _stage_command(
        "train",
        run,
        config,
        [*(set_ or ()), *chosen],
        options,
        train_stage.train,
        models=model or (),
    )


@app.command(help=find_stage("predict").summary)
def predict(
    run: RunArgument,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option("--checkpoint", help="Checkpoint file; repeatable. Default: the run's own."),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides",
            metavar="INPUT",
            help="Slide, folder or manifest to score directly from the files, storing no pixels.",
        ),
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
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import predict as predict_stage

    options = make_options(workers, device, shard, dask, overwrite, quiet)
    told = read_settings(run, config, set_, section="predict", quiet=quiet)
    settings = replace(told, out=run)
    folder, files = RunFolder(run), checkpoint or []
    results = []
    if slides:
        results.append(predict_stage.cut_for(folder, settings, options, slides, checkpoints=files))
    results.append(predict_stage.predict(folder, settings, options, checkpoints=files))
    finish(results, run, quiet=quiet)


# Those of a stage with options of its own are written out; see `wsi_pipeline.cli.export` too.
for _stage in STAGES:
    if _stage.name not in {"tile", "train", "predict", "export"}:
        _add_model_stage(_stage.name, _stage.summary)


# ------------------------------------------------------------ several stages


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder, overrides the config's."),
    ] = None,
    set_: SetOption = None,
    workers: WorkersOption = 1,
    device: DeviceOption = "auto",
    shard: ShardOption = None,
    dask: DaskOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every stage that a config names, in order; keep what is finished."""
    from wsi_pipeline.config.reading import read_config

    options = make_options(workers, device, shard, dask, overwrite, quiet)
    settings = read_config(config, set_ or ())
    _run(replace(settings, out=out) if out else settings, options)


def _run(settings: "Config", options: "Options") -> NoReturn:
    from wsi_pipeline.errors import ConfigError
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.whole_run import run_stages

    if settings.out is None:
        raise ConfigError("no run folder; set out in the config, or use --out RUN")
    folder = RunFolder(settings.out)
    results = run_stages(folder, settings, options)
    reported = any(result.stage == "report" and not result.failed for result in results)
    last_line = str(folder.report) if reported else ""
    finish(results, settings.out, last_line, quiet=options.quiet)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")] = Path(
        "demo"
    ),
    quiet: QuietOption = False,
) -> None:
    """Draw a small cohort with known tumours and run every stage on it, to a report."""
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.demo.cohort import prepare_demo
    from wsi_pipeline.run.runner import Options

    settings = read_config(prepare_demo(out))
    _run(settings, Options(quiet=quiet))


@app.command()
def froc(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    definition: Annotated[FrocDefinition, typer.Option("--definition")] = FrocDefinition.camelyon16,
    detections: Annotated[
        Path | None,
        typer.Option(
            "--detections",
            help="Folder of <slide_id>.csv: prob,x,y; or one CSV: slide_id,prob,x,y (camelyon16).",
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
        Path | None, typer.Option("--patches", help="CSV: slide_id,score,lesions (patch).")
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides", help="CSV: slide_id,label and, by patches, lesions; patient is optional."
        ),
    ] = None,
    fp_denominator: Annotated[
        FpDenominator | None,
        typer.Option(
            "--fp-denominator",
            help="Slides that false positives are averaged over: all (default for camelyon16) or "
            "normal (default for patch).",
        ),
    ] = None,
    at_rate: Annotated[
        AtRate, typer.Option("--at-rate", help="How the curve is read at a rate.")
    ] = AtRate.linear,
    rates: Annotated[
        str, typer.Option("--rates", help="False positives per slide, separated by commas.")
    ] = "0.25,0.5,1,2,4,8",
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=0, help="Resampled sets for the interval; 0: none.")
    ] = 0,
    stratified: Annotated[
        bool, typer.Option("--stratified", help="Resample tumour and normal slides separately.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
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
            help="What polygons without class are. Default: auto, regions where others have a "
            "class, else tumour.",
        ),
    ] = None,
    quiet: QuietOption = False,
) -> None:
    """FROC from plain files: detections and masks, or scored patches; needs no run folder."""
    from wsi_pipeline.errors import EvaluationError
    from wsi_pipeline.evaluation.froc_files import FrocOptions, check_options, run_froc
    from wsi_pipeline.report.froc_page import build_froc_page

    def say(line: str) -> None:
        if not quiet:
            print(line)

    options = FrocOptions(
        definition=definition.value,
        out=out,
        detections=detections,
        reference=reference,
        patches=patches,
        slides=slides,
        fp_denominator=fp_denominator.value if fp_denominator else None,
        at_rate=at_rate.value,
        rates=_parse_rates(rates),
        bootstrap=bootstrap,
        seed=seed,
        stratified=stratified,
        mask_downsample=mask_downsample,
        mpp=mpp,
        tumour_value=tumour_value,
        unclassified=unclassified.value if unclassified else None,
    )
    try:
        check_options(options)
    except EvaluationError as error:
        raise typer.BadParameter(str(error)) from error
    run_froc(options, say=say)
    build_froc_page(out)
    print(out / "froc.json")


def _parse_rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(
            f"--rates must be numbers separated by commas, got '{text}'"
        ) from error


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Evaluated run folders.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")],
    model: ModelOption = None,
    bootstrap: Annotated[
        int, typer.Option("--bootstrap", min=1, help="Resampled sets for paired differences.")
    ] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Compare several models or runs in one HTML report."""
    from wsi_pipeline.report.comparison import build_comparison

    print(build_comparison(runs, out, models=model or (), replicates=bootstrap, seed=seed))


app.command()(baselines)
app.command(help=find_stage("export").summary)(export)


@app.command("collect")
def collect_command(
    run: RunArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all pixels, too, and verify their checksums.")
    ] = False,
) -> None:
    """After a job array: merge the failures and list the slides missing from each stage."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages.collect import collect

    summary = collect(RunFolder(run), verify=verify)
    print("\n".join(summary.lines))
    raise typer.Exit(3 if summary.missing or summary.failed else 0)


@app.command()
def doctor() -> None:
    """Check versions, devices and codecs: what is missing and how to install it."""
    from wsi_pipeline.cli.doctor import examine

    findings = examine()
    print("\n".join(finding.line for finding in findings))
    raise typer.Exit(0 if all(finding.ok for finding in findings) else EXIT_NOTHING_DONE)


# ------------------------------------------------------------ the program


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"wsi-pipeline {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop_watching = watch_signals()
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(args=list(argv) if argv is not None else None, prog_name="wsi-pipeline")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_NOTHING_DONE
    finally:
        stop_watching()
    return 0


def entry() -> NoReturn:
    """Run the program as the console script does."""
    code = main()
    if code == EXIT_INTERRUPTED:
        end_now()
    sys.exit(code)
