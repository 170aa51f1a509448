"""Every patch gets its own score, whatever the batches, threads and memory."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from wsi_pipeline.errors import InferenceError
from wsi_pipeline.inference import automatic_batch_size, predict_store
from wsi_pipeline.models.checkpoint import CheckpointMeta
from wsi_pipeline.run.shards import Shard

CPU = torch.device("cpu")
META = CheckpointMeta(model="mean", options={}, patch_px=15, target_mpp=0.5)


class MeanModel(nn.Module):
    """Logit = 10 (mean red - mean of all): known for any patch."""

    def __init__(self, fits: int = 10**9) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(10.0))
        self.fits = fits
        self.batches: list[int] = []

    def forward(self, x):
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(len(x))
        return self.weight * (x[:, 0].mean((1, 2)) - x.mean((1, 2, 3)))


def expected_scores(store):
    x = store.pixels / 255.0
    logits = 10 * (x[..., 0].mean((1, 2)) - x.mean((1, 2, 3)))
    return 1 / (1 + np.exp(-logits))


def predict(store, model=None, **options):
    return predict_store(model or MeanModel(), META, store, device=CPU, **options)


def test_scores_are_those_of_each_patch_alone_in_the_order_of_the_store(fake_store):
    store = fake_store("a", [0, 1] * 10)

    scores, summary = predict(store, batch_size=3)

    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected_scores(store), atol=1e-6)
    assert (summary.n_patches, summary.n_unreadable) == (20, 0)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch_size=st.integers(1, 25), readers=st.integers(1, 3))
def test_scores_do_not_depend_on_batches_or_threads(fake_store, batch_size, readers):
    store = fake_store("a", [0, 1] * 10)

    scores, _ = predict(store, batch_size=batch_size, readers=readers)

    np.testing.assert_allclose(scores, expected_scores(store), atol=1e-6)


def test_unreadable_patches_are_nan_and_never_read(fake_store):
    store = fake_store("a", [0, 1, 0, 1], unreadable=[1, 3])

    scores, summary = predict(store)

    assert np.isnan(scores).tolist() == [False, True, False, True]
    assert {row for batch in store.reads for row in batch} == {0, 2}
    assert summary.n_unreadable == 2


def test_patches_that_fail_only_when_read_are_nan_and_the_rest_is_scored(fake_store):
    """A store without pixels reads the slide at prediction: one bad tile spoils no other."""
    store = fake_store("a", [0, 1, 0, 1, 1], broken=[2])

    scores, summary = predict(store, batch_size=4)

    good = np.array([0, 1, 3, 4])
    np.testing.assert_allclose(scores[good], expected_scores(store)[good], atol=1e-6)
    assert np.isnan(scores[2])
    assert summary.n_unreadable == 1


def test_a_slide_of_which_nothing_can_be_read_fails(fake_store):
    with pytest.raises(InferenceError, match=r"a: none of its 2 patches could be read"):
        predict(fake_store("a", [0, 1], broken=[0, 1]))


def test_a_slide_of_which_too_little_can_be_read_fails_as_in_tiling(fake_store):
    """A store without pixels is found out only here."""
    store = fake_store("a", [0, 1, 0, 1], broken=[0, 1, 3])
    with pytest.raises(InferenceError, match=r"a: 3 of 4 patches .* tile.max_unreadable=0.5"):
        predict(store, max_unreadable=0.5)
    assert predict(store, max_unreadable=0.75)[1].n_unreadable == 3


def test_reported_batches_are_no_larger_than_the_slide(fake_store):
    few, none = (predict(fake_store("s", labels))[1] for labels in ([0, 1, 0], []))
    assert few.batch_size > 3
    assert "in batches of 3" in str(few)
    assert str(none) == "0 patches: no tile contains tissue, nothing to score"


def test_a_slide_without_patches_has_no_scores(fake_store):
    scores, summary = predict(fake_store("a", []))

    assert scores.shape == (0,)
    assert summary.n_patches == 0


def test_a_batch_too_large_for_memory_is_halved_and_stays_so(fake_store, caplog):
    store, model = fake_store("a", [0, 1] * 10), MeanModel(fits=3)

    with caplog.at_level(logging.WARNING):
        scores, summary = predict(store, model, batch_size=16)

    np.testing.assert_allclose(scores, expected_scores(store), atol=1e-6)
    assert max(model.batches) == summary.batch_size == 2  # 16, 8, 4 do not fit
    assert caplog.text.count("out of memory") == 3


def test_the_cpu_running_out_of_memory_is_recognised(fake_store):
    class CpuModel(MeanModel):
        def forward(self, x):
            if len(x) > 1:
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
            return super().forward(x)

    store = fake_store("a", [0, 1, 1])
    scores, _ = predict(store, CpuModel(), batch_size=3)

    np.testing.assert_allclose(scores, expected_scores(store), atol=1e-6)


def test_a_single_patch_too_large_for_memory_says_what_to_do(fake_store):
    with pytest.raises(InferenceError, match=r"not even one patch fits.*--device cpu"):
        predict(fake_store("a", [0, 1]), MeanModel(fits=0))


def test_an_error_of_the_model_is_not_taken_for_lack_of_memory(fake_store):
    class Broken(MeanModel):
        def forward(self, x):
            raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        predict(fake_store("a", [0, 1]), Broken())


@pytest.mark.parametrize(
    ("precision", "cure"),
    [("bf16", r"use --set predict\.precision=fp32"), ("fp32", "use another checkpoint")],
)
def test_a_score_that_is_no_number_is_an_error_with_a_remedy_that_is_not_in_force(
    fake_store, precision, cure
):
    """And not an unreadable patch."""
    model = MeanModel()
    model.weight.data.fill_(np.nan)

    message = f"no finite score for 2 of 2 patches in {precision}; .*{cure}"
    with pytest.raises(InferenceError, match=message):
        predict(fake_store("a", [0, 1]), model, precision=precision)


@pytest.mark.parametrize("other", [{"patch_px": 17}, {"target_mpp": 0.25}], ids=["size", "mpp"])
def test_patches_unlike_those_of_training_are_refused(fake_store, other):
    with pytest.raises(InferenceError, match=r"on patches of 15 px at 0.5 µm/px; tile with"):
        predict(fake_store("a", [0, 1], **other))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"image_shape": (15, 15, 1)},
            r"patches of 15 px .* images of 15 x 15 x 1 at 0.5",
        ),
        ({"image_shape": (15, 20, 3)}, r"images of 15 x 20 x 3"),
        (
            {"image_shape": (15, 15, 3), "target_mpp": 0.0},
            r"15 x 15 x 3 of unknown .*; give",
        ),
        ({"class_names": ("tumour", "normal")}, r"are tumour \(0\) and normal \(1\); train again"),
    ],
    ids=["channels", "sides", "no-resolution", "order-of-classes"],
)
def test_a_checkpoint_that_wants_something_else_is_refused(fake_store, other, message):
    meta = replace(META, **other)
    with pytest.raises(InferenceError, match=message):
        predict_store(MeanModel(), meta, fake_store("a", [0, 1]), device=CPU)


def test_a_checkpoint_of_square_colour_images_scores_patches_of_their_size(fake_store):
    store, meta = fake_store("a", [0, 1]), replace(META, image_shape=(15, 15, 3))
    scores, _ = predict_store(MeanModel(), meta, store, device=CPU)
    np.testing.assert_allclose(scores, expected_scores(store), atol=1e-6)


def test_bf16_scores_are_near_those_of_fp32_and_float32(fake_store):
    store = fake_store("a", [0, 1] * 4)
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Flatten(0))

    full, _ = predict(store, model, precision="fp32")
    half, _ = predict(store, model, precision="bf16")

    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=2e-2)


def test_progress_ends_at_all_readable_patches(fake_store):
    seen = []
    predict(
        fake_store("a", [0] * 7, unreadable=[0]),
        batch_size=4,
        on_progress=lambda done, total: seen.append((done, total)),
    )

    assert seen == [(4, 6), (6, 6)]


def test_prediction_leaves_dropout_off(fake_store):
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Dropout(0.9), nn.Flatten(0)).train()
    store = fake_store("a", [0, 1] * 4)

    assert np.array_equal(predict(store, model)[0], predict(store, model)[0])


def test_automatic_batches_follow_the_patch_size():
    assert automatic_batch_size(512, CPU) == 4
    assert automatic_batch_size(4096, CPU) == 1
    assert automatic_batch_size(8, CPU) == 1024


def test_a_model_with_large_layers_is_computed_in_smaller_batches(fake_store, monkeypatch):
    """PatchNet's overlapping patches multiply an image: the layers count, not the input."""
    monkeypatch.setattr("wsi_pipeline.inference.forward.CPU_LAYER_BYTES", 3 * 4 * (3 * 15**2 + 8))
    model = nn.Sequential(nn.Conv2d(3, 8, 15), nn.Conv2d(8, 1, 1), nn.Flatten(0))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))

    scores, summary = predict(fake_store("a", [0, 1] * 4), model)

    assert sizes == [1, 3, 3, 2]  # one to measure, then all
    assert summary.batch_size == 3
    assert np.isfinite(scores).all()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_tiny_difference_of_resolution_is_rounding(fake_store):
    store = fake_store("a", [0, 1])
    store.kind = replace(store.kind, mpp=0.50001)

    assert len(predict(store)[0]) == 2


