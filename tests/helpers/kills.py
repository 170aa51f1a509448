"""Commands killed at random moments: what they leave, and what the next command makes of it.

Runs as a process of its own: ``python -m tests.helpers.kills FOLDER``. It imports everything
once, and forks a child for each command, so a kill costs little more than the work that it cuts
off. Nothing is computed here: a process that has used PyTorch's threads cannot be forked.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

from tests.helpers.quick_pictures import quick_pictures
from tests.helpers.tiny_cohort import contents, draw_cohort, write_config
from tiling.processes import has_ended
from wsi_pipeline.run.marks import find_problems, read_mark

WAIT_S = 120.0
TILE = ["tile", "{data}/manifest.csv", "--out", "{run}", "--config", "{config}"]
EXPORT = ["export", "{run}", "--format", "qupath", "--format", "ome-zarr"]
EXPLAIN = ["explain", "{run}", "--method", "saliency", "--method", "patchnet", "--top", "2"]
COMMANDS = {
    "tile": TILE,
    "train": ["train", "{run}"],
    "predict": ["predict", "{run}"],
    "heatmap": ["heatmap", "{run}"],
    "explain": [*EXPLAIN, "--errors", "2"],
    "evaluate": ["evaluate", "{run}"],
    "export": EXPORT,
    "report": ["report", "{run}"],
}
IN_WORKERS = ("tile", "predict", "heatmap")  # also with --workers 2
N_PER_TREE = 4  # kills, at most, before a run may finish


@dataclass
class Case:
    """What the kills of one command did."""

    name: str
    seconds: float  # of the undisturbed command
    kills: int = 0  # that hit the command at work
    trees: int = 0  # that were finished afterwards
    units: int = 0  # finished at the moment of a kill, in all
    faults: list[str] = field(default_factory=list)


class Killer:
    """Kills commands in a folder of its own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.rng = random.Random(seed)
        self.log = folder / "log"
        self.groups: list[int] = []  # of killed commands
        draw_cohort(folder / "data")
        write_config(folder, folder / "data", self.run)
        names = {"data": folder / "data", "run": self.run, "config": folder / "config.yaml"}
        self.commands = {
            name: [word.format(**names) for word in words] for name, words in COMMANDS.items()
        }
        for name in COMMANDS:
            self.finish(self.commands[name])
        self.run.rename(folder / "saved")

    def case(self, name: str, *, workers: int, kills: int) -> Case:
        """Kill a command so often, in trees that are finished in between."""
        command = [*self.commands[name], *(["--workers", str(workers)] if workers > 1 else [])]
        self.restore(name)
        started = time.monotonic()
        self.finish(command)
        case = Case(f"{name} --workers {workers}" if workers > 1 else name, 0.0)
        case.seconds = time.monotonic() - started
        undisturbed = contents(self.run)
        attempts = 0
        while case.kills < kills and attempts < 4 * kills + 20:
            overwrite = self.rng.random() < 0.5
            if overwrite:  # the outputs are there, and are replaced
                self.restore(name, remove=False)
            else:
                self.restore(name)
            for _ in range(self.rng.randint(1, min(N_PER_TREE, kills - case.kills))):
                before = set() if overwrite else self.marks(name)
                attempts += 1
                words = [*command, "--overwrite"] if overwrite else command
                case.kills += self.kill(words, self.rng.uniform(0, 1.1) * case.seconds)
                after = self.marks(name)
                case.units += len(after)
                case.faults += [f"{case.name}: lost {lost}" for lost in sorted(before - after)]
                case.faults += self.half_done(case.name)
            n_before = len(self.marks(name))
            text = self.finish(command)
            if any(self.run.rglob("*.part")):  # workers have outlived the command they belong to
                self.end_groups()
                self.finish(command)
            kept = sum(int(n) for n in re.findall(r"(\d+) kept from before", text))
            if kept != n_before:
                case.faults.append(f"{case.name}: {n_before} were finished, {kept} kept")
            case.trees += 1
            case.faults += self.compare(case.name, undisturbed)
        self.end_groups()
        return case

    def restore(self, name: str, *, remove: bool = True) -> None:
        """Bring the finished run back, without what a stage wrote."""
        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.folder / "saved", self.run)
        if not remove:
            return
        for path in self.marks(name):
            mark = read_mark(self.run / path)
            for made in mark.files if mark else ():
                output = self.run / made
                shutil.rmtree(output) if output.is_dir() else output.unlink()
        shutil.rmtree(self.run / ".state" / name)

    def marks(self, name: str) -> set[str]:
        """Marks of a stage."""
        found = (self.run / ".state" / name).rglob("*.done.json")
        return {path.relative_to(self.run).as_posix() for path in found}

    def half_done(self, name: str) -> list[str]:
        """Find what is marked finished and is not whole."""
        found = []
        for path in (self.run / ".state").rglob("*.done.json"):
            mark = read_mark(path)
            problems = ["unreadable"] if mark is None else find_problems(self.run, path, mark)
            found += [f"{name}: {path.name}: {problem}" for problem in problems]
        return found

    def compare(self, name: str, undisturbed: dict[str, bytes]) -> list[str]:
        """List what differs from an undisturbed run."""
        found = contents(self.run)
        names = sorted(undisturbed.keys() | found.keys())
        differ = [one for one in names if undisturbed.get(one) != found.get(one)]
        return [f"{name}: differs: {one}" for one in differ]

    def kill(self, command: Sequence[str], after_s: float) -> int:
        """Kill a command, alone or with its workers; 1 if it was still at work."""
        child = self.start(command)
        self.groups.append(child)
        until = time.monotonic() + after_s
        while time.monotonic() < until:
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0
            time.sleep(0.002)
        if self.rng.random() < 0.5:
            os.killpg(child, signal.SIGKILL)
        else:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return 1

    def end_groups(self) -> None:
        """End what is left of killed commands."""
        for group in self.groups:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        until = time.monotonic() + WAIT_S
        while not all(map(group_has_ended, self.groups)):
            if time.monotonic() > until:
                raise SystemExit("killed commands did not end")
            time.sleep(0.002)
        self.groups.clear()

    def finish(self, command: Sequence[str]) -> str:
        """Run a command to its end; return what it printed."""
        child = self.start(command)
        until = time.monotonic() + WAIT_S
        while not (ended := os.waitpid(child, os.WNOHANG))[0]:
            if time.monotonic() > until:
                os.killpg(child, signal.SIGKILL)
                raise SystemExit(f"{command}: did not end\n{self.log.read_text()}")
            time.sleep(0.002)
        text = self.log.read_text()
        if code := os.waitstatus_to_exitcode(ended[1]):
            raise SystemExit(f"{command}: exit code {code}\n{text}")
        return text

    def start(self, command: Sequence[str]) -> int:
        """Fork a process, the leader of a group, that runs a command."""
        child = os.fork()
        if child:
            return child
        code = 70
        try:
            os.setsid()
            with self.log.open("wb") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            from wsi_pipeline.cli.app import main

            with quick_pictures():
                code = main(list(command))
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def group_has_ended(group: int) -> bool:
    """Whether a process group has no process left but zombies."""
    pids = [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    for pid in pids:
        with suppress(ProcessLookupError):
            if os.getpgid(pid) == group and not has_ended(pid):
                return False
    return True


def import_everything() -> None:
    """Import what commands need, so that no child does."""
    for name in (
        *("dask.distributed", "matplotlib.pyplot", "sklearn.metrics", "zarr", "tiling.build"),
        *("wsi_pipeline.training", "wsi_pipeline.evaluation.run_evaluation"),
        *("wsi_pipeline.exports.ome_zarr", "wsi_pipeline.exports.qupath"),
        *("wsi_pipeline.heatmaps.overlays", "wsi_pipeline.report.build"),
        "wsi_pipeline.stages.whole_run",
    ):
        import_module(name)
    import torch

    torch.set_num_threads(1)


def main() -> None:
    """Print a line of JSON for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=2, help="of each stage")
    parser.add_argument("--in-workers", type=int, default=1, help="of each stage with workers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=list(COMMANDS))
    given = parser.parse_args()
    import_everything()
    killer = Killer(given.folder, given.seed)
    cases = [(name, 1, given.kills) for name in given.stages]
    cases += [(name, 2, given.in_workers) for name in IN_WORKERS if name in given.stages]
    for name, workers, kills in cases:
        if kills:
            case = killer.case(name, workers=workers, kills=kills)
            sys.stdout.write(json.dumps(asdict(case)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
