"""The pages of the documentation on the command line."""

from pathlib import Path

import pytest

from wsi_pipeline.cli import docs
from wsi_pipeline.cli.app import main

PAGES = Path(__file__).parents[3] / "docs"


def test_the_list_has_every_page_with_its_title(capsys):
    assert main(["docs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    tutorials = {f"tutorials/{page.stem}" for page in PAGES.glob("tutorials/*.md")}
    assert set(lines) == {page.stem for page in PAGES.glob("*.md")} | tutorials
    assert lines["coordinates"] == (PAGES / "coordinates.md").read_text().splitlines()[0][2:]


@pytest.mark.parametrize("name", ["tile", "tile.md", "docs/tile.md"])
def test_a_page_is_printed_as_it_is(name, capsys):
    assert main(["docs", name]) == 0
    assert capsys.readouterr().out == (PAGES / "tile.md").read_text(encoding="utf-8")


def test_a_tutorial_is_printed_as_it_is(capsys):
    assert main(["docs", "tutorials/slides"]) == 0
    assert capsys.readouterr().out == (PAGES / "tutorials/slides.md").read_text(encoding="utf-8")


def test_paths(capsys):
    assert main(["docs", "--path"]) == main(["docs", "tile", "--path"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(PAGES), str(PAGES / "tile.md")]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tilee", "did you mean 'tile'?"),
        ("../README", "did you mean 'README'?"),
        ("?", "lists all pages"),
    ],
)
def test_an_unknown_page_is_a_usage_error(name, hint, capsys):
    assert main(["docs", name]) == 2
    assert hint in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_the_pages_in_the_package_come_first(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, "PACKAGE", tmp_path / "wsi_pipeline")
    (tmp_path / "docs").mkdir()
    assert docs.find_docs() == tmp_path / "docs"
    (tmp_path / "wsi_pipeline" / "docs").mkdir(parents=True)
    assert docs.find_docs() == tmp_path / "wsi_pipeline" / "docs"
