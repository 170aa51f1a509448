"""`make bench` runs every script without an argument; where data are absent, one is skipped."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_labels(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks/labels.py"
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_labels_are_skipped_with_a_line_where_there_are_no_annotations(tmp_path):
    """Without its argument the script ended in an IndexError, and `make bench` there."""
    done = run_labels("--annotations", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: no CAMELYON JSON in")


def test_labels_know_where_the_annotations_lie():
    done = run_labels("--help")
    assert done.returncode == 0, done.stderr
    assert "--annotations DIR" in done.stdout
