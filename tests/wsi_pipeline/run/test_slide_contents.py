"""Finished stores are kept while their slides hold the same bytes, and only then."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.slides import halve, tissue, write_slide
from tiling.listing import content
from tiling.listing.samples import fingerprint_file
from tiling.store import PatchStore
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.manifest import read_manifest
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.slide_contents import old_tile_fingerprint

pytestmark = pytest.mark.usefixtures("settled_contents")

SETTINGS = ("patch_px=32", "target_mpp=0.5", "tissue.mpp=4.0", "tissue.min_object_um2=100")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two slides."""
    (tmp_path / "home" / "data").mkdir(parents=True)
    for number in range(2):
        pixels = tissue(300, 260, seed=number)
        path = tmp_path / "home" / "data" / f"s{number}.tif"
        write_slide(path, [pixels, halve(pixels)], compression=None)
    return tmp_path / "home"


def tile(home: Path, *more: str) -> int:
    content._known.clear()  # as another process
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return main(["tile", str(home / "data"), "--out", str(home / "run"), *settings, *more])


def made(home: Path) -> list[int]:
    return [(home / f"run/tiles/s{n}.zarr/zarr.json").stat().st_mtime_ns for n in range(2)]


def copy_again(path: Path) -> None:
    """Fill a hole with the bytes of the source, whose size and date are the same."""
    times = path.stat()
    time.sleep(0.02)
    with path.open("r+b") as file:
        file.seek(times.st_size * 2 // 5)
        file.write(bytes(2000))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("store", ["patches", "coords"])
def test_a_slide_that_was_copied_again_is_tiled_again_the_other_is_kept(home, capsys, store):
    """The hole was between the samples: the slide stayed finished."""
    assert tile(home, "--set", f"store={store}") == 0
    before = made(home)
    sampled = fingerprint_file(home / "data/s1.tif")
    copy_again(home / "data/s1.tif")
    capsys.readouterr()
    assert tile(home, "--set", f"store={store}") == 0
    captured = capsys.readouterr()
    assert "tile: 1 done, 1 kept from before" in captured.out
    assert "s1: out of date, rebuilt: " in captured.err
    after = made(home)
    assert (after[0] == before[0], after[1] > before[1]) == (True, True)
    with PatchStore.open(home / "run/tiles/s1.zarr") as opened:
        assert opened.info.fingerprint == content.digest_content(home / "data/s1.tif")
    assert len(sampled) == 64


def test_each_slide_is_read_once_and_not_again_while_it_stays(home, hashed):
    assert tile(home) == 0
    assert sorted(hashed) == ["s0.tif", "s1.tif"]
    for _ in range(2):
        assert tile(home) == 0
    assert len(hashed) == 2


def move(home: Path) -> Path:
    return home.rename(home.with_name("elsewhere"))


def copy(home: Path) -> Path:
    return Path(shutil.copytree(home, home.with_name("elsewhere")))


def touch(home: Path) -> Path:
    for path in (home / "data").iterdir():
        path.touch()
    return home


def lose_digests(home: Path) -> Path:
    shutil.rmtree(home / "run/.state/content")
    return home


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "more"),
    [(move, ()), (copy, ()), (lose_digests, ()), (touch, ("--workers", "2"))],
    ids=["moved", "copied", "digests lost", "touched, by workers"],
)
def test_what_was_moved_or_touched_is_kept(
    home, capsys, hashed, change: Callable[[Path], Path], more
):
    assert tile(home) == 0
    time.sleep(0.02)
    home = change(home)
    before = made(home)
    capsys.readouterr()
    assert tile(home, *more) == 0
    assert "tile: 0 done, 2 kept from before" in capsys.readouterr().out
    assert made(home) == before
    n_reads = len(hashed)
    assert tile(home) == 0
    assert len(hashed) == n_reads


def test_overwrite_builds_what_only_a_worker_finds_finished(home, capsys):
    assert tile(home) == 0
    before = made(touch(home))
    assert tile(home, "--overwrite") == 0
    assert all(new > old for new, old in zip(made(home), before, strict=True))
    assert "out of date" not in capsys.readouterr().err


