"""The report of a small run: whole, self-contained, escaped, and every number as in the files."""

import csv
import json
import re
import shutil
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest

from tests.helpers import fake_run
from tests.helpers.html_pages import CHROMIUM, Page, check_policy, open_in_browser
from tests.helpers.real_data import real_data
from tiling.hdf5 import add_array, create_hdf5
from wsi_pipeline.errors import ReportError, StageError
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.report import build
from wsi_pipeline.report.build import LECTURE_CONFUSION, build_report, render_report
from wsi_pipeline.report.gather import gather_run
from wsi_pipeline.report.published import PUBLISHED
from wsi_pipeline.report.slide_rows import list_slides, rank_worst


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return fake_run.make_run(tmp_path_factory.mktemp("runs") / "night_run")


@pytest.fixture(scope="module")
def text(run):
    return build_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def numbers_in(value):
    """All numbers of a JSON value."""
    if isinstance(value, dict):
        return [n for item in value.values() for n in numbers_in(item)]
    if isinstance(value, list):
        return [n for item in value for n in numbers_in(item)]
    return [value] if isinstance(value, int | float) else []


def test_page_is_balanced_html(page):
    assert page.open == []


@pytest.mark.parametrize("model", ["patchnet", "vgg16"])
def test_every_metric_is_shown_in_full(run, page, model):
    metrics = json.loads((run / "evaluation" / model / "metrics.json").read_text())
    for froc in ("froc_camelyon16", "froc_patch"):
        del metrics[froc]["curve"]  # drawn, not printed

    shown = set(page.numbers)
    assert [n for n in numbers_in(metrics) if n not in shown] == []
    assert "Positive if the score is ≥ 0.750 ." in page.text


