"""Devices and precisions are the requested ones, or an error gives the reason."""

import pytest
import torch

from wsi_pipeline.config.devices import (
    check_one_each,
    compute_in,
    reproducible,
    require_float64,
    resolve_device,
    resolve_precision,
)
from wsi_pipeline.errors import ConfigError

CPU = torch.device("cpu")


def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    assert resolve_device("auto") == CPU


def test_auto_is_the_first_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 0)


def test_workers_of_a_machine_take_its_gpus_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    taken = [resolve_device("auto", worker=number).index for number in range(4)]

    assert taken == [0, 1, 0, 1]
    assert resolve_device("cuda:1", worker=0).index == 1


@pytest.mark.parametrize(
    ("name", "processes", "message"),
    [("cuda:1", 2, "is one GPU for 2 processes"), ("cuda", 3, "need as many GPUs"),
     ("auto", 3, "torch sees 2")],
)  # fmt: skip
def test_processes_that_would_share_a_gpu_are_refused(monkeypatch, name, processes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=message):
        check_one_each(name, processes)
    check_one_each("auto", 2)
    check_one_each("cpu", 64)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", ""])
def test_an_unknown_device_is_refused_with_the_known_ones(name):
    with pytest.raises(ConfigError, match=r"auto, cpu, cuda:0 \(cuda:1, ...\) or mps"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_is_refused_with_a_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(ConfigError, match=r"cuda:3 not found.*sees 1 CUDA device;.*--device auto"):
        resolve_device("cuda:3")


def test_precision_on_the_cpu_is_full_unless_asked_otherwise():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(ConfigError, match="needs a GPU"):
        resolve_precision("fp16", CPU)
    with pytest.raises(ConfigError, match="unknown precision 'half'"):
        resolve_precision("half", CPU)


def test_mixed_precision_holds_inside_the_block_only():
    a = torch.ones(2, 2)
    with compute_in("bf16", CPU):
        assert (a @ a).dtype == torch.bfloat16
    with compute_in("fp32", CPU):
        assert (a @ a).dtype == torch.float32
    assert (a @ a).dtype == torch.float32


def test_reproducible_leaves_no_trace_in_torch():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with reproducible(CPU, seed=5):
        first = torch.rand(3)
        assert torch.backends.cudnn.deterministic
    with reproducible(CPU, seed=5):
        second = torch.rand(3)

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.backends.cudnn.deterministic


def test_the_gpu_of_a_mac_is_taken_where_it_is_named_and_there(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device mps not found: .*; use --device auto or cpu"):
        resolve_device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("mps") == torch.device("mps")
    assert resolve_device("auto") == CPU
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
    with pytest.raises(ConfigError, match="is one GPU for 2 processes"):
        check_one_each("mps", 2)


def test_what_needs_float64_is_refused_where_there_is_none():
    require_float64(CPU, "it computes")
    with pytest.raises(ConfigError, match="it computes in float64, which device mps lacks"):
        require_float64(torch.device("mps"), "it computes")
