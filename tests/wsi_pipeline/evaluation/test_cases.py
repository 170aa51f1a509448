"""Which errors are shown."""

import numpy as np

from tiling.errors import SlideError
from wsi_pipeline.evaluation.cases import ErrorCase, SlideCases, choose_errors, count_errors
from wsi_pipeline.evaluation.crops import write_crops


def slide(name, scores, labels, pairs=(), lesions=()):
    n = len(scores)
    coords = np.stack([np.arange(n) * 10, np.zeros(n, int)], axis=1)
    pairs = np.array(pairs, np.int64).reshape(-1, 2)
    return SlideCases(name, coords, np.array(scores, np.float32), np.array(labels), pairs, lesions)


def test_false_positives_come_surest_first_over_all_slides():
    slides = [
        slide("a", [0.5, 0.875, np.nan, 0.75], [0, 0, 0, 1]),
        slide("b", [1.0, 0.875, 0.25, 1.0], [0, 0, 0, -1]),
    ]
    cases = choose_errors(slides, threshold=0.5, n=3)
    assert [(c.slide_id, c.x, c.score) for c in cases] == [
        ("b", 0, 1.0), ("a", 10, 0.875), ("b", 10, 0.875),
    ]  # fmt: skip
    assert [c.rank for c in cases] == [1, 2, 3]
    assert count_errors(slides, threshold=0.5) == (4, 0)


def test_a_false_positive_is_one_of_the_confusion_matrix():
    one = slide("a", [0.7, 0.75], [0, 0])  # 0.7 in float32 is less
    assert [c.patch for c in choose_errors([one], threshold=0.7)] == [1]


def test_a_missed_lesion_is_shown_by_its_best_patch_and_the_unseen_come_first():
    one = slide(
        "a",
        [0.25, 0.5, np.nan, 0.75, 0.125],
        [1, 1, 1, 1, 1],
        [(0, 0), (1, 0), (2, 1), (3, 2), (4, 3)],
        ["1", "2", "3", "4", "5"],
    )
    cases = choose_errors([one], threshold=0.75)
    assert [(c.lesion, c.patch, c.score) for c in cases] == [
        ("2", None, None), ("5", None, None), ("4", 4, 0.125), ("1", 1, 0.5),
    ]  # fmt: skip
    assert count_errors([one], threshold=0.75) == (0, 4)


def test_file_names_are_plain_whatever_a_slide_is_called():
    case = ErrorCase("missed_lesion", 2, "../å/b\\c:d" + "x" * 300, 0, 0, 0, 0.1, "1")
    assert "/" not in case.file_name
    assert "\\" not in case.file_name
    assert case.file_name.isascii()
    assert len(case.file_name) < 120


def test_a_patch_that_cannot_be_read_is_noted_and_the_others_are_written(tmp_path):
    def read_patch(slide_id, patch):
        if slide_id == "gone":
            raise SlideError("gone.svs: no such file")
        return np.zeros((2, 2, 3), np.uint8)

    cases = [ErrorCase("false_positive", i, s, 0, 0, 0, 0.9) for i, s in ((1, "gone"), (2, "b"))]
    notes = []
    files = write_crops(tmp_path / "errors", cases, read_patch, notes)
    assert files == {cases[1]: "errors/false_positive-02-b.png"}
    assert [p.name for p in (tmp_path / "errors").iterdir()] == ["false_positive-02-b.png"]
    assert notes == ["no crop of gone in the error gallery: gone.svs: no such file"]
