"""TensorBoard's own reader finds in the event files what the history has."""

from dataclasses import replace

import pytest

from tests.helpers.tiny_training import TINY, Killed, contents, kill_after, rows_of, train
from wsi_pipeline.config import extras

LOGGED = replace(TINY, log="tensorboard")
COLUMNS = {
    "loss/train": "train_loss",
    "loss/val": "val_loss",
    "roc_auc/val": "val_roc_auc",
    "rate": "lr",
}


def read_scalars(folder):
    """All scalars of the folder's files, by tag: (step, value) as they were written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(
                    (event.step, float(make_ndarray(value.tensor)))
                )
    return found


def expect_history(out):
    scalars, rows = read_scalars(out / "tensorboard"), rows_of(out / "history.csv")
    assert set(scalars) == set(COLUMNS)
    for tag, column in COLUMNS.items():
        assert [step for step, _ in scalars[tag]] == [1, 2, 3, 4]
        values = [float(row[column]) for row in rows]
        assert [value for _, value in scalars[tag]] == pytest.approx(values, rel=1e-6)


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


@pytest.mark.usefixtures("tensorboard")
def test_the_event_file_has_the_history_and_changes_no_weight(fake_store, tmp_path):
    train(fake_store, tmp_path / "plain")
    train(fake_store, tmp_path / "logged", LOGGED)
    expect_history(tmp_path / "logged")
    assert not (tmp_path / "plain/tensorboard").exists()
    both = [tmp_path / name for name in ("plain", "logged")]
    histories = [rows_of(folder / "history.csv") for folder in both]
    for row in (*histories[0], *histories[1]):
        row.pop("seconds")
    assert histories[0] == histories[1]


@pytest.mark.usefixtures("tensorboard")
@pytest.mark.parametrize("first", [TINY, LOGGED], ids=["not logged before", "logged before"])
def test_a_resumed_training_has_each_epoch_once(fake_store, tmp_path, first):
    with pytest.raises(Killed):
        train(fake_store, tmp_path, first, on_progress=kill_after(8))
    train(fake_store, tmp_path, LOGGED)
    expect_history(tmp_path)


@pytest.mark.usefixtures("tensorboard")
def test_another_training_leaves_no_event_files_of_the_one_before(fake_store, tmp_path):
    train(fake_store, tmp_path, LOGGED)
    kept = tmp_path / "tensorboard/notes.txt"
    kept.write_text("mine")
    train(fake_store, tmp_path, replace(TINY, seed=1))
    assert list((tmp_path / "tensorboard").iterdir()) == [kept]


def test_without_the_package_nothing_is_trained(fake_store, tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as raised:
        train(fake_store, tmp_path, LOGGED)
    assert extras.explain_missing(raised.value, "train") == (
        "`train` needs TensorBoard for --log tensorboard: pip install 'wsi-pipeline[tensorboard]'"
    )
    assert contents(tmp_path) == {}
