"""Training follows the lecture, ends as it should, and comes out the same after any kill."""

import csv
import json
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

from wsi_pipeline.cohort.data import to_unit_range
from wsi_pipeline.config.settings import AugmentConfig, ModelConfig, TrainConfig
from wsi_pipeline.errors import ConfigError, ModelError, TrainingError
from wsi_pipeline.inference import predict_store
from wsi_pipeline.models import MODELS, PatchClassifier, build_model
from wsi_pipeline.models.checkpoint import load_checkpoint, read_tensors, write_tensors
from wsi_pipeline.training import loop, outputs, train_model
from wsi_pipeline.training.recipe import build_classifier, build_optimizer, build_scheduler
from wsi_pipeline.training.resume import optimizer_tensors, restore_optimizer

CPU = torch.device("cpu")
TINY = TrainConfig(
    model=ModelConfig("patchnet", {"m": 5, "stride": 5, "filters": 16, "depth": 3}),
    lr=1e-4,
    batch_size=4,
    steps_per_epoch=3,
    max_epochs=4,
)
PATIENTS = {"a": "p1", "b": "p2", "c": "p3"}
OUTPUTS = {"checkpoint.safetensors", "config.json", "curves.png", "draws.csv", "history.csv"}


def train(fake_store, out, config=TINY, **options):
    return train_model(
        config,
        train=[fake_store("a", [0, 1] * 6), fake_store("b", [0] * 9)],
        val=[fake_store("c", [0, 1] * 4)],
        patients=PATIENTS,
        out=out,
        device=CPU,
        **{"fingerprint": "f", **options},
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the column of the history that holds times."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "history.csv" in found:
        lines = found["history.csv"].splitlines()
        assert lines[0].endswith(b",seconds")
        found["history.csv"] = b"\n".join(line.rpartition(b",")[0] for line in lines)
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def undisturbed(fake_store, tmp_path):
    train(fake_store, tmp_path / "undisturbed")
    return contents(tmp_path / "undisturbed")


class Killed(BaseException):
    """Like a signal: no handler of errors catches it."""


def kill_after(batches: int):
    seen = []

    def on_progress(done, total):
        seen.append(done)
        if len(seen) == batches:
            raise Killed

    return on_progress


# ------------------------------------------------------------------ what comes out


def test_training_leaves_what_the_contract_names_and_nothing_else(fake_store, tmp_path):
    summary = train(fake_store, tmp_path)

    assert set(contents(tmp_path)) == OUTPUTS
    assert summary.epochs == 4
    assert "limit of 4 epochs" in str(summary)
    rows = rows_of(tmp_path / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]


def test_the_seconds_of_each_epoch_are_those_of_its_training_pass(
    fake_store, tmp_path, monkeypatch
):
    """PatchNet paper 2, tables 5 and 8; validation does not count."""
    clock = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    step, validate = loop._Training._step, loop._Training.validate

    def slow_step(self, *arguments):
        clock[0] += 2.5
        return step(self, *arguments)

    def slow_validation(self, epoch):
        clock[0] += 40
        return validate(self, epoch)

    monkeypatch.setattr(loop._Training, "_step", slow_step)
    monkeypatch.setattr(loop._Training, "validate", slow_validation)
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8))
    train(fake_store, tmp_path)

    rows = rows_of(tmp_path / "history.csv")
    assert [float(row["seconds"]) for row in rows] == [7.5] * 4  # three batches each


def test_a_state_without_seconds_is_resumed(fake_store, tmp_path):
    """Trainings that were interrupted before the column came."""
    with pytest.raises(Killed):
        train(fake_store, tmp_path, on_progress=kill_after(8))
    path = tmp_path / "resume.safetensors"
    tensors, header = read_tensors(path)
    for record in header["history"]:
        del record["seconds"]
    write_tensors(path, tensors, {k: v for k, v in header.items() if k != "weights_sha256"})

    assert train(fake_store, tmp_path).resumed_from == 2
    rows = rows_of(tmp_path / "history.csv")
    assert [row["seconds"] == "" for row in rows] == [True, True, False, False]


# ------------------------------------------------------------------ passes over all patches

SHUFFLE = replace(TINY, sampling="shuffle", batch_size=4, steps_per_epoch=1000)  # 21 patches


