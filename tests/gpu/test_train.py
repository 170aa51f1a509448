"""Training on a GPU: mixed precision, repeatable bits, processes that meet over NCCL."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wsi_pipeline.config.reading import train_config
from wsi_pipeline.config.settings import AugmentConfig, ModelConfig, TrainConfig
from wsi_pipeline.models.checkpoint import load_checkpoint
from wsi_pipeline.training import processes, train_model

pytestmark = pytest.mark.gpu
TINY = TrainConfig(
    model=ModelConfig("vgg16", {"width": 0.0625}),
    lr=1e-4,
    batch_size=8,
    steps_per_epoch=3,
    max_epochs=3,
    augment=AugmentConfig(),
)


class Killed(BaseException):
    """Like a signal: no handler of errors catches it."""


def train(fake_store, out, device, config=TINY, **options):
    return train_model(
        config,
        train=[fake_store("a", [0, 1] * 8, patch_px=64), fake_store("b", [0] * 9, patch_px=64)],
        val=[fake_store("c", [0, 1] * 6, patch_px=64)],
        patients={"a": "p1", "b": "p2", "c": "p3"},
        out=out,
        device=device,
        fingerprint="f",
        **options,
    )


def weights(folder: Path) -> bytes:
    return (folder / "checkpoint.safetensors").read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_an_epoch_in_each_precision_gives_a_checkpoint_that_the_cpu_loads(
    fake_store, tmp_path, device, precision
):
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    summary = train(fake_store, tmp_path, device, replace(TINY, precision=precision))

    assert math.isfinite(summary.best.train_loss)
    assert summary.best.val_loss is not None
    model, _ = load_checkpoint(tmp_path / "checkpoint.safetensors")
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu", name
        assert value.dtype != torch.float16, name
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_killed_and_resumed_gives_the_same_bits(fake_store, tmp_path, device, precision):
    """The scale of fp16's loss is part of the state."""
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    config = replace(TINY, precision=precision)

    def kill(done, total, info):
        if done == 5:
            raise Killed

    train(fake_store, tmp_path / "whole", device, config)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", device, config, on_progress=kill)
    summary = train(fake_store, tmp_path / "killed", device, config)

    assert summary.resumed_from == 1
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_two_trainings_give_the_same_bits(fake_store, tmp_path, device):
    for name in ("one", "two"):
        train(fake_store, tmp_path / name, device, readers=1 if name == "one" else 3)
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_a_group_of_processes_speaks_over_nccl(tmp_path, gpu):
    """One process can form a group: what is summed, gathered and averaged passes through NCCL."""
    model = nn.Linear(3, 1).to(gpu)
    model(torch.ones(2, 3, device=gpu)).sum().backward()
    before = [p.grad.clone() for p in model.parameters()]
    values = np.array([1.0, math.nan, 3.0])

    with processes._group(0, 1, (tmp_path / "meeting").as_uri(), gpu):
        assert torch.distributed.get_backend() == "nccl"
        processes.wait_for_all()
        assert processes.sum_over_all(2.5, gpu) == 2.5
        assert processes.sum_losses([1.0, 1.0], gpu) == [1.0, 1.0]
        model.zero_grad()
        shared = processes.share_gradients(model)
        shared(torch.ones(2, 3, device=gpu)).sum().backward()
        gathered = processes.gather_rows(values, 3, gpu)

    for parameter, gradient in zip(model.parameters(), before, strict=True):
        assert parameter.grad.equal(gradient)
    np.testing.assert_array_equal(gathered, values)


def _train_here(out, names, on_progress):
    from tests.helpers.fake_store import FakeStore

    rank = processes.rank()
    device = torch.device("cuda", rank)
    return train(FakeStore, Path(out), device, replace(TINY, batch_size=8)).epochs


def test_two_gpus_train_as_one_does(fake_store, tmp_path, gpu):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    train(fake_store, tmp_path / "one", gpu)
    processes.in_processes(
        _train_here, str(tmp_path / "two"), None, processes=2, device="cuda",
        on_progress=lambda done, total: None,
    )  # fmt: skip

    for folder in ("one", "two"):
        assert (tmp_path / folder / "checkpoint.safetensors").is_file()
    one, _ = load_checkpoint(tmp_path / "one/checkpoint.safetensors")
    two, _ = load_checkpoint(tmp_path / "two/checkpoint.safetensors")
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_prototypes_are_pushed_to_patches_and_two_trainings_are_the_same(
    fake_store, tmp_path, device, precision
):
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    config = train_config(
        "protopnet",
        options={"base": "vgg11", "width": 0.0625, "depth": 16, "prototypes_per_class": 3},
        batch_size=8,
        sampling="shuffle",
        max_epochs=3,
        precision=precision,
        protopnet={"warm_epochs": 1, "push_from": 3, "solver_steps": 50},
    )
    for name in "ab":  # a push checks itself that prototypes are patches to 1e-5
        train(fake_store, tmp_path / name, device, config)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    model, _ = load_checkpoint(tmp_path / "a" / "checkpoint.safetensors")
    assert len(model.sources.records) == 6
    for number in range(6):  # the CPU rounds otherwise
        image = model.sources.pixels[number].permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            row, column = model.sources.records[number].position
            assert float(model.distances(image)[0, number, row, column]) < 1e-4
