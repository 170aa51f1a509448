"""The command `froc` on plain files, by both definitions, against the plain-Python oracle."""

import csv
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tifffile

from tiling.annotation.formats.asap_xml import write_asap_xml
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation.froc_files import FrocOptions, run_froc

RATES = (0.25, 0.5, 1, 2, 4, 8)


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def write_text(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_xml(path, *squares, group="Tumor"):
    path.parent.mkdir(parents=True, exist_ok=True)
    polygons = [(f"a{i}", group, square(*s)) for i, s in enumerate(squares)]
    write_asap_xml(path, polygons, [group])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def options(tmp_path):
    (tmp_path / "detections").mkdir()
    (tmp_path / "reference").mkdir()
    return FrocOptions(
        definition="camelyon16",
        out=tmp_path / "out",
        detections=tmp_path / "detections",
        reference=tmp_path / "reference",
    )


def run(options):
    lines = []
    run_froc(options, print_line=lines.append)
    return json.loads((options.out / "froc.json").read_text()), lines


def detect(options, slide_id, *rows):
    text = "".join(f"{p!r},{x},{y}\n" for p, x, y in rows)
    write_text(options.detections / f"{slide_id}.csv", text)


def mask_file(options, slide_id, mask, **keywords):
    tifffile.imwrite(options.reference / f"{slide_id}.tif", mask, **keywords)


# ------------------------------------------------------------ whole runs


def test_a_small_cohort_by_hand(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200), (32000, 3200, 3200))
    write_xml(options.reference / "t2.xml", (3200, 3200, 320))  # 78 µm: an ITC
    detect(options, "t1", (0.9, 4000, 4000), (0.8, 4100, 4100), (0.7, 20000, 20000))
    detect(options, "t2", (0.95, 3300, 3300), (0.6, 9000, 9000))
    detect(options, "n1", (0.85, 5, 5))
    detect(options, "n2")
    result, lines = run(options)
    assert (result["n_slides"], result["n_normal"]) == (4, 2)
    assert (result["n_lesions"], result["n_itc"]) == (2, 1)
    assert [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]] == [
        (None, 0, 0),
        (0.9, 0, 0.5),
        (0.6, 0.75, 0.5),  # by way of 0.85 and 0.7, on a horizontal line
    ]
    assert result["sensitivity_at"] == dict.fromkeys(["0.25", "0.5", "1", "2", "4", "8"], 0.5)
    assert [list(p.values()) for p in result["operating_points"].values()] == [
        [0.85, 0.25, 0.5],
        [0.7, 0.5, 0.5],
        *[[0.6, 0.75, 0.5]] * 4,
    ]
    assert [row["threshold"] for row in read_csv(options.out / "froc_rates.csv")] == [
        *("0.85", "0.7"),
        *["0.6"] * 4,
    ]
    assert result["score"] == 0.5
    assert result["score_ci95"] is None
    assert result["undefined"] == {}
    counted = "lesions in the reference: 2 on 1 slide, 1 ITC left out"
    assert counted in lines
    scores = [i for i, line in enumerate(lines) if "score" in line]
    assert min(scores) > lines.index(counted)


def test_rates_beyond_the_pictures_axis_leave_the_picture_whole(options):
    """Marks off the axis were drawn all the same, and left no room for the curve."""
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 4000, 4000), (0.7, 20000, 20000))
    result, _ = run(replace(options, rates=(0, 0.01, 1, 10000)))
    assert result["sensitivity_at"] == {"0": 1, "0.01": 1, "1": 1, "10000": 1}
    assert (options.out / "froc.png").stat().st_size > 0


