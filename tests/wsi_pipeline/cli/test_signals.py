"""Every command ends within five seconds of a signal, whatever it is doing, and leaves no process.

Commands run as they do for users. A module on their path slows one function down: a read that
takes its time, or a computation that holds the main thread in a library and cannot be interrupted.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import giga, slides
from tiling.threads import Stopped, check_stopped, map_in_threads
from wsi_pipeline.run.interrupts import watch_signals

MOST_S = 5.0
INTERRUPTED = 130
SETTINGS = ("patch_px=32", "target_mpp=0.5", "tissue.mpp=2.0", "tissue.min_object_um2=100")
START = "from wsi_pipeline.cli.app import entry; entry()"
SLOW = '''
"""Slows one function down, in this process and those that it starts."""
import hashlib, importlib.abc, importlib.util, os, sys, time

module, _, name = os.environ.get("SLOW", "").partition(":")


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda found: (load(found), slow_down(found))
        return spec


def slow_down(owner):
    *parts, last = name.split(".")
    for part in parts:
        owner = getattr(owner, part)
    real = getattr(owner, last)

    def slow(*args, **options):
        open(os.environ["BEGUN"], "w").close()
        if os.environ["HOW"] == "reads":
            time.sleep(0.5)
        else:  # a minute or more, of which the interpreter hears nothing
            hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000_000)
        return real(*args, **options)

    setattr(owner, last, slow)


if module:
    sys.meta_path.insert(0, Finder())
'''


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    seconds: float
    message: str


class Commands:
    """Runs commands that are slow."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._site, self._begun = folder / "site", folder / "begun"
        self._site.mkdir()
        (self._site / "sitecustomize.py").write_text(SLOW)

    def interrupt(
        self,
        command: Sequence[str],
        *,
        slow: str,
        how: str = "reads",
        number: signal.Signals = signal.SIGTERM,
        to_all: bool = False,
        after_s: float = 0.3,
    ) -> Ended:
        """Send a signal some time after the slow function has begun."""
        self._begun.unlink(missing_ok=True)
        paths = [str(self._site), str(Path(__file__).parents[3])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "SLOW": slow, "HOW": how}
        process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, command)],
            env=environment | {"BEGUN": str(self._begun)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            start_new_session=True,
        )
        try:
            self._wait_for_begin(process, bool(slow))
            time.sleep(after_s)
            assert process.poll() is None, "it ended too soon to be interrupted"
            started = time.monotonic()
            (os.killpg if to_all else os.kill)(process.pid, number)
            message = process.communicate(timeout=60)[1].decode()
            return Ended(process.returncode, time.monotonic() - started, message)
        finally:
            self._end(process)

    def _wait_for_begin(self, process: subprocess.Popen, is_slow: bool) -> None:
        until = time.monotonic() + 120
        while is_slow and not self._begun.exists():
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.02)

    def _end(self, process: subprocess.Popen) -> None:
        """Check that no process of the group is left, except unreaped ones."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        until = time.monotonic() + 10
        while left := living(process.pid):
            assert time.monotonic() < until, f"left behind: {left}"
            time.sleep(0.1)


def living(group: int) -> list[str]:
    """Processes of a group that are no zombies."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(path.parent.name)
    return found


pytestmark = [
    pytest.mark.alone,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc"),
]


@pytest.fixture
def commands(tmp_path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def home(copy, commands) -> Path:
    """A copy of a finished run; a folder of images and one of references."""
    for kind in ("a", "b"):
        folder = commands.folder / "images" / kind
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}{number}.png")
    (commands.folder / "reference").mkdir()
    shutil.copy(copy / "data" / "s5.xml", commands.folder / "reference" / "s5.xml")
    return copy


def check(ended: Ended) -> None:
    assert ended.code == INTERRUPTED, ended.message
    assert ended.seconds < MOST_S, ended.message
    assert "Traceback" not in ended.message
    assert "interrupted" in ended.message


READ = "tiling.readers.tiff_pixels:TiffPixels.read_window"
ROWS = "tiling.store:PatchStore.read_into"
EPOCH = "wsi_pipeline.training.loop:_Training.run_epoch"
TILE = ["tile", "{home}/data/manifest.csv", "--out", "new"]
TILE += [part for setting in SETTINGS for part in ("--set", setting)]
AGAIN = ["{home}/run", "--overwrite"]
TRAIN = ["train", *AGAIN, "--model", "patchnet", "--device", "cpu"]
FROC = ["froc", "--detections", "{home}/run/evaluation/patchnet/detections", "--reference",
        "reference", "--out", "froc"]  # fmt: skip
