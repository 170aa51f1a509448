"""Which file is which slide's: names that match, names that do not, files of other kinds."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_pipeline.errors import EvaluationError
from wsi_pipeline.evaluation import reference
from wsi_pipeline.evaluation.froc_files import FrocOptions, run_froc
from wsi_pipeline.evaluation.masks import TumourMask
from wsi_pipeline.evaluation.slide_names import fold_name, list_ids

TUMOUR, NORMAL = "prob,x,y\n0.95,1500,1500\n0.3,90,90\n", "0.8,200,200\n"
SQUARE = [[1000, 1000], [3000, 1000], [3000, 3000], [1000, 3000]]
POLYGON = json.dumps({"positive": [{"name": "one", "vertices": SQUARE}], "negative": []})
GEOJSON = json.dumps(
    {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [[*SQUARE, SQUARE[0]]]},
        "properties": {"classification": {"name": "Tumor"}},
    }
)


@pytest.fixture
def options(tmp_path):
    return FrocOptions(
        definition="camelyon16",
        out=tmp_path / "out",
        detections=tmp_path / "detections",
        reference=tmp_path / "reference",
        mpp=0.243,
    )


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def write_reference(path):
    """A reference with one lesion, of the kind that the name asks for."""
    name = path.name.lower()
    if name.endswith((".tif", ".tiff")):
        mask = np.zeros((128, 128), np.uint8)
        mask[31:94, 31:94] = 255
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, mask, ome=".ome." in name)
    elif name.endswith(".gz"):
        write(path, gzip.compress((GEOJSON if ".geojson" in name else POLYGON).encode()))
    else:
        write(path, GEOJSON if name.endswith(".geojson") else POLYGON)


def draw(options, detections, references, slides=None):
    """Write the folders; a table of all slides where `detections` is text."""
    if isinstance(detections, str):
        options = replace(options, detections=options.out.parent / "all.csv")
        write(options.detections, detections)
    else:
        options.detections.mkdir()
        for name, content in detections.items():
            write(options.detections / name, content)
    options.reference.mkdir()
    for name in references:
        write_reference(options.reference / name)
    if slides is not None:
        options = replace(options, slides=options.out.parent / "list.csv")
        write(options.slides, slides)
    return options


def run(options):
    lines = []
    run_froc(options, print_line=lines.append)
    return json.loads((options.out / "froc.json").read_text()), "\n".join(lines)


def check_two_slides(result):
    """One lesion found before any false positive, on two slides of which one is normal."""
    counts = [result[f"n_{name}"] for name in ("slides", "normal", "lesions", "itc")]
    assert counts == [2, 1, 1, 0]
    assert result["curve"][1] == {"threshold": 0.95, "avg_fps": 0.0, "sensitivity": 1.0}
    assert [p["avg_fps"] for p in result["curve"]] == [0, 0, 1]


# ------------------------------------------------------------ names that match

REFERENCES = [
    "Test_001_Mask.tif", "test_001_mask.tif", "Test_001_evaluation_mask.tif", "TEST_001.ome.tif",
    "Test_001_MASK.ome.tiff", "Test_001.tif_mask.tif", "test_001.json", "Test_001.JSON",
    "Test_001.geojson.gz", "TEST_001.json.gz", "Test_001.svs.geojson", "Test_001.tif.json",
]  # fmt: skip


@pytest.mark.parametrize("annotated", REFERENCES)
def test_camelyons_own_names_are_one_slide(options, annotated):
    """`Test_001_Mask.tif` was a slide of its own: the tumour slide became normal, score 0.0."""
    options = draw(options, {"Test_001.csv": TUMOUR, "Test_002.csv": NORMAL}, [annotated])
    result, lines = run(replace(options, mask_downsample=32))
    check_two_slides(result)
    alike = annotated.startswith(("Test_001.JSON", "Test_001.geojson"))
    assert (f"Test_001.csv = {annotated}" in lines) != alike


@pytest.mark.parametrize("name", ["a.png", "A_Mask.PNG", "a.tif.png"])
def test_png_masks_are_masks(options, monkeypatch, name):
    """They were ignored; how their pixels are read is `read_mask`'s."""
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, [])
    write(options.reference / name, b"\x89PNG\r\n\x1a\n")

    def read_mask(path, *, downsample, **_):
        assert path.name == name
        tumour = np.zeros((128, 128), bool)
        tumour[31:94, 31:94] = True
        return TumourMask(tumour, downsample, (4096.0, 4096.0), (255,), ())

    monkeypatch.setattr(reference, "read_mask", read_mask)
    check_two_slides(run(replace(options, mask_downsample=32))[0])