def test_a_shuffled_epoch_passes_over_every_patch_once(fake_store, tmp_path, monkeypatch):
    seen = []
    step = loop._Training._step

    def note(self, pixels, label, samples, augment, epoch):
        seen.append((epoch, label.tolist(), samples.tolist(), pixels.numpy().copy()))
        return step(self, pixels, label, samples, augment, epoch)

    monkeypatch.setattr(loop._Training, "_step", note)
    train(fake_store, tmp_path, SHUFFLE)

    pixels = [fake_store("a", [0, 1] * 6).pixels, fake_store("b", [0] * 9).pixels]
    everything = sorted(p.tobytes() for p in np.concatenate(pixels))
    orders = []
    for epoch in range(1, 5):
        batches = [batch for batch in seen if batch[0] == epoch]
        assert [len(labels) for _, labels, _, _ in batches] == [4, 4, 4, 4, 4, 1]
        assert sum(sum(labels) for _, labels, _, _ in batches) == 6
        orders.append([p.tobytes() for _, _, _, batch in batches for p in batch])
        assert sorted(orders[-1]) == everything
    assert len({tuple(order) for order in orders}) == 4
    rows = rows_of(tmp_path / "draws.csv")
    drawn = {(row["slide_id"], row["label"]): int(row["drawn"]) for row in rows}
    assert drawn == {("a", "0"): 24, ("a", "1"): 24, ("b", "0"): 36, ("b", "1"): 0}


def test_the_loss_of_a_shuffled_epoch_is_a_mean_over_patches(fake_store, tmp_path, monkeypatch):
    """The last batch holds one patch, the others four."""
    losses = iter([1.0, 1.0, 1.0, 1.0, 1.0, 22.0] * 4)
    monkeypatch.setattr(loop._Training, "_step", lambda *_: next(losses))
    train(fake_store, tmp_path, SHUFFLE)
    assert float(rows_of(tmp_path / "history.csv")[0]["train_loss"]) == (20 + 22) / 21


@pytest.mark.parametrize("batches", [1, 6, 15])
def test_shuffled_training_killed_and_resumed_gives_the_same_bytes(fake_store, tmp_path, batches):
    train(fake_store, tmp_path / "undisturbed", SHUFFLE)
    with pytest.raises(Killed):
        train(fake_store, tmp_path / "killed", SHUFFLE, on_progress=kill_after(batches))
    train(fake_store, tmp_path / "killed", SHUFFLE)

    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")


def test_steps_per_epoch_and_readers_do_not_change_a_shuffled_training(fake_store, tmp_path):
    train(fake_store, tmp_path / "a", SHUFFLE)
    train(fake_store, tmp_path / "b", replace(SHUFFLE, steps_per_epoch=2), readers=3)
    ours, theirs = (contents(tmp_path / name)["history.csv"] for name in "ab")
    assert ours == theirs


def test_patches_that_cannot_be_read_are_in_no_pass(fake_store, tmp_path):
    train_model(
        SHUFFLE,
        train=[fake_store("a", [0, 1, -1, 0, 1], unreadable=[0])],
        val=[fake_store("c", [0, 1])],
        patients={"a": "a", "c": "c"},
        out=tmp_path,
        device=CPU,
        fingerprint="f",
    )
    rows = rows_of(tmp_path / "draws.csv")
    assert [int(row["drawn"]) for row in rows] == [4, 8]  # one and two in each of four epochs


def test_the_checkpoint_says_what_it_is_and_whom_it_saw(fake_store, tmp_path):
    summary = train(fake_store, tmp_path)
    _, meta = load_checkpoint(summary.checkpoint)

    assert (meta.model, meta.patch_px, meta.target_mpp) == ("patchnet", 15, 0.5)
    assert (meta.train_slides, meta.val_slides) == (("a", "b"), ("c",))
    assert (meta.train_patients, meta.val_patients) == (("p1", "p2"), ("p3",))
    assert meta.fingerprint == "f"
    assert meta.training["batch_size"] == 4
    assert meta.epoch == summary.best.epoch
    assert json.loads((tmp_path / "config.json").read_text())["train_patients"] == ["p1", "p2"]


def test_the_draws_are_counted_by_slide_and_label(fake_store, tmp_path):
    train(fake_store, tmp_path)

    rows = rows_of(tmp_path / "draws.csv")
    drawn = {(row["slide_id"], row["label"]): int(row["drawn"]) for row in rows}
    assert sum(drawn.values()) == 4 * 3 * 4  # epochs, batches, patches
    assert drawn["b", "1"] == 0
    assert drawn["a", "1"] > 0
    assert {row["slide_id"]: row["patient"] for row in rows} == {"a": "p1", "b": "p2"}


def test_no_folder_of_this_machine_is_in_the_outputs(fake_store, tmp_path):
    train(fake_store, tmp_path)

    for name, data in contents(tmp_path).items():
        assert str(tmp_path).encode() not in data, name


