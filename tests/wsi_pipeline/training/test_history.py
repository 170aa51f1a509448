"""When training stops, and which epoch is kept, read off the history."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_pipeline.training.curves import draw_curves
from wsi_pipeline.training.history import EpochRecord, best_epoch, stop_reason, write_history

pytestmark = pytest.mark.real_pictures


def history_of(aucs, losses=None):
    losses = losses or [0.5] * len(aucs)
    pairs = zip(aucs, losses, strict=True)
    return [EpochRecord(i + 1, 5e-5, 0.6, e, auc) for i, (auc, e) in enumerate(pairs)]


def stopped(history, patience=5, max_epochs=1000, monitor="roc_auc"):
    return stop_reason(history, monitor=monitor, patience=patience, max_epochs=max_epochs)


def test_training_stops_after_five_epochs_without_a_higher_auc():
    assert stopped(history_of([0.7, 0.8, 0.8, 0.79, 0.8, 0.8])) is None  # four
    reason = stopped(history_of([0.7, 0.8, 0.8, 0.79, 0.8, 0.8, 0.8]))
    assert reason == "the validation ROC AUC has not improved for 5 epochs"


def test_an_equal_auc_keeps_the_weights_of_the_lower_loss_but_does_not_prolong_training():
    history = history_of([0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.7, 0.6, 0.5, 0.3, 0.4, 0.4, 0.4])

    assert best_epoch(history, "roc_auc") == 4
    assert stopped(history[:-1]) is None
    assert stopped(history) is not None


def test_of_equal_epochs_the_first_is_kept():
    assert best_epoch(history_of([0.8, 0.8, 0.8]), "roc_auc") == 1
    assert best_epoch(history_of([0.8, 0.9, 0.8]), "loss") == 1


def test_any_higher_auc_starts_the_count_again():
    assert stopped(history_of([0.8, 0.1, 0.1, 0.1, 0.1, 0.8000001])) is None


def test_the_loss_does_not_matter_to_the_auc_rule():
    falling = [1.0 / (i + 1) for i in range(6)]
    assert stopped(history_of([0.8] * 6, falling)) is not None
    assert stopped(history_of([0.8] * 6, falling), monitor="loss") is None


def test_training_stops_at_the_limit_of_epochs():
    assert "limit of 3 epochs" in stopped(history_of([0.1, 0.2, 0.3]), max_epochs=3)
    assert stopped([], max_epochs=3) is None


@given(aucs=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), max_size=15))
def test_the_rule_equals_a_counter_that_is_carried_along(aucs):
    best, bad, expected = -1.0, 0, False
    for auc in aucs:
        best, bad = (auc, 0) if auc > best else (best, bad + 1)
        expected = bad >= 3

    assert (stopped(history_of(aucs), patience=3) is not None) == expected


def test_history_is_a_csv_in_full_precision(tmp_path):
    calibration = (1.5, 0.6, 0.2, 0.1)
    history = [
        EpochRecord(1, 5e-5, 0.1 + 0.2, 2 / 3, 0.9, 1 / 3, "pushed; fitted", *calibration, 12.345)
    ]
    write_history(tmp_path / "history.csv", history)

    header, line = (tmp_path / "history.csv").read_text().splitlines()
    assert header == (
        "epoch,lr,train_loss,val_loss,val_roc_auc,train_accuracy,note,"
        "val_temperature,val_loss_calibrated,val_ece,val_ece_calibrated,seconds"
    )
    cells = line.split(",")
    assert [float(v) for v in cells[:6]] == [1, 5e-5, 0.1 + 0.2, 2 / 3, 0.9, 1 / 3]
    assert cells[6] == "pushed; fitted"
    assert [float(v) for v in cells[7:]] == [*calibration, 12.345]


def test_curves_are_a_png_with_the_same_bytes_each_time(tmp_path):
    history = history_of([0.6, 0.7, 0.65], [0.7, 0.6, 0.65])
    for name in ("a.png", "b.png"):
        draw_curves(tmp_path / name, history, title="vgg16", best=2)

    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) > 10_000
    assert data == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_training_may_end_by_the_accuracy_on_its_own_patches():
    history = [EpochRecord(1, 1e-4, 0.5, 0.5, 0.9, 0.99), EpochRecord(2, 1e-4, 0.4, 0.5, 0.9, 1.0)]
    limits = {"monitor": "loss", "patience": 10, "max_epochs": 10}

    assert stop_reason(history, **limits) is None
    assert stop_reason(history[:1], **limits, train_accuracy=1.0) is None
    message = stop_reason(history, **limits, train_accuracy=1.0)
    assert message == "100 % of the training patches are classified correctly"