# ---------------------------------------------------------------- resume


class Killed(BaseException):
    """Simulates the end of the process."""


@pytest.mark.parametrize("batches_done", [0, 1, 3, 6])
@pytest.mark.parametrize("torn", [0, 5], ids=["whole", "torn"])
def test_a_killed_prediction_goes_on_inside_the_slide_with_the_same_bits(
    fake_store, tmp_path, batches_done, torn
):
    store, journal = fake_store("a", [0, 1] * 10, unreadable=[3], broken=[7]), tmp_path / "j"
    model = nn.Sequential(nn.Conv2d(3, 8, 15), nn.Flatten(), nn.Linear(8, 1), nn.Flatten(0))
    whole, _ = predict(store, model, batch_size=3)

    def killed(done, total):
        if done >= 3 * batches_done + 1:
            raise Killed

    with pytest.raises(Killed):
        predict(store, model, batch_size=3, journal=journal, key="k", on_progress=killed)
    if torn:
        journal.write_bytes(journal.read_bytes()[:-torn])
    store.reads.clear()
    scores, summary = predict(store, model, batch_size=3, journal=journal, key="k")

    assert scores.tobytes() == whole.tobytes()
    n_done = 3 * batches_done if torn else min(3 * batches_done + 3, 19)
    readable = np.flatnonzero(~store.unreadable)
    first_look = {0}  # one patch shows that the slide can be read
    assert summary.n_resumed == n_done
    assert {row for batch in store.reads for row in batch} == {*readable[n_done:], *first_look}


