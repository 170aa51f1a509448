"""Several teams' FROC on one reference: ranks, intervals, paired tests, and the page."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tiling.annotation.formats.asap_xml import write_asap_xml
from wsi_pipeline.cli.app import main
from wsi_pipeline.evaluation.froc_files import FrocOptions, run_froc

N_SLIDES, SIDE, STEP = 12, 3200, 6400
SEED = 3


def square(x: int, y: int) -> list[list[int]]:
    return [[x, y], [x + SIDE, y], [x + SIDE, y + SIDE], [x, y + SIDE]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Twelve slides, every second one with three lesions; three teams of known quality."""
    folder = tmp_path_factory.mktemp("froc")
    rng = np.random.default_rng(SEED)
    (folder / "reference").mkdir()
    rows = ["slide_id,label"]
    for number in range(N_SLIDES):
        rows.append(f"s{number:02},{number % 2}")
        if number % 2:
            lesions = [(f"a{i}", "Tumor", square(STEP * i, SIDE)) for i in range(3)]
            write_asap_xml(folder / f"reference/s{number:02}.xml", lesions, ["Tumor"])
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    for team, (share, n_false) in {"good": (0.8, 1), "fair": (0.5, 2), "poor": (0.2, 6)}.items():
        (folder / team).mkdir()
        for number in range(N_SLIDES):
            points = [(0.3 * rng.random(), 100, 20 * i) for i in range(n_false)]
            points += [
                (0.5 + 0.5 * rng.random(), STEP * i + 1600, SIDE + 1600)
                for i in range(3 * (number % 2))
                if rng.random() < share
            ]
            text = "".join(f"{p!r},{x},{y}\n" for p, x, y in points)
            (folder / team / f"s{number:02}.csv").write_text(text)
    return folder


def froc(data: Path, out: Path, *teams: str, more: tuple[str, ...] = ()) -> int:
    named = [word for team in teams for word in ("--detections", str(data / team))]
    where = ["--reference", str(data / "reference"), "--slides", str(data / "slides.csv")]
    return main(["froc", *named, *where, "--out", str(out), "--bootstrap", "200", *more])


def test_teams_are_ranked_by_the_scores_that_each_has_alone(data, tmp_path, capsys):
    assert froc(data, tmp_path, "poor", "good", "fair") == 0
    rows = json.loads((tmp_path / "teams.json").read_text())["teams"]
    assert [(row["rank"], row["team"]) for row in rows] == [(1, "good"), (2, "fair"), (3, "poor")]
    for row in rows:
        alone = run_froc(
            FrocOptions(
                "camelyon16",
                tmp_path / "alone",
                detections=data / row["team"],
                reference=data / "reference",
                slides=data / "slides.csv",
                bootstrap=200,
            )
        )
        assert row["score"] == alone.score
        assert tuple(row["score_ci95"]) == alone.score_ci95
        assert (
            json.loads((tmp_path / row["team"] / "froc.json").read_text())["score"] == alone.score
        )
    assert rows[0]["p_value"] is None
    assert rows[1]["difference"] == rows[0]["score"] - rows[1]["score"]
    assert 2 / 201 <= rows[2]["p_value"] < 0.05
    low, high = rows[2]["difference_ci95"]
    assert 0 < low < rows[2]["difference"] < high
    with (tmp_path / "teams.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(tmp_path / "teams.html")
    page = (tmp_path / "teams.html").read_text()
    assert page.index(">good<") < page.index(">fair<") < page.index(">poor<")
    assert 'href="poor/froc.html"' in page
    assert (tmp_path / "poor/froc.html").is_file()


def test_equal_teams_share_a_rank_and_do_not_differ(data, tmp_path):
    (tmp_path / "again").mkdir()
    for path in (data / "good").iterdir():
        (tmp_path / "again" / path.name).write_bytes(path.read_bytes())
    assert froc(data, tmp_path / "out", "good", str(tmp_path / "again"), "poor") == 0
    rows = json.loads((tmp_path / "out/teams.json").read_text())["teams"]
    assert [row["rank"] for row in rows] == [1, 1, 3]
    assert (rows[1]["difference"], rows[1]["p_value"]) == (0.0, 1.0)


def test_a_misspelt_team_is_refused_before_any_is_scored(data, tmp_path, capsys):
    assert froc(data, tmp_path / "out", "good", "gone") == 1
    seen = capsys.readouterr()
    assert f"{data / 'gone'}: no such file or folder" in seen.err
    assert "---" not in seen.out


def test_teams_on_different_slides_are_refused(data, tmp_path, capsys):
    (tmp_path / "fewer").mkdir()
    for path in sorted((data / "good").iterdir())[1:]:  # s00 is normal: nothing else names it
        (tmp_path / "fewer" / path.name).write_bytes(path.read_bytes())
    detections = ["--detections", str(data / "good"), "--detections", str(tmp_path / "fewer")]
    where = ["--reference", str(data / "reference"), "--out", str(tmp_path / "out")]
    assert main(["froc", *detections, *where, "--quiet"]) == 1
    err = capsys.readouterr().err
    assert "only with" in err
    assert "s00" in err
    assert "--slides" in err
    assert not (tmp_path / "out/teams.json").exists()


def test_two_teams_of_one_name_are_a_wrong_usage(data, tmp_path, capsys):
    (tmp_path / "good").mkdir()
    assert froc(data, tmp_path / "out", "good", str(tmp_path / "good")) == 2
    assert "the team 'good'; rename one of them" in capsys.readouterr().err


def test_one_team_is_written_as_ever(data, tmp_path, capsys):
    assert froc(data, tmp_path, "good") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == [str(tmp_path / "froc.json"), str(tmp_path / "froc.html")]
    assert not (tmp_path / "teams.json").exists()
    assert froc(data, tmp_path, "good", more=("--quiet",)) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'froc.html'}\n"
