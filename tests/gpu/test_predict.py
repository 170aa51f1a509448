"""Prediction on a GPU: the CPU's scores, whatever the precision, the batch and the memory."""

import logging

import numpy as np
import pytest
import torch

from wsi_pipeline.cohort.data import read_batch
from wsi_pipeline.cohort.patch_views import PatchViews
from wsi_pipeline.config.devices import exact_fp32, resolve_device, resolve_precision
from wsi_pipeline.inference import predict_store
from wsi_pipeline.inference.forward import Forward
from wsi_pipeline.models import build_model
from wsi_pipeline.models.checkpoint import CheckpointMeta

pytestmark = pytest.mark.gpu
PATCH_PX = 64
META = CheckpointMeta(model="vgg16", options={}, patch_px=PATCH_PX, target_mpp=0.5)
CPU = torch.device("cpu")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("vgg16", width=0.125)


@pytest.fixture
def store(fake_store):
    return fake_store("s", [0, 1] * 20, patch_px=PATCH_PX, unreadable=[3], broken=[8])


@pytest.fixture
def expected(model, store):
    """Scores on the CPU in fp32."""
    return predict_store(model, META, store, device=CPU)[0]


def test_fp32_scores_are_those_of_the_cpu(model, store, expected, device):
    """TF32, cuDNN's default for fp32 convolutions, would differ in the third digit."""
    scores, _ = predict_store(model, META, store, device=device, precision="fp32")

    np.testing.assert_allclose(scores, expected, atol=2e-6)
    assert np.isnan(scores[[3, 8]]).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_fp32_and_is_compared_with_it(
    model, store, expected, device, precision
):
    if device.type == "cpu" and precision == "fp16":
        pytest.skip("fp16 needs a GPU")
    scores, summary = predict_store(model, META, store, device=device, precision=precision)

    np.testing.assert_allclose(scores, expected, atol=0.02)
    assert summary.precision_check is not None
    assert summary.precision_check.largest_difference < 0.02


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_scores_do_not_depend_on_the_batch(model, store, expected, device, batch_size):
    scores, _ = predict_store(model, META, store, device=device, batch_size=batch_size)

    np.testing.assert_allclose(scores, expected, atol=2e-6)


def test_batches_lie_in_pinned_memory(store, gpu):
    """Only from there can a batch be copied while the one before computes."""
    batch = read_batch(store, np.arange(4), pinned=True)

    assert batch.pixels.is_pinned()
    assert batch.pixels.to(gpu).cpu().equal(batch.pixels)


def test_several_batches_are_under_way_at_once_and_come_back_in_order(model, store, gpu):
    forward = Forward(model, device=gpu, precision="fp32", limit=8)
    rows = [np.arange(start, start + 3) for start in (10, 20, 30)]
    batches = [read_batch(store, part, pinned=True).pixels for part in rows]

    pending = [forward.launch(PatchViews.of(batch)) for batch in batches]
    together = [forward.collect(one, "s") for one in pending]

    assert all(one.events is not None for one in pending)
    for scores, batch in zip(together, batches, strict=True):
        np.testing.assert_allclose(scores, forward.score(batch, "s"), atol=1e-6)
    assert forward.seconds_transfer > 0
    assert forward.seconds_model > 0


def test_too_large_a_batch_is_halved_until_it_fits(fake_store, gpu, caplog):
    """Real memory, of which this process may take 2 GiB: VGG16's first layers fill it."""
    torch.manual_seed(0)
    large = build_model("vgg16")
    store = fake_store("s", [0, 1] * 24, patch_px=512)
    meta = CheckpointMeta(model="vgg16", options={}, patch_px=512, target_mpp=0.5)
    few, _ = predict_store(large, meta, store, device=gpu, precision="bf16", batch_size=2)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(gpu).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 2 * 2**30 / total), gpu)
        with caplog.at_level(logging.WARNING):
            scores, summary = predict_store(
                large, meta, store, device=gpu, precision="bf16", batch_size=48
            )
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)

    assert summary.batch_size < 48
    assert "out of memory" in caplog.text
    np.testing.assert_allclose(scores, few, atol=0.01)


def test_auto_takes_the_gpu_and_its_half_precision(gpu):
    assert resolve_device("auto") == torch.device("cuda", 0)
    assert resolve_precision("auto", gpu) in ("bf16", "fp16")


def test_fp32_is_exact_and_the_setting_of_torch_comes_back(device):
    before = torch.backends.cudnn.allow_tf32
    with exact_fp32():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before
