"""Other pages than the report: a FROC of plain files, models side by side, figures for papers."""

import csv
import json
import shutil

import pytest
from PIL import Image

from tests.helpers import fake_run
from tests.helpers.html_pages import CHROMIUM, Page, check_policy, open_in_browser
from tests.wsi_pipeline.report import test_numbers
from tiling.annotation.formats.asap_xml import write_asap_xml
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import ReportError, StageError
from wsi_pipeline.report.build import build_report
from wsi_pipeline.report.comparison import build_comparison
from wsi_pipeline.report.froc_page import build_froc_page

pytestmark = pytest.mark.real_pictures


STRANGE = "<b>&"


def loads_nothing(page):
    values = [v for _, name, v in page.attributes if name in ("src", "href")]
    return all(value.startswith(("#", "data:")) for value in values)


# ------------------------------------------------------------ froc.html


@pytest.fixture(scope="module")
def froc(tmp_path_factory):
    """What the command froc makes of five slides, three of them normal, one strangely named."""
    return make_froc(tmp_path_factory.mktemp("froc"), n_normal=3)


def make_froc(folder, *, n_normal):
    (folder / "detections").mkdir()
    (folder / "reference").mkdir()
    for slide_id, rows in {
        "t1": [(0.9, 4000, 4000), (0.4, 12000, 900)],
        STRANGE: [(0.7, 100, 100)],
        **{f"n{i}": [(0.8 - i / 100, 500, 500)] for i in range(n_normal)},
    }.items():
        fake_run.write_csv(folder / "detections" / f"{slide_id}.csv", ("prob", "x", "y"), rows)
        if slide_id in ("t1", STRANGE):
            square = [(3200, 3200), (6400, 3200), (6400, 6400), (3200, 6400)]
            path = folder / "reference" / f"{slide_id}.xml"
            write_asap_xml(path, [("1", "Tumor", square)], ["Tumor"])
    options = ["--detections", str(folder / "detections"), "--reference"]
    options += [str(folder / "reference"), "--out", str(folder / "out"), "--bootstrap", "50"]
    assert main(["froc", *options, "--quiet"]) == 0
    return folder / "out"


