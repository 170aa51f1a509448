"""`tile` in a process, whose slides each wait for a file: FOLDER [I/N] [fail]."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from wsi_pipeline.cohort.manifest import write_manifest
from wsi_pipeline.config.reading import Config
from wsi_pipeline.contracts import SlideEntry
from wsi_pipeline.layout import RunFolder, Unit
from wsi_pipeline.run.runner import Options, run_stage
from wsi_pipeline.run.shards import parse_shard
from wsi_pipeline.run.tasks import Task

SLIDES = ("s0", "s1", "s2", "s3")


@dataclass(frozen=True)
class Wait(Task):
    """A slide that is done once there is a file ``<slide_id>.go``, by default at once."""

    slide_id: str
    folder: Path
    made_of: str = "f"
    interrupt: bool = False

    @property
    def unit(self):
        return Unit("tile", self.slide_id)

    def fingerprint(self, run):
        return self.made_of * 16

    def __call__(self, job, on_progress):
        if self.interrupt:
            raise KeyboardInterrupt
        if (self.folder / f"{self.slide_id}.bad").exists():
            raise ValueError(f"{self.folder}/{self.slide_id}.svs: Jane Doe")
        while not (self.folder / f"{self.slide_id}.go").exists():
            time.sleep(0.01)
        path = job.run.qc(self.slide_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")
        return [path], "made"


def make_run(folder: Path) -> RunFolder:
    """Make a run of four slides, with nothing done."""
    run = RunFolder(folder / "run")
    run.path.mkdir()
    write_manifest(run.manifest, [SlideEntry(s, folder / f"{s}.svs", s) for s in SLIDES])
    return run


def let_go(folder: Path, *slides: str) -> None:
    """Let slides be done."""
    for slide in slides:
        (folder / f"{slide}.go").touch()


def work(folder: Path, *, options=None, config=None, **task):
    """Run the stage here."""
    tasks = [Wait(slide, folder, **task) for slide in SLIDES]
    run = RunFolder(folder / "run")
    return run_stage("tile", run, tasks, config or Config(), options or Options(quiet=True))


if __name__ == "__main__":
    work(Path(sys.argv[1]), options=Options(shard=parse_shard(sys.argv[2])))
