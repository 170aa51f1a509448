"""Work on files grows with the slides, not with their square: operations are counted, not timed."""

from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.helpers.operations import count_operations
from tests.helpers.slides import tissue, write_slide
from tiling.listing import content
from wsi_pipeline.cohort.manifest import read_run_manifest
from wsi_pipeline.cohort.slides import finished_entries
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.planning import plan as planning
from wsi_pipeline.run.runner import Options
from wsi_pipeline.run.shards import Shard
from wsi_pipeline.run.state import clear_mark, mark_finished
from wsi_pipeline.stages.collect import collect
from wsi_pipeline.stages.tile import tile

SIZES = (3, 6, 9)
TILE = {"target_mpp": 0.5, "patch_px": 32, "store": "coords"}
TILE["tissue"] = {"mpp": 2.0, "min_object_um2": 100.0}


def write_cohort(folder: Path, n_slides: int) -> Path:
    """Write the first slides of all, each a strip, as its picture is small."""
    folder.mkdir()
    rows = ["slide,label"]
    for number in range(n_slides):
        write_slide(folder / f"s{number}.tif", [tissue(640, 64, seed=number)])
        rows.append(f"s{number}.tif,{number % 2}")
    (folder / "slides.csv").write_text("\n".join(rows) + "\n")
    config = {"input": str(folder / "slides.csv"), "out": str(folder / "run"), "tile": TILE}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"stages": ["tile"]}))
    return folder / "config.yaml"


def map_here(function, tasks, workers):
    return enumerate(map(function, tasks))


def count_of_each_command(folder: Path, n_slides: int) -> dict[str, int]:
    config = read_config(write_cohort(folder, n_slides))
    run, quiet = RunFolder(folder / "run"), Options(quiet=True)
    task = Options(quiet=True, shard=Shard(0, 1))
    plan = partial(planning.plan_run, config, workers=1, quiet=True)
    found = {}
    for name, command in {
        "plan": plan,
        "a task of tile": partial(tile, run, config, task),
        "tile, all finished": partial(tile, run, config, quiet),
        "plan, all finished": plan,
        "collect": partial(collect, run),
    }.items():
        with count_operations() as counter:
            command()
        found[name] = counter.total()
    return found


@pytest.fixture(scope="module")
def counts(tmp_path_factory) -> list[dict[str, int]]:
    """Operations of each command on cohorts of three sizes."""
    folder = tmp_path_factory.mktemp("cohorts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "map_in_processes", map_here)
        patch.setattr(content, "RECENT_NS", 0)
        patch.setattr(content, "_known", {})
        count_of_each_command(folder / "imports", 1)
        return [count_of_each_command(folder / str(size), size) for size in SIZES]


@pytest.mark.parametrize(
    "command", ["plan", "a task of tile", "tile, all finished", "plan, all finished", "collect"]
)
def test_operations_grow_with_the_slides(counts, command):
    small, middle, large = (found[command] for found in counts)
    per_slide = (large - small) / (SIZES[2] - SIZES[0])
    assert 10 < per_slide < 250
    assert abs((large - middle) - (middle - small)) < 0.5 * per_slide


def test_slides_are_not_compared_with_each_other(tmp_path, monkeypatch):
    """Each slide was looked for in the list of those that are tiled."""
    run = RunFolder(tmp_path)
    rows = [f"s{number},s{number}.tif,s{number},,,," for number in range(20)]
    header = "slide_id,slide,patient,label,annotation,split,mpp"
    run.manifest.write_text("\n".join([header, *rows]) + "\n")
    for entry in read_run_manifest(run):
        store = run.store(entry.slide_id)
        store.parent.mkdir(exist_ok=True)
        store.write_text("")
        mark_finished(run, Unit("tile", entry.slide_id), "f", [store])
    compared = []
    monkeypatch.setattr(SlideEntry, "__eq__", lambda a, b: compared.append(1) or a is b)
    assert len(finished_entries(run)) == 20
    assert len(compared) <= 20


def rebuild_under_other_settings(run: RunFolder, n_others: int) -> int:
    """Count the operations of a unit that no longer writes one of its files."""
    for number in range(n_others):
        finish(run, f"o{number}", ".png")
    finish(run, "s", ".png", ".grad_cam.png")
    clear_mark(run, Unit("heatmap", "s", "m"))
    with count_operations() as counter:
        finish(run, "s", ".png")
    assert not (run.path / "maps" / "s.grad_cam.png").exists()
    return counter.total()


def finish(run: RunFolder, slide_id: str, *endings: str) -> None:
    files = [run.path / "maps" / f"{slide_id}{ending}" for ending in endings]
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        file.write_text(slide_id)
    mark_finished(run, Unit("heatmap", slide_id, "m"), "f", files)


def test_the_marks_of_all_slides_are_not_read_for_each(tmp_path):
    """Files of earlier settings are removed where no other slide has made them since."""
    few = rebuild_under_other_settings(RunFolder(tmp_path / "few"), 1)
    many = rebuild_under_other_settings(RunFolder(tmp_path / "many"), 40)
    assert many == few
