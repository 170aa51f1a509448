"""What a checkpoint was trained on reaches the evaluation, whatever became of the splits."""

from types import SimpleNamespace

import numpy as np
import pytest

from tiling.contracts import SlideInfo, TileGeometry
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.leaks import Seen, refuse_leaks
from wsi_pipeline.inference.scores import make_scores, read_scores, write_scores
from wsi_pipeline.models.checkpoint import CheckpointMeta

META = CheckpointMeta(
    model="vgg16",
    options={},
    patch_px=32,
    target_mpp=0.5,
    train_slides=("a_1", "a_2"),
    val_slides=("v_1",),
    train_patients=("a",),
    val_patients=("v",),
)


@pytest.fixture
def trained_on(tmp_path):
    """The names as they come back from a score file that such a checkpoint gave."""
    info = SlideInfo(
        "t_1", "t_1.tif", "x", (64, 32), (0.5, 0.5), ((64, 32),), (1.0,), None, None, ""
    )
    store = SimpleNamespace(
        info=info,
        tiling={"patch_px": 32},
        geometry=TileGeometry(32, 16, 0.5, 32, 32, 32, 32, (1.0, 1.0)),
        coords=np.array([[0, 0], [32, 0]]),
    )
    values = np.array([0.1, np.nan], np.float32)
    scores = make_scores(
        store, values, META, "digest", precision="fp32", precision_check=None, fingerprint="f"
    )
    write_scores(tmp_path / "t_1.h5", scores)
    return read_scores(tmp_path / "t_1.h5").attributes["trained_on"]


@pytest.mark.parametrize(
    ("slide_id", "patient", "message"),
    [
        ("a_1", "a", "trained on 1 patient that it would be tested on: a;"),
        ("a_3", "a", "trained on 1 patient .*: a;"),  # another slide of the patient
        ("a_2", "b", "trained on 1 patient .*: b;"),  # the manifest names another patient now
        ("v_1", "v", "validated on 1 patient .*: v;"),
    ],
)
def test_the_checkpoints_own_slides_and_patients_are_refused(
    trained_on, slide_id, patient, message
):
    clean = Seen("t_1", "t", trained_on)
    assert refuse_leaks([clean]) == []
    with pytest.raises(EvaluationError, match=message):
        refuse_leaks([clean, Seen(slide_id, patient, trained_on)])


def test_many_patients_are_counted_and_some_named():
    names = [f"p{i:02d}" for i in range(20)]
    seen = [Seen(f"s{n}", n, {"train_patients": names}) for n in names]
    with pytest.raises(EvaluationError, match=r"20 patients .*: p00, .*p07 and 12 more; take"):
        refuse_leaks(seen)


def test_what_is_not_known_is_reported():
    (note,) = refuse_leaks([Seen("s1", "p", None), Seen("s2", "q", {})])
    assert "1 score file without the slides" in note
    assert note.endswith(": s1")
