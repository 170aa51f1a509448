import json
import multiprocessing
import uuid

import pytest

from wsi_pipeline.errors import ViewError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.review import Reviews, as_feature

SIZE = (1000, 500)
MARK = {"points": [[0, 0], [10, 0], [10, 10], [0, 10]], "verdict": "wrong", "note": "vessel"}


def test_a_mark_is_a_feature_that_qupath_reads(tmp_path):
    reviews = Reviews(RunFolder(tmp_path))
    reviews.change("s", {"add": {**MARK, "truth": "normal", "score": 0.9, "row": 3}}, SIZE)
    review = json.loads((tmp_path / "review" / "s.geojson").read_text())
    [feature] = review["features"]
    assert review["type"] == "FeatureCollection"
    assert feature["geometry"]["coordinates"][0][0] == feature["geometry"]["coordinates"][0][-1]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "wrong"
    metadata = feature["properties"]["metadata"]
    assert all(isinstance(value, str) for value in metadata.values())  # QuPath takes no others
    assert (metadata["truth"], metadata["score"], metadata["row"]) == ("normal", "0.9", "3")


def test_a_mark_with_a_known_id_replaces_it_and_can_be_removed(tmp_path):
    reviews = Reviews(RunFolder(tmp_path))
    [first] = reviews.change("s", {"add": MARK}, SIZE)["features"]
    [second] = reviews.change("s", {"add": {**MARK, "id": first["id"], "note": ""}}, SIZE)[
        "features"
    ]
    assert (second["id"], second["properties"]["name"]) == (first["id"], "wrong")
    assert reviews.change("s", {"remove": first["id"]}, SIZE)["features"] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"add": {**MARK, "verdict": "maybe"}}, "right, wrong, unsure"),
        ({"add": {**MARK, "points": [[0, 0], [1, 1]]}}, "3 to 2000 points"),
        ({"add": {**MARK, "points": [[0, 0], [1, 1], ["a", 2]]}}, "level-0 px"),
        ({"add": {**MARK, "points": [[0, 0], [1, 1], [float("nan"), 2]]}}, "level-0 px"),
        ({"add": {**MARK, "note": "x" * 2001}}, "2000 characters"),
        ({"add": {**MARK, "truth": "perhaps"}}, "tumour, normal"),
        ({"add": {**MARK, "id": "../../x"}}, "UUID"),
        ({"add": 3}, "points and a verdict"),
        ({"remove": "x"}, "UUID"),
        ({}, "remove"),
        ([], "remove"),
    ],
)
def test_what_is_no_mark_is_refused_and_nothing_is_written(tmp_path, change, says):
    with pytest.raises(ViewError, match=says):
        Reviews(RunFolder(tmp_path)).change("s", change, SIZE)
    assert not (tmp_path / "review" / "s.geojson").exists()


def test_marks_are_clipped_to_the_slide():
    feature = as_feature({**MARK, "points": [[-5, 2], [2000, 2], [2000, 900]]}, SIZE)
    [ring] = feature["geometry"]["coordinates"]
    assert ring == [[0.0, 2.0], [1000, 2.0], [1000, 500], [0.0, 2.0]]


def add_marks(folder, number):
    reviews = Reviews(RunFolder(folder))
    for _ in range(number):
        reviews.change("s", {"add": MARK}, SIZE)


def test_two_viewers_on_one_run_do_not_undo_each_others_marks(tmp_path):
    context = multiprocessing.get_context("fork")
    viewers = [context.Process(target=add_marks, args=(tmp_path, 25)) for _ in range(2)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    features = Reviews(RunFolder(tmp_path)).read("s")["features"]
    assert len({uuid.UUID(one["id"]) for one in features}) == 50


def test_a_damaged_review_is_named_and_kept(tmp_path):
    path = tmp_path / "review" / "s.geojson"
    path.parent.mkdir()
    path.write_text('{"type": "FeatureCollection"}')
    reviews = Reviews(RunFolder(tmp_path))
    with pytest.raises(ViewError, match=r"review/s.geojson"):
        reviews.change("s", {"add": MARK}, SIZE)
    assert path.read_text() == '{"type": "FeatureCollection"}'
