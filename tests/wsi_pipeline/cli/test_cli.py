"""The command line as the contract has it: options, exit codes, what is printed."""

import inspect
import os
from importlib import import_module

import pytest
import typer
from typer.main import get_command

from tests.helpers.slides import halve, tissue, write_slide
from tiling.threads import count_cores
from wsi_pipeline.cli.app import app, main
from wsi_pipeline.config import stages as registry
from wsi_pipeline.run import process_pool

STAGES = ("tile", "train", "predict", "heatmap", "evaluate", "report", "run", "export", "explain")
OPTIONS = {
    "--config", "--set", "--workers", "--device", "--shard", "--dask", "--overwrite", "--quiet",
}  # fmt: skip
SETTINGS = ("patch_px=32", "tissue.mpp=2.0", "tissue.min_object_um2=100.0")
SMALL = [part for setting in SETTINGS for part in ("--set", setting)]
LONG = [part for setting in SETTINGS for part in ("--set", f"tile.{setting}")]


@pytest.fixture
def slide(tmp_path):
    pixels = tissue(260, 210)
    return write_slide(tmp_path / "a.tif", [pixels, halve(pixels)])


def commands() -> dict[str, typer.core.TyperCommand]:
    group = get_command(app)
    return {name: group.commands[name] for name in group.list_commands(None)}


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "Usage" in capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_the_options_of_the_contract(stage):
    known = {option for parameter in commands()[stage].params for option in parameter.opts}
    assert known >= OPTIONS


def test_help_offers_a_device_where_the_stage_uses_one():
    """Each module of a stage is read: the others take the option and print that it is unused."""
    for stage in load_stages():
        source = inspect.getsource(stage)
        offered = {
            option
            for parameter in commands()[stage.__name__.rpartition(".")[2]].params
            for option in parameter.opts
            if not parameter.hidden
        }
        assert ("--device" in offered) == ("options.device" in source), stage.__name__
        assert ("--workers" in offered) == (not stage.__name__.endswith("report"))


def load_stages():
    return [import_module(f"wsi_pipeline.stages.{stage.name}") for stage in registry.STAGES]


def test_an_option_without_effect_is_taken_with_a_note(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--device", "cpu"]) == 1  # no run
    assert "--device has no effect in this command" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "no effect" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "takes_all_cores"),
    [(name, True) for name in STAGES] + [(name, False) for name in ("slides", "plan", "baselines")],
)
def test_workers_have_one_default_policy(command, takes_all_cores, monkeypatch):
    """As many as keep the cores of this process busy."""
    monkeypatch.setattr(process_pool, "count_cores", lambda: 5)
    (workers,) = [p for p in commands()[command].params if "--workers" in p.opts]
    assert workers.default is None
    assert "Default: one where it takes all cores" in workers.help
    assert process_pool.choose_workers(None, takes_all_cores=takes_all_cores) == (
        1 if takes_all_cores else 5
    )
    assert process_pool.choose_workers(3, takes_all_cores=takes_all_cores) == 3


def test_cores_are_those_of_this_process(monkeypatch):
    """A job of four cores on a machine of 64 started as many threads as it has cores."""
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("the system does not name the cores of a process")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
    assert count_cores() == 3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", ""])
def test_a_device_that_cannot_be_one_is_a_usage_error_of_every_stage(
    stage, device, tmp_path, capsys
):
    """Stages that compute nothing took any word for a device, and said nothing."""
    words = {"export": ["--format", "clam"], "explain": ["--method", "cam"]}.get(stage, [])
    words += ["--out", str(tmp_path / "run")] if stage == "tile" else []
    assert main([stage, str(tmp_path), *words, "--device", device]) == 2
    assert "cuda:0" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_quiet_prints_one_line(slide, tmp_path, capsys):
    """It promises the last line and printed one or two for each stage."""
    run = tmp_path / "run"
    assert main(["tile", str(slide), "--out", str(run), "--quiet", *SMALL]) == 0
    assert capsys.readouterr().out.splitlines() == [f"tile: 1 done; output: {run}/tiles"]
    config = tmp_path / "config.yaml"
    config.write_text(f"{{input: {slide}, out: {run}, stages: [tile, report]}}\n")
    assert main(["run", str(config), "--quiet", *LONG]) == 0
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html")]


