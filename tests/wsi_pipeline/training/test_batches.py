"""How a batch is computed: in parts, in lower precision, deterministically."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.helpers.tiny_training import (
    CPU,
    PATIENTS,
    TINY,
    Killed,
    contents,
    kill_after,
    rows_of,
    train,
)
from wsi_pipeline.config.settings import ModelConfig
from wsi_pipeline.errors import ConfigError, TrainingError
from wsi_pipeline.models import MODELS, PatchClassifier
from wsi_pipeline.models.checkpoint import read_tensors
from wsi_pipeline.training import loop, train_model
from wsi_pipeline.training.losses import Losses


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    tensors = safetensors.torch.load((folder / "checkpoint.safetensors").read_bytes())
    return {name: tensor.numpy() for name, tensor in tensors.items()}


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_a_batch_in_parts_is_the_same_step(fake_store, tmp_path, parts):
    """Also where parts are unequal, and where there are more parts than patches."""
    config = replace(TINY, batch_size=5, max_epochs=1, lr=1e-3)
    options = {"train": [fake_store("a", [0, 1] * 6, broken=[3, 4]), fake_store("b", [0] * 9)]}
    for name, accumulate in (("whole", 1), ("parts", parts)):
        train_model(
            replace(config, accumulate=accumulate), **options, val=[fake_store("c", [0, 1] * 4)],
            patients=PATIENTS, out=tmp_path / name, device=CPU, fingerprint="f",
        )  # fmt: skip

    whole, in_parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for name, values in whole.items():
        np.testing.assert_allclose(in_parts[name], values, rtol=1e-4, atol=2e-5, err_msg=name)


def test_bf16_trains_float32_weights_near_those_of_fp32(fake_store, tmp_path):
    train(fake_store, tmp_path / "fp32")
    train(fake_store, tmp_path / "bf16", replace(TINY, precision="bf16"))

    losses = [
        [float(row["train_loss"]) for row in rows_of(tmp_path / name / "history.csv")]
        for name in ("fp32", "bf16")
    ]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05)
    assert {w.dtype for w in weights_of(tmp_path / "bf16").values()} == {np.dtype(np.float32)}


def test_the_scale_of_fp16_survives_a_kill(fake_store, tmp_path, monkeypatch):
    """On the CPU only here: there fp16 is refused, and this is where the scaler can be tested."""
    monkeypatch.setattr(loop, "resolve_precision", lambda name, device: name)
    config = replace(TINY, precision="fp16")
    train(fake_store, tmp_path / "undisturbed", config)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", config, on_progress=kill_after(8))
    state = read_tensors(tmp_path / "killed" / "resume.safetensors")[1]["scaler"]
    assert state["scale"] > 0
    train(fake_store, tmp_path / "killed", config)

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_fp16_is_refused_on_the_cpu(fake_store, tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        train(fake_store, tmp_path, replace(TINY, precision="fp16"))


def test_training_ends_where_its_own_patches_are_all_decided_rightly(fake_store, tmp_path):
    config = replace(TINY, lr=3e-3, max_epochs=60, patience=60, stop_at_train_accuracy=1.0)
    summary = train(fake_store, tmp_path, config)

    accuracies = [float(row["train_accuracy"]) for row in rows_of(tmp_path / "history.csv")]
    assert accuracies[-1] == 1.0 > max(accuracies[:-1], default=0)
    assert summary.stopped == "100 % of the training patches are classified correctly"


class Scattering(PatchClassifier):
    """Uses an operation that torch cannot promise the same bits for, on the CPU too."""

    def __init__(self) -> None:
        super().__init__()
        self.options = {}
        self.output = nn.Linear(3, 1)

    def forward(self, x):
        means = x.mean(dim=(2, 3))
        places = torch.arange(means.numel(), device=x.device)
        return self.output(torch.zeros_like(means).put_(places, means.flatten())).squeeze(-1)


def test_strict_determinism_names_an_operation_that_may_differ(fake_store, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "scattering", Scattering)
    config = replace(TINY, model=ModelConfig("scattering"))
    assert train(fake_store, tmp_path / "repeatable", config).epochs == 4
    with pytest.raises(TrainingError, match="the operation put_ has no deterministic") as caught:
        train(fake_store, tmp_path / "strict", replace(config, determinism="strict"))

    assert "train.<model>.determinism=repeatable" in str(caught.value)
    assert not (tmp_path / "strict" / "checkpoint.safetensors").exists()
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_of_a_strict_training_are_not_blamed_on_determinism(
    fake_store, tmp_path, monkeypatch
):
    def fail(*_):
        raise RuntimeError("out of something")

    monkeypatch.setattr(loop._Training, "_step", fail)
    with pytest.raises(RuntimeError, match="out of something"):
        train(fake_store, tmp_path, replace(TINY, determinism="strict"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_strict_determinism_changes_no_result(fake_store, tmp_path, undisturbed):
    train(fake_store, tmp_path / "strict", replace(TINY, determinism="strict"))

    history = contents(tmp_path / "strict")["history.csv"]
    assert history == undisturbed["history.csv"]
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_starved_device_is_reported_with_a_remedy(fake_store, tmp_path):
    summary = train(fake_store, tmp_path)

    assert "s for patches" in str(summary)
    starved = replace(summary, seconds=100.0, seconds_waited=40.0)
    assert starved.starved
    assert "the device is starved of data; raise train.<model>.readers" in str(starved)
    assert not replace(summary, seconds=100.0, seconds_waited=10.0).starved


def test_losses_are_fetched_some_at_a_time_and_none_is_lost():
    losses = Losses(CPU, every=3)
    fetched = [list(losses.add(torch.tensor([n - 0.5, 0.5]))) for n in range(5)]
    assert fetched == [[], [], [0.0, 1.0, 2.0], [], []]
    assert losses.fetch() == [3.0, 4.0]
    assert losses.values == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_bf16_trains_nearly_as_fp32(fake_store, tmp_path):
    for precision in ("fp32", "bf16"):
        train(fake_store, tmp_path / precision, replace(TINY, precision=precision))
    exact, fast = (rows_of(tmp_path / name / "history.csv") for name in ("fp32", "bf16"))
    assert len(exact) == len(fast) == TINY.max_epochs
    for before, after in zip(exact, fast, strict=True):
        assert before["train_loss"] != after["train_loss"]
        for column in ("train_loss", "val_loss"):
            assert abs(float(before[column]) - float(after[column])) < 0.01


def test_auto_is_fp32_on_a_cpu_and_for_gpus_without_bf16(monkeypatch):
    assert loop._resolve_precision("auto", CPU) == "fp32"
    monkeypatch.setattr(loop, "resolve_precision", lambda name, device: "fp16")
    assert loop._resolve_precision("auto", torch.device("cuda")) == "fp32"
    assert loop._resolve_precision("fp16", torch.device("cuda")) == "fp16"