def random_cohort(options, seed, *, kind):
    """Slides of 10 x 12 mask pixels at downsample 100; returns what the oracle needs."""
    random = np.random.default_rng(seed)
    slides = {}
    for i in range(7):
        mask = random.random((10, 12)) < (0.05 if i % 2 else 0)
        if kind == "mask":
            mask_file(options, f"s{i}", (mask * 255).astype(np.uint8))
        elif mask.any():
            squares = [(c * 100, r * 100, 100) for r, c in np.argwhere(mask).tolist()]
            write_xml(options.reference / f"s{i}.xml", *squares)
        n = int(random.integers(0, 12))
        rows = [
            (float(random.integers(0, 6)) / 5, int(random.integers(0, 1200)), int(y))
            for y in random.integers(0, 1000, n)
        ]
        if rows or kind == "polygons":
            detect(options, f"s{i}", *rows)
        slides[f"s{i}"] = (mask, rows)
    return slides


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["mask", "polygons"])
@pytest.mark.parametrize("denominator", [None, "normal"])
@pytest.mark.parametrize("at_rate", ["linear", "step"])
def test_random_cohorts_equal_the_oracle(options, oracle, seed, kind, denominator, at_rate):
    slides = random_cohort(options, seed, kind=kind)
    # Polygons' grid has no known end, a mask's does: leave room for the growth.
    result, lines = run(
        replace(options, mask_downsample=100, mpp=1, fp_denominator=denominator, at_rate=at_rate)
    )
    matched, n_itc = [], 0
    for mask, rows in slides.values():
        labels, itc = oracle.lesions(mask.tolist(), 100, 1) if mask.any() else ([], set())
        fps, best = oracle.match(labels, itc, 100, rows)
        matched.append((fps, best, not mask.any()))
        n_itc += len(itc)
    points = oracle.curve(matched, denominator=denominator or "all")
    got = [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]]
    assert got == oracle.corners(points)
    assert result["n_itc"] == n_itc
    assert result["n_lesions"] == sum(len(best) for _, best, _ in matched)
    if result["n_lesions"]:
        expected = [oracle.read(points, rate, at_rate) for rate in RATES]
        assert list(result["sensitivity_at"].values()) == pytest.approx(expected, abs=1e-12)
    n_with = sum(bool(best) for _, best, _ in matched)
    on = f"{n_with} slide{'' if n_with == 1 else 's'}"
    line = f"lesions in the reference: {result['n_lesions']} on {on}, {n_itc} ITC left out"
    assert line in lines


def test_the_files_hold_the_same_numbers(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200), (32000, 3200, 3200))
    detect(options, "t1", (0.9, 4000, 4000), (0.7, 20000, 20000))
    result, _ = run(replace(options, bootstrap=50, seed=3))
    curve = read_csv(options.out / "froc.csv")
    assert list(curve[0]) == ["threshold", "avg_fps", "sensitivity"]
    assert curve[0]["threshold"] == ""
    assert [float(row["avg_fps"]) for row in curve] == [p["avg_fps"] for p in result["curve"]]
    lesions = read_csv(options.out / "lesions.csv")
    assert [(r["slide_id"], r["status"], r["best_score"]) for r in lesions] == [
        ("t1", "hit", "0.9"),
        ("t1", "missed", ""),
    ]
    assert float(lesions[0]["x"]) == pytest.approx(4800, abs=32)
    assert (options.out / "froc.png").read_bytes().startswith(b"\x89PNG")
    assert result["score_ci95"] is None  # one slide: nothing to vary
    assert result["bootstrap"]["replicates"] == 50
    assert not list(options.out.glob(".*"))


def test_inputs_are_named_with_their_digests_and_without_folders(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 4000, 4000))
    run(replace(options, bootstrap=20))
    text = (options.out / "inputs.json").read_text()
    inputs = json.loads(text)
    assert str(options.reference.parent) not in text
    assert [(i["what"], i["file"]) for i in inputs["inputs"]] == [
        ("detections", "t1.csv"),
        ("reference", "t1.xml"),
    ]
    digest = hashlib.sha256((options.reference / "t1.xml").read_bytes()).hexdigest()
    assert inputs["inputs"][1]["sha256"] == digest
    assert inputs["settings"]["bootstrap"] == 20
    assert any(note.startswith("level-0 pixels taken as 0.243") for note in inputs["notes"])


def test_an_undefined_score_says_why(options):
    detect(options, "n1", (0.9, 4, 4))
    result, lines = run(replace(options, bootstrap=10))
    assert result["score"] is None
    assert result["score_ci95"] is None
    assert set(result["undefined"]) >= {"score", "score_ci95", "sensitivity_at"}
    assert "the reference holds no lesion at all" in lines
    assert any(line.startswith("score: undefined, ") for line in lines)


# ------------------------------------------------------------ denominators and lists