@pytest.mark.parametrize("name", ["Test_001.tif.csv", "TEST_001.CSV", "Test_001.ome.tiff.csv"])
def test_detections_named_after_the_slides_file(options, name):
    options = draw(options, {name: TUMOUR, "Test_002.svs.csv": NORMAL}, ["Test_001.json"])
    result, _ = run(options)
    check_two_slides(result)


@settings(max_examples=8)
@given(
    listed=st.sampled_from(["{}", "{}.tif", "slides/{}.svs", "C:\\scans\\{}.ndpi", "{}.ome.tif"]),
    detection=st.sampled_from(["{}.csv", "{}.tif.csv", "{}.svs.csv"]),
    reference=st.sampled_from(["{}.json", "{}_Mask.tif", "{}.tif.json", "{}-mask.ome.tif"]),
    cases=st.tuples(*[st.sampled_from([str, str.upper, str.lower])] * 3),
)
def test_any_spelling_gives_the_same_figures(listed, detection, reference, cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    options = FrocOptions(
        "camelyon16",
        folder / "out",
        folder / "detections",
        folder / "reference",
        mpp=0.243,
        mask_downsample=32,
    )
    listed_as, detected_as, annotated_as = (change("Test_001") for change in cases)
    options = draw(
        options,
        {detection.format(detected_as): TUMOUR, "Test_002.csv": NORMAL},
        [reference.format(annotated_as)],
        f"slide_id,label\n{listed.format(listed_as)},1\n{listed.format('test_002')},0\n",
    )
    result, _ = run(options)
    check_two_slides(result)


def test_a_name_that_ends_in_mask_is_taken_as_it_is_first(options):
    names = ["a_mask.csv", "a.csv"]
    options = draw(options, dict.fromkeys(names, TUMOUR), ["a_mask.json", "a_mask_mask.json"])
    with pytest.raises(EvaluationError, match=r"a_mask has two references, .* and a_mask_mask"):
        run(options)
    (options.reference / "a_mask_mask.json").rename(options.reference / "a.json")
    result, lines = run(options)
    assert (result["n_slides"], result["n_lesions"]) == (2, 2)
    assert "spelling" not in lines


def test_unicode_forms_of_a_name_are_one(options):
    composed, apart = "Pr\u00fcfung", "Pru\u0308fung"
    options = draw(options, {f"{apart}.csv": TUMOUR, "b.csv": NORMAL}, [f"{composed}.json"])
    check_two_slides(run(options)[0])


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("TCGA-3C.1F2E.svs", ["TCGA-3C.1F2E.svs", "TCGA-3C.1F2E"]),
        ("slide.1", ["slide.1"]),
        ("_mask", ["_mask"]),
        ("a_tissue_mask", ["a_tissue_mask", "a_tissue"]),
        ("unmask", ["unmask"]),
    ],
)
def test_nothing_but_known_endings_is_dropped(name, ids):
    assert list_ids(name, is_reference=True) == ids


@settings(max_examples=50)
@given(st.text(max_size=12))
def test_folding_twice_changes_nothing(name):
    assert fold_name(fold_name(name)) == fold_name(name)


# ------------------------------------------------------------ names that do not


def test_names_without_a_match_on_both_sides_are_refused_by_both_names(options):
    options = draw(options, {"slide-1.csv": TUMOUR, "b.csv": NORMAL}, ["case_1.json", "b.json"])
    with pytest.raises(EvaluationError, match=r"slide-1\.csv.* without detections \(case_1\.json"):
        run(options)
    assert not options.out.exists()
    write(options.out.parent / "list.csv", "slide-1,0\nb,1\ncase_1,1\n")
    result, lines = run(replace(options, slides=options.out.parent / "list.csv"))
    assert (result["n_slides"], result["n_normal"], result["n_lesions"]) == (3, 1, 2)
    assert "1 of 3 slides has no CSV and so no detections: case_1" in lines


