"""A journal gives back whole batches only, in order, whatever the kill left of the file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.inference.journal import Journal


def keep(path, batches, key="k"):
    with Journal(path, key=key) as journal:
        for batch in batches:
            journal.append(np.asarray(batch, np.float32))


def found(path, key="k"):
    with Journal(path, key=key) as journal:
        return [batch.tolist() for batch in journal.batches]


@settings(max_examples=30)
@given(data=st.data())
def test_whatever_is_left_of_the_file_a_prefix_of_batches_comes_back(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("journal") / "a.scores"
    batches = data.draw(
        st.lists(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5), max_size=5)
    )
    keep(path, batches)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))])

    back = found(path)

    assert back == batches[: len(back)]
    keep(path, [[0.5]])  # what comes after is appended behind the last whole batch
    assert found(path) == [*back, [0.5]]


def test_nan_comes_back(tmp_path):
    keep(tmp_path / "j", [[np.nan, 0.25]])

    assert np.isnan(found(tmp_path / "j")[0][0])


def test_a_flipped_bit_ends_what_is_believed(tmp_path):
    path = tmp_path / "j"
    keep(path, [[0.5], [0.25], [0.125]])
    data = bytearray(path.read_bytes())
    data[-18] ^= 1  # in the scores of the second of three records of sixteen bytes
    path.write_bytes(bytes(data))

    assert found(path) == [[0.5]]


def test_another_key_begins_anew(tmp_path):
    keep(tmp_path / "j", [[0.5]])

    assert found(tmp_path / "j", key="other") == []
    assert found(tmp_path / "j") == []


def test_two_processes_that_score_one_slide_share_a_journal_without_a_lock(tmp_path):
    """Each appends all of its batches; what comes back is one copy, in order."""
    batches = [[0.5], [0.25, 0.125], [1.0]]
    with Journal(tmp_path / "j", key="k") as first, Journal(tmp_path / "j", key="k") as second:
        for number, batch in enumerate(batches):
            first.append(np.array(batch, np.float32))
            if number < 2:
                second.append(np.array(batch, np.float32))

    assert found(tmp_path / "j") == batches


def test_records_of_another_key_are_not_believed(tmp_path):
    """A process of other settings restarted the file; the first one still appended to it."""
    with Journal(tmp_path / "j", key="k") as first, Journal(tmp_path / "j", key="other") as second:
        first.append(np.array([0.5], np.float32))
        second.append(np.array([0.25], np.float32))

    assert found(tmp_path / "j", key="other") == []


@pytest.mark.parametrize("batches", [[], [[1.0, 0.0]]])
def test_without_a_path_nothing_is_kept(batches):
    keep(None, batches)

    assert found(None) == []
