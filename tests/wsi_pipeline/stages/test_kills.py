"""Killed at any moment and started again, or run twice at once: the same bytes."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.slides import halve, tissue, write_slide

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
    """Two slides, and the run folder and seconds of an undisturbed tiling."""
    folder = tmp_path_factory.mktemp("kills")
    (folder / "slides").mkdir()
    for number in range(2):
        pixels = tissue(900, 700, seed=number)
        write_slide(folder / "slides" / f"s{number}.tif", [pixels, halve(pixels)])
    started = time.monotonic()
    subprocess.run(tile_command(folder / "slides", folder / "run"), check=True)
    return folder / "slides", contents(folder / "run"), time.monotonic() - started


@pytest.fixture
def run(cohort, request):
    """A run folder that lies to the slides as the undisturbed one does."""
    return cohort[0].parent / request.node.name


def kill_until_done(slides: Path, run: Path, *, seconds: float, kills: int, seed: int) -> int:
    """Kill a tiling at random moments, then let it finish; give how many kills hit it at work."""
    rng = random.Random(seed)
    hit = 0
    for _ in range(kills):
        process = subprocess.Popen(tile_command(slides, run), stderr=subprocess.PIPE)
        try:
            process.communicate(timeout=rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            hit += 1
        for store in (run / "tiles").glob("*.zarr"):
            assert (store / "zarr.json").is_file(), "what has a store's name is a whole store"
    subprocess.run(tile_command(slides, run), check=True)
    return hit


@pytest.mark.slow
def test_tiling_killed_at_random_moments_gives_the_same_bytes(cohort, run):
    slides, undisturbed, seconds = cohort

    hit = kill_until_done(slides, run, seconds=seconds, kills=4, seed=1)

    assert hit >= 1
    assert contents(run) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_tiling_killed_at_many_moments_gives_the_same_bytes(cohort, run, seed):
    slides, undisturbed, seconds = cohort

    kill_until_done(slides, run, seconds=seconds, kills=6, seed=100 + seed)

    assert contents(run) == undisturbed


@pytest.mark.slow
def test_two_processes_on_the_same_slides_do_no_harm(cohort, run):
    slides, undisturbed, _ = cohort
    command = tile_command(slides, run)

    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(2)]
    errors = [process.communicate()[1].decode() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], errors
    assert contents(run) == undisturbed


@pytest.mark.slow
def test_a_finished_slide_stays_readable_while_another_process_rebuilds_it(cohort, run):
    """With --overwrite the old store is there until the new one is."""
    slides, undisturbed, _ = cohort
    command = tile_command(slides, run)
    subprocess.run(command, check=True)

    with subprocess.Popen([*command, "--overwrite"]) as process:
        while process.poll() is None:
            assert (run / "tiles/s0.zarr/zarr.json").is_file()
    assert process.returncode == 0
    assert contents(run) == undisturbed