def test_a_listed_slide_without_csv_counts_in_every_denominator(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    write_xml(options.reference / "t2.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 4000, 4000), (0.8, 9, 9))
    write_text(options.out.parent / "s.csv", "slide_id,label\nt1,1\nt2,1\nn1,0\nn2,0\n")
    result, lines = run(replace(options, slides=options.out.parent / "s.csv"))
    assert (result["n_slides"], result["n_normal"], result["n_lesions"]) == (4, 2, 2)
    assert [(p["avg_fps"], p["sensitivity"]) for p in result["curve"]] == [
        (0, 0),
        (0, 0.5),
        (0.25, 0.5),
    ]
    assert any("3 of 4 slides have no CSV" in line for line in lines)


def test_without_a_list_slides_are_the_union_of_both_folders(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 4, 4))
    detect(options, "n1", (0.9, 4, 4))
    result, _ = run(options)
    assert (result["n_slides"], result["n_normal"]) == (2, 1)
    (options.detections / "n1.csv").unlink()
    write_text(options.reference / "n2.xml", "")
    result, _ = run(options)
    assert (result["n_slides"], result["n_normal"]) == (2, 1)


def test_a_reference_that_is_not_listed_is_left_out_and_noted(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    write_xml(options.reference / "Test_114.xml", (3200, 3200, 3200))
    write_text(options.out.parent / "s.csv", "slide_id,label\nt1,1\n")
    result, lines = run(replace(options, slides=options.out.parent / "s.csv"))
    assert result["n_slides"] == 1
    assert any("Test_114" in line for line in lines)


@pytest.mark.parametrize("empty", ["", "  \n", '{"positive": [], "negative": []}'])
def test_an_empty_reference_is_a_normal_slide(options, empty):
    write_text(options.reference / "n1.json", empty)
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    result, _ = run(options)
    assert result["n_normal"] == 1


def test_polygons_outside_tumour_groups_make_no_lesion(options):
    write_xml(options.reference / "n1.xml", (3200, 3200, 3200), group="Normal")
    write_xml(options.reference / "n2.xml", (3200, 3200, 3200), group="Exclusion")
    result, _ = run(options)
    assert result["n_normal"] == 2


@pytest.mark.parametrize(("unclassified", "n_normal"), [(None, 0), ("tumour", 0), ("region", 1)])
def test_polygons_without_a_group_are_tumour_unless_an_option_says_otherwise(
    options, unclassified, n_normal
):
    """They were normal, without a note."""
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200), group="None")
    result, lines = run(replace(options, unclassified=unclassified))
    assert result["n_normal"] == n_normal
    assert any("without class taken as tumour" in x for x in lines) is (unclassified is None)


@pytest.mark.parametrize("choice", ["auto", "tumour", "region"])
def test_the_commands_option_decides_what_polygons_without_a_group_are(options, choice, capsys):
    """With other groups in the file they are regions; only ``tumour`` makes a lesion of them."""
    write_xml(options.reference / "a.xml", (3200, 3200, 3200), group="None")
    polygons = [("n", "None", square(3200, 3200, 3200)), ("t", "Tumor", square(32000, 3200, 3200))]
    write_asap_xml(options.reference / "b.xml", polygons, ["Tumor", "None"])
    detect(options, "a", (0.9, 4000, 4000))
    detect(options, "b", (0.9, 33000, 4000))
    folders = ["--detections", str(options.detections), "--reference", str(options.reference)]
    command = ["froc", *folders, "--out", str(options.out), "--unclassified", choice]
    assert main(command) == 0
    result = json.loads((options.out / "froc.json").read_text())
    n_lesions = {"auto": 2, "tumour": 3, "region": 1}[choice]
    assert result["n_lesions"] == n_lesions
    assert result["n_normal"] == (1 if choice == "region" else 0)
    noted = "without class taken as" in capsys.readouterr().out
    assert noted is (choice == "auto")  # a choice of the user's is no guess


def test_a_polygon_far_larger_than_a_slide_is_refused_in_one_line(options):
    """It asked for 14.6 GiB."""
    corners = [[0, 0], [4e6, 0], [4e6, 4e6], [0, 4e6]]
    content = {"positive": [{"name": "far", "vertices": corners}]}
    write_text(options.reference / "t1.json", json.dumps(content))
    with pytest.raises(EvaluationError) as caught:
        run(options)
    message = str(caught.value)
    assert "\n" not in message
    assert "t1.json: its polygons cover 1.56e+10 pixels at downsample 32" in message
    assert "'far', spans x 0 to 4000000, y 0 to 4000000" in message
    assert "--mask-downsample" in message


