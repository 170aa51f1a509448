"""The command line as the contract has it: options, exit codes, what is printed."""

import pytest
import typer
from typer.main import get_command

from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import app, main

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
    assert OPTIONS - known == ({"--config"} if stage == "run" else set())


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
    assert capsys.readouterr().out.splitlines() == ["tile: 1 done"]
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
