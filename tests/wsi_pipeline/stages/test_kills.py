"""Killed at any moment and started again, or run twice at once: the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.slides import halve, tissue, write_slide

ROOT = Path(__file__).parents[3]
TILE = [sys.executable, "-c", "import sys; from wsi_pipeline.cli.app import main; sys.exit(main())"]
SETTINGS = ["--set", "patch_px=32", "--set", "tissue.mpp=2.0", "--set", "stride_px=8", "--quiet"]


def tile_command(slides: Path, run: Path) -> list[str]:
    return [*TILE, "tile", str(slides), "--out", str(run), *SETTINGS]


def contents(run: Path) -> dict[str, bytes]:
    """All that is left but logs and the settings, which name the folder; by path."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and "logs" not in path.parts and path.name != "run.json"
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two slides, and what an undisturbed tiling of them wrote."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "slides").mkdir()
    for number in range(2):
        pixels = tissue(900, 700, seed=number)
        write_slide(folder / "slides" / f"s{number}.tif", [pixels, halve(pixels)])
    subprocess.run(tile_command(folder / "slides", folder / "run"), check=True)
    return folder / "slides", contents(folder / "run")


@pytest.fixture
def run(cohort, request):
    """A run folder that lies to the slides as the undisturbed one does."""
    return cohort[0].parent / request.node.name


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_stages_killed_at_random_moments_end_as_if_undisturbed(tmp_path):
    """One kill of each stage, and of those with workers; WSI_PIPELINE_KILLS sets another sum."""
    n_kills = int(os.environ.get("WSI_PIPELINE_KILLS", "11"))
    in_workers = max(1, n_kills // 50)  # starting workers takes seconds
    each = max(1, (n_kills - 3 * in_workers) // 8)
    command = [sys.executable, "-m", "tests.helpers.kills", str(tmp_path), "--kills", str(each)]
    done = subprocess.run(
        [*command, "--in-workers", str(in_workers)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 8 + 3
    assert [fault for case in cases for fault in case["faults"]] == []
    assert {case["kills"] for case in cases} == {each, in_workers}


@pytest.mark.slow
def test_two_processes_on_the_same_slides_do_no_harm(cohort, run):
    slides, undisturbed = cohort
    command = tile_command(slides, run)

    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    assert contents(run) == undisturbed


@pytest.mark.slow
def test_a_finished_slide_stays_readable_while_another_process_rebuilds_it(cohort, run):
    """With --overwrite the old store is there until the new one is."""
    slides, undisturbed = cohort
    command = tile_command(slides, run)
    subprocess.run(command, check=True)

    with subprocess.Popen([*command, "--overwrite"]) as process:
        while process.poll() is None:
            assert (run / "tiles/s0.zarr/zarr.json").is_file()
    assert process.returncode == 0
    assert contents(run) == undisturbed