def test_a_tissue_mask_is_no_reference_of_the_slide(options):
    options = draw(options, {"a.csv": TUMOUR}, ["a_tissue_mask.tif"])
    with pytest.raises(EvaluationError, match=r"a\.csv.*a_tissue_mask\.tif"):
        run(options)


@pytest.mark.parametrize(
    ("detections", "references", "slides", "message"),
    [
        (["a.csv", "A.csv"], ["a.json"], None, r"two files of detections, A\.csv and a\.csv"),
        (["a.csv", "a.tif.csv"], ["a.json"], None, r"two files of .*, a\.csv and a\.tif\.csv"),
        (["a.csv"], ["a.json", "A_mask.tif"], None, r"two references, A_mask\.tif and a\.json"),
        ([], ["a.json", "A.json.gz"], None, r"two references, A\.json\.gz and a\.json"),
        (["a.csv"], ["a.json"], "a,1\nA.tif,1\n", r"line 1: a and .*line 2: A\.tif name the same"),
        (["a.csv"], ["a.json"], "x/a.tif,1\ny/a.tif,1\n", "name the same slide"),
        (["b.csv"], ["a.json"], "a,1\n", r"does not list: b\.csv; listed but without .*: a"),
        (["a.csv"], ["b.json"], "a,1\n", r"a has label 1 .* match no listed slide: b\.json"),
    ],
)
def test_no_slide_is_counted_twice(options, detections, references, slides, message):
    options = draw(options, dict.fromkeys(detections, TUMOUR), references, slides)
    with pytest.raises(EvaluationError, match=message):
        run(options)


# ------------------------------------------------------------ files of other kinds


def test_other_files_are_named(options):
    """They were ignored silently."""
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, ["a.json"])
    for name in (".DS_Store", "Thumbs.db", "README.md", "old/a.csv", "b_overlay.jpg"):
        write(options.detections / name, "x")
    write(options.reference / "notes.txt", "x")
    result, lines = run(options)
    check_two_slides(result)
    names = ".DS_Store, README.md, Thumbs.db, b_overlay.jpg, old/ (.csv are read"
    assert f"detections: {names}" in lines
    assert "reference: notes.txt (.xml" in lines


@pytest.mark.parametrize("name", ["b.npy", "B.svg", "b_mask.nii.gz", "b.txt", "b.csv", "b"])
def test_a_reference_that_cannot_be_read_does_not_make_a_slide_normal(options, name):
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, ["a.json"])
    write(options.reference / name, "x")
    with pytest.raises(EvaluationError, match=rf"{name}: named after slide b, .* no reference"):
        run(options)
    write(options.out.parent / "list.csv", "a,1\nb,0\n")  # then it cannot hold a lesion
    result, lines = run(replace(options, slides=options.out.parent / "list.csv"))
    check_two_slides(result)
    assert name in lines


@pytest.mark.parametrize("name", ["a.json", "a.csv.gz", "a.xlsx"])
def test_detections_that_cannot_be_read_are_refused(options, name):
    options = draw(options, {"b.csv": NORMAL, name: "x"}, ["a.geojson"])
    with pytest.raises(EvaluationError, match=rf"{name}: named after slide a, .* no detections"):
        run(options)


def test_links_and_folders_named_after_a_slide_are_refused(options):
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, ["a.json"])
    (options.reference / "b.json").symlink_to(options.out / "gone.json")
    with pytest.raises(EvaluationError, match=r"b\.json: .*link to a file that is not there"):
        run(options)
    (options.reference / "b.json").unlink()
    (options.reference / "b.json").mkdir()
    with pytest.raises(EvaluationError, match=r"b\.json: .*it is a folder"):
        run(options)


def test_one_folder_may_hold_detections_and_references(options):
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, [])
    write_reference(options.detections / "a.json")
    result, lines = run(replace(options, reference=options.detections))
    check_two_slides(result)
    assert "ignored" not in lines


def test_a_file_name_that_is_not_utf8_is_refused_in_a_sentence(options):
    options = draw(options, {"a.csv": TUMOUR}, ["a.json"])
    name = b"n\xe9.csv"
    (options.detections / name.decode(errors="surrogateescape")).write_text(NORMAL)
    with pytest.raises(EvaluationError, match=r"b'n\\xe9\.csv' is not UTF-8; rename it"):
        run(options)


