"""A training that was killed is resumed to the same bytes."""

import logging
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.helpers.tiny_training import (
    CPU,
    TINY,
    Killed,
    contents,
    kill_after,
    rows_of,
    train,
    train_on_two_slides,
)
from wsi_pipeline.cohort.data import to_unit_range
from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.errors import ModelError
from wsi_pipeline.models import MODELS, PatchClassifier, build_model
from wsi_pipeline.models.checkpoint import load_checkpoint, read_tensors, write_tensors
from wsi_pipeline.training import loop, outputs
from wsi_pipeline.training.recipe import build_classifier, build_optimizer
from wsi_pipeline.training.resume import optimizer_tensors, restore_optimizer


def test_two_trainings_give_the_same_bytes_whatever_the_readers(fake_store, tmp_path, undisturbed):
    torch.manual_seed(99)  # the state of torch's own generator is of no account
    train(fake_store, tmp_path / "again", readers=1)

    assert contents(tmp_path / "again") == undisturbed


def test_another_seed_gives_other_weights(fake_store, tmp_path, undisturbed):
    train(fake_store, tmp_path / "other", replace(TINY, seed=1))

    assert contents(tmp_path / "other")["history.csv"] != undisturbed["history.csv"]


def test_an_earlier_checkpoint_is_kept_until_its_successor_is_written(
    fake_store, tmp_path, undisturbed
):
    """A training that diverged, or was interrupted, cost the model that was there before."""
    out = tmp_path / "again"
    train(fake_store, out, replace(TINY, seed=1))
    earlier = (out / "checkpoint.safetensors").read_bytes()
    for _ in range(2):  # the second finds no checkpoint, and must not lose the kept one
        with pytest.raises(Killed):
            train(fake_store, out, on_progress=kill_after(1))
        assert not (out / "checkpoint.safetensors").exists()  # it is of other settings
        assert (out / "previous.safetensors").read_bytes() == earlier
    train(fake_store, out)
    assert contents(out) == undisturbed


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.integers(1, 8), min_size=1, max_size=3))
def test_a_training_killed_at_any_batch_comes_out_the_same(
    fake_store, tmp_path_factory, undisturbed, kills
):
    out = tmp_path_factory.mktemp("killed")
    for batches in kills:
        try:
            train(fake_store, out, on_progress=kill_after(batches))
        except Killed:
            assert not (out / "checkpoint.safetensors").exists()
    train(fake_store, out)

    assert contents(out) == undisturbed


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (loop, "write_resume"),
        (loop, "write_history"),
        (loop, "write_ledger"),
        (outputs, "draw_curves"),
        (outputs, "save_checkpoint"),
        (outputs, "write_json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_killed_while_writing_comes_out_the_same(
    fake_store, tmp_path, monkeypatch, undisturbed, module, step
):
    def kill(*args, **options):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(module, step, kill)
        with pytest.raises(Killed):
            train(fake_store, tmp_path / "killed")
    train(fake_store, tmp_path / "killed")

    assert contents(tmp_path / "killed") == undisturbed


