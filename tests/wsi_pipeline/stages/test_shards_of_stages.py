"""A task of a job array has the same slides in every stage, whichever of them are ready."""

import json
import shutil
import threading
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.manifest import write_manifest
from wsi_pipeline.cohort.slides import entries_in_shard, finished_entries, slide_bytes
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run import runner
from wsi_pipeline.run.shards import Shard, select_shard
from wsi_pipeline.run.state import record_failure

COMMANDS = {
    "tile": ["{data}/manifest.csv", "--out"],
    "predict": [],
    "heatmap": [],
    "export": ["--format", "wsinfer"],
}


def words(stage: str, folder: Path, *more: str) -> list[str]:
    """Write the command of a stage on the run in a folder."""
    own = [word.format(data=folder / "data") for word in COMMANDS[stage]]
    run = str(folder / "run")
    config = ["--config", str(folder / "config.yaml"), "--quiet"]
    return [stage, *([*own, run] if stage == "tile" else [run, *own]), *config, *more]


def run_shard(stage: str, folder: Path, shard: str, *more: str) -> int:
    return main(words(stage, folder, "--shard", shard, *more))


def test_each_stage_that_arrays_divide_is_tested():
    assert set(COMMANDS) == {stage.name for stage in STAGES if stage.is_shardable}


def test_every_stage_divides_the_slides_of_the_manifest(copy, monkeypatch):
    """`heatmap` divided those that had scores when it began."""
    worked_on: list[str] = []

    def note(run, tasks, options, progress, logged):
        worked_on.extend(task.unit.slide_id for task in tasks)
        return [], [], []

    run = RunFolder(copy / "run")
    with (copy / "data/s4.tif").open("ab") as file:  # weights differ
        file.write(bytes(100_000))
    sizes = {f"s{n}": (copy / f"data/s{n}.tif").stat().st_size for n in range(6)}
    Unit("tile", "s3").mark(run, "done").unlink()
    record_failure(run, Unit("tile", "s3"), "SlideError", "unreadable")
    ready = {"tile": set(sizes), "predict": set(sizes) - {"s3"}}
    ready["heatmap"] = ready["export"] = {"s2", "s4", "s5"}
    monkeypatch.setattr(runner, "_sort_out", note)
    for index in range(3):
        expected = select_shard(sizes, Shard(index, 3))
        for stage, slides in ready.items():
            worked_on.clear()
            assert run_shard(stage, copy, f"{index}/3", "--set", "predict.splits=null") == 0
            assert set(worked_on) == expected & slides, stage


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=9),
    count=st.integers(1, 6),
    data=st.data(),
)
def test_a_shard_does_not_depend_on_what_is_ready(tmp_path, sizes, count, data):
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    run, entries = RunFolder(folder), []
    folder.mkdir()
    for number, size in enumerate(sizes):
        path = folder / f"s{number}.tif"
        path.write_bytes(bytes(size))
        entries.append(SlideEntry(path.stem, path, patient=path.stem))
    write_manifest(run.manifest, entries)
    failed = data.draw(st.sets(st.sampled_from([e.slide_id for e in entries])))
    for entry in entries:
        unit = Unit("tile", entry.slide_id)
        if entry.slide_id in failed:
            record_failure(run, unit, "SlideError", "unreadable")
        else:
            path = unit.mark(run, "done")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    weights = {e.slide_id: slide_bytes(e) for e in entries}
    for shard in (Shard(index, count) for index in range(count)):
        mine = select_shard(weights, shard)
        assert {e.slide_id for e in entries_in_shard(entries, shard)} == mine
        assert {e.slide_id for e in finished_entries(run, None, shard)} == mine - failed


def test_a_task_continues_although_the_others_have_not_begun(copy):
    """Task i of a stage can follow task i of the stage before; one of its slides failed."""
    run = copy / "run"
    before = {path.name for path in (run / "heatmaps/patchnet").glob("*.tif")}
    checkpoint = copy / "model.safetensors"
    shutil.copy(run / "models/patchnet/checkpoint.safetensors", checkpoint)
    shutil.rmtree(run)
    (copy / "data/s3.tif").write_bytes(b"no slide")
    codes = set()
    for index in (2, 0, 1, 5, 4, 3):
        shard = f"{index}/6"  # a slide each
        codes.add(run_shard("tile", copy, shard))
        assert run_shard("predict", copy, shard, "--checkpoint", str(checkpoint)) == 0
        assert run_shard("heatmap", copy, shard) == 0
    assert codes == {0, 3}  # not 1: the other slides are those of other tasks
    made = {path.name for path in (run / "heatmaps/model").glob("*.tif")}
    assert made == before - {"s3.ome.tif"}
    assert main(["collect", str(run)]) == 3
    assert list(json.loads((run / "run.json").read_text())["stages"]) == [
        "tile",
        "predict",
        "heatmap",
    ]


def test_a_shard_of_slides_that_are_not_tiled_yet_is_refused(copy, capsys):
    """Nothing is missing in silence because a stage began too early."""
    run = RunFolder(copy / "run")
    Unit("tile", "s3").mark(run, "done").unlink()
    codes = [run_shard("predict", copy, f"{index}/6") for index in range(6)]
    assert sorted(codes) == [0, 0, 0, 0, 0, 1]
    assert "not tiled yet: 1 of 1 slide: s3" in capsys.readouterr().err


def test_run_json_keeps_the_stages_of_tasks_that_write_it_together(tmp_path):
    """Task 3 of one array and task 0 of the next write it at the same time."""
    run = RunFolder(tmp_path)
    stages = ["tile", "predict", "heatmap", "export"] * 3
    barrier = threading.Barrier(len(stages))

    def write(stage: str, index: int) -> None:
        barrier.wait()
        runner._write_run_json(stage, run, Config(), Shard(index % 3, 3))

    threads = [threading.Thread(target=write, args=(of, n)) for n, of in enumerate(stages)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((tmp_path / "run.json").read_text())["stages"]) == set(stages)
