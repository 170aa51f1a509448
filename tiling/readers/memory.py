"""How much memory and how many files the open slides of a process may use together."""

import functools
import os
import resource
from pathlib import Path

import openslide

from tiling.errors import SlideError

CACHE_VARIABLE = "WSI_PIPELINE_CACHE_MB"
LEAST_CACHE_BYTES, MOST_CACHE_BYTES = 192 * 2**20, 2**30  # of the default
CACHE_SHARE = 1 / 16  # of the memory that this process may use
OPENSLIDE_SHARE = 1 / 8  # of the budget: tiles that OpenSlide decodes
OTHER_FILES = 128  # that a process opens besides slides
FILES_PER_SLIDE = 2  # this package's handle, and OpenSlide's where it is needed
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def cache_budget() -> int:
    """Bytes of decoded file tiles that the open slides of this process keep together.

    The environment variable ``WSI_PIPELINE_CACHE_MB`` (MiB) sets it; by default it is a sixteenth
    of the memory that this process may use, between 192 MiB and 1 GiB.

    Raises
    ------
    SlideError
        If the variable is no positive number.
    """
    text = os.environ.get(CACHE_VARIABLE)
    if not text:
        share = int(available_memory() * CACHE_SHARE)
        return min(max(share, LEAST_CACHE_BYTES), MOST_CACHE_BYTES)
    try:
        budget = int(float(text) * 2**20)
    except (ValueError, OverflowError):
        budget = 0
    if budget <= 0:
        raise SlideError(
            f"{CACHE_VARIABLE} must be a positive number of MiB, got {text!r}; correct or unset it"
        )
    return budget


def available_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in _CGROUP_LIMITS:
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # no control group, or one without a limit ("max")
            continue
    return min(limits)


@functools.cache
def most_open_slides() -> int:
    """Slides that may be open at once, by the limit on open files (``ulimit -n``); at least 8.

    The soft limit is raised towards the hard one: 1024, the usual soft limit, is for programs that
    wait on files with ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # not allowed here
            pass
    most = wanted if soft == resource.RLIM_INFINITY else soft
    return max(8, (most - OTHER_FILES) // FILES_PER_SLIDE)


@functools.cache
def openslide_cache() -> openslide.OpenSlideCache:
    """Return the cache that all of OpenSlide's slides in this process share."""
    return openslide.OpenSlideCache(int(cache_budget() * OPENSLIDE_SHARE))


os.register_at_fork(after_in_child=openslide_cache.cache_clear)
