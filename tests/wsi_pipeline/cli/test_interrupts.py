"""The message of an interrupted command: true of each command, shown by interrupting it."""

import importlib
import re

import pytest
from typer.main import get_command

from wsi_pipeline.cli.app import app, main
from wsi_pipeline.cli.interrupt import describe_interrupt

CONTINUES = re.compile(r"^interrupted: .* kept.*; the same command continues from there$", re.M)
STARTS_OVER = re.compile(r"^interrupted: the same command starts over$", re.M)


def interrupt_at(monkeypatch, target, call=1):
    """Raise Ctrl-C at the `call`-th call of a function, after so many that succeeded."""
    module, _, name = target.rpartition(".")
    owner = importlib.import_module(module)
    real = getattr(owner, name)
    calls = []

    def patched(*args, **kwargs):
        calls.append(None)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def modified(paths):
    return {path: path.stat().st_mtime_ns for path in paths}


# Stage, what it is interrupted in (at the second unit), and which of its files are units.
STAGES = [
    ("tile", "tiling.build.write_table", "tiles/*.zarr/zarr.json"),
    ("predict", "wsi_pipeline.inference.scores.write_scores", "scores/*/*.h5"),
    ("heatmap", "wsi_pipeline.heatmaps.files.write_heatmap", "heatmaps/*/*.ome.tif"),
    ("export", "wsi_pipeline.exports.load_format", "exports/*/*/*"),
]


@pytest.mark.parametrize(("stage", "target", "units"), STAGES, ids=[s[0] for s in STAGES])
def test_slides_that_a_stage_finished_are_kept(copy, monkeypatch, capsys, stage, target, units):
    run = copy / "run"
    config = str(copy / "config.yaml")
    words = {
        "tile": ["tile", str(copy / "data/manifest.csv"), "--out", str(run), "--config", config],
        "export": ["export", str(run), "--format", "qupath"],
    }.get(stage, [stage, str(run)])
    assert main([*words, "--overwrite", "--quiet"]) == 0
    whole = set(run.glob(units))
    before = modified(whole)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupt_at(patch, target, call=2)
        assert main([*words, "--overwrite"]) == 130
    printed = capsys.readouterr().err
    assert "the same command without --overwrite continues from there" in printed
    done = {path for path in whole if modified([path])[path] != before[path]}
    assert done
    after = modified(done)

    assert main([*words, "--quiet"]) == 0
    assert modified(done) == after
    assert set(run.glob(units)) == whole


def test_epochs_that_training_completed_are_kept(copy, monkeypatch, capsys):
    run = copy / "run"
    model = next(path.name for path in (run / "models").iterdir())
    words = ["train", str(run), "--model", model, "--set", "max_epochs=3", "--set", "seed=5"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, "wsi_pipeline.training.loop.write_resume", call=3)
        assert main(words) == 130
    assert CONTINUES.search(capsys.readouterr().err)
    assert main(words) == 0
    assert "(resumed after 2)" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["evaluate", "report"])
def test_models_and_stages_that_are_finished_are_kept(copy, monkeypatch, capsys, stage):
    run = copy / "run"
    target = {
        "evaluate": "wsi_pipeline.evaluation.run_evaluation.evaluate_run",
        "report": "wsi_pipeline.report.build.build_report",
    }[stage]
    with monkeypatch.context() as patch:
        interrupt_at(patch, target)
        assert main([stage, str(run), "--overwrite"]) == 130
    assert "continues from there" in capsys.readouterr().err
    assert main([stage, str(run), "--quiet"]) == 0
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_stages_that_run_finished_are_kept(copy, monkeypatch, capsys):
    words = ["run", str(copy / "config.yaml"), "--out", str(copy / "run")]
    with monkeypatch.context() as patch:
        interrupt_at(patch, "wsi_pipeline.heatmaps.files.write_heatmap")
        assert main([*words, "--set", "heatmap.overlap=max"]) == 130
    assert CONTINUES.search(capsys.readouterr().err)
    assert main([*words, "--set", "heatmap.overlap=max"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"train: 0 done, \d+ kept", printed)
    assert re.search(r"predict: 0 done, \d+ kept", printed)


@pytest.mark.parametrize(
    ("words", "target"),
    [
        (["slides", "{data}"], "wsi_pipeline.planning.triage.triage"),
        (["plan", "{config}"], "wsi_pipeline.planning.plan.plan_run"),
        (["collect", "{run}"], "wsi_pipeline.stages.collect.collect"),
        (["compare", "{run}", "--out", "{out}"], "wsi_pipeline.report.comparison.build_comparison"),
        (["doctor"], "wsi_pipeline.cli.doctor.examine"),
        (
            [
                "froc",
                "--definition",
                "patch",
                "--patches",
                "p.csv",
                "--slides",
                "s.csv",
                "--out",
                "{out}",
            ],
            "wsi_pipeline.evaluation.froc_files.run_froc",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_command_that_keeps_nothing_says_so(
    finished, tmp_path, monkeypatch, capsys, words, target
):
    names = {
        "data": finished / "data",
        "config": finished / "config.yaml",
        "run": finished / "run",
        "out": tmp_path / "out",
    }
    interrupt_at(monkeypatch, target)
    before = files_of(finished / "run")
    assert main([word.format(**names) for word in words]) == 130
    assert STARTS_OVER.search(capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert files_of(finished / "run") == before


def test_an_interrupted_demo_continues(tmp_path, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wsi_pipeline.cli.runs._run", interrupt)
    monkeypatch.setattr(
        "wsi_pipeline.demo.cohort.draw_cohort", lambda *_, **__: tmp_path / "manifest.csv"
    )
    assert main(["demo", "--out", str(tmp_path)]) == 130
    assert CONTINUES.search(capsys.readouterr().err)


def test_every_command_has_a_message_that_is_one_sentence():
    """A command without a description claims to keep nothing."""
    for name in get_command(app).commands:
        printed = describe_interrupt(name, [])
        assert CONTINUES.search(printed) or "the same command starts over" in printed
    assert describe_interrupt("a new command", []) == "interrupted: the same command starts over"
    assert describe_interrupt(None, []) == "interrupted: the same command starts over"
