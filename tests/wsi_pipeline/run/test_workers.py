"""Processes and Dask's workers: what is lost, what is tried again, what remains; GPUs."""

import hashlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.helpers import slides, work
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.kinds import SlideCohort
from wsi_pipeline.config.reading import Config
from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.config.stages import STAGES
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run import dask_client, gpus
from wsi_pipeline.run.cluster import map_tasks
from wsi_pipeline.run.dask_client import complete_slurm_options
from wsi_pipeline.run.process_pool import describe_end, map_in_processes
from wsi_pipeline.run.runner import Options, run_stage
from wsi_pipeline.run.tasks import Done, Job, NetworkTask, Task, perform
from wsi_pipeline.stages.evaluate import EvaluateSlides
from wsi_pipeline.stages.explain import ExplainSubjects
from wsi_pipeline.stages.export import ExportSlideFiles
from wsi_pipeline.stages.heatmap import BuildHeatmap
from wsi_pipeline.stages.predict import PredictSlide
from wsi_pipeline.stages.report import ReportRun
from wsi_pipeline.stages.subjects import Subject
from wsi_pipeline.stages.tile import TileSlide
from wsi_pipeline.stages.train import TrainModel

ROOT = Path(__file__).parents[3]
BACKENDS = (None, pytest.param("local", marks=pytest.mark.slow))


def run(function, tasks, **options):
    return dict(map_tasks(function, tasks, workers=2, **options))


# ------------------------------------------------------------ lost, and tried again


@pytest.mark.parametrize("dask", BACKENDS)
def test_a_task_whose_process_is_killed_is_tried_once_more(tmp_path, dask):
    names = ["a", "always", "once", "b", "c", "d"]
    found = run(work.work_or_die, [tmp_path / name for name in names], dask=dask)
    lost = found.pop(1)
    assert isinstance(lost, StageError)
    assert "killed (SIGKILL), most often because memory ran out" in str(lost)
    assert str(lost).endswith("tried twice")
    assert found == {0: "a", 2: "once", 3: "b", 4: "c", 5: "d"}
    attempts = [len(list(tmp_path.glob(f"{name}.*"))) for name in names]
    assert attempts[1:3] == [2, 2]
    if dask is None:  # a task may wait at a worker that dies
        assert attempts == [1, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("dask", BACKENDS)
def test_a_task_that_ends_with_an_error_is_tried_once_more(tmp_path, dask):
    options = {"dask": dask, "apart": True}
    [(_, once)] = map_tasks(work.fail_at_first, [tmp_path / "a"], **options)
    [(_, never)] = map_tasks(work.fail_always, [tmp_path / "b"], **options)
    assert once == "done"
    assert isinstance(never, StageError)
    assert "unexpected OSError: a file that cannot be read; tried twice" in str(never)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.0", "a.1", "b.0", "b.1"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (-signal.SIGKILL, "lower --workers, or give the job more memory"),
        (-signal.SIGSEGV, r"crashed \(SIGSEGV\): the file may be damaged"),
        (-200, r"crashed \(signal 200\)"),
        (139, r"ended \(exit code 139\)"),
        (None, "copy the file again"),
    ],
)
def test_the_cause_of_a_loss_is_named(code, cause):
    with pytest.raises(StageError, match=cause):
        raise StageError(describe_end(code))


@pytest.mark.parametrize("dask", BACKENDS)
def test_lines_of_workers_are_printed_here(dask):
    lines: list[str] = []
    assert run(work.report, [1, 2, 3], print_line=lines.append, dask=dask) == {0: 1, 1: 2, 2: 3}
    assert sorted(lines) == [f"line of {number}" for number in (1, 2, 3)]


def test_no_more_processes_start_than_there_are_tasks():
    """`--workers 8` started eight processes for four slides."""
    for n_tasks in (3, 1, 0):
        results = map_in_processes(work.double, list(range(n_tasks)), workers=8)
        before = set(multiprocessing.active_children())
        first = next(results, None)
        started = set(multiprocessing.active_children()) - before
        assert len(started) <= n_tasks
        rest = dict(results)
        assert len(rest) + (first is not None) == n_tasks
        assert not set(multiprocessing.active_children()) - before


def test_leaving_early_ends_the_processes():
    before = set(multiprocessing.active_children())
    results = map_tasks(work.double, list(range(9)), workers=2)
    next(results)
    results.close()
    assert not set(multiprocessing.active_children()) - before


def test_one_process_is_enough_to_keep_a_crash_apart(tmp_path):
    [(_, found)] = map_tasks(work.work_or_die, [tmp_path / "always"], apart=True)
    assert isinstance(found, StageError)


