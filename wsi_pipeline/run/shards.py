"""Shards: the part of a data set that one task of a job array works on.

The slides of a shard follow from the data set alone, so shards need no communication.
"""

import heapq
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from wsi_pipeline.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """One part of a data set: number `index` of `count`, from 0."""

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"--shard: the number of shards must be at least 1, got {self.count}")
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"--shard {self.index}/{self.count}: the index counts from 0, "
                f"so it must be in 0 to {self.count - 1}"
            )


@dataclass(frozen=True)
class ArrayVariables:
    """Environment variables with a task's place in a job array; None if the scheduler sets none."""

    scheduler: str
    index: str
    first: str | None
    last: str | None
    step: str | None
    count: str | None
    outside: str  # value of `index` outside arrays, if it is set
    lowest: int  # smallest index of an array


# sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"; qsub(1) of Grid Engine; bsub(1) of LSF; qsub(1B).
ARRAYS = (
    ArrayVariables(
        "Slurm",
        index="SLURM_ARRAY_TASK_ID",
        first="SLURM_ARRAY_TASK_MIN",
        last="SLURM_ARRAY_TASK_MAX",
        step="SLURM_ARRAY_TASK_STEP",
        count="SLURM_ARRAY_TASK_COUNT",
        outside="",
        lowest=0,
    ),
    ArrayVariables(
        "Grid Engine",
        index="SGE_TASK_ID",
        first="SGE_TASK_FIRST",
        last="SGE_TASK_LAST",
        step="SGE_TASK_STEPSIZE",
        count=None,
        outside="undefined",
        lowest=1,
    ),
    ArrayVariables(
        "LSF",
        index="LSB_JOBINDEX",
        first=None,
        last="LSB_JOBINDEX_END",
        step="LSB_JOBINDEX_STEP",
        count=None,
        outside="0",
        lowest=1,
    ),
    ArrayVariables(
        "PBS",
        index="PBS_ARRAY_INDEX",
        first=None,
        last=None,
        step=None,
        count=None,
        outside="",
        lowest=0,
    ),
)

_FORMS = "I/N (from 0, e.g. 0/8), auto, auto/N, or auto/FIRST-LAST:STEP (the array's range)"