def test_the_kept_weights_are_those_of_the_best_epoch(fake_store, tmp_path):
    """Training only as far as the best epoch gives the same weights."""
    config = replace(TINY, max_epochs=6, lr=3e-3)
    summary = train(fake_store, tmp_path / "long", config)
    short = replace(config, max_epochs=summary.best.epoch)
    again = train(fake_store, tmp_path / "short", short)

    assert again.best == summary.best
    one, two = (read_tensors(s.checkpoint)[0] for s in (summary, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_history_matches_the_kept_weights(fake_store, tmp_path):
    """Loss and ROC AUC of the best epoch, recomputed from the checkpoint's own scores."""
    summary = train(fake_store, tmp_path)
    model, meta = load_checkpoint(summary.checkpoint)
    store = fake_store("c", [0, 1] * 4)

    scores, _ = predict_store(model, meta, store, device=CPU)

    y = store.label
    positive, negative = scores[y == 1], scores[y == 0]
    pairs = positive[:, None] - negative[None, :]
    auc = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    loss = -np.mean(np.where(y == 1, np.log(scores), np.log1p(-scores)))
    assert summary.best.val_roc_auc == pytest.approx(auc)
    assert summary.best.val_loss == pytest.approx(loss, rel=1e-5)


def test_training_learns_what_is_plain_to_see(fake_store, tmp_path):
    config = replace(
        TINY, lr=3e-3, optimizer="adam", steps_per_epoch=20, augment=AugmentConfig(hue=0.0)
    )
    summary = train(fake_store, tmp_path, config)

    assert summary.best.val_roc_auc == 1.0
    assert summary.best.train_loss < 0.5


# ------------------------------------------------------------------ the same again


def test_two_trainings_give_the_same_bytes_whatever_the_readers(fake_store, tmp_path, undisturbed):
    torch.manual_seed(99)  # the state of torch's own generator is of no account
    train(fake_store, tmp_path / "again", readers=1)

    assert contents(tmp_path / "again") == undisturbed


def test_another_seed_gives_other_weights(fake_store, tmp_path, undisturbed):
    train(fake_store, tmp_path / "other", replace(TINY, seed=1))

    assert contents(tmp_path / "other")["history.csv"] != undisturbed["history.csv"]


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

    def go(out, **options):
        train_model(
            config,
            train=[fake_store("a", [0, 1] * 6, patch_px=32)],
            val=[fake_store("c", [0, 1] * 4, patch_px=32)],
            patients=PATIENTS,
            out=out,
            device=CPU,
            fingerprint="f",
            **options,
        )

    go(tmp_path / "undisturbed")
    with pytest.raises(Killed):
        go(tmp_path / "killed", on_progress=kill_after(7))
    go(tmp_path / "killed")

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
    monkeypatch.setattr(loop._Training, "validate", lambda self, epoch: (0.7, 0.9 / epoch))
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


# ------------------------------------------------------------------ the recipe


def test_rmsprop_follows_the_lecture_step_by_step():
    """v = rho v + (1 - rho) g²; buffer = momentum buffer + g / (sqrt v + eps); w -= lr buffer."""
    layer = torch.nn.Linear(3, 1, bias=False)
    optimizer = build_optimizer(TrainConfig(model=ModelConfig("vgg16")), layer)
    w = layer.weight.detach().double().numpy().copy()
    v, buffer = np.zeros_like(w), np.zeros_like(w)
    x = torch.tensor([0.3, -1.0, 2.0])
    for _ in range(50):
        optimizer.zero_grad()
        (layer(x) ** 2).sum().backward()
        gradient = 2 * (w @ x.double().numpy())[:, None] * x.double().numpy()
        optimizer.step()
        v = 0.9 * v + 0.1 * gradient**2
        buffer = 0.9 * buffer + gradient / (np.sqrt(v) + 1e-8)
        w -= 5e-5 * buffer

    np.testing.assert_allclose(layer.weight.detach().numpy(), w, atol=1e-6)


def rates(losses, halve_after=3):
    config = TrainConfig(model=ModelConfig("vgg16"), lr=1.0, lr_halve_after=halve_after)
    optimizer = build_optimizer(config, torch.nn.Linear(1, 1))
    scheduler = build_scheduler(config, optimizer)
    found = []
    for loss in losses:
        scheduler.step(loss)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_is_halved_after_the_third_epoch_without_a_lower_loss():
    assert rates([1.0, 0.9, 0.95, 0.95, 0.95]) == [1, 1, 1, 1, 0.5]
    assert rates([1.0, 0.9] + [0.95] * 7) == [1, 1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_least_improvement_of_the_loss_counts():
    assert rates([1 - 1e-9 * i for i in range(10)]) == [1] * 10
    assert rates([1.0] * 4) == [1, 1, 1, 0.5]


def test_the_rate_stays_where_no_halving_is_asked_for(fake_store, tmp_path):
    train(fake_store, tmp_path, replace(TINY, lr_halve_after=None))

    rows = rows_of(tmp_path / "history.csv")
    assert {float(row["lr"]) for row in rows} == {1e-4}


def test_training_stops_early_and_the_rate_falls_when_nothing_improves(
    fake_store, tmp_path, monkeypatch
):
    """With a validation that never changes: halved after 1 + 3 epochs, stopped after 1 + 5."""
    monkeypatch.setattr(loop._Training, "validate", lambda self, epoch: (0.7, 0.6))
    summary = train(fake_store, tmp_path, replace(TINY, max_epochs=50))

    rows = rows_of(tmp_path / "history.csv")
    assert [float(row["lr"]) for row in rows] == [1e-4] * 4 + [5e-5] * 2
    assert summary.stopped == "the validation ROC AUC has not improved for 5 epochs"
    assert summary.best.epoch == 1


def test_each_epoch_draws_anew(fake_store, tmp_path, monkeypatch):
    drawn = []
    draw = loop.ThreeStepSampler.draw

    def spy(self, n):
        drawn.append(draw(self, n))
        return drawn[-1]

    monkeypatch.setattr(loop.ThreeStepSampler, "draw", spy)
    train(fake_store, tmp_path)

    assert len({d[1].tobytes() + d[0].tobytes() for d in drawn}) == 4


def test_ignored_and_unreadable_patches_are_never_drawn(fake_store, tmp_path):
    store = fake_store("a", [0, 1, -1, 1, 0, 1], unreadable=[3])
    train_model(
        TINY,
        train=[store],
        val=[fake_store("c", [0, 1, -1])],
        patients=PATIENTS,
        out=tmp_path,
        device=CPU,
        fingerprint="f",
    )

    assert {row for rows in store.reads for row in rows} == {0, 1, 4, 5}


def test_a_patch_that_turns_out_unreadable_is_left_out_of_its_batch(fake_store, tmp_path):
    summary = train_model(
        TINY,
        train=[fake_store("a", [0, 1] * 3, broken=[0, 1])],
        val=[fake_store("c", [0, 1] * 3, broken=[2])],
        patients=PATIENTS,
        out=tmp_path,
        device=CPU,
        fingerprint="f",
    )

    assert summary.epochs == 4


# ------------------------------------------------------------------ bad input


def test_a_loss_that_is_no_number_stops_with_a_remedy(fake_store, tmp_path):
    with pytest.raises(TrainingError, match=r"patchnet: .*diverged; lower its learning rate"):
        train(fake_store, tmp_path, replace(TINY, lr=1e30, optimizer="adam"))
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_outputs_that_are_no_numbers_stop_the_accuracy_rule_too(fake_store, tmp_path):
    """They were counted as sure of tumour."""
    rule = {"monitor": "none", "steps_per_epoch": 1, "stop_at_train_accuracy": 1.0}
    config = replace(TINY, lr=1e30, optimizer="adam", **rule)
    with pytest.raises(TrainingError, match="output became infinite or NaN in epoch 1"):
        train(fake_store, tmp_path, config)


def test_a_class_absent_from_val_is_refused_before_training(fake_store, tmp_path):
    with pytest.raises(TrainingError, match="split val has no readable patch of class tumour"):
        train_model(
            TINY,
            train=[fake_store("a", [0, 1])],
            val=[fake_store("c", [0, 0])],
            patients=PATIENTS,
            out=tmp_path / "out",
            device=CPU,
            fingerprint="f",
        )
    assert not (tmp_path / "out").exists()


def test_validation_patches_that_all_turn_out_unreadable_are_named(fake_store, tmp_path):
    with pytest.raises(TrainingError, match="check the slide files of split val"):
        train_model(
            TINY,
            train=[fake_store("a", [0, 1])],
            val=[fake_store("c", [0, 1, 1], broken=[1, 2])],
            patients=PATIENTS,
            out=tmp_path,
            device=CPU,
            fingerprint="f",
        )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 0),
        ("steps_per_epoch", 0),
        ("max_epochs", 0),
        ("patience", 0),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("val_patches", 1),
        ("lr_halve_after", 0),
    ],
)
def test_a_setting_out_of_its_range_is_named(fake_store, tmp_path, name, value):
    with pytest.raises(ConfigError, match=rf"train: {name}: input should be"):
        train(fake_store, tmp_path, replace(TINY, **{name: value}))


def test_without_anything_monitored_no_validation_is_needed_and_the_last_weights_are_kept(
    tmp_path, fake_store
):
    config = replace(TINY, monitor="none", max_epochs=3, lr_halve_after=None)
    train = [fake_store("a", [0, 1, 1, 0]), fake_store("b", [0, 0, 1])]
    summary = train_model(
        config,
        train=train,
        val=[],
        patients={"a": "a", "b": "b"},
        out=tmp_path,
        device=torch.device("cpu"),
        fingerprint="f",
    )
    assert (summary.epochs, summary.best.epoch, summary.best.val_loss) == (3, 3, None)
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert [row.split(",")[3:5] for row in rows[1:]] == [["", ""]] * 3


# ------------------------------------------------------------------ how a batch is computed


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