def test_planning_reads_only_slides_that_are_finished_and_not_known(home, capsys, hashed):
    settings = [part for setting in SETTINGS for part in ("--set", f"tile.{setting}")]
    config = home / "config.yaml"
    config.write_text(f"input: {home}/data\nout: {home}/run\nstages: [tile]\n")

    def states() -> list[str]:
        content._known.clear()
        capsys.readouterr()
        # In this process, where the reads are counted.
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(
                "wsi_pipeline.planning.plan.map_in_processes",
                lambda look, items, workers: enumerate(map(look, items)),
            )
            main(["plan", str(config), "--format", "json", "--quiet", *settings])
        return [s["state"] for s in json.loads(capsys.readouterr().out)["slides"]]

    assert states() == ["missing"] * 2
    assert hashed == []
    assert tile(home) == 0
    assert states() == ["finished"] * 2
    assert len(hashed) == 2
    copy_again(home / "data/s1.tif")
    assert states() == ["finished", "stale"]
    assert hashed[2:] == ["s1.tif"]
    assert not list((home / "run/.state/content").glob("*.part"))


def as_earlier_versions_left_it(home: Path) -> None:
    """Fingerprints of samples, and no digests."""
    run = RunFolder(home / "run")
    config = read_config(None, [f"tile.{setting}" for setting in SETTINGS]).tile
    for entry in read_manifest(run.manifest):
        path = Unit("tile", entry.slide_id).mark(run, "done")
        mark = json.loads(path.read_text())
        mark["fingerprint"] = old_tile_fingerprint(entry, config)
        path.write_text(json.dumps(mark))
    shutil.rmtree(home / "run/.state/content")


def test_a_run_of_an_earlier_version_is_kept_and_from_then_on_every_byte_counts(
    home, capsys, hashed
):
    assert tile(home) == 0
    as_earlier_versions_left_it(home)
    before = made(home)
    hashed.clear()
    capsys.readouterr()
    assert tile(home) == 0
    assert "tile: 0 done, 2 kept from before" in capsys.readouterr().out
    assert sorted(hashed) == ["s0.tif", "s1.tif"]
    assert tile(home) == 0
    assert made(home) == before
    assert len(hashed) == 2
    copy_again(home / "data/s0.tif")
    assert tile(home) == 0
    assert made(home)[0] > before[0]


def test_a_store_of_an_earlier_version_without_pixels_reads_its_slide(home):
    assert tile(home, "--set", "store=coords") == 0
    path = home / "run/tiles/s0.zarr"
    metadata = json.loads((path / "zarr.json").read_text())
    metadata["attributes"]["slide"]["fingerprint"] = fingerprint_file(home / "data/s0.tif")
    metadata["attributes"].pop("sha256", None)
    (path / "zarr.json").write_text(json.dumps(metadata))
    with PatchStore.open(path, slide_path=home / "data/s0.tif") as store:
        assert store.read([0]).shape == (1, 32, 32, 3)


def test_a_report_is_not_out_of_date_for_a_slide_that_was_touched(home):
    assert tile(home) == 0
    assert main(["report", str(home / "run"), "--quiet"]) == 0
    before = (home / "run/report.html").stat().st_mtime_ns
    assert tile(touch(home)) == 0
    assert main(["report", str(home / "run"), "--quiet"]) == 0
    assert (home / "run/report.html").stat().st_mtime_ns == before


def forget_digests(home: Path) -> None:
    for path in (home / "run/.state/content").iterdir():
        path.unlink()


def test_a_damaged_store_is_named_and_rebuilt_where_the_worker_decides(home, capsys):
    assert tile(home) == 0
    before = made(home)
    forget_digests(home)
    [*_, part] = sorted((home / "run/tiles/s1.zarr/coords/c").rglob("*"))
    changed = bytearray(part.read_bytes())
    changed[len(changed) // 2] ^= 1
    part.write_bytes(changed)
    capsys.readouterr()
    assert tile(home) == 0
    captured = capsys.readouterr()
    assert "tile: 1 done, 1 kept from before" in captured.out
    assert "tiles/s1.zarr has changed since it was written, rebuilt: " in captured.err
    after = made(home)
    assert (after[0] == before[0], after[1] > before[1]) == (True, True)


def test_overwrite_of_a_slide_that_cannot_be_read_any_more_leaves_no_mark(home):
    assert tile(home) == 0
    mark = Unit("tile", "s1").mark(RunFolder(home / "run"), "done")
    forget_digests(home)
    (home / "data/s1.tif").write_bytes(b"")
    assert mark.is_file()
    assert tile(home, "--overwrite") == 3
    assert not mark.exists()
