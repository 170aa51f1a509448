"""Slides that are opened when they are read, the least recently read ones closed if too many are.

A training reads patches of hundreds of slides in random order; each open slide takes a file handle,
of which a process has about a thousand, and memory.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tiling.contracts import Slide
from tiling.readers.memory import most_open_slides


class ReopenedSlide:
    """A slide that is open only while it is among those read last; for many threads.

    Parameters
    ----------
    open_again : function
        Opens the slide. Called at the first read, and again whenever the slide was closed since;
        what it raises is raised by `reading`.
    """

    def __init__(self, open_again: Callable[[], Slide]) -> None:
        self._open = open_again
        self._slide: Slide | None = None
        self._users = 0
        self._lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[Slide]:
        """Keep the slide open meanwhile."""
        with self._lock:
            if self._slide is None:
                self._slide = self._open()
            self._users += 1
            slide = self._slide
        _recent.touch(self)
        try:
            yield slide
        finally:
            with self._lock:
                self._users -= 1

    def rest(self) -> bool:
        """Close the slide until the next read; False where it is being read."""
        with self._lock:
            if self._users:
                return False
            slide, self._slide = self._slide, None
        if slide is not None:
            slide.close()
        return True


class _Recent:
    """The slides read last, in that order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slides: OrderedDict[int, weakref.ref[ReopenedSlide]] = OrderedDict()

    def touch(self, slide: ReopenedSlide) -> None:
        """Note that a slide is read, and close those read longest ago if too many are open."""
        with self._lock:
            self._slides[id(slide)] = weakref.ref(slide)
            self._slides.move_to_end(id(slide))
            n_over = len(self._slides) - most_open_slides()
            oldest = [self._slides.popitem(last=False) for _ in range(n_over)]
        for key, reference in oldest:
            one = reference()
            if one is not None and not one.rest():
                with self._lock:
                    self._slides.setdefault(key, reference)


_recent = _Recent()


def _start_afresh() -> None:
    global _recent  # a lock that another thread held at the fork would never be released
    _recent = _Recent()


os.register_at_fork(after_in_child=_start_afresh)
