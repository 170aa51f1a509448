"""Commands of the stages."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from wsi_pipeline.cli.examples import describe_next
from wsi_pipeline.cli.options import (
    ArchitectureOption,
    ConfigOption,
    FileOption,
    ModelOption,
    PositiveOption,
    RunArgument,
    SetOption,
    check_each,
    describe_model,
    finish,
    read_settings,
    refuse_idle,
    with_options,
)
from wsi_pipeline.explain import METHODS, list_methods
from wsi_pipeline.exports import FORMATS, check_format

if TYPE_CHECKING:
    from wsi_pipeline.run.runner import Options, StageResult


@with_options(unused=["device"])
def tile(
    options: "Options",
    input: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPUT",
            help="Slide, folder or manifest. Default: the config's input.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="RUN", help="Run folder. Default: the config's out."),
    ] = None,
    config: FileOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.config.reading import read_config
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import tile as tile_stage

    # Tiling starts a run, so recorded settings are not read.
    settings = read_config(config, set_ or (), section="tile")
    input, out = input or settings.input, out or settings.out
    if input is None or out is None:
        missing = "INPUT" if input is None else "--out RUN"
        raise typer.BadParameter(f"give {missing}, or name it in the config (--config FILE)")
    settings = replace(settings, input=input, out=out)
    result = tile_stage.tile(RunFolder(out), settings, options)
    next_line = describe_next("tile", out)
    if {tile_stage.UNLABELLED, tile_stage.UNCLASSED}.intersection(result.notes):
        next_line = f"{describe_next('train', out)} --checkpoint FILE"  # of predict
    elif not settings.train:
        next_line += " --model vgg16"
    finish([result], out, next_line=next_of_shard(next_line, out, options), quiet=options.quiet)


def next_of_shard(next_line: str, run: Path, options: "Options") -> str:
    """Return the line with the next command; of one task of a job array, ``collect``."""
    return f"next: wsi-pipeline collect {shlex.quote(str(run))}" if options.shard else next_line


def _stage_command(
    section: str,
    run: Path,
    config: Path | None,
    set_: list[str] | None,
    options: "Options",
    stage: Callable[..., "StageResult | list[StageResult]"],
    **chosen: Sequence[str] | Sequence[Path],
) -> NoReturn:
    from wsi_pipeline.layout import RunFolder

    models = [str(name) for name in chosen["models"]] if section == "train" else []
    settings = read_settings(run, config, set_, section=section, models=models, quiet=options.quiet)
    found = stage(RunFolder(run), replace(settings, out=run), options, **chosen)
    results = found if isinstance(found, list) else [found]
    next_line = next_of_shard(describe_next(section, run), run, options)
    finish(results, run, next_line=next_line, quiet=options.quiet)


def make_command(name: str) -> Callable[..., None]:
    """Make the command of a stage that processes all models of a run, or those given."""

    @with_options()
    def command(
        run: RunArgument,
        options: "Options",
        model: ModelOption = None,
        config: ConfigOption = None,
        set_: SetOption = None,
    ) -> None:
        from wsi_pipeline.stages import load_stage

        _stage_command(name, run, config, set_, options, load_stage(name), models=model or ())

    return command


@with_options(unused=["device"])  # it uses no network
def evaluate(
    run: RunArgument,
    options: "Options",
    model: ModelOption = None,
    reviews: Annotated[
        bool | None,
        typer.Option(
            "--reviews/--no-reviews",
            help="Labels and lesions as corrected by the marks in RUN/review/ (docs/evaluate.md).",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.stages import evaluate as evaluate_stage

    chosen = [] if reviews is None else [f"reviews={json.dumps(reviews)}"]
    _stage_command(
        "evaluate",
        run,
        config,
        [*(set_ or ()), *chosen],
        options,
        evaluate_stage.evaluate,
        models=model or (),
    )


class TrainLog(StrEnum):
    """Where else training writes the figures of its epochs."""

    none = "none"
    tensorboard = "tensorboard"


@with_options()
def train(
    run: RunArgument,
    options: "Options",
    model: ModelOption = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            help="Initial weights: a state dict in torchvision's layout (.pth, .pt, .safetensors); "
            "for VGG and CAM models.",
        ),
    ] = None,
    log: Annotated[
        TrainLog | None,
        typer.Option("--log", help="tensorboard: event files in RUN/models/<model>/tensorboard/."),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.stages import train as train_stage

    chosen = [f"model.weights={json.dumps(str(weights))}"] if weights else []
    chosen += [f"log={log.value}"] if log else []
    _stage_command(
        "train",
        run,
        config,
        [*(set_ or ()), *chosen],
        options,
        train_stage.train,
        models=model or (),
    )


@with_options()
def predict(
    run: RunArgument,
    options: "Options",
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(
            "--checkpoint",
            help="Checkpoint; or TorchScript or torch.export with WSInfer's config.json next to it "
            "(or their folder), or a state dict with --architecture. Repeatable. Default: the "
            "run's own.",
        ),
    ] = None,
    architecture: ArchitectureOption = None,
    positive: PositiveOption = None,
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
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import predict as predict_stage

    set_ = [*(set_ or ()), *describe_model(architecture, positive)]
    settings = read_settings(run, config, set_, section="predict", quiet=options.quiet)
    settings = replace(settings, out=run)
    folder, files = RunFolder(run), checkpoint or []
    if slides:
        results = predict_stage.predict_slides(folder, settings, options, slides, checkpoints=files)
    else:
        results = [predict_stage.predict(folder, settings, options, checkpoints=files)]
    next_line = next_of_shard(describe_next("predict", run), run, options)
    finish(results, run, next_line=next_line, quiet=options.quiet)


@with_options(unused=["workers", "device"])
def report(
    run: RunArgument,
    options: "Options",
    model: ModelOption = None,
    pdf: Annotated[
        bool,
        typer.Option(
            "--pdf", help="Print the report to RUN/report.pdf as well; needs Chromium or Chrome."
        ),
    ] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.report.pdf import find_browser, write_pdf
    from wsi_pipeline.stages import report as report_stage

    browser = find_browser() if pdf else None
    folder = RunFolder(run)
    settings = read_settings(run, config, set_, section="report", quiet=options.quiet)
    result = report_stage.report(folder, replace(settings, out=run), options, models=model or ())
    printed = browser is not None and not result.exit_code and folder.report.is_file()
    last_line = str(write_pdf(folder.report, browser)) if browser and printed else ""
    finish([result], run, last_line, quiet=options.quiet)


@with_options(unused=["device"])
def export(
    run: RunArgument,
    options: "Options",
    formats: Annotated[
        list[str],
        typer.Option(
            "--format",
            metavar="F",
            callback=check_each(check_format),
            help="Repeatable. "
            + "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
            + ".",
        ),
    ],
    model: ModelOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Output folder; several formats get one subfolder each. Default: "
            "RUN/exports/F/<model>.",
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import export as export_stage

    settings = read_settings(run, config, set_, section="export", quiet=options.quiet)
    results = export_stage.export(
        RunFolder(run), settings, options, names=formats, models=model or (), out=out
    )
    finish(results, run, quiet=options.quiet)


def _check_method(name: str) -> None:
    list_methods([name])


@with_options()
def explain(
    run: RunArgument,
    options: "Options",
    methods: Annotated[
        list[str],
        typer.Option(
            "--method",
            metavar="M",
            callback=check_each(_check_method),
            help="Repeatable; all: every one. "
            + "; ".join(f"{name}: {what}" for name, what in METHODS.items())
            + ".",
        ),
    ],
    model: ModelOption = None,
    patches: Annotated[
        Path | None,
        typer.Option(
            "--patches",
            metavar="FILE.csv",
            help="What to explain: columns slide_id,x,y (level-0 px), or image_id. Default: the "
            "best hits and the worst errors of the evaluated split.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="ID",
            help="Image to explain, of a folder of images; repeatable.",
        ),
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=0, metavar="N", help="So many of the best hits.")
    ] = None,
    errors: Annotated[
        int | None,
        typer.Option("--errors", min=0, metavar="N", help="So many of the worst errors."),
    ] = None,
    masked: Annotated[
        int | None,
        typer.Option(
            "--masked",
            min=0,
            metavar="N",
            help="So many patches or images that have a mask, drawn at random, in place of hits "
            "and errors; and a table of how each method's maps lie on the masks.",
        ),
    ] = None,
    curves: Annotated[
        int | None,
        typer.Option(
            "--curves",
            min=0,
            metavar="STEPS",
            help="Deletion and insertion curves of each map; 224 steps in the paper.",
        ),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            "--layer", metavar="NAME", help="Layer of grad_cam and feature_maps, e.g. features.28."
        ),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Run the stage with the options given."""
    from wsi_pipeline.layout import RunFolder
    from wsi_pipeline.stages import explain as explain_stage

    chosen = {"--top": top, "--errors": errors}
    for option, names in {"--patches": patches, "--images": images}.items():
        if names:
            refuse_idle(f"with {option}", {**chosen, "--masked": masked})
    if masked:
        refuse_idle("with --masked", chosen)
    given = {"top": top, "errors": errors, "layer": layer}
    given |= {"masked": masked, "curve_steps": curves}
    short = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    settings = read_settings(
        run, config, [*(set_ or ()), *short], section="explain", quiet=options.quiet
    )
    results = explain_stage.explain(
        RunFolder(run),
        settings,
        options,
        names=methods,
        models=model or (),
        patches=patches,
        images=images or (),
    )
    next_line = next_of_shard(describe_next("explain", run), run, options)
    finish(results, run, next_line=next_line, quiet=options.quiet)