@pytest.mark.parametrize(
    ("slides", "message"),
    [
        ("slide_id,label\nn1,0\n", r"t1\.csv.*not list|not list: t1\.csv"),
        ("slide_id,label\nt1,1\nx,1\n", "slide x has label 1 .* no reference"),
        ("slide_id,label\nt1,0\n", r"slide t1 has label 0 .*t1\.xml holds a lesion"),
        ("slide_id,label\nt1,2\n", r"s\.csv, line 2: label must be 1 .* got '2'"),
        ("slide_id,label\nt1,\n", r"s\.csv, line 2: label must be 1 .* got ''"),
        ("slide_id,label\nt1,1\nt1,1\n", r"line 2: t1 and .*line 3: t1 name the same slide"),
        ("slide_id,etiket\nt1,1\n", r"line 1: no column 'label'"),
        ("slide_id,label,pateint\nt1,1,p1\n", "did you mean 'patient'"),
        ("slide_id,label\n", "lists no slides"),
        ("slide_id,label\nt1\n", "line 2: 1 fields, expected 2"),
    ],
)
def test_a_list_that_contradicts_the_files_is_refused(options, slides, message):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 4000, 4000))
    write_text(options.out.parent / "s.csv", slides)
    with pytest.raises(EvaluationError, match=message):
        run(replace(options, slides=options.out.parent / "s.csv"))
    assert not (options.out / "froc.json").exists()


def test_label_1_with_an_empty_reference_is_refused(options):
    write_text(options.reference / "t1.json", '{"positive": [], "negative": []}')
    write_text(options.out.parent / "s.csv", "t1,1\n")
    with pytest.raises(EvaluationError, match=r"t1 has label 1 .*no tumour in"):
        run(replace(options, slides=options.out.parent / "s.csv"))


def test_two_references_of_one_slide_are_refused(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    mask_file(options, "t1", np.ones((3, 3), np.uint8))
    with pytest.raises(EvaluationError, match="two references"):
        run(options)


def test_a_broken_reference_is_named(options):
    write_text(options.reference / "t1.xml", "<ASAP_Annotations>")
    with pytest.raises(EvaluationError, match=r"t1\.xml"):
        run(options)


@pytest.mark.parametrize("folder", ["detections", "reference"])
def test_a_missing_folder_is_named(options, folder):
    with pytest.raises(EvaluationError, match="nowhere: no such folder"):
        run(replace(options, **{folder: options.out.parent / "nowhere"}))


def test_no_slides_at_all_is_an_error(options):
    with pytest.raises(EvaluationError, match="no slides"):
        run(options)


# ------------------------------------------------------------ frames and values of masks


def lesion_mask():
    mask = np.zeros((100, 120), np.uint8)
    mask[50:100, 70:120] = 1
    return mask


def test_a_detection_on_the_masks_last_pixel_hits_and_one_beyond_is_named(options):
    mask_file(options, "t1", lesion_mask())
    detect(options, "t1", (0.4, 0, 0), (0.9, 120 * 32 - 1, 100 * 32 - 1))
    result, _ = run(replace(options, mask_downsample=32))
    assert result["curve"][1] == {"threshold": 0.9, "avg_fps": 0.0, "sensitivity": 1.0}
    detect(options, "t1", (0.4, 0, 0), (0.9, 120 * 32, 5))
    with pytest.raises(EvaluationError, match=r"t1\.csv, line 2: .*x 3840.* outside the slide"):
        run(replace(options, mask_downsample=32))


def test_a_detection_beyond_a_normal_mask_is_an_error_too(options):
    mask_file(options, "n1", lesion_mask() * 0)
    detect(options, "n1", (0.4, 5000, 0))
    with pytest.raises(EvaluationError, match=r"n1\.csv, line 1"):
        run(replace(options, mask_downsample=32))


def test_a_negative_position_is_an_error_with_polygons_too(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.4, 5, 5), (0.4, -5, 5))
    with pytest.raises(EvaluationError, match=r"t1\.csv, line 2"):
        run(options)