def test_a_journal_of_other_settings_is_not_used(fake_store, tmp_path):
    store, journal = fake_store("a", [0, 1] * 4), tmp_path / "j"
    predict(store, MeanModel(), batch_size=3, journal=journal, key="one")

    _, other = predict(store, MeanModel(), batch_size=3, journal=journal, key="two")
    _, sizes = predict(store, MeanModel(), batch_size=2, journal=journal, key="two")
    _, again = predict(store, MeanModel(), batch_size=2, journal=journal, key="two")

    assert (other.n_resumed, sizes.n_resumed, again.n_resumed) == (0, 0, 8)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_parts_have_the_bits_of_the_whole_and_share_no_patch(fake_store, count):
    store = fake_store("a", [0, 1] * 10, unreadable=[3], broken=[7])
    model = nn.Sequential(nn.Conv2d(3, 8, 15), nn.Flatten(), nn.Linear(8, 1), nn.Flatten(0))
    whole, _ = predict(store, model, batch_size=3, output="logits")
    parts = [
        predict(store, model, batch_size=3, output="logits", part=Shard(index, count))[0]
        for index in range(count)
    ]
    assert (np.sum([~np.isnan(part) for part in parts], axis=0) == ~np.isnan(whole)).all()
    assert np.fmax.reduce(parts).tobytes() == whole.tobytes()