def test_froc_page_is_whole_and_self_contained(froc):
    page = Page((froc / "froc.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert loads_nothing(page)
    assert STRANGE in page.text
    assert "b" not in {tag for tag, *_ in page.attributes}
    assert str(froc.parent) not in page.text


def test_froc_page_shows_every_figure_and_its_interval(froc):
    page = Page((froc / "froc.html").read_text(encoding="utf-8"))
    result = json.loads((froc / "froc.json").read_text())
    figures = [result["score"], *result["score_ci95"], *result["sensitivity_at"].values()]
    for ends in result["bootstrap"]["sensitivity_at_ci95"].values():
        figures += ends
    for point in result["operating_points"].values():
        figures += [value for value in point.values() if value is not None]
    assert set(figures) <= set(page.numbers)
    assert 'class="band series-0"' in (froc / "froc.html").read_text(encoding="utf-8")
    with (froc / "lesions.csv").open(newline="") as file:
        lesions = list(csv.DictReader(file))
    assert [row["status"] for row in lesions] == ["missed", "hit"]
    assert {float(r["major_axis_um"]) for r in lesions} <= set(page.numbers)


def test_froc_page_gives_the_reason_where_there_is_no_interval(tmp_path):
    page = Page((make_froc(tmp_path, n_normal=1) / "froc.html").read_text(encoding="utf-8"))
    assert "no interval: 3 slides, at least 5 are needed" in page.text


def test_froc_page_says_what_it_was_made_of(froc):
    page = Page((froc / "froc.html").read_text(encoding="utf-8"))
    inputs = json.loads((froc / "inputs.json").read_text())
    assert len(inputs["inputs"]) == 7
    for file in inputs["inputs"]:
        assert file["file"] in page.text
        assert file["sha256"] in page.text
    assert inputs["version"] in page.text
    assert all(note in page.text for note in inputs["notes"])


def test_froc_page_gives_the_reason_of_an_undefined_score(froc, tmp_path):
    copy = shutil.copytree(froc, tmp_path / "copy")
    result = json.loads((copy / "froc.json").read_text())
    result |= {"score": None, "score_ci95": None, "band": None, "bootstrap": None}
    result["sensitivity_at"] = dict.fromkeys(result["sensitivity_at"])
    result["curve"] = [{"threshold": None, "avg_fps": 0.0, "sensitivity": None}]
    result["undefined"] = {"score": "there is no <lesion>", "sensitivity_at": "no lesion"}
    (copy / "froc.json").write_text(json.dumps(result))
    page = Page(build_froc_page(copy).read_text(encoding="utf-8"))
    assert "undefined: there is no <lesion>" in page.text
    assert "No interval was asked for" in page.text
    assert "svg" not in {tag for tag, *_ in page.attributes}


def test_froc_page_is_the_same_each_time_and_needs_a_result(froc, tmp_path):
    before = (froc / "froc.html").read_bytes()
    assert build_froc_page(froc).read_bytes() == before
    with pytest.raises(ReportError, match=r"no froc\.json; run: wsi-pipeline froc"):
        build_froc_page(tmp_path)


# ------------------------------------------------------------ figures for papers, gallery


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = fake_run.make_run(tmp_path_factory.mktemp("runs") / "night", pictures=False)
    evaluation = folder / "evaluation" / "vgg16"
    (evaluation / "errors").mkdir()
    Image.new("RGB", (64, 64), "purple").save(evaluation / "errors" / "a.png")
    header = ("kind", "rank", "slide_id", "x", "y", "score", "lesion", "picture")
    rows = [
        ("false_positive", 1, fake_run.STRANGE, 1200, 800, 0.97, "", "errors/a.png"),
        ("missed_lesion", 1, "te_1", "", "", "", "2", ""),
    ]
    fake_run.write_csv(evaluation / "errors.csv", header, rows)
    # The other model was evaluated before there were patients.
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["patient"] = {
        "aggregator": "max", "n": 31, "n_positive": 17, "n_unscored": 0, "threshold": None,
        "roc_auc": 0.625, "roc_auc_delong_ci95": None,
    }  # fmt: skip
    (evaluation / "metrics.json").write_text(json.dumps(metrics))
    build_report(folder)
    return folder


def test_every_figure_is_svg_png_and_csv_without_a_date(run):
    folder = run / "figures" / "vgg16"
    stems = {path.stem for path in folder.iterdir()}
    assert stems == {
        "roc_slides", "roc_patches", "pr_patches", "froc_camelyon16", "froc_patch", "confusion",
        "training_loss", "training_auc",
    }  # fmt: skip
    assert {path.suffix for path in folder.iterdir()} == {".svg", ".png", ".csv"}
    assert len(list(folder.iterdir())) == 3 * len(stems)
    assert all(b"<dc:date>" not in path.read_bytes() for path in folder.glob("*.svg"))


@pytest.mark.slow
def test_figures_are_the_same_each_time(run):
    folder = run / "figures" / "vgg16"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    build_report(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.slow
def test_pictures_of_others_in_the_folder_of_figures_stay(run, tmp_path):
    """Every SVG, PNG and CSV there was deleted by the next report."""
    copy = shutil.copytree(run, tmp_path / "copy")
    mine = copy / "figures" / "vgg16" / "mine.svg"
    mine.write_text("a figure of somebody's paper")
    build_report(copy)
    assert mine.read_text() == "a figure of somebody's paper"


def test_gallery_shows_crops_with_their_places(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    crops = [v for tag, name, v in page.attributes if tag == "img" and name == "src"]
    assert len(crops) == 1
    assert {1200, 800, 0.97} <= set(page.numbers)
    assert "no scored patch on it" in page.text


def test_gallery_embeds_nothing_from_outside_the_run(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    errors = copy / "evaluation" / "vgg16" / "errors.csv"
    errors.write_text(errors.read_text().replace("errors/a.png", "../../../secret.png"))
    with pytest.raises(ReportError, match="is not in this folder"):
        build_report(copy)


def test_a_section_that_only_one_model_has_is_shown(run):
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "Measured on 31 patients, 17 of them with tumour" in page.text
    assert 0.625 in page.numbers
    assert "undefined: not computed" in page.text


# ------------------------------------------------------------ compare.html


@pytest.fixture(scope="module")
def real():
    """The module that evaluates a small run."""
    return test_numbers


@pytest.fixture(scope="module")
def runs(tmp_path_factory, real):
    return [real.make_run(tmp_path_factory.mktemp("two") / name, seed) for name, seed in RUNS]


RUNS = (("monday", 3), ("tuesday", 4))


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    build_comparison(runs, out, replicates=40)
    return out


def test_comparison_is_whole_and_self_contained(compared):
    page = Page((compared / "compare.html").read_text(encoding="utf-8"))
    assert page.open == []
    assert loads_nothing(page)
    assert "monday: patchnet" in page.text
    assert "tuesday: patchnet" in page.text


def test_comparison_shows_both_models_figures_and_their_differences(compared, runs):
    page = Page((compared / "compare.html").read_text(encoding="utf-8"))
    for run in runs:
        metrics = json.loads((run / "evaluation" / "patchnet" / "metrics.json").read_text())
        auc, froc = metrics["slide"]["roc_auc"], metrics["froc_patch"]["score"]
        assert {auc, froc, *metrics["patch"]["roc_auc_ci95"]} <= set(page.numbers)
    (pair,) = json.loads((compared / "comparison.json").read_text())
    for figure in pair["figures"].values():
        assert {figure["difference"], *(figure["difference_ci95"] or ())} <= set(page.numbers)
        assert figure["p_value"] is None or figure["p_value"] in page.numbers
        assert figure["difference"] == pytest.approx(figure["first"] - figure["second"])


def test_comparison_gives_the_reason_where_there_is_no_interval(compared):
    (pair,) = json.loads((compared / "comparison.json").read_text())
    page = Page((compared / "compare.html").read_text(encoding="utf-8"))
    reasons = {why for key, why in pair["undefined"].items() if key.endswith("difference_ci95")}
    known = [f for f in pair["figures"].values() if f["difference_ci95"]]
    assert len(reasons) + len(known) > 0
    assert all(f"no interval: {reason}" in page.text for reason in reasons)
    assert all(f["method"] == "percentile bootstrap by patient" for f in known)


@pytest.mark.slow
def test_comparison_is_the_same_each_time(compared, runs):
    before = (compared / "compare.html").read_bytes()
    assert build_comparison(runs, compared, replicates=40).read_bytes() == before


def test_comparison_needs_two_evaluated_models(runs, tmp_path):
    with pytest.raises(ReportError, match="nothing to compare"):
        build_comparison(runs[:1], tmp_path)
    with pytest.raises(ReportError, match="named twice"):
        build_comparison([runs[0], runs[0]], tmp_path)
    with pytest.raises(ReportError, match="no evaluated model resnet"):
        build_comparison(runs, tmp_path, models=["resnet"])
    with pytest.raises(StageError, match="not a run folder"):
        build_comparison([runs[0], tmp_path], tmp_path)
    bare = fake_run.make_run(tmp_path / "bare", models=())
    with pytest.raises(ReportError, match=r"no model is evaluated; run: wsi-pipeline evaluate"):
        build_comparison([runs[0], bare], tmp_path)
    assert not list(tmp_path.glob("*.html"))


def test_compare_command_says_where_the_page_is(runs, tmp_path, capsys):
    given = ["compare", *map(str, runs), "--out", str(tmp_path), "--bootstrap", "20"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "compare.html")
    assert main(["compare", str(runs[0]), "--out", str(tmp_path)]) == 1
    assert "ReportError: 1 evaluated model" in capsys.readouterr().err


# ------------------------------------------------------------ a real browser


@pytest.mark.parametrize(("page", "fixture"), [("froc", "froc"), ("compare", "compared")])
def test_every_page_names_its_script_by_hash(request, page, fixture):
    text = (request.getfixturevalue(fixture) / f"{page}.html").read_text(encoding="utf-8")
    check_policy(text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize(("page", "n_tables"), [("froc", 2), ("compare", 0)])
def test_pages_open_in_a_browser_without_an_error(request, page, n_tables, tmp_path):
    folder = request.getfixturevalue({"froc": "froc", "compare": "compared"}[page])
    text = (folder / f"{page}.html").read_text(encoding="utf-8")
    done = open_in_browser(text, tmp_path)
    assert "CONSOLE" not in done.stderr
    assert f"<title>probe {n_tables}</title>" in done.stdout