def test_a_detection_far_from_all_polygons_is_a_false_positive(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.4, 10**8, 10**8))
    result, _ = run(options)
    assert result["curve"][-1]["avg_fps"] == 1


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("asked", [None, 1, 255])
def test_0_1_and_0_255_masks_lose_no_lesion_in_silence(options, value, asked):
    mask_file(options, "t1", lesion_mask() * np.uint8(value))
    asking = replace(options, mask_downsample=32, tumour_value=asked)
    if asked in (None, value):
        assert run(asking)[0]["n_lesions"] == 1
    else:
        with pytest.raises(EvaluationError, match=r"t1\.tif.*tumour value"):
            run(asking)


def test_the_default_mpp_is_camelyon16s_and_noted(options):
    mask_file(options, "t1", lesion_mask())
    _, lines = run(replace(options, mask_downsample=32))
    assert any("0.243" in line for line in lines)
    _, lines = run(replace(options, mask_downsample=32, mpp=0.25))
    assert not any("0.243" in line for line in lines)


def test_mpp_decides_what_an_itc_is(options):
    mask = np.zeros((100, 100), np.uint8)
    mask[40:60, 40:60] = 1
    mask_file(options, "t1", mask)
    small, _ = run(replace(options, mask_downsample=32, mpp=0.243))
    large, _ = run(replace(options, mask_downsample=32, mpp=0.6))
    assert (small["n_itc"], large["n_itc"]) == (1, 0)


# ------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detections": None}, "needs --detections"),
        ({"definition": "patch"}, "needs --patches and --slides"),
        ({"rates": (1, -1)}, "rate -1"),
        ({"bootstrap": -1}, "--bootstrap"),
        ({"mpp": 0}, "--mpp must be a positive"),
        ({"mask_downsample": float("nan")}, "--mask-downsample must be a positive"),
    ],
)
def test_options_that_cannot_be_are_refused(options, changes, message):
    detect(options, "n1")
    with pytest.raises(EvaluationError, match=message):
        run(replace(options, **changes))


def test_other_rates_are_read_and_averaged(options):
    write_xml(options.reference / "t1.xml", (3200, 3200, 3200))
    detect(options, "t1", (0.9, 9, 9), (0.5, 4000, 4000))
    result, _ = run(replace(options, rates=(0.1, 1.0, 3)))
    assert result["sensitivity_at"] == {"0.1": 0.0, "1": 1.0, "3": 1.0}
    assert result["score"] == pytest.approx(2 / 3)


def test_the_interval_is_seeded_and_says_what_it_skipped(options):
    for i in range(6):
        detect(options, f"n{i}", (0.3 + i / 10, 9, 9))
    for i in range(2):
        write_xml(options.reference / f"t{i}.xml", (3200, 3200, 3200))
        detect(options, f"t{i}", (0.4 + i / 2, 4000, 4000))
    first, lines = run(replace(options, bootstrap=200, seed=1))
    again, _ = run(replace(options, bootstrap=200, seed=1))
    other, _ = run(replace(options, bootstrap=200, seed=2))
    apart, _ = run(replace(options, bootstrap=200, seed=1, stratified=True))
    assert first == again
    assert first["bootstrap"] != other["bootstrap"]
    assert first["bootstrap"]["skipped"] > 0
    assert any("resampled sets without a lesion" in line for line in lines)
    assert apart["bootstrap"]["skipped"] == 0
    low, high = first["score_ci95"]
    assert low <= first["score"] <= high


# ------------------------------------------------------------ the lecture's definition


@pytest.fixture
def patch_options(tmp_path):
    write_text(tmp_path / "slides.csv", "slide_id,label,lesions\nt1,1,1;2\nt2,1,1\nn1,0,\nn2,0,\n")
    write_text(
        tmp_path / "patches.csv",
        "slide_id,score,lesions\nt1,0.9,1\nt1,0.95,\nt1,0.4,1;2\nn1,0.5,\nn1,0.2,\nn2,,\nn2,nan,\n",
    )
    return FrocOptions(
        definition="patch",
        out=tmp_path / "out",
        patches=tmp_path / "patches.csv",
        slides=tmp_path / "slides.csv",
    )