@pytest.mark.parametrize("blank", [b"", b" \n", b"\xef\xbb\xbf\n"])
def test_an_empty_packed_reference_is_a_normal_slide(options, blank):
    options = draw(options, {"a.csv": TUMOUR, "b.csv": NORMAL}, ["a.json"])
    write(options.reference / "b.geojson.gz", gzip.compress(blank, mtime=0))
    check_two_slides(run(options)[0])


# ------------------------------------------------------------ one table for all slides

TABLE = "slide_id,prob,x,y\na,0.95,1500,1500\nb,0.8,200,200\na,0.3,90,90\n"


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        TABLE.split("\n", 1)[1],
        "x,y,slide,score,lesion\n1500,1500,a.tif,0.95,1\n200,200,B,0.8,\n90,90,a.tif,0.3,\n",
        "Image Name,X coordinate,Y coord,Confidence\na,1500,1500,.95\nb,200,200,.8\na,90,90,.3",
        "\ufeff" + TABLE.replace("\n", "\r\n"),
    ],
    ids=["header", "bare", "order", "names", "bom"],
)
@pytest.mark.parametrize("slides", [None, "slide_id,label\na,1\nB.svs,0\n"])
def test_one_table_of_all_slides(options, text, slides):
    result, _ = run(draw(options, text, ["A_mask.json"], slides))
    check_two_slides(result)