# ------------------------------------------------------------ GPUs


def test_each_process_sees_its_own_gpu():
    found = run(work.get_gpu, range(4), gpus=["3", "5"])
    assert {gpu for _, gpu, _ in found.values()} == {"3", "5"}
    assert len({(process, gpu) for process, gpu, _ in found.values()}) == 2


def test_there_are_no_more_processes_than_gpus():
    found = dict(map_tasks(work.get_gpu, range(3), workers=3, gpus=["3"], apart=True))
    assert {gpu for _, gpu, _ in found.values()} == {"3"}
    assert len({process for process, *_ in found.values()}) == 1


def test_without_gpus_nothing_changes(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for none in (None, []):
        assert {gpu for _, gpu, _ in run(work.get_gpu, range(2), gpus=none).values()} == {None}


@pytest.mark.parametrize(
    ("device", "visible", "found"),
    [
        ("auto", None, ["0", "1"]),
        ("cuda", "", ["0", "1"]),
        ("auto", "4,GPU-abc", ["4", "GPU-abc"]),
        ("cuda:1", None, []),
        ("cpu", None, []),
    ],
)
def test_gpus_are_those_that_this_process_sees(monkeypatch, device, visible, found):
    monkeypatch.setattr(gpus, "_has_driver", lambda: True)
    monkeypatch.setattr(gpus, "count_gpus", lambda: 2)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus.list_gpus(device) == found


@dataclass(frozen=True)
class UseGpu(NetworkTask):
    """Notes the GPU that it sees."""

    name: str
    device: str

    @property
    def unit(self) -> Unit:
        return Unit("predict", self.name, "m")

    def fingerprint(self, run: RunFolder) -> str:
        return "x"

    def __call__(self, job: Job, on_progress) -> Done:
        return [], f"GPU {os.environ.get('CUDA_VISIBLE_DEVICES')}"


@pytest.mark.parametrize(
    ("device", "printed", "seen"),
    [("auto", True, {"GPU 7", "GPU 8"}), ("cpu", False, {"GPU None"})],
)
def test_a_stage_starts_one_process_for_each_gpu(
    tmp_path, monkeypatch, capsys, device, printed, seen
):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("wsi_pipeline.run.runner.list_gpus", lambda _: ["7", "8"])
    tasks = [UseGpu(f"s{number}", device) for number in range(12)]
    result = run_stage("predict", RunFolder(tmp_path), tasks, Config(), Options(workers=3))
    assert len(result.done) == 12
    lines = capsys.readouterr().err
    assert {line for line in ("GPU 7", "GPU 8", "GPU None") if line in lines} <= seen
    assert ("2 processes, one per GPU (--workers 3)" in lines) == printed


def test_what_uses_one_gpu():
    tasks = tasks_of(3)
    found = {stage for stage, task in tasks.items() if task.on_gpu}
    assert found == {"train", "predict", "heatmap", "explain"}
    assert not any(replace(tasks[stage], device="cpu").on_gpu for stage in found)
    assert not replace(tasks["heatmap"], method=None).on_gpu
    several = replace(tasks["train"].config, processes=2)
    assert not replace(tasks["train"], config=several).on_gpu


@pytest.mark.slow
def test_tasks_on_a_gpu_go_to_dask_workers_that_declare_one(tmp_path):
    from distributed import LocalCluster

    found = run(work.get_gpu, range(4), gpus=["3", "5"], dask="local")
    assert len({(process, gpu) for process, gpu, _ in found.values()}) == 2
    assert {gpu for _, gpu, _ in found.values()} == {"3", "5"}
    specification = {"n_workers": 1, "processes": False, "dashboard_address": None}
    with (
        LocalCluster(**specification, protocol="tcp", resources={"GPU": 1}) as cluster,
        start_worker(cluster.scheduler_address),
    ):
        address = cluster.scheduler_address
        assert set(run(work.has_gpu, range(8), gpus=[], dask=address).values()) == {True}
        assert set(run(work.has_gpu, range(8), dask=address).values()) == {True, False}
        assert run(work.fail_at_first, [tmp_path / "a"], dask=address) == {0: "done"}


def test_jobs_of_slurm_declare_the_gpu_that_they_are_given():
    given = {"cores": 8, "job_extra_directives": ["--gres=gpu:a100:1", "--time=10"]}
    found = complete_slurm_options(given, on_gpu=True)
    assert found["worker_extra_args"][-2:] == ["--resources", "GPU=1"]
    assert "export OMP_NUM_THREADS=8" in found["job_script_prologue"]
    assert "--resources" not in complete_slurm_options(given, on_gpu=False)["worker_extra_args"]
    none = complete_slurm_options({"cores": 8}, on_gpu=True)
    assert none["worker_extra_args"] == ["--nthreads", "1"]


@pytest.mark.parametrize(
    "more",
    [
        {"job_extra_directives": ["--gres=gpu:2"]},
        {"job_extra_directives": ["--gpus-per-node=a100:4"]},
        {"job_extra_directives": ["--gres=gpu:1"], "processes": 2},
    ],
)
def test_jobs_whose_processes_would_share_a_gpu_are_refused(more):
    with pytest.raises(ConfigError, match="one process per GPU"):
        complete_slurm_options({"cores": 8, **more}, on_gpu=True)


# ------------------------------------------------------------ killed from outside


@contextmanager
def start(*words: object, **options) -> Iterator[subprocess.Popen[str]]:
    """Start Python in a group of its own, which is killed at the end."""
    process = subprocess.Popen(
        [sys.executable, *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@contextmanager
def start_scheduler() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0")
    with start(*words, "--dashboard-address", "127.0.0.1:0") as scheduler:
        for line in scheduler.stderr:
            if "Scheduler at:" in line:
                break
        threading.Thread(target=scheduler.stderr.read, daemon=True).start()
        yield line.split()[-1], scheduler


@contextmanager
def start_worker(address: str) -> Iterator[None]:
    words = ("-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny")
    with start(*words, "--no-dashboard") as worker:
        for line in worker.stderr:
            if "Registered to:" in line:
                break
        threading.Thread(target=worker.stderr.read, daemon=True).start()
        yield


def processes_of(group: int) -> list[Path]:
    """Processes of a session that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == group and state != "Z":
                found.append(path.parent)
    return found


def wait_for_end(group: int) -> None:
    until = time.monotonic() + 10
    while left := processes_of(group):
        assert time.monotonic() < until, left
        time.sleep(0.05)


def named_semaphores(processes: Sequence[Path]) -> list[str]:
    """Files in /dev/shm that are open as semaphores; SIGKILL would leave them there."""
    lines = [line for path in processes for line in (path / "maps").read_text().splitlines()]
    return [line for line in lines if "/dev/shm/sem." in line]


linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at /proc")


@linux
@pytest.mark.parametrize("dask", BACKENDS)
def test_nothing_is_left_of_a_command_that_is_killed(dask):
    """Twelve semaphores were left in /dev/shm, and processes that slept on."""
    words = [dask] if dask else []
    with start("-m", "tests.helpers.work", *words, cwd=ROOT) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["begun\n"] * 2
        group = processes_of(process.pid)
        assert len(group) >= 3
        assert named_semaphores(group) == []
        process.kill()
        wait_for_end(process.pid)


def test_semaphores_would_be_found():
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    assert named_semaphores([Path("/proc/self")])
    del semaphore


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six slides."""
    data = tmp_path / "data"
    data.mkdir()
    for number in range(6):
        slides.write_slide(data / f"s{number}.tif", [slides.tissue(300, 260, seed=number)])
    return tmp_path


TILE = ("tile", "data", "--set", "patch_px=32", "--set", "target_mpp=0.5")
COMMAND = "from wsi_pipeline.cli.app import entry; entry()"


@linux
@pytest.mark.slow
def test_a_lost_scheduler_is_reported_and_what_is_finished_kept(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with (
        start_scheduler() as (address, scheduler),
        start_worker(address),
        start("-c", COMMAND, *TILE, "--out", "run", "--dask", address, cwd=folder) as command,
    ):
        assert "[1/6]" in command.stderr.readline()
        scheduler.kill()
        printed = command.stderr.read()
        assert command.wait() == 3
    last = printed.splitlines()[-1]
    assert f"the scheduler at {address} was lost; finished slides are kept" in last
    assert "Traceback" not in printed
    assert "FAILED" not in printed
    finished = len(list((folder / "run/tiles").glob("*.zarr")))
    assert 1 <= finished < 6
    assert main([*TILE, "--out", "run"]) == 0  # the same command, without a scheduler
    assert main([*TILE, "--out", "whole"]) == 0
    assert f"{finished} kept from before" in capsys.readouterr().out
    assert read_all(folder / "run/tiles") == read_all(folder / "whole/tiles")


def read_all(folder: Path) -> dict[Path, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


@linux
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_with_workers_ends_with_one_line(folder, number):
    """Dask printed tracebacks of connections that were lost."""
    words = (*TILE, "--out", "run", "--workers", "2", "--dask", "local")
    with start("-c", COMMAND, *words, cwd=folder) as command:
        command.stderr.readline()
        os.killpg(command.pid, number)
        printed = command.stderr.read()
        assert command.wait() == 130
        wait_for_end(command.pid)
    lines = [line for line in printed.splitlines() if not line.startswith("tile: [")]
    assert lines == [
        "interrupted: finished slides are kept (a folder of images is prepared in one piece); the "
        "same command continues from there"
    ]


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(dask_client, "CONNECT_S", 1)
    with pytest.raises(StageError, match=r"tcp://127\.0\.0\.1:9"):
        list(map_tasks(work.double, [1, 2], dask="tcp://127.0.0.1:9"))


@pytest.mark.slow
def test_dask_leaves_the_environment_as_it_was():
    """Its nannies set OMP_NUM_THREADS=1; torch, imported later, then used one core only."""
    before = dict(os.environ)
    assert run(work.double, [1, 2, 3], dask="local") == {0: 2, 1: 4, 2: 6}
    assert dict(os.environ) == before


# ------------------------------------------------------------ what passes a scheduler

MOST_BYTES = 64 * 1024


def entries(count: int) -> list[SlideEntry]:
    """Slides with names as in cohorts: of some, a hash is all there is."""
    names = [f"{hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()[:12]}" for n in range(count)]
    root = Path("/projects/group/cohort/2026")
    return [
        SlideEntry(
            name,
            root / "slides" / f"{name}.tif",
            patient=f"patient_{n // 2:04d}",
            label=n % 2,
            annotation=root / "annotations" / f"{name}.xml",
            split=("train", "val", "test")[n % 3],
        )
        for n, name in enumerate(names)
    ]


def tasks_of(count: int) -> dict[str, Task]:
    """A task of each stage, of a cohort of so many slides."""
    config, cohort = Config(), entries(count)
    slide, digest, checkpoint = cohort[0], "0" * 64, RUN.checkpoint("vgg16")
    left_out = [entry.slide_id for entry in cohort[::10]]
    elsewhere = {"train": left_out, "val": left_out}
    subjects = tuple(Subject(n, f"{one.slide_id}_{n}", 1, 0.5, one) for n, one in enumerate(cohort))
    all_slides = SlideCohort(RUN, cohort)
    recipe = TrainConfig(ModelConfig("vgg16"))
    return {
        "tile": TileSlide(slide, config.tile, 8, fixed=False),
        "predict": PredictSlide(slide, "vgg16", checkpoint, digest, config.predict, "auto", 8),
        "heatmap": BuildHeatmap(slide, "vgg16", config.heatmap, "auto", "gradcam"),
        "export": ExportSlideFiles(slide, "vgg16", "qupath", config.export, RUN.path / "exports"),
        "train": TrainModel("vgg16", all_slides, recipe, "auto"),
        "evaluate": EvaluateSlides(
            "vgg16", cohort, left_out, elsewhere, config.evaluate, config.heatmap
        ),
        "explain": ExplainSubjects(
            "vgg16", "gradcam", checkpoint, subjects[:64], (digest,), config.explain, "auto"
        ),
        "report": ReportRun(("vgg16", "patchnet"), config.report, of_images=False),
    }


RUN = RunFolder(Path("/projects/group/cohort/runs/first"))


def packed_bytes(task: Task) -> int:
    job = Job(RUN, task, fingerprint="0" * 64, folder=Path("/projects/group/cohort"))
    return len(dask_client.pack(perform, job))


def test_no_large_task_passes_a_scheduler():
    few, many = ({k: packed_bytes(t) for k, t in tasks_of(n).items()} for n in (10, 1000))
    assert few.keys() == {stage.name for stage in STAGES}
    assert max(many.values()) < MOST_BYTES, many
    for stage in ("tile", "predict", "heatmap", "export"):  # a task for each slide
        assert many[stage] == few[stage] < 4096, many


def test_nor_does_a_large_result(tmp_path):
    path = slides.write_slide(tmp_path / "a.tif", [slides.tissue(260, 210)])
    task = TileSlide(SlideEntry("a", path, "a"), Config().tile, 1, fixed=False)
    outcome = perform(Job(RunFolder(tmp_path / "run"), task, "", tmp_path))
    assert not outcome.ok
    assert "patch" in outcome.line  # larger than the slide
    assert len(pickle.dumps(outcome)) < 1024