def test_the_patch_definition_by_hand(patch_options):
    result, lines = run(patch_options)
    assert (result["n_slides"], result["n_normal"], result["n_lesions"]) == (4, 2, 3)
    assert result["fp_denominator"] == "normal"
    # Lesion 1 of t2 has no patch, and counts; 0.95 is false, but on a cancer slide.
    assert [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]] == [
        (None, 0, 0),
        (0.9, 0, 1 / 3),
        (0.5, 0.5, 1 / 3),
        (0.4, 0.5, 2 / 3),
        (0.2, 1.0, 2 / 3),
    ]
    assert "lesions in the reference: 3 on 2 slides, 0 ITC left out" in lines
    assert any("2 patches without a score" in line for line in lines)
    rows = read_csv(patch_options.out / "lesions.csv")
    assert [(r["slide_id"], r["lesion"], r["status"]) for r in rows] == [
        ("t1", "1", "hit"),
        ("t1", "2", "hit"),
        ("t2", "1", "missed"),
    ]


@pytest.mark.parametrize("seed", range(6))
def test_random_patches_equal_the_oracle(patch_options, oracle, seed):
    random = np.random.default_rng(seed)
    slides, patches, matched = ["slide_id,label,lesions"], ["slide_id,score,lesions"], []
    for i in range(8):
        names = [str(n) for n in range(int(random.integers(1, 4)))] if i % 2 else []
        best, fps = dict.fromkeys(names), []
        slides.append(f"s{i},{i % 2},{';'.join(names)}")
        for _ in range(int(random.integers(0, 9))):
            score = float(random.integers(0, 8)) / 7
            touched = [n for n in names if random.random() < 0.4]
            patches.append(f"s{i},{score!r},{';'.join(touched)}")
            for name in touched:
                best[name] = score if best[name] is None else max(best[name], score)
            if not i % 2:
                fps.append(score)
        matched.append((fps, best, not i % 2))
    write_text(patch_options.slides, "\n".join(slides))
    write_text(patch_options.patches, "\n".join(patches))
    result, _ = run(patch_options)
    points = oracle.curve(matched, denominator="normal")
    got = [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]]
    assert got == oracle.corners(points)
    expected = [oracle.read(points, rate, "linear") for rate in RATES]
    assert list(result["sensitivity_at"].values()) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("patches", "slide_id,score,lesions\nx,0.5,\n", r"patches\.csv, line 2: slide 'x' is not"),
        ("patches", "slide_id,score,lesions\nt1,0.5,9\n", "line 2: slide t1 has no lesion '9'"),
        ("patches", "slide_id,score,lesions\nn1,0.5,1\n", "line 2: slide n1 has no lesion '1'"),
        ("patches", "slide_id,score,lesions\nt1,2,1\n", "line 2: score '2'"),
        ("patches", "slide_id,score\nt1,2\n", "no column 'lesions'"),
        ("slides", "slide_id,label,lesions\nt1,1,\n", "t1 has label 1 but no lesions"),
        ("slides", "slide_id,label,lesions\nn1,0,1\n", "n1 has label 0 but lesions 1"),
        ("slides", "slide_id,label,lesions\nt1,1,1;1\n", "names a lesion twice"),
        ("slides", "slide_id,label\nt1,1\n", "no column 'lesions'"),
    ],
)
def test_patch_files_that_contradict_each_other_are_refused(patch_options, file, text, message):
    write_text(getattr(patch_options, file), text)
    with pytest.raises(EvaluationError, match=message):
        run(patch_options)


def test_no_normal_slide_writes_null_and_says_why(patch_options):
    write_text(patch_options.slides, "slide_id,label,lesions\nt1,1,1;2\n")
    write_text(patch_options.patches, "slide_id,score,lesions\nt1,0.5,1\n")
    result, lines = run(patch_options)
    assert result["score"] is None
    assert "no normal slide" in result["undefined"]["score"]
    assert {p["avg_fps"] for p in result["curve"]} == {None}
    assert any(re.search("undefined, .*no normal slide", line) for line in lines)


def test_options_of_the_other_definition_are_refused(patch_options):
    with pytest.raises(EvaluationError, match="does not use --mpp"):
        run(replace(patch_options, mpp=0.25))
