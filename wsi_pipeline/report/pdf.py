"""The report as a PDF, printed by a browser where there is one."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tiling.files import write_aside
from wsi_pipeline.errors import ReportError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_TIMEOUT_S = 300


def find_browser() -> str:
    """Find a browser that prints without a window.

    Raises
    ------
    ReportError
        If there is none.
    """
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise ReportError(
            f"no browser to print the report with (looked for {', '.join(BROWSERS)}); install "
            "Chromium (Debian: apt-get install chromium), or open report.html in any browser and "
            "print it to a file"
        )
    return found


def write_pdf(page: Path, browser: str) -> Path:
    """Print a page, all that is folded opened, as PDF next to it.

    Parameters
    ----------
    page : Path
        ``report.html``.
    browser : str
        As of `find_browser`.

    Returns
    -------
    pdf : Path

    Raises
    ------
    ReportError
        If the browser fails.
    """
    path = page.with_suffix(".pdf")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        printed = Path(folder) / "report.pdf"
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--disable-background-networking",
            "--no-first-run",
            # Chromium's sandbox refuses to run as root, as programs in containers often do.
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            f"--user-data-dir={Path(folder) / 'profile'}",
            "--no-pdf-header-footer",
            f"--print-to-pdf={printed}",
            page.resolve().as_uri(),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ReportError(f"{path.name}: {Path(browser).name} failed: {error}") from error
        if done.returncode or not printed.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ReportError(
                f"{path.name}: {Path(browser).name} did not print (exit code {done.returncode}): "
                f"{last}"
            )
        with write_aside(path) as scratch:
            shutil.copyfile(printed, scratch)
    return path