def test_every_slide_is_shown_with_its_counts(run, page):
    for model in ("patchnet", "vgg16"):
        with (run / "evaluation" / model / "slides.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                assert float(row["score"]) in page.numbers
                assert {int(row[c]) for c in ("tp", "fp", "fn", "tn")} <= set(page.numbers)
                assert row["slide_id"] in page.text


def test_others_results_are_shown_only_where_asked_for(run, page):
    """The lecture's confusion matrix and metastases were in every report."""
    assert not set(LECTURE_CONFUSION.values()) & set(page.numbers)
    assert "metastas" not in page.text
    assert "CAMELYON16 test set" not in page.text

    gathered = gather_run(run)
    lecture = Page(render_report(gathered, context=("lecture",)))
    camelyon = Page(render_report(gathered, context=("camelyon16",)))

    assert set(LECTURE_CONFUSION.values()) <= set(lecture.numbers)
    assert "Not the same data" not in lecture.text
    assert "Not the same data" in camelyon.text
    assert not set(LECTURE_CONFUSION.values()) & set(camelyon.numbers)


def test_published_results_are_those_of_the_table():
    """Table 2 of the publication, as another group copied it."""
    table = real_data("camelyon17/jama2017_table2_top13.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines())
    listed = {
        f"{row['codename']} ({row['architecture']})": [
            float(row[f"{figure}{end}"]) for figure in ("froc", "auc") for end in ("", "_lo", "_hi")
        ]
        for row in rows
    }
    known = {
        row.method: [
            row.froc.value,
            *row.froc.interval,
            row.slide_auc.value,
            *row.slide_auc.interval,
        ]
        for row in PUBLISHED
        if "table 2" in row.source
    }
    assert known == listed
    assert len(known) == 13


def test_published_results_are_shown_with_intervals_below_this_runs(run):
    metrics = json.loads((run / "evaluation/vgg16/metrics.json").read_text())
    page = Page(render_report(gather_run(run), context=("camelyon16",)))
    table = page.text.partition("Not the same data.")[2]
    own, _, others = table.partition("HMS and MIT II (GoogLeNet)")
    assert others.startswith(" 0.807 95 % CI 0.732 to 0.889 0.994 95 % CI 0.983 to 0.999 Ehteshami")
    assert f"vgg16 {metrics['froc_camelyon16']['score']:.3f}" in own
    assert "this run, on its own slides" in own
    assert "Pathologist without time limit – 0.966 95 % CI 0.927 to 0.998" in others


def test_slides_of_other_splits_are_shown_with_label_and_score(run, tmp_path):
    """Validation slides had a heatmap and dashes; what is known of them is shown."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for name in ("va_1", "va_2", "tr_1"):
        shutil.copy(copy / "heatmaps/vgg16/te_1.png", copy / f"heatmaps/vgg16/{name}.png")
    (copy / "evaluation/vgg16/validation.csv").write_text(
        "slide_id,label,score\nva_1,1,0.9\nva_2,0,0.25\n"
    )

    gathered = gather_run(copy)
    model = next(model for model in gathered.models if model.name == "vgg16")
    thresholds = {"slide": model.metrics["slide"]["threshold"], "patch": 0.75}
    listed = list_slides(model, gathered.cohort, thresholds, n_pictures=50, folder=copy)
    rows = {row.cells["slide_id"]: row.cells for row in listed}

    assert rows["va_1"]["split"] == "val"
    assert (rows["va_1"]["label"], rows["va_1"]["predicted"]) == ("1", "1")
    assert (rows["va_1"]["score"], rows["va_2"]["score"]) == ("0.9", "0.25")
    assert (rows["va_2"]["label"], rows["va_2"]["predicted"]) == ("0", "0")
    assert (rows["tr_1"]["label"], rows["tr_1"]["score"]) == ("1", "")
    assert rows["va_1"]["tp"] == ""  # its patches are not evaluated
    assert rows["te_1"]["tp"] != ""
    assert build_report(copy).is_file()


@pytest.mark.slow
def test_only_the_worst_slides_are_shown_with_their_picture(run, tmp_path):
    """A report of 1000 slides had 108 MB: each slide's picture was in it."""
    build_report(run)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    page = Page(build_report(copy, n_pictures=1).read_text())

    pictures = [v for tag, name, v in page.attributes if (tag, name) == ("img", "alt")]
    shown = [alt for alt in pictures if alt.startswith("slide ")]
    links = [v for tag, name, v in page.attributes if (tag, name) == ("a", "href") and v[0] != "#"]
    assert [alt.rpartition(" by ")[2] for alt in shown] == ["patchnet", "vgg16"]
    assert len(shown + links) == 6  # three test slides by two models
    assert all((copy / unquote(link)).is_file() for link in links)
    assert any("%3Cscript%3E" in link for link in links)
    everything = build_report(copy, n_pictures=3).read_text()
    assert everything == (run / "report.html").read_text().replace("night_run", "copy")
    assert "linked" not in Page(everything).text


def test_the_worst_slides_are_wrong_then_miss_lesions_then_near_the_threshold():
    def row(slide_id, label, score, predicted, tp="0"):
        names = ("slide_id", "label", "score", "predicted", "tp")
        return dict(zip(names, (slide_id, label, score, predicted, tp), strict=True))

    rows = [
        row("validation", "1", "0.1", "0", tp=""),
        row("sure", "0", "0.01", "0"),
        row("near", "0", "0.55", "0"),
        row("misses 1", "1", "0.9", "1"),
        row("misses 2", "1", "0.99", "1"),
        row("wrong", "1", "0.5", "0"),
        row("very wrong", "0", "0.99", "1"),
        row("unscored", "0", "", ""),
    ]
    missed = {"misses 1": 1, "misses 2": 2, "wrong": 5}

    order = [rows[i]["slide_id"] for i in rank_worst(rows, missed, 0.6)]

    assert order[:4] == ["very wrong", "wrong", "misses 2", "misses 1"]
    assert order[4:] == ["unscored", "near", "sure", "validation"]
    assert rank_worst(rows[1:3], {}, None) == [0, 1]


def test_lesions_are_counted_at_the_threshold_that_patches_are_called_at(run):
    """ "hit at any threshold" was true of every lesion with a patch on it."""
    gathered = gather_run(run, models=["vgg16"])
    lesions = [{"status": "hit", "best_score": str(score)} for score in (0.74, 0.75, 0.9)]
    lesions.append({"status": "missed", "best_score": ""})
    model = replace(
        gathered.models[0], lesions={"patch": lesions, "camelyon16": lesions},
        metrics=gathered.models[0].metrics | {"threshold": 0.75},
    )  # fmt: skip

    assert build._count_found(model, "patch") == "2 of 4 lesions found at the patch threshold, 0.75"
    assert build._count_found(model, "camelyon16") == "3 of 4 lesions with a detection"


def test_a_threshold_just_below_one_is_not_shown_as_one(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    path = copy / "evaluation/vgg16/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["slide"]["threshold"] = metrics["threshold"] = 0.99998951
    path.write_text(json.dumps(metrics))

    page = Page(build_report(copy).read_text())

    assert "At the threshold of 0.999990 (largest sensitivity + specificity; chosen on" in page.text
    assert "vgg16 a slide is called positive ≥ 0.999990 largest" in page.text
    assert "Positive if the score is ≥ 0.999990 ." in page.text


def test_the_page_begins_with_the_results_and_the_worst_slides(run, page):
    metrics = json.loads((run / "evaluation/vgg16/metrics.json").read_text())
    first = page.text.partition("What was done, and what the figures mean")[0]
    low, high = metrics["slide"]["roc_auc_ci95"]
    auc = f"{metrics['slide']['roc_auc']:.3f}".replace("1.000", "1")
    assert (
        f"3 test slides, 2 of them with tumour, vgg16 separates slides with tumour from normal "
        f"slides with a ROC AUC of {auc} (95 % CI {low:.3f} to {high:g} )" in first
    )
    with (run / "evaluation/vgg16/slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    wrong = sum(row["label"] != row["predicted"] for row in rows)
    assert f"{len(rows) - wrong} of 3 slides are called correctly" in first
    cards = first.partition("Each slide Left the slide")[2].partition(" vgg16 ")[2]
    verdicts = re.findall(r"(?:true|false) (?:positive|negative)", cards)
    assert verdicts[: len(rows)] == sorted(verdicts[: len(rows)], key=lambda v: v[:4] == "true")
    assert sum(verdict.startswith("false") for verdict in verdicts[: len(rows)]) == wrong


def test_thresholds_have_their_reason_and_what_they_were_chosen_on(page):
    table = page.text.partition("why this value chosen on")[2].partition("Slides: is there")[0]
    for model in ("patchnet", "vgg16"):
        assert (
            f"{model} a slide is called positive ≥ 0.812 largest sensitivity + specificity "
            "2 validation slides" in table
        )
        assert f"{model} a patch is called positive ≥ 0.750 evaluate.threshold" in table
    assert table.count("no data: a setting") == 2


def test_what_is_exactly_one_is_shown_so_and_what_is_not_is_not(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "evaluation/vgg16/metrics.json"
    metrics = json.loads(path.read_text())
    metrics["slide"] |= {"roc_auc": 1.0, "roc_auc_ci95": [0.99973, 1.0], "accuracy": 0.99961}
    path.write_text(json.dumps(metrics))
    text = Page(build_report(copy, models=["vgg16"]).read_text()).text
    assert "ROC AUC 1 95 % CI 0.99973 to 1 " in text
    assert "accuracy 0.99961 " in text
    assert "1.000" not in text.partition("Settings and versions")[0]


def test_one_reason_for_all_headlines_is_given_once(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    path = copy / "evaluation/vgg16/metrics.json"
    metrics, why = json.loads(path.read_text()), "3 patients, at least 5 are needed"
    for section in ("slide", "patch"):
        metrics[section]["roc_auc_ci95"] = None
        metrics["undefined"][f"{section}.roc_auc_ci95"] = why
    path.write_text(json.dumps(metrics))
    for name in ("camelyon16", "patch"):
        path = copy / f"evaluation/vgg16/froc_{name}.json"
        froc = json.loads(path.read_text()) | {"score_ci95": None, "undefined": {"score_ci95": why}}
        path.write_text(json.dumps(froc))
    text = Page(build_report(copy, models=["vgg16"]).read_text()).text
    assert text.partition("At the threshold")[0].count(f"(no interval: {why})") == 1


def test_undefined_figures_carry_their_reason(page):
    assert "undefined: no normal slide & no more" in page.text
    assert "undefined: left out of this test on purpose" in page.text


def test_page_loads_nothing(page):
    loads = [
        (tag, name, value)
        for tag, name, value in page.attributes
        if name in ("src", "href", "srcset", "data", "action", "poster", "background")
    ]
    assert [load for load in loads if not load[2].startswith(("#", "data:"))] == []
    assert sum(tag == "img" for tag, name, _ in loads) == 6  # 3 test slides by 2 models


def test_style_and_script_load_nothing(text):
    assert all(word not in text for word in ("http:", "https:", "@import", "url(", "fetch("))


def test_names_are_escaped(text, page):
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert fake_run.STRANGE in page.text
    assert "te_9.svs: <not> a slide" in page.text
    assert "3 <unreadable> patches have no score" in page.text
    assert "gus & co" in page.text


def test_no_folder_gets_into_the_report(run, text):
    assert "/home/ann" not in text
    assert str(run) not in text
    assert "slides.csv" in text


def test_same_run_gives_the_same_bytes(run):
    first = build_report(run).read_bytes()
    assert build_report(run).read_bytes() == first


def test_only_the_models_asked_for_are_shown(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    text = build_report(copy, models=["vgg16"]).read_text(encoding="utf-8")
    assert "patchnet" not in text

    with pytest.raises(ReportError, match="no model resnet in this run; there is patchnet, vgg16"):
        build_report(copy, models=["resnet"])


def test_sections_without_content_are_left_out(tmp_path):
    """A report after tile had seven sections that advised to run other stages."""
    run = fake_run.make_run(tmp_path / "half", models=())
    page = Page(build_report(run).read_text(encoding="utf-8"))

    assert page.open == []
    assert page.text.count("run wsi-pipeline") == 1
    assert "No model has scored these slides: run wsi-pipeline train half" in page.text
    ids = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert ids == ["what", "cohort", "provenance"]
    links = {value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    assert links == set(ids)


def test_slides_that_are_only_scored_have_no_section_on_results(tmp_path):
    """A report of new slides advised to evaluate them, which nobody can without labels."""
    slides = [(name, "p" + name, None, "") for name in ("a", "b", "c")]
    run = fake_run.make_run(tmp_path / "new", models=(), slides=slides)
    for name in "abc":
        fake_run.write_overlay(run, "vgg16", name)
    RunFolder(run).image_scores("vgg16").mkdir(parents=True)
    for name, score in (("a", 0.25), ("b", 0.75), ("c", np.nan)):
        with create_hdf5(RunFolder(run).scores("vgg16", name)) as file:
            add_array(file, "scores", np.array([0.125, score], np.float32))
    page = Page(build_report(run).read_text(encoding="utf-8"))

    ids = [value for tag, name, value in page.attributes if (tag, name) == ("section", "id")]
    assert ids == ["headline", "per-slide", "what", "cohort", "provenance"]
    assert "run wsi-pipeline" not in page.text
    assert "vgg16 scored 3 slides: the highest score of a patch is between 0.125" in page.text
    alts = [value for tag, name, value in page.attributes if (tag, name) == ("img", "alt")]
    assert [alt[6] for alt in alts] == ["b", "a", "c"]  # the most suspicious first


def test_model_without_evaluation_still_shows_its_heatmaps(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(copy / "evaluation")
    page = Page(build_report(copy).read_text(encoding="utf-8"))

    assert sum(tag == "img" and name == "src" for tag, name, _ in page.attributes) == 6
    assert "not yet compared with the labels: run wsi-pipeline evaluate copy" in page.text


def test_undefined_froc_shows_its_reason_and_no_curve(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    for model in ("patchnet", "vgg16"):
        path = copy / "evaluation" / model / "froc_patch.json"
        froc = json.loads(path.read_text())
        froc |= {
            "score": None,
            "score_ci95": None,
            "undefined": {"score": "there is no normal slide"},
        }
        froc["sensitivity_at"] = dict.fromkeys(froc["sensitivity_at"])
        froc["curve"] = [{"threshold": None, "avg_fps": None, "sensitivity": None}]
        path.write_text(json.dumps(froc))

    page = Page(build_report(copy).read_text(encoding="utf-8"))

    assert "undefined: there is no normal slide" in page.text


def add_audit(run, rows):
    folder = run / "tiles/label_audit"
    header = "slide_id,positive,negative,lesions,lesions_hit"
    folder.mkdir()
    (folder / "slides.csv").write_text("\n".join([header, *rows]) + "\n")
    shutil.copy(next((run / "heatmaps").rglob("*.png")), folder / "ambiguous.png")


def test_the_label_audit_is_shown(run, tmp_path, page):
    assert ("section", "id", "labels") not in page.attributes  # this run has none
    copy = shutil.copytree(run, tmp_path / "copy")
    add_audit(copy, ["tr_1,5,9,3,1", "te_1,4,8,2,2"])
    shown = Page(build_report(copy).read_text(encoding="utf-8"))
    assert "as they meet no patch's inner square: tr_1 2 of 3." in shown.text
    assert "least certain labels" in shown.text
    n_pictures = [tag for tag, key, _ in shown.attributes if (tag, key) == ("img", "src")]
    assert len(n_pictures) == 1 + sum((t, k) == ("img", "src") for t, k, _ in page.attributes)


def test_an_audit_without_labels_is_not_shown(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    add_audit(copy, ["tr_1,0,0,0,0"])
    assert 'id="labels"' not in build_report(copy).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("evaluation/vgg16/metrics.json", "{", "vgg16/metrics.json: damaged"),
        ("evaluation/vgg16/roc.csv", "slide_id,x\na,1\n", "vgg16/roc.csv: not of,threshold,fpr"),
        ("heatmaps/vgg16/te_1.png", "no picture", "vgg16/te_1.png: not a picture"),
    ],
)
def test_broken_files_are_named(run, tmp_path, name, text, message):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        build_report(copy)


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StageError, match="not a run folder"):
        build_report(tmp_path)
    fake_run.write_csv(tmp_path / "slides.csv", ("slide",), [("a.tif",)])
    with pytest.raises(ReportError, match="nothing to report on"):
        build_report(tmp_path)


def test_the_policy_names_the_only_script_and_style_by_their_hashes(text):
    """With 'unsafe-inline', a name that found its way into the markup could have run."""
    check_policy(text)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_page_opens_in_a_browser_and_sorts_without_an_error(text, tmp_path):
    done = open_in_browser(text, tmp_path)
    assert "CONSOLE" not in done.stderr
    # One column is sorted in each table: the cohort, two lesion lists, two slide lists.
    assert "<title>probe 5</title>" in done.stdout


VIEWER = """
  const buttons = [...document.querySelectorAll("button.zoom")];
  const dialog = document.querySelector("dialog.viewer");
  const seen = [];
  function note(key) {
    dialog.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
    seen.push(dialog.querySelector(".caption").textContent.split(":")[0]);
  }
  buttons[1].focus();
  buttons[1].click();
  const box = dialog.querySelector("img").getBoundingClientRect();
  const filled = box.width > 0.9 * innerWidth && box.height > 0.7 * innerHeight;
  const inside = dialog.contains(document.activeElement);
  for (const key of ["", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft"]) note(key);
  dialog.close();
  const back = document.activeElement === buttons[1];
  document.title = ["probe", filled, inside, back, dialog.open, ...seen].join("; ");
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_viewer_fills_the_window_follows_the_arrows_and_returns_the_focus(text, tmp_path):
    done = open_in_browser(text, tmp_path, probe=VIEWER)
    assert "CONSOLE" not in done.stderr
    order = "2 of 6; 3 of 6; 2 of 6; 1 of 6; 6 of 6"
    assert f"<title>probe; true; true; true; false; {order}</title>" in done.stdout