def test_a_row_with_a_slide_alone_is_a_slide_without_detections(options):
    result, _ = run(draw(options, TABLE + "c,,,\n", ["a.json"]))
    assert (result["n_slides"], result["n_normal"]) == (3, 2)
    assert result["curve"][-1]["avg_fps"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prob,x,y\n0.5,1,2\n", r"all\.csv, line 1: no column 'slide_id' in the header prob,x,y"),
        ("slide_id,prob,x\na,1,2\n", "line 1: .* neither a detection nor a header"),
        ("slide_id;prob;x;y\n", "line 1: .*separated by commas"),
        ("a,0.5,1\n", "line 1: .* neither a detection nor a header"),
        (TABLE + "a,0.5,1\n", "line 5: 3 fields, expected 4"),
        (TABLE + ",0.5,1,2\n", "line 5: the column 'slide_id' is empty"),
        (TABLE + "a,1.5,1,2\n", "line 5: prob '1.5'"),
        (TABLE + "a,0.5,,2\n", "line 5: x ''"),
        (TABLE + "A,0.5,1,2\n", "'a' and 'A' name the same slide, a"),
        (TABLE + "a.tif,0.5,1,2\n", "'a' and 'a.tif' name the same slide"),
        (TABLE + "case_7,0.5,1,2\n", r"case_7\) and 1 reference .*\(other\.json\)"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(options, text, message):
    references = ["a.json", "other.json"] if "case" in text else ["a.json"]
    with pytest.raises(EvaluationError, match=message):
        run(draw(options, text, references))


def test_a_table_with_a_slide_that_is_not_listed_is_refused(options):
    with pytest.raises(
        EvaluationError, match=r"all\.csv: detections of 1 slide .*does not list: b"
    ):
        run(draw(options, TABLE, ["a.json"], "a,1\n"))


def test_a_table_of_all_slides_in_a_folder_is_not_one_slides(options):
    """Its column of slides was ignored: all slides' detections on one."""
    options = draw(options, {"a.csv": TABLE}, ["a.json"])
    with pytest.raises(EvaluationError, match=r"line 3: a detection of slide 'b' in the file of"):
        run(options)
    write(options.detections / "a.csv", "slide_id,prob,x,y\nA.tif,0.95,1500,1500\n")
    assert run(options)[0]["score"] == 1


# ------------------------------------------------------------ positions between pixels


def test_positions_are_rounded_to_the_pixel_and_reported_once(options):
    """With ``x 1503.6`` the file was refused."""
    near = "0.9,991.6,1500\n0.8,991.4,1500\n0.7,90.0,90\n"  # the lesion begins at 32 x 31 - 0.5
    options = draw(options, {"a.csv": near, "b.csv": "0.1,3.5,3.25\n"}, ["a_mask.tif"])
    result, lines = run(replace(options, mask_downsample=32, mpp=2.4))  # hardly any growth
    points = [(p["threshold"], p["avg_fps"], p["sensitivity"]) for p in result["curve"]]
    assert points == [(None, 0, 0), (0.9, 0, 1), (0.1, 1.5, 1)]
    assert lines.count("rounded") == 1
    assert "3 detections of 2 slides not at whole pixels" in lines


def test_rounding_moves_no_detection_off_the_slide(options):
    inside, outside = "0.9,4095.9,4095.5\n", "0.9,4096,1\n"  # 128 mask pixels of 32
    options = replace(draw(options, {"a.csv": inside}, ["a.tif"]), mask_downsample=32)
    result, _ = run(options)
    assert result["curve"][-1]["avg_fps"] == 1
    write(options.detections / "a.csv", outside)
    with pytest.raises(EvaluationError, match=r"a\.csv, line 1: .* x 4096, y 1 lies outside"):
        run(options)


# ------------------------------------------------------------ lists


@pytest.mark.parametrize(
    "slides",
    [
        "image,type,class,center\na.tif,tumor,macro,0\nb.tif,Normal,negative,1\n",  # CAMELYON16's
        "label,slide_id,patient\n1,a,p1\n0,b,p2\n",
        "a,1.0\nb,0.0\n",
        "File Name,Label\na.svs,Tumour\nb.svs,negative\n",
    ],
)
def test_lists_as_others_write_them(options, slides):
    files = {"a.csv": TUMOUR, "b.csv": NORMAL}
    check_two_slides(run(draw(options, files, ["a.json"], slides))[0])


def test_patches_name_their_slides_in_any_way(tmp_path):
    options = FrocOptions(
        "patch", tmp_path / "out", patches=tmp_path / "p.csv", slides=tmp_path / "s.csv"
    )
    write(options.slides, "slide_id,label,lesions\nT1.tif,1,1\nN1.tif,0,\n")
    write(options.patches, "slide_id,score,lesions\nt1,0.9,1\nT1.tif,0.95,\nslides/N1.svs,0.4,\n")
    result, _ = run(options)
    assert (result["n_slides"], result["score"]) == (2, 1)
    write(options.patches, "slide_id,score,lesions\nt2,0.9,1\n")
    with pytest.raises(EvaluationError, match=r"p\.csv, line 2: slide 't2' is not listed"):
        run(options)


# ------------------------------------------------------------ patients


def test_slides_of_one_patient_are_resampled_together(options):
    """Ten tumour slides and nine normal ones, of ten patients or of two."""
    detections = {f"t{i}.csv": TUMOUR if i % 3 else "0.2,9,9\n" for i in range(10)}
    detections |= {f"n{i}.csv": f"0.{i},9,9\n" for i in range(1, 10)}
    references = [f"t{i}.json" for i in range(10)]
    rows = [f"{name[:-4]},{int(name[0] == 't')},p{int(name[1])}" for name in detections]
    header = "slide_id,label,patient\n"
    options = draw(options, detections, references, header + "\n".join(rows))
    options = replace(options, bootstrap=200)
    ten, _ = run(options)
    assert (ten["bootstrap"]["unit"], ten["bootstrap"]["groups"]) == ("patient", 10)
    assert ten["score_ci95"][0] < ten["score"] < ten["score_ci95"][1]
    assert ten["bootstrap"]["method"] == {
        "score": "percentile bootstrap by patient",
        "sensitivity_at": "Wilson, effective sample size by patient",
    }
    few = [row.split(",") for row in rows]
    write(options.slides, header + "\n".join(f"{s},{y},p{int(p[1:]) % 2}" for s, y, p in few))
    two, lines = run(options)
    assert two["score_ci95"] is None
    assert two["undefined"]["score_ci95"] == "2 patients, at least 5 are needed"
    assert "score: no 95 % interval, 2 patients" in lines
    write(options.slides, "\n".join(f"{s},{y}" for s, y, _ in few))
    assert run(options)[0]["bootstrap"]["unit"] == "slide"


def test_one_slide_has_no_interval(options):
    """`froc --bootstrap` on a single slide gave [1.0, 1.0]."""
    options = draw(options, {"a.csv": TUMOUR}, ["a.json"])
    result, lines = run(replace(options, bootstrap=200))
    assert (result["score"], result["score_ci95"]) == (1, None)
    assert result["undefined"]["score_ci95"] == "1 slide, at least 5 are needed"
    assert "score: no 95 % interval, 1 slide, at least 5 are needed" in lines