COMMANDS = {
    "tile": (TILE, READ, "reads"),
    "tile by workers": ([*TILE, "--workers", "2"], READ, "reads"),
    "tile, its digest": (TILE, "tiling.listing.content:digest_file", "computes"),
    "slides": (["slides", "{home}/data", "--workers", "2"], READ, "reads"),
    "plan": (["plan", "{home}/config.yaml", "--workers", "2"], READ, "reads"),
    "train, reading": (TRAIN, ROWS, "reads"),
    "train, computing": (TRAIN, EPOCH, "computes"),
    "train in processes": (
        [*TRAIN, "--set", "train.patchnet.processes=2"],
        EPOCH,
        "computes",
    ),
    "predict, reading": (["predict", *AGAIN], ROWS, "reads"),
    "predict, computing": (
        ["predict", *AGAIN],
        "wsi_pipeline.inference.forward:Forward.launch",
        "computes",
    ),
    "predict by workers": (["predict", *AGAIN, "--workers", "2"], ROWS, "reads"),
    "heatmap": (["heatmap", *AGAIN], READ, "reads"),
    "evaluate": (
        ["evaluate", *AGAIN],
        "wsi_pipeline.evaluation.run_evaluation:evaluate_run",
        "computes",
    ),
    "report": (["report", *AGAIN], "wsi_pipeline.report.build:build_report", "computes"),
    "export": (
        ["export", *AGAIN, "--format", "qupath"],
        "wsi_pipeline.inference.scores:read_scores",
        "computes",
    ),
    "froc": (FROC, "wsi_pipeline.evaluation.lesions:label_polygons", "computes"),
    "images": (
        ["tile", "images", "--out", "of_images", "--set", "images={}"],
        "wsi_pipeline.cohort.image_pixels:read_image",
        "reads",
    ),
    "baselines": (
        ["baselines", "images", "--workers", "2"],
        "wsi_pipeline.cohort.image_pixels:read_image",
        "reads",
    ),
    "run": (["run", "{home}/config.yaml", "--overwrite"], READ, "reads"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("number", "to_all"),
    [(signal.SIGTERM, False), (signal.SIGINT, True)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_command_ends_within_five_seconds(commands, home, name, number, to_all):
    words, slow, how = COMMANDS[name]
    command = [word.replace("{home}", str(home)) for word in words]
    check(commands.interrupt(command, slow=slow, how=how, number=number, to_all=to_all))


@pytest.mark.parametrize("how", ["reads", pytest.param("computes", marks=pytest.mark.slow)])
def test_tiling_ends_within_five_seconds(commands, tmp_path, how):
    """All blocks of the overview were queued, and each was waited for."""
    pixels = slides.tissue(1500, 1200)
    slides.write_slide(tmp_path / "a.tif", [pixels])
    command = ["tile", tmp_path / "a.tif", "--out", tmp_path / "run", "--set", "target_mpp=0.5"]
    check(commands.interrupt(command, slow=READ, how=how))
    assert not list((tmp_path / "run" / "tiles").glob("*.zarr"))


@pytest.mark.slow
def test_a_large_slide_with_every_other_tile_damaged_is_left_within_five_seconds(
    commands, tmp_path
):
    """It ran on for minutes, until SIGKILL."""
    path = giga.write_giga(
        tmp_path / "a.tif",
        (60_000, 60_000),
        is_tissue=lambda x, y: (x // 512 + y // 512) % 2 > 0.5,
        n_levels=1,
    )
    data = path.read_bytes()
    start = data.index(b"\x78\x9c", data.index(b"\x78\x9c") + 2)
    path.write_bytes(data[:start] + b"\xa5" * 200 + data[start + 200 :])
    words = ["tile", path, "--out", tmp_path / "run"]
    check(commands.interrupt(words, slow=READ, how="reads", after_s=3))


# ------------------------------------------------------------ the parts


def test_threads_begin_nothing_more_when_the_caller_ends():
    begun, may_end = [], threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        may_end.wait(10)
        return item

    results = map_in_threads(work, range(1000), threads=2, ahead=3)
    threading.Timer(0.2, may_end.set).start()
    assert next(results) == 0
    results.close()
    assert len(begun) <= 2 + 3 + 2


def test_long_work_in_a_thread_ends_between_its_steps():
    """The damaged block of an overview was narrowed down to the end."""
    n_steps = 0

    def work(item: int) -> int:
        nonlocal n_steps
        while item:
            check_stopped()
            n_steps += 1
            time.sleep(0.001)
        return item

    results = map_in_threads(work, [0, 1], threads=1)
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 2


def test_what_work_raises_comes_out_at_its_place():
    def work(item: int) -> int:
        if item == 3:
            raise KeyError(item)
        return item

    results = map_in_threads(work, range(9), threads=3)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(KeyError):
        next(results)


def test_outside_such_threads_nothing_is_stopped():
    check_stopped()
    with pytest.raises(StopIteration):
        next(map_in_threads(lambda item: check_stopped(), [], threads=1))
    assert not issubclass(Stopped, Exception)  # no handler of errors takes it


def test_watching_is_undone():
    before = signal.getsignal(signal.SIGTERM)
    undo = watch_signals(grace_s=0.1)
    assert signal.getsignal(signal.SIGTERM) != before
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
    undo()
    time.sleep(0.3)  # this process would have ended
    assert signal.getsignal(signal.SIGTERM) == before