def test_vgg16_with_momentum_in_channels_last_is_resumed_to_the_same_bytes(fake_store, tmp_path):
    config = replace(TINY, model=ModelConfig("vgg16", {"width": 0.125}), max_epochs=3)

    train_on_two_slides(fake_store, tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train_on_two_slides(fake_store, tmp_path / "killed", config, on_progress=kill_after(7))
    train_on_two_slides(fake_store, tmp_path / "killed", config)

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_optimiser_state_comes_back_in_the_layout_of_its_parameters():
    """Sums over another memory layout may differ in their last bits."""
    layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = build_optimizer(TrainConfig(model=ModelConfig("vgg16")), layer)
    layer(torch.rand(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    fresh = build_optimizer(TrainConfig(model=ModelConfig("vgg16")), layer)

    tensors = {name: t.contiguous() for name, t in optimizer_tensors(optimizer).items()}
    restore_optimizer(fresh, tensors)

    for parameter in layer.parameters():
        before, after = optimizer.state[parameter], fresh.state[parameter]
        for name in ("square_avg", "momentum_buffer"):
            assert torch.equal(before[name], after[name])
            assert before[name].stride() == after[name].stride() == parameter.stride()
        assert before["step"] == after["step"]


def test_rate_and_best_weights_survive_a_kill(fake_store, tmp_path, monkeypatch):
    """Best in epoch 1, halved after epoch 4, killed in epoch 6, stopped after it."""
    monkeypatch.setattr(
        loop._Training,
        "validate",
        lambda self, r: replace(r, val_loss=0.7, val_roc_auc=0.9 / r.epoch),
    )
    config = replace(TINY, max_epochs=50)
    train(fake_store, tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", config, on_progress=kill_after(17))
    summary = train(fake_store, tmp_path / "killed", config)

    assert (summary.resumed_from, summary.epochs, summary.best.epoch) == (5, 6, 1)
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


class Dropping(PatchClassifier):
    """Uses torch's own random numbers while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.options = {}
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(675, 1), nn.Flatten(0))

    def forward(self, x):
        return self.layers(x)


def test_dropout_is_the_same_after_a_kill_and_off_in_validation(fake_store, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "dropping", Dropping)
    config = replace(TINY, model=ModelConfig("dropping"))
    summary = train(fake_store, tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", config, on_progress=kill_after(8))
    train(fake_store, tmp_path / "killed", config)

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    model, _ = load_checkpoint(summary.checkpoint)
    val = fake_store("c", [0, 1] * 4)
    logits = model(to_unit_range(torch.from_numpy(val.pixels), CPU)).detach()
    loss = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(val.label.astype(np.float32))
    )
    assert summary.best.val_loss == pytest.approx(float(loss), rel=1e-5)


def test_training_can_start_from_weights_of_a_file(fake_store, tmp_path):
    torch.manual_seed(3)
    source = build_model("vgg16", width=0.125).state_dict()
    safetensors.torch.save_file(source, tmp_path / "vgg16.safetensors")
    weights = tmp_path / "vgg16.safetensors"

    model = build_classifier(
        replace(TINY, model=ModelConfig("vgg16", {"width": 0.125}, weights)), CPU
    )

    assert torch.equal(model.state_dict()["features.0.weight"], source["features.0.weight"])
    with pytest.raises(ModelError, match=r"patchnet cannot start from ImageNet weights"):
        build_classifier(replace(TINY, model=replace(TINY.model, weights=weights)), CPU)


def test_resuming_goes_on_where_the_last_epoch_ended(fake_store, tmp_path, caplog):
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8))  # in the third epoch
    with caplog.at_level(logging.INFO):
        summary = train(fake_store, tmp_path)

    assert summary.resumed_from == 2
    assert "resuming after epoch 2" in caplog.text


def test_a_starved_training_may_go_on_with_more_readers(fake_store, tmp_path):
    """They do not change the result; yet training started over, as the advice was to raise them."""
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8))
    assert train(fake_store, tmp_path, replace(TINY, readers=4)).resumed_from == 2


@pytest.mark.parametrize(
    ("config", "fingerprint"),
    [(TINY, "other"), (replace(TINY, lr=2e-4), "f")],
    ids=["other-inputs", "other-settings"],
)
def test_a_state_of_other_settings_is_ignored_and_noted(
    fake_store, tmp_path, caplog, config, fingerprint
):
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8))
    with caplog.at_level(logging.WARNING):
        summary = train(fake_store, tmp_path, config, fingerprint=fingerprint)

    assert summary.resumed_from == 0
    assert "other settings or inputs" in caplog.text


def test_a_training_with_hard_patches_is_resumed_to_the_same_bytes(fake_store, tmp_path):
    """And starts over where other patches are hard."""
    config = replace(TINY, hard_share=0.5)
    hard, others = ({"a": np.arange(12) < n} for n in (2, 4))
    train(fake_store, tmp_path / "whole", config, hard=hard)
    for out in (tmp_path / "killed", tmp_path / "others"):
        with pytest.raises(Killed):
            train(fake_store, out, config, hard=hard, on_progress=kill_after(8))
    assert train(fake_store, tmp_path / "killed", config, hard=hard).resumed_from == 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert train(fake_store, tmp_path / "others", config, hard=others).resumed_from == 0


def test_a_damaged_state_is_ignored_and_noted(fake_store, tmp_path, caplog, undisturbed):
    out = tmp_path / "killed"
    with pytest.raises(Killed):
        train(fake_store, out, on_progress=kill_after(8))
    data = (out / "resume.safetensors").read_bytes()
    (out / "resume.safetensors").write_bytes(data[: len(data) // 2])
    with caplog.at_level(logging.WARNING):
        train(fake_store, out)

    assert "cannot be used" in caplog.text
    assert contents(out) == undisturbed


def test_an_old_checkpoint_is_not_kept_next_to_a_new_history(fake_store, tmp_path):
    train(fake_store, tmp_path)
    with pytest.raises(Killed):
        train(fake_store, tmp_path, replace(TINY, seed=1), on_progress=kill_after(4))

    assert not (tmp_path / "checkpoint.safetensors").exists()


KILL_ME = """
import importlib.util, json, sys, time
from pathlib import Path
import torch
spec = importlib.util.spec_from_file_location("support", sys.argv[1])
support = importlib.util.module_from_spec(spec)
spec.loader.exec_module(support)
from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.training import train_model
torch.set_num_threads(1)
train_model(
    TrainConfig(
        model=ModelConfig("patchnet", {"m": 5, "stride": 5, "filters": 16, "depth": 3}),
        lr=1e-4, batch_size=4, steps_per_epoch=3, max_epochs=4),
    train=[support.FakeStore("a", [0, 1] * 6), support.FakeStore("b", [0] * 9)],
    val=[support.FakeStore("c", [0, 1] * 4)],
    patients={"a": "p1", "b": "p2", "c": "p3"}, out=Path(sys.argv[2]),
    device=torch.device("cpu"), fingerprint="f",
    on_progress=lambda *_: time.sleep(float(sys.argv[3])),
)
"""


@pytest.mark.slow
def test_a_process_killed_outright_is_resumed_to_the_same_bytes(tmp_path):
    root = Path(__file__).parents[3]
    support = Path(__file__).parents[1] / "conftest.py"

    def start(out, pause):
        command = [sys.executable, "-c", KILL_ME, str(support), str(tmp_path / out), str(pause)]
        return subprocess.Popen(command, cwd=root)

    assert start("undisturbed", 0).wait(120) == 0
    process = start("killed", 0.3)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "resume.safetensors").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.4)  # into the middle of the second epoch
    process.send_signal(signal.SIGKILL)
    process.wait(60)
    assert not (tmp_path / "killed" / "checkpoint.safetensors").exists()
    assert start("killed", 0).wait(120) == 0

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_a_training_begun_by_a_version_without_temperatures_ends_with_one(
    fake_store, tmp_path, undisturbed
):
    out = tmp_path / "model"
    with pytest.raises(Killed):
        train(fake_store, out, on_progress=kill_after(8))  # in the third of four epochs
    path = out / loop.RESUME_FILE
    tensors, header = read_tensors(path)
    for record in header["history"]:
        for name in [name for name in record if name.endswith(("_temperature", "_calibrated"))]:
            del record[name]
        del record["val_ece"]
    del header["weights_sha256"]
    write_tensors(path, tensors, header)
    summary = train(fake_store, out)

    assert summary.resumed_from == 2
    assert load_checkpoint(summary.checkpoint)[1].temperature is not None
    assert contents(out)["checkpoint.safetensors"] == undisturbed["checkpoint.safetensors"]
    rows = rows_of(out / "history.csv")
    assert [bool(row["val_temperature"]) for row in rows] == [False, False, True, True]