# ---------------------------------------------------------------- precision


def test_a_faster_precision_is_held_to_fp32_on_the_first_patches(fake_store):
    store = fake_store("a", [0, 1] * 10)
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Flatten(0))
    full, exact = predict(store, model)
    half, summary = predict(store, model, precision="bf16")

    assert exact.precision_check is None
    check = summary.precision_check
    assert check.n_patches == 8
    assert check.largest_difference == pytest.approx(np.abs(half - full)[:8].max(), abs=1e-6)
    assert check.n_flipped == ((half[:8] >= 0.5) != (full[:8] >= 0.5)).sum()


@pytest.mark.parametrize(
    ("broken", "compared"),
    [
        pytest.param(range(8), range(8, 16), id="all-of-the-first-eight"),
        pytest.param(range(1, 8), (0, *range(8, 15)), id="seven-of-the-first-eight"),
        pytest.param(range(17), range(17, 20), id="all-but-three-of-the-slide"),
    ],
)
def test_precision_is_compared_on_patches_that_can_be_read(fake_store, broken, compared):
    """Of a store without pixels the first eight alone were tried, readable or not."""
    store = fake_store("a", [0, 1] * 10, broken=broken)
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Flatten(0))
    full, _ = predict(store, model)
    half, summary = predict(store, model, precision="bf16")

    check, rows = summary.precision_check, list(compared)
    assert check.n_patches == len(rows)
    assert check.largest_difference == pytest.approx(np.abs(half - full)[rows].max(), abs=1e-6)


def test_batches_fit_the_layers_though_the_first_patch_cannot_be_read(fake_store, monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Flatten(0))
    monkeypatch.setattr("wsi_pipeline.inference.forward.CPU_LAYER_BYTES", 10_000)
    _, whole = predict(fake_store("a", [0, 1] * 4), model)
    _, broken = predict(fake_store("a", [0, 1] * 4, broken=[0]), model)
    assert broken.batch_size == whole.batch_size < 8


def test_a_difference_above_the_tolerance_is_reported(fake_store, caplog):
    store = fake_store("a", [0, 1] * 4)
    torch.manual_seed(0)  # else some weights saturate every score
    model = nn.Sequential(nn.Conv2d(3, 1, 15), nn.Flatten(0))
    model[0].weight.data.mul_(50)

    with caplog.at_level(logging.WARNING):
        _, summary = predict(store, model, precision="bf16", tolerance=1e-6)

    assert not summary.precision_check.within
    assert "a: largest difference from fp32 on 8 patches" in caplog.text
    assert "predict.precision=fp32" in caplog.text


# ---------------------------------------------------------------- where the time goes


def test_a_starved_device_is_reported_with_a_remedy(fake_store):
    _, summary = predict(fake_store("a", [0, 1]))

    assert "waited 0.0 s for pixels, transfer 0.0 s, model 0.0 s in batches of" in str(summary)
    assert not summary.starved
    starved = replace(summary, seconds_read_wait=30.0, seconds_model=20.0)
    assert starved.starved
    assert "the device waits for pixels: raise predict.readers" in str(starved)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method. is deprecated:DeprecationWarning")  # torch's
def test_a_compiled_model_gives_the_same_scores_and_compiles_once(fake_store):
    store = fake_store("a", [0, 1] * 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 15), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    model.append(nn.Flatten(0))
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    plain, _ = predict(store, model, batch_size=3)

    compiled, summary = predict(store, model, batch_size=3, compiler="inductor")

    np.testing.assert_allclose(compiled, plain, atol=1e-6)
    assert summary.precision_check.largest_difference < 1e-6
