"""Three-step sampling: a random label, a random slide that has it, a random patch.

However many normal patches there are, and however large one slide is, labels come out equally
often, and so do the slides within a label.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Training data three step sampling".
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_pipeline.errors import SamplingError

_WORDS_PER_BLOCK = 4  # 64-bit numbers that one step of the Philox counter gives; a draw uses one
_MAX_SEED = 2**128  # of Philox's key


class ThreeStepSampler:
    """Draws (slide, patch) with replacement.

    Draw number i depends on the seed and on i alone: not on how draws are batched, nor on who
    draws. So a training can be replayed, resumed within an epoch, and split over workers.

    Parameters
    ----------
    labels : sequence of (n_s,) int8, one per slide
        Label of each patch: 0, 1 (or more classes); negative ones are never drawn.
    seed : int
        At least 0, below 2^128.
    classes : sequence of int, optional
        Labels to draw. Default: 0 and 1.

    Raises
    ------
    SamplingError
        If no patch of any slide has one of the classes, a class is negative or named twice, or
        the seed is negative or beyond 128 bits.
    """

    def __init__(
        self, labels: Sequence[NDArray[np.int8]], *, seed: int, classes: Sequence[int] = (0, 1)
    ) -> None:
        if not 0 <= seed < _MAX_SEED:
            raise SamplingError(f"the seed must be at least 0 and below 2^128, got {seed}")
        if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
            raise SamplingError(
                f"classes to draw are distinct and at least 0, got {tuple(classes)}; "
                "-1 marks patches that are never drawn"
            )
        self._seed = seed
        self._drawn = 0
        # A group is the patches of one label on one slide. Groups of a label stand together, by
        # slide; `_patches` has the rows of group after group.
        found = [_find_groups(labels, label) for label in classes]
        self._classes = np.array(classes, np.int8)
        self._n_slides = np.array([len(slides) for slides, _ in found])  # (k,) |S_y|
        self._first_group = np.cumsum(self._n_slides) - self._n_slides  # (k,)
        self._slides = np.concatenate([slides for slides, _ in found])  # (groups,)
        rows = [of_group for _, of_label in found for of_group in of_label]
        self._sizes = np.array([len(of_group) for of_group in rows])  # (groups,) n_{s,y}
        self._starts = np.cumsum(self._sizes) - self._sizes  # (groups,) into `_patches`
        self._patches: NDArray[np.int32] = np.concatenate(rows)

    def draw(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
        """Draw patches.

        Returns
        -------
        slide, patch : (n,)
            Index into the slides given, and row of that slide.
        label : (n,)
        """
        # One number per draw: what a choice leaves over of it, stretched to [0, 1), makes the next
        # choice. Of its 53 bits a million patches on a thousand slides use 31, so that all chances
        # are right to 1 in 10^6.
        which, rest = _pick(self._uniform(n), len(self._classes))
        place, rest = _pick(rest, self._n_slides[which])
        group = self._first_group[which] + place
        row, _ = _pick(rest, self._sizes[group])
        patch = self._patches[self._starts[group] + row].astype(np.int64)
        self._drawn += n
        return self._slides[group], patch, self._classes[which]

    def probability(self, slide: int, patch: int) -> float:
        """Give the exact chance that a draw is this patch: 1/|classes| * 1/|S_y| * 1/n_{s,y}."""
        for group in np.flatnonzero(self._slides == slide):
            start, size = self._starts[group], self._sizes[group]
            if patch in self._patches[start : start + size]:
                which = np.searchsorted(self._first_group, group, side="right") - 1
                return 1 / len(self._classes) / int(self._n_slides[which]) / int(size)
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
        """Give the numbers of draws `drawn` to `drawn + n`: (n,) in [0, 1)."""
        blocks, within = divmod(self._drawn, _WORDS_PER_BLOCK)
        generator = np.random.Philox(key=self._seed)
        generator.advance(blocks)
        words = generator.random_raw(within + n)[within:]
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _find_groups(
    labels: Sequence[NDArray[np.int8]], label: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int32]]]:
    """Give the slides that have a label, ascending, and which rows of each have it."""
    rows = [np.flatnonzero(np.asarray(of_slide) == label).astype(np.int32) for of_slide in labels]
    slides = np.array([s for s, found in enumerate(rows) if found.size], np.int64)
    if not slides.size:
        kind = {0: "negative patch (label 0)", 1: "positive patch (label 1)"}
        raise SamplingError(
            f"none of {len(labels)} slides has a {kind.get(label, f'patch of label {label}')} to "
            "draw; add slides of that class to the split, or look at the label rule and the "
            "annotations"
        )
    return slides, [rows[s] for s in slides]


def _pick(
    uniform: NDArray[np.float64], count: NDArray[np.int64] | int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Turn numbers in [0, 1) into whole ones in [0, count), and what is left over, in [0, 1)."""
    scaled = uniform * count  # below count even when rounded: uniform is at most 1 - 2^-53
    picked = scaled.astype(np.int64)
    return picked, scaled - picked