def test_a_report_that_was_not_made_is_not_named(slide, tmp_path, capsys):
    slide.write_bytes(b"no slide")
    config = tmp_path / "config.yaml"
    config.write_text(f"{{input: {slide}, out: {tmp_path / 'run'}, stages: [tile, report]}}\n")
    assert main(["run", str(config)]) == 1
    assert "report.html" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--definition", "patch", "--slides", "s.csv"],
        ["--definition", "patch", "--patches", "p.csv", "--slides", "s.csv", "--mpp", "0.5"],
        ["--detections", "d", "--reference", "r", "--rates", "1,many"],
    ],
    ids=["nothing", "patch-without-patches", "option-of-the-other-definition", "rates"],
)
def test_froc_with_missing_or_wrong_options_is_a_usage_error(words, tmp_path):
    assert main(["froc", "--out", str(tmp_path / "out"), *words]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("froc --detections d --reference r --out o --stratified --seed 0",
         "--stratified and --seed have no effect without --bootstrap"),
        ("froc --detections d --reference r --out o --seed 1", "--seed has no effect"),
        ("slides s --seed 1", "--seed has no effect without --splits"),
        ("slides s --overwrite", "--overwrite has no effect without --csv"),
        ("stage --predictions p --out o --seed 1", "--seed has no effect without --reference"),
        ("stage --predictions p --reference r --out o --bootstrap 0 --seed 1",
         "--seed has no effect with --bootstrap 0"),
        ("baselines images --folds 4", "--folds has no effect without --split folds"),
        ("explain r --method all --masked 3 --top 2", "--top has no effect with --masked"),
        ("explain r --method all --patches p --masked 3", "--masked has no effect with --patches"),
    ],
)  # fmt: skip
def test_an_option_that_does_nothing_is_refused(words, problem, capsys):
    assert main(words.split()) == 2
    assert problem in plain_text(capsys.readouterr().err)


def plain_text(message: str) -> str:
    """Return a usage error without the frame that breaks its lines."""
    return " ".join(message.replace("│", " ").split())


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("evaluate.rates=[1, 1]", "a rate is repeated"),
        ("heatmap.filters=[0]", "heatmap.filters"),
        ("explain={methods: [occlusion], layer: features.1}", "explain.layer"),
        ("export={formats: [qupath], thresholds: []}", "export.thresholds"),
    ],
)
def test_run_refuses_settings_of_its_last_stages_first(setting, problem, slide, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    run = tmp_path / "run"
    config.write_text(f"{{input: {slide}, out: {run}, train: {{vgg16: {{}}}}}}\n")
    assert main(["run", str(config), "--set", setting]) == 1
    assert problem in capsys.readouterr().err
    assert not run.exists()


def test_input_and_config_are_given_in_one_way(slide, tmp_path, monkeypatch, capsys):
    """tile took INPUT --config FILE; plan and run took CONFIG alone."""
    config = tmp_path / "config.yaml"
    settings = "stages: [tile]\ntile: {patch_px: 32, tissue: {mpp: 2.0, min_object_um2: 100}}\n"
    config.write_text(f"input: nowhere.tif\nout: run\n{settings}")
    words = [str(slide), "--config", str(config), "--quiet"]
    monkeypatch.chdir(tmp_path)
    assert main(["plan", *words, "--workers", "1"]) == 0
    assert main(["run", *words, "--out", "one"]) == 0
    assert main(["tile", *words]) == 0
    config.write_text(f"input: {slide}\nout: other\n{settings}")
    assert main(["tile", "--config", str(config), "--quiet"]) == 0
    stores = [tmp_path / run / "tiles/a.zarr/zarr.json" for run in ("one", "run", "other")]
    assert len({path.read_bytes() for path in stores}) == 1
    capsys.readouterr()
    for command, problem in {
        "plan": "give a CONFIG",
        "run": "give a CONFIG",
        "tile": "give INPUT",
        "baselines": "give a FOLDER",
    }.items():
        assert main([command]) == 2
        assert problem in plain_text(capsys.readouterr().err)
