"""Three-step sampling: a random label, a random slide that has it, a random patch.

However many normal patches there are, and however large one slide is, labels come out equally
often, and so do the slides within a label.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Training data three step sampling".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import SamplingError

# Numbers that one draw may use: one step of the Philox counter. Three are used.
_WORDS_PER_DRAW = 4


@dataclass(frozen=True)
class _ClassIndex:
    """Where the patches of one label are."""

    label: int
    slides: NDArray[np.int64]  # (k,) slides that have it, ascending
    offsets: NDArray[np.int64]  # (k + 1,) start of each slide's part of `patches`
    patches: NDArray[np.int32]  # rows, slide after slide


class ThreeStepSampler:
    """Draws (slide, patch) with replacement.

    Draw number i depends on the seed and on i alone: not on how draws are batched, nor on who
    draws. So a training can be replayed, resumed within an epoch, and split over workers.

    Parameters
    ----------
    labels : sequence of (n_s,) int8, one per slide
        Label of each patch: 0, 1 (or more classes); negative ones are never drawn.
    seed : int
    classes : sequence of int, optional
        Labels to draw. Default: 0 and 1.

    Raises
    ------
    SamplingError
        If no patch of any slide has one of the classes.
    """

    def __init__(
        self, labels: Sequence[NDArray[np.int8]], *, seed: int, classes: Sequence[int] = (0, 1)
    ) -> None:
        self._seed = seed
        self._drawn = 0
        self._classes = [_index_class(labels, label) for label in classes]

    def draw(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
        """Draw patches.

        Returns
        -------
        slide, patch : (n,)
            Index into the slides given, and row of that slide.
        label : (n,)
        """
        uniform = self._uniform(n)
        which = _pick(uniform[:, 0], np.full(n, len(self._classes)))
        slide, patch = np.empty(n, np.int64), np.empty(n, np.int64)
        label = np.empty(n, np.int8)
        for number, index in enumerate(self._classes):
            rows = np.flatnonzero(which == number)
            place = _pick(uniform[rows, 1], np.full(len(rows), len(index.slides)))
            start, stop = index.offsets[place], index.offsets[place + 1]
            slide[rows] = index.slides[place]
            patch[rows] = index.patches[start + _pick(uniform[rows, 2], stop - start)]
            label[rows] = index.label
        self._drawn += n
        return slide, patch, label

    def probability(self, slide: int, patch: int) -> float:
        """Give the exact chance that a draw is this patch: 1/|classes| * 1/|S_y| * 1/n_{s,y}."""
        for index in self._classes:
            found = np.flatnonzero(index.slides == slide)
            if found.size:
                start, stop = index.offsets[found[0]], index.offsets[found[0] + 1]
                if patch in index.patches[start:stop]:
                    n_classes, n_slides = len(self._classes), len(index.slides)
                    return 1 / n_classes / n_slides / int(stop - start)
        return 0.0

    def state(self) -> dict[str, Any]:
        """Give what JSON can keep and `set_state` goes on from."""
        return {"seed": self._seed, "drawn": self._drawn}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; of another seed it is a SamplingError."""
        if state["seed"] != self._seed:
            raise SamplingError(
                f"a sampler of seed {self._seed} cannot go on from one of seed {state['seed']}"
            )
        self._drawn = int(state["drawn"])

    def _uniform(self, n: int) -> NDArray[np.float64]:
        """Draws `drawn` to `drawn + n`: (n, 4) in [0, 1)."""
        generator = np.random.Philox(key=self._seed)
        generator.advance(self._drawn)
        words = generator.random_raw(_WORDS_PER_DRAW * n).reshape(n, _WORDS_PER_DRAW)
        uniform: NDArray[np.float64] = (words >> np.uint64(11)) * 2.0**-53
        return uniform


def _index_class(labels: Sequence[NDArray[np.int8]], label: int) -> _ClassIndex:
    rows = [np.flatnonzero(np.asarray(of_slide) == label).astype(np.int32) for of_slide in labels]
    slides = np.array([s for s, found in enumerate(rows) if found.size], np.int64)
    if not slides.size:
        name = {0: "negative (label 0)", 1: "positive (label 1)"}.get(label, f"of label {label}")
        raise SamplingError(
            f"none of {len(labels)} slides has a {name} patch to draw; add slides of that class "
            "to the split, or look at the label rule and the annotations"
        )
    kept = [rows[s] for s in slides]
    offsets = np.concatenate([[0], np.cumsum([len(found) for found in kept])]).astype(np.int64)
    return _ClassIndex(label, slides, offsets, np.concatenate(kept))


def _pick(uniform: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn uniform numbers in [0, 1) into whole ones in [0, count)."""
    picked = (uniform * count).astype(np.int64)
    return np.minimum(picked, count - 1)  # a count beyond 2^53 aside, only rounding gets there
