"""Resources of each job: the defaults of its stage, and what the config sets."""

import dataclasses
import math
import re
from typing import Any

from wsi_pipeline.config.settings import ClusterConfig, JobConfig

# Ample for slides of 100,000 x 100,000 px and models such as VGG16; docs/cluster.md lists them.
DEFAULTS = {
    "tile": JobConfig(cores=4, memory="8GiB", walltime="04:00:00"),
    "train": JobConfig(cores=8, memory="32GiB", walltime="24:00:00", gpus=1),
    "predict": JobConfig(cores=8, memory="32GiB", walltime="08:00:00", gpus=1),
    "heatmap": JobConfig(cores=4, memory="8GiB", walltime="04:00:00"),
    "explain": JobConfig(cores=8, memory="32GiB", walltime="08:00:00", gpus=1),
    "evaluate": JobConfig(cores=4, memory="16GiB", walltime="02:00:00"),
    "export": JobConfig(cores=4, memory="8GiB", walltime="02:00:00"),
    "report": JobConfig(cores=4, memory="16GiB", walltime="02:00:00"),
    "collect": JobConfig(cores=1, memory="4GiB", walltime="01:00:00"),
}
TASKS = 8  # of an array
_UNITS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclasses.dataclass(frozen=True)
class Resources:
    """Resources of one job."""

    cores: int
    memory_mib: int
    walltime_s: int
    queue: str | None
    gpus: int
    gpu_type: str | None
    tasks: int  # of an array, at most
    at_once: int | None
    options: tuple[str, ...]

    @property
    def walltime(self) -> str:
        """The time limit, HH:MM:SS."""
        return format_time(self.walltime_s)


def choose_resources(stage: str, cluster: ClusterConfig) -> Resources:
    """Choose the resources of a stage's job: its own, those of all, or its defaults."""
    default, own = DEFAULTS[stage], JobConfig(**cluster.stages.get(stage, {}))
    found: dict[str, Any] = {}
    for field in dataclasses.fields(JobConfig):
        values = [getattr(source, field.name) for source in (own, cluster, default)]
        found[field.name] = next((value for value in values if value is not None), None)
    if not default.gpus:  # cluster.gpus is of the stages that use one
        found["gpus"] = own.gpus or 0
    if found["gpus"] and own.queue is None:
        found["queue"] = cluster.gpu_queue or cluster.queue
    return Resources(
        cores=found["cores"],
        memory_mib=to_mib(found["memory"]),
        walltime_s=to_seconds(found["walltime"]),
        queue=found["queue"],
        gpus=found["gpus"],
        gpu_type=found["gpu_type"],
        tasks=found["tasks"] or TASKS,
        at_once=found["at_once"],
        options=tuple(found["options"] or ()),
    )


def to_mib(memory: str) -> int:
    """Convert an amount of memory to MiB, rounded up.

    Examples
    --------
    >>> to_mib("16GiB"), to_mib("16GB"), to_mib("1.5 GiB")
    (16384, 15259, 1536)
    """
    found = re.fullmatch(r"([\d.]+) ?([KMGT])(i?)B", memory)
    assert found is not None  # the config was checked
    unit: int = (1024 if found[3] else 1000) ** _UNITS[found[2]]
    return math.ceil(float(found[1]) * unit / 2**20)


def to_seconds(walltime: str) -> int:
    """Convert HH:MM:SS to seconds."""
    hours, minutes, seconds = map(int, walltime.split(":"))
    return (hours * 60 + minutes) * 60 + seconds


def format_time(seconds: int) -> str:
    """Write seconds as HH:MM:SS.

    Examples
    --------
    >>> format_time(to_seconds("48:00:07"))
    '48:00:07'
    """
    minutes, seconds = divmod(seconds, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"
