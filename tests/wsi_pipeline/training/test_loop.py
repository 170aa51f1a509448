"""What training leaves, draws and refuses, by the lecture's recipe."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from tests.helpers.tiny_training import (
    CPU,
    OUTPUTS,
    PATIENTS,
    TINY,
    Killed,
    contents,
    kill_after,
    rows_of,
    train,
)
from wsi_pipeline.cohort.stain_view import NormalisedPatches
from wsi_pipeline.config.settings import AugmentConfig, ModelConfig, PreprocessConfig, TrainConfig
from wsi_pipeline.errors import ConfigError, TrainingError
from wsi_pipeline.inference import predict_store
from wsi_pipeline.models.checkpoint import load_checkpoint, read_tensors, write_tensors
from wsi_pipeline.training import loop, train_model
from wsi_pipeline.training.calibration import calibration_figures
from wsi_pipeline.training.recipe import build_optimizer, build_scheduler

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

    def slow_validation(self, record):
        clock[0] += 40
        return validate(self, record)

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

    def note(self, pixels, label, samples, augment):
        epoch = len(self.history) + 1
        seen.append((epoch, label.tolist(), samples, pixels.numpy().copy()))
        return step(self, pixels, label, samples, augment)

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
    monkeypatch.setattr(loop._Training, "_step", lambda *_: torch.tensor([next(losses)]))
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


def test_the_temperature_is_that_of_the_kept_weights(fake_store, tmp_path):
    """Temperature, loss and calibration error, recomputed from the checkpoint's own logits."""
    summary = train(fake_store, tmp_path)
    model, meta = load_checkpoint(summary.checkpoint)
    store = fake_store("c", [0, 1] * 4)
    logits, _ = predict_store(model, meta, store, device=CPU, output="logits")
    grid = np.geomspace(0.05, 20, 20_001)
    losses = [np.logaddexp(0, np.where(store.label == 1, -1, 1) * logits / t).mean() for t in grid]

    assert meta.temperature == summary.best.val_temperature
    assert meta.temperature == pytest.approx(grid[np.argmin(losses)], rel=1e-3)
    assert meta.metrics["val_loss_calibrated"] == pytest.approx(min(losses), abs=1e-6)
    assert meta.metrics["val_loss_calibrated"] <= meta.metrics["val_loss"]
    calibrated, _ = predict_store(model, meta, store, device=CPU, temperature=meta.temperature)
    for name, scores in (("val_ece", expit(logits)), ("val_ece_calibrated", calibrated)):
        figures = calibration_figures(store.label, scores)
        assert meta.metrics[name] == pytest.approx(figures.ece, abs=1e-6)
    kept = rows_of(tmp_path / "history.csv")[meta.epoch - 1]
    assert float(kept["val_temperature"]) == meta.temperature


def test_without_validation_there_is_no_temperature(fake_store, tmp_path):
    summary = train(fake_store, tmp_path, replace(TINY, monitor="none", max_epochs=1))
    assert load_checkpoint(summary.checkpoint)[1].temperature is None
    assert rows_of(tmp_path / "history.csv")[0]["val_temperature"] == ""


def test_training_learns_what_is_plain_to_see(fake_store, tmp_path):
    config = replace(
        TINY, lr=3e-3, optimizer="adam", steps_per_epoch=20, augment=AugmentConfig(hue=0.0)
    )
    summary = train(fake_store, tmp_path, config)

    assert summary.best.val_roc_auc == 1.0
    assert summary.best.train_loss < 0.5


def test_training_with_normalised_stains_is_training_on_normalised_patches(fake_store, tmp_path):
    model = ModelConfig(
        "patchnet", TINY.model.options, preprocess=PreprocessConfig(stain="reinhard")
    )
    stained = train(fake_store, tmp_path / "stained", replace(TINY, model=model, max_epochs=1))

    def normalised_store(*arguments):
        store = fake_store(*arguments)
        pixels = np.empty_like(store.pixels)
        NormalisedPatches(store, "reinhard").read_into(np.arange(len(store)), pixels)
        assert not np.array_equal(store.pixels, pixels)
        store.pixels = pixels
        return store

    plain = train(normalised_store, tmp_path / "plain", replace(TINY, max_epochs=1))
    one, other = (read_tensors(summary.checkpoint)[0] for summary in (stained, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)
    options = load_checkpoint(stained.checkpoint)[1].options
    assert options["preprocess"]["stain"] == "reinhard"
    assert "preprocess" not in load_checkpoint(plain.checkpoint)[1].options


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
    same = {"val_loss": 0.7, "val_roc_auc": 0.6, "val_temperature": 1.0}
    monkeypatch.setattr(loop._Training, "validate", lambda self, record: replace(record, **same))
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