def parse_shard(text: str, environ: Mapping[str, str] = os.environ) -> Shard:
    """Read ``I/N``, ``auto``, ``auto/N`` or ``auto/FIRST-LAST[:STEP]``.

    ``auto`` takes the place in the job array from the scheduler's environment variables.
    ``auto/FIRST-LAST:STEP`` states the range of the whole array where the scheduler does not
    (PBS; in part, LSF), or where only some of its tasks run again. ``auto/N`` states only how many
    tasks the array has.

    Raises
    ------
    ConfigError
        If it is none of these, or the place in the array is ambiguous.

    Examples
    --------
    >>> parse_shard("2/8", {})
    Shard(index=2, count=8)
    >>> parse_shard("auto", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1",
    ...                      "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "8"})
    Shard(index=4, count=8)
    >>> parse_shard("auto/0-14:2", {"PBS_ARRAY_INDEX": "6"})
    Shard(index=3, count=8)
    """
    if found := re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII):
        return Shard(int(found[1]), int(found[2]))
    if text == "auto":
        return _Place.of(environ).shard()
    if found := re.fullmatch(r"auto/(\d{1,9})", text, re.ASCII):
        return _Place.of(environ).shard_of(int(found[1]))
    if found := re.fullmatch(r"auto/(\d{1,9})-(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII):
        whole = _Range(int(found[1]), int(found[2]), int(found[3] or 1))
        return _Place.of(environ).shard_in(whole)
    raise ConfigError(f"--shard must be {_FORMS}, got '{text}'")


@dataclass(frozen=True)
class _Range:
    """The indices of a job array."""

    first: int
    last: int
    step: int

    def __post_init__(self) -> None:
        if self.step < 1 or self.last < self.first:
            raise ConfigError(
                f"--shard: {self} is not the range of a job array; expected FIRST-LAST or "
                "FIRST-LAST:STEP, e.g. auto/0-15"
            )

    def __len__(self) -> int:
        return (self.last - self.first) // self.step + 1

    def __str__(self) -> str:
        return f"{self.first}-{self.last}" + (f":{self.step}" if self.step != 1 else "")


@dataclass(frozen=True)
class _Place:
    """Place of one task, from a scheduler's variables; None for variables that are not set."""

    scheduler: ArrayVariables
    index: int
    first: int | None
    last: int | None
    step: int | None
    count: int | None

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "_Place":
        for array in ARRAYS:
            if environ.get(array.index, "") not in {"", array.outside}:
                index = _read_number(environ, array.index)
                assert index is not None
                names = (array.first, array.last, array.step, array.count)
                return cls(array, index, *(_read_number(environ, name) for name in names))
        known = ", ".join(array.index for array in ARRAYS)
        raise ConfigError(
            f"--shard auto: not in a job array (none of {known} is set); "
            "submit with an array option, or give --shard I/N"
        )

    def shard(self) -> Shard:
        """Place the task by the scheduler's variables alone."""
        name, whole = self.scheduler.scheduler, self._range()
        if whole is None or (self.scheduler.count and self.count is None):
            raise self._unknown(
                f"{name} does not set the array's range (auto/N is only its number of tasks)"
            )
        self._refuse_gaps(whole)
        if self.scheduler.first is None:
            log.warning(
                "--shard auto: %s does not set an array's first index; assuming %s, without gaps "
                "(otherwise use --shard auto/FIRST-LAST:STEP)",
                name,
                whole,
            )
        return self.shard_in(whole)

    def shard_of(self, n: int) -> Shard:
        """Place the task in an array of `n` tasks."""
        if n < 1:
            raise ConfigError(f"--shard auto/{n}: the number of tasks must be at least 1")
        if self.scheduler.last is None:
            return self._shard_of_consecutive(n)
        whole = self._range(n)
        if whole is None:
            raise self._unknown(f"{self.scheduler.scheduler} does not set the array's range")
        n_tasks = len(whole) if self.count is None else self.count
        if n_tasks != n:  # perhaps some tasks of an earlier, unknown array
            tasks = "1 task" if n_tasks == 1 else f"{n_tasks} tasks"
            raise self._unknown(f"the array ({whole}) has {tasks}, not {n}")
        self._refuse_gaps(whole)
        return self.shard_in(whole)

    def _shard_of_consecutive(self, n: int) -> Shard:
        """Place the task, assuming consecutive indices.

        An array from 0 or 1 has no index beyond `n`; an array with one has a step or another first
        index. With two tasks, 0 and 2 cannot be distinguished from 1 and 2.
        """
        if self.index > n or self.index == n == 2:
            raise self._unknown(f"it may not be one of {n} consecutive indices from 0 or 1")
        log.warning(
            "--shard auto/%d: %s sets neither the first index nor the step; assuming %d "
            "consecutive indices (otherwise use --shard auto/FIRST-LAST:STEP)",
            n, self.scheduler.scheduler, n,
        )  # fmt: skip
        return Shard(self.index % n, n)

    def shard_in(self, whole: _Range) -> Shard:
        """Place the task in the array's range."""
        place, rest = divmod(self.index - whole.first, whole.step)
        if rest or not 0 <= place < len(whole):
            raise self._unknown(f"it is not one of {whole}")
        return Shard(place, len(whole))

    def _range(self, n: int | None = None) -> _Range | None:
        """Compute the array's range; None if the variables do not determine it.

        If the first index is not among them, that of an array of `n` tasks follows from the last.
        """
        first, last, step = self.first, self.last, 1 if self.step is None else self.step
        if self.scheduler.first is None and last is not None:
            first = self.scheduler.lowest
            if n is not None and step > 0:
                least = last - step * n + 1
                first = least + (self.index - least) % step
        if first is not None and last is None and self.count is not None:
            last = first + step * (self.count - 1)
        if first is None or last is None or step < 1:
            return None
        return _Range(first, last, step) if self.scheduler.lowest <= first <= last else None

    def _refuse_gaps(self, whole: _Range) -> None:
        if self.count is not None and self.count != len(whole):
            raise self._unknown(f"the array ({whole}) has {self.count} tasks: it has gaps")

    def _unknown(self, cause: str) -> ConfigError:
        return ConfigError(
            f"--shard auto: {self.scheduler.index}={self.index}: {cause}; give the range of the "
            "whole array as it was submitted, e.g. --shard auto/0-15 or auto/1-31:2, or --shard I/N"
        )


def _read_number(environ: Mapping[str, str], name: str | None) -> int | None:
    text = "" if name is None else environ.get(name, "")
    if text in {"", "undefined"}:
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise ConfigError(f"--shard auto: {name} is {text!r}, expected a whole number")
    return int(text)


def select_shard(weights: Mapping[str, int], shard: Shard | None) -> set[str]:
    """Choose the keys of one shard: disjoint, covering, balanced by weight.

    The heaviest key goes to the lightest shard so far (longest processing time first), ties by
    key and shard number, so that every task of an array computes the same shards.

    Examples
    --------
    >>> sorted(select_shard({"a": 5, "b": 3, "c": 2}, Shard(1, 2)))
    ['b', 'c']
    """
    if shard is None:
        return set(weights)
    loads = [(0, 0, number) for number in range(shard.count)]
    chosen: set[str] = set()
    for key in sorted(weights, key=lambda key: (-weights[key], key)):
        # The count breaks ties of keys of weight 0, which would all go to shard 0 otherwise.
        load, n, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + weights[key], n + 1, number))
        if number == shard.index:
            chosen.add(key)
    return chosen
