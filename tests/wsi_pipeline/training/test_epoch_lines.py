"""The line that training prints after each epoch."""

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.tiny_cohort import draw_cohort, write_config
from tests.helpers.tiny_training import TINY, Killed, kill_after, rows_of, train
from wsi_pipeline.cli.app import main
from wsi_pipeline.run import progress
from wsi_pipeline.training.event_files import EventFiles
from wsi_pipeline.training.history import (
    EpochRecord,
    describe_epoch,
    read_history,
    write_history,
)

LINE = re.compile(
    r"epoch (\d)/4: loss ([\d.]+), val loss ([\d.]+), val ROC AUC ([\d.]+), rate 1\.0e-04, "
    r"[\d.]+ (?:s|min), best so far: epoch (\d)"
)


def test_a_line_has_the_figures_of_the_history(fake_store, tmp_path):
    lines: list[str] = []
    summary = train(fake_store, tmp_path, print_line=lines.append)

    found = [match.groups() for line in lines if (match := LINE.fullmatch(line))]
    rows = rows_of(tmp_path / "history.csv")
    assert [groups[0] for groups in found] == [row["epoch"] for row in rows] == list("1234")
    for (_, *figures, _), row in zip(found, rows, strict=True):
        names = ("train_loss", "val_loss", "val_roc_auc")
        assert figures == [f"{float(row[name]):.3f}" for name in names]
    assert found[-1][-1] == str(summary.best.epoch)


def test_without_validation_there_is_nothing_to_compare(fake_store, tmp_path):
    lines: list[str] = []
    train(fake_store, tmp_path, replace(TINY, monitor="none"), print_line=lines.append)
    assert len(lines) == 4
    for line in lines:
        assert re.fullmatch(r"epoch \d/4: loss [\d.]+, rate 1\.0e-04, [\d.]+ s", line)


def test_a_resumed_training_prints_the_remaining_epochs(fake_store, tmp_path):
    before: list[str] = []
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8), print_line=before.append)
    after: list[str] = []
    train(fake_store, tmp_path, print_line=after.append)

    assert [line.partition(":")[0] for line in before] == ["epoch 1/4", "epoch 2/4"]
    assert after[0] == "resuming after epoch 2/4"
    assert [line.partition(":")[0] for line in after[1:]] == ["epoch 3/4", "epoch 4/4"]


def test_an_epoch_whose_weights_cannot_be_kept_is_not_the_best():
    history = [EpochRecord(n, 1e-4, 0.5, 0.4, 0.9, 0.25, "a push", seconds=130.0) for n in (1, 2)]
    about = {"monitor": "roc_auc", "max_epochs": 2}
    line = describe_epoch(history, [], **about)
    assert line.endswith("val ROC AUC 0.900, train accuracy 25.0 %, rate 1.0e-04, 2 min")
    assert describe_epoch(history, history[1:], **about).endswith("best so far: epoch 2")


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    draw_cohort(folder / "data")
    config = write_config(folder, folder / "data", folder / "run")
    assert main(["run", str(config), "--quiet", "--set", "stages=[tile]"]) == 0
    return folder


def run_training(folder: Path, *options: str) -> None:
    config = str(folder / "config.yaml")
    assert main(["train", str(folder / "run"), "--config", config, "--overwrite", *options]) == 0


def test_the_command_prints_the_lines_unless_quiet(tiled, capsys):
    run_training(tiled)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": loss")[0] for line in lines[:2]] == [
        "train: patchnet: epoch 1/2",
        "train: patchnet: epoch 2/2",
    ]
    run_training(tiled, "--quiet")
    assert "epoch" not in capsys.readouterr().err


def test_a_line_leaves_the_moving_bar_whole(tiled, monkeypatch):
    """The bar is erased before the line is written, and drawn again below it."""
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr(progress, "_open_console", lambda: console)
    run_training(tiled)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", terminal.getvalue())
    lines = [re.sub(r".*\r", "", line) for line in shown.splitlines() if ": loss" in line]
    assert len(lines) == 2
    assert all(line.startswith("train: patchnet: epoch ") for line in lines)


def test_a_finished_training_is_logged_from_its_history(tiled, capsys):
    """--log tensorboard was taken and wrote nothing."""
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    run_training(tiled)
    model = tiled / "run/models/patchnet"
    words = ["train", str(tiled / "run"), "--config", str(tiled / "config.yaml")]
    for _ in range(2):
        assert main([*words, "--log", "tensorboard"]) == 0
    assert capsys.readouterr().out.count("event files written to") == 1
    (found,) = (model / "tensorboard").iterdir()
    with EventFiles(model / "expected", read_history(model / "history.csv")):
        pass
    (expected,) = (model / "expected").iterdir()
    assert found.stat().st_size == expected.stat().st_size
    history = read_history(model / "history.csv")
    write_history(model / "again.csv", history)
    assert (model / "again.csv").read_bytes() == (model / "history.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--workers", "2"), ("--model", "patchnet", "--set", "train.patchnet.processes=2")],
    ids=["two models at a time", "two processes of one model"],
)
def test_lines_of_other_processes_are_printed_here(tiled, capsys, options):
    config = tiled / "config.yaml"
    text = config.read_text()
    _, _, settings = text.partition("  patchnet:\n")
    settings = settings.partition("predict:")[0].replace("{options", "{name: patchnet, options")
    config.write_text(text.replace("predict:", f"  other:\n{settings}predict:"))
    try:
        run_training(tiled, *options)
    finally:
        config.write_text(text)
    err = capsys.readouterr().err
    for model in ("patchnet", "other") if "--workers" in options else ("patchnet",):
        for epoch in (1, 2):
            assert err.count(f"train: {model}: epoch {epoch}/2: loss ") == 1
