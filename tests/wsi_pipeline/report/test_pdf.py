"""The report as a PDF, by a browser where there is one."""

import numpy as np
import pytest

from tests.helpers import fake_run
from tests.helpers.html_pages import CHROMIUM
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import ReportError
from wsi_pipeline.report.build import build_report
from wsi_pipeline.report.pdf import write_pdf

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")


@pytest.fixture
def run(tmp_path):
    return fake_run.make_run(tmp_path / "run & co", models=("vgg16",))


def test_without_a_browser_the_cure_is_named_before_any_work(run, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["report", str(run), "--pdf"]) == 1
    printed = capsys.readouterr().err
    assert "no browser to print the report with (looked for chromium, chromium-browser" in printed
    assert "print it to a file" in printed
    assert not (run / "report.html").exists()


def test_a_browser_that_fails_is_reported_and_nothing_is_left(run, tmp_path):
    broken = tmp_path / "chromium"
    broken.write_text("#!/bin/sh\necho 'no display' >&2\nexit 7\n")
    broken.chmod(0o755)
    page = build_report(run)
    with pytest.raises(ReportError, match=r"did not print \(exit code 7\): no display"):
        write_pdf(page, str(broken))
    assert not (run / "report.pdf").exists()


@pytest.mark.slow
@needs_chromium
def test_the_pdf_contains_what_is_folded_on_the_page(run, capsys):
    """Pictures of slides that are not evaluated are folded; on paper they are there."""
    for seed, name in enumerate(("va_1", "va_2")):
        fake_run.write_overlay(run, "vgg16", name, rng=np.random.default_rng(seed))
    assert main(["report", str(run), "--pdf", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.pdf")
    page = (run / "report.html").read_text(encoding="utf-8")
    evaluated, _, folded = page.partition("slides that are not evaluated")
    assert (evaluated.count("<img"), folded.count("<img")) == (3, 2)
    content = (run / "report.pdf").read_bytes()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Subtype /Image") == 5
