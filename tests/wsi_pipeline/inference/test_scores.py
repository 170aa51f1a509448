"""Score files hold what was scored, and refuse what is not a score file."""

import time
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wsi_pipeline.contracts import Scores
from wsi_pipeline.errors import ScoresError
from wsi_pipeline.inference.scores import clam_attributes, read_scores, write_scores

ATTRIBUTES = {
    "slide_id": "a",
    "model": "vgg16",
    "checkpoint": "0" * 64,
    "precision": "fp32",
    "settings": {"tiling": {"patch_px": 15, "stride_px": None}, "names": ["x"]},
    "fingerprint": "f",
}


@pytest.fixture
def scores(fake_store):
    store = fake_store("a", [0, 1, 1])
    return Scores(
        coords=store.coords,
        scores=np.array([0.0, np.nan, 1.0], np.float32),
        attributes=ATTRIBUTES,
        coords_attributes=clam_attributes(store.info, store.geometry),
    )


def test_what_is_written_is_read(tmp_path, scores):
    write_scores(tmp_path / "a.h5", scores)
    found = read_scores(tmp_path / "a.h5")

    assert found.coords.dtype == np.int64
    assert np.array_equal(found.coords, scores.coords)
    assert found.scores.dtype == np.float32
    assert np.array_equal(found.scores, scores.scores, equal_nan=True)
    assert found.attributes == ATTRIBUTES
    assert found.coords_attributes == scores.coords_attributes


def test_the_file_is_as_the_contract_says_for_plain_h5py(tmp_path, scores):
    write_scores(tmp_path / "a.h5", scores)

    with h5py.File(tmp_path / "a.h5") as file:
        assert file["coords"].dtype == np.int64
        assert file["coords"].shape == (3, 2)
        assert file["scores"].dtype == np.float32
        assert file["scores"].shape == (3,)
        assert {"model", "checkpoint", "precision", "settings", "schema"} <= set(file.attrs)
        clam = {"patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim"}
        assert clam | {"name"} <= set(file["coords"].attrs)


def test_clam_reads_the_tile_back_from_level_0(fake_store):
    """CLAM reads patch_size px at patch_level, which here is the tile's side at level 0."""
    store = fake_store("a", [0])
    geometry = replace(store.geometry, patch_px=256, patch_l0=515, patch_l0_y=515)

    attributes = clam_attributes(store.info, geometry)

    assert (attributes["patch_level"], attributes["patch_size"]) == (0, 515)


def test_the_same_scores_give_the_same_bytes_at_any_time(tmp_path, scores):
    write_scores(tmp_path / "a.h5", scores)
    time.sleep(1.1)  # HDF5 dates count in seconds
    write_scores(tmp_path / "b.h5", scores)

    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@given(
    values=hnp.arrays(
        np.float32,
        st.integers(0, 20),
        elements=st.one_of(st.floats(0, 1, width=32), st.just(np.nan)),
    )
)
@settings(max_examples=25)
def test_any_scores_survive(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("scores") / "a.h5"
    coords = np.arange(2 * len(values), dtype=np.int64).reshape(-1, 2)
    write_scores(path, Scores(coords, values, ATTRIBUTES, {}))

    found = read_scores(path)
    assert np.array_equal(found.scores, values, equal_nan=True)
    assert np.array_equal(found.coords, coords)


@pytest.mark.parametrize("value", [1.5, -0.1, np.inf])
def test_scores_outside_their_range_are_not_written(tmp_path, scores, value):
    wrong = replace(scores, scores=np.array([0, value, 0], np.float32))

    with pytest.raises(ScoresError, match=r"1 scores lie outside \[0, 1\]"):
        write_scores(tmp_path / "a.h5", wrong)
    assert not list(tmp_path.iterdir())


def test_scores_that_do_not_fit_their_coords_are_not_written(tmp_path, scores):
    with pytest.raises(ScoresError, match=r"scores must be \(3,\) floats"):
        write_scores(tmp_path / "a.h5", replace(scores, scores=np.zeros(2, np.float32)))
    with pytest.raises(ScoresError, match=r"coords must be \(N, 2\)"):
        write_scores(tmp_path / "a.h5", replace(scores, coords=np.zeros((3, 2))))


def test_a_missing_score_file_says_what_to_run(tmp_path):
    with pytest.raises(ScoresError, match="no such score file; run predict"):
        read_scores(tmp_path / "a.h5")


def test_a_file_of_others_is_distinguished(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros((3, 2), np.int64)

    with pytest.raises(ScoresError, match="not a score file of this program"):
        read_scores(tmp_path / "a.h5")


def test_damage_is_reported_with_a_remedy(tmp_path, scores):
    write_scores(tmp_path / "a.h5", scores)
    data = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(data[: len(data) // 2])
    (tmp_path / "noise.h5").write_bytes(b"not hdf5 at all")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["scores"]

    for name in ("cut.h5", "noise.h5", "a.h5"):
        with pytest.raises(ScoresError, match=rf"{name}: damaged score file.*predict again"):
            read_scores(tmp_path / name)


def test_a_score_file_with_a_wrong_shape_is_refused(tmp_path, scores):
    write_scores(tmp_path / "a.h5", scores)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["scores"]
        file["scores"] = np.zeros(2, np.float32)

    with pytest.raises(ScoresError, match=r"must be \(3,\)"):
        read_scores(tmp_path / "a.h5")


def test_what_a_model_was_trained_on_is_carried_however_many_they_are(tmp_path):
    """HDF5 holds no attribute of more than 64 KiB; a large cohort has more names."""
    names = {"train_patients": [f"patient-{i:05d}-å" for i in range(10_000)], "val_slides": []}
    attributes = {"model": "vgg16", "trained_on": names}
    scores = Scores(np.zeros((1, 2), np.int64), np.zeros(1, np.float32), attributes, {})
    for name in ("a.h5", "b.h5"):
        write_scores(tmp_path / name, scores)
    assert read_scores(tmp_path / "a.h5").attributes == attributes
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
