"""Several processes train as one does with the same batches; here on the CPU, over gloo."""

import csv
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from tests.wsi_pipeline.test_stages import draw_cohort, write_config
from wsi_pipeline.cli import main
from wsi_pipeline.training import processes


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    draw_cohort(folder / "data")
    config = write_config(folder, folder / "data", folder / "run")
    assert main(["run", str(config), "--quiet", "--set", "stages=[tile]"]) == 0
    return folder


def train(folder: Path, *settings: str) -> int:
    given = [part for setting in settings for part in ("--set", setting)]
    return main(["train", str(folder / "run"), "--config", str(folder / "config.yaml"), "--quiet",
                 "--overwrite", *given])  # fmt: skip


def results(folder: Path):
    model = folder / "run/models/patchnet"
    history = list(csv.DictReader((model / "history.csv").read_text().splitlines()))
    weights = safetensors.torch.load((model / "checkpoint.safetensors").read_bytes())
    return history, weights, (model / "draws.csv").read_bytes()


@pytest.mark.parametrize("size", [8, pytest.param(5, marks=pytest.mark.slow)])
def test_two_processes_give_the_loss_curve_and_weights_of_one(tiled, size):
    batch = f"train.patchnet.batch_size={size}"
    assert train(tiled, batch) == 0
    alone, alone_weights, alone_draws = results(tiled)

    assert train(tiled, batch, "train.patchnet.processes=2") == 0

    history, weights, draws = results(tiled)
    assert draws == alone_draws
    for ours, theirs in zip(history, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_roc_auc", "lr"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
    for name, tensor in weights.items():
        np.testing.assert_allclose(
            tensor.numpy(), alone_weights[name].numpy(), rtol=1e-3, atol=5e-4, err_msg=name
        )


@pytest.mark.slow
def test_more_processes_than_patches_of_a_batch_do_no_harm(tiled):
    size = "train.patchnet.batch_size=1"
    assert train(tiled, size) == 0
    alone, _, _ = results(tiled)
    assert train(tiled, size, "train.patchnet.processes=2") == 0

    assert float(results(tiled)[0][-1]["train_loss"]) == pytest.approx(
        float(alone[-1]["train_loss"]), rel=1e-3
    )


def test_what_goes_wrong_in_a_process_is_said_here(tiled, capsys):
    settings = ("train.patchnet.processes=2", "train.patchnet.model.options.depth=0")

    assert train(tiled, *settings) == 1

    failures = (tiled / "run/failures.csv").read_text()
    assert "PatchNet needs at least one filter, one layer" in failures


def test_the_shares_of_a_batch_are_disjoint_and_cover_it(monkeypatch):
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(processes, "n_processes", lambda count=count: count)
        for n in (0, 1, 5, 32):
            rows: list[int] = []
            for number in range(count):
                monkeypatch.setattr(processes, "rank", lambda number=number: number)
                rows += range(n)[processes.own_share(n)]
            assert rows == list(range(n))
