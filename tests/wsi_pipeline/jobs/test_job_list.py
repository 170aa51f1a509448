"""Which jobs a run has, what each waits for, and its resources."""

import pytest

from wsi_pipeline.config.reading import read_config
from wsi_pipeline.errors import ConfigError
from wsi_pipeline.jobs.job_list import list_jobs
from wsi_pipeline.jobs.resources import choose_resources


def jobs_of(*settings: str, n_slides: int | None = 100):
    config = read_config(None, ["train.patchnet.model.name=patchnet", *settings])
    return {job.name: job for job in list_jobs(config, n_slides=n_slides)}


def test_a_whole_run():
    jobs = jobs_of("export.formats=[qupath]", "explain.methods=[grad_cam]")
    assert {name: (job.n_tasks, job.waits) for name, job in jobs.items()} == {
        "tile": (8, ()),
        "collect_tile": (1, (("done", "tile"),)),
        "train": (1, (("done", "collect_tile"),)),
        "predict": (8, (("done", "train"),)),
        "heatmap": (8, (("each", "predict"),)),
        "explain": (1, (("done", "predict"), ("ended", "heatmap"))),
        "evaluate": (1, (("done", "predict"), ("ended", "explain"))),
        "export": (8, (("each", "predict"), ("ended", "evaluate"))),
        "report": (1, (("done", "evaluate"), ("ended", "export"))),
        "collect": (1, (("ended", "report"),)),
    }


def test_without_training_a_slide_is_scored_as_soon_as_it_is_tiled():
    jobs = jobs_of("stages=[tile, predict, heatmap]")
    assert jobs["predict"].waits == (("each", "tile"),)
    assert jobs["collect"].waits == (("ended", "heatmap"), ("ended", "collect_tile"))


def test_arrays_of_other_sizes_wait_for_all_tasks():
    jobs = jobs_of("stages=[tile, predict, heatmap]", "cluster.stages.predict.tasks=3")
    assert (jobs["tile"].n_tasks, jobs["predict"].n_tasks, jobs["heatmap"].n_tasks) == (8, 3, 8)
    assert jobs["predict"].waits == (("done", "tile"),)
    assert jobs["heatmap"].waits == (("done", "predict"),)


def test_no_more_tasks_than_slides():
    assert jobs_of("stages=[tile]", n_slides=3)["tile"].n_tasks == 3


def test_a_folder_of_images_is_tiled_in_one_piece():
    jobs = jobs_of("stages=[tile, predict, heatmap]", n_slides=None)
    assert (jobs["tile"].n_tasks, jobs["predict"].n_tasks) == (1, 8)
    assert jobs["heatmap"].waits == (("done", "predict"),)  # all parts of predict are one table


def test_each_model_is_a_task():
    jobs = jobs_of("train.vgg16.model.name=vgg16", "stages=[train, evaluate]")
    assert jobs["train"].n_tasks == 2
    assert jobs["train"].models == ("patchnet", "vgg16")


def test_a_job_that_processes_the_run_in_one_piece_never_runs_next_to_another():
    """Each of them records its settings in run.json."""
    jobs = jobs_of("export.formats=[qupath]", "explain.methods=[grad_cam]")
    whole = ["explain", "evaluate", "export", "report", "collect"]
    before = {name: {other for _, other in jobs[name].waits} for name in jobs}

    def ended(name: str) -> set[str]:
        return before[name] | {far for other in before[name] for far in ended(other)}

    assert all(set(whole[:n]) <= ended(name) for n, name in enumerate(whole))


def test_nothing_to_submit_is_refused():
    with pytest.raises(ConfigError, match="nothing to submit"):
        jobs_of("stages=[export]")


def test_resources_are_those_of_the_stage_then_of_all_then_the_defaults():
    cluster = read_config(
        None,
        [
            "cluster.cores=2",
            "cluster.queue=normal",
            "cluster.gpu_queue=gpu",
            "cluster.stages={predict: {cores: 6, memory: 10GB}, report: {gpus: 1, queue: own}}",
        ],
    ).cluster
    tile, predict, report = (choose_resources(s, cluster) for s in ("tile", "predict", "report"))
    assert (tile.cores, tile.memory_mib, tile.walltime, tile.gpus) == (2, 8192, "04:00:00", 0)
    assert (predict.cores, predict.memory_mib, predict.gpus) == (6, 9537, 1)
    assert (tile.queue, predict.queue, report.queue) == ("normal", "gpu", "own")
    assert report.gpus == 1


def test_gpus_of_all_jobs_are_of_those_that_use_one():
    cluster = read_config(None, ["cluster.gpus=2"]).cluster
    assert [choose_resources(s, cluster).gpus for s in ("tile", "train", "collect")] == [0, 2, 0]
    assert choose_resources("train", read_config(None, ["cluster.gpus=0"]).cluster).gpus == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("cluster.memory=much", "cluster.memory: .*pattern"),
        ("cluster.walltime='1 day'", "cluster.walltime"),
        ("cluster.queue='a b'", "cluster.queue"),
        ('cluster.options=["--x\\n--y"]', r"cluster\.options"),
        ("cluster.stages.fly.cores=1", "no stage 'fly'; known: tile"),
        ("cluster.stages.tile.coers=1", r"tile\.coers: unexpected"),
        ("cluster.stages.tile.cores=0", r"tile\.cores: input should be greater"),
        ("cluster.interface=ib0", "unknown key 'interface' under 'cluster'"),
    ],
)
def test_wrong_resources_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        read_config(None, [setting])


def test_a_time_limit_without_quotes_is_what_it_looks_like():
    """YAML reads 26:30:00 as a number."""
    assert read_config(None, ["cluster.walltime=26:30:00"]).cluster.walltime == "26:30:00"


def test_dask_gets_only_what_is_set():
    assert read_config(None).cluster.of_dask() == {}
    settings = ["cluster.cores=4", "cluster.setup=[module load x]", "cluster.dask={interface: ib0}"]
    assert read_config(None, settings).cluster.of_dask() == {
        "cores": 4,
        "job_script_prologue": ["module load x"],
        "interface": "ib0",
    }
