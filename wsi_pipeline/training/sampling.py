"""Sampling of training patches: in three steps, or by passes over all of them.

Three-step sampling draws a random label, a random slide with that label, and a random patch.
Labels are drawn equally often, and so are the slides within a label, for any number of normal
patches and any size of the slides.

References
----------
.. [1] Lecture on cancer detection in whole-slide images, "Training data three step sampling".
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tiling.wording import pluralize
from wsi_pipeline.errors import SamplingError

_WORDS_PER_BLOCK = 4  # 64-bit numbers that one step of the Philox counter gives; a draw uses one
_MAX_SEED = 2**128  # of Philox's key
_CHUNK = 16_384  # draws at a time, so that what is computed on the way stays in the cache

Entry = TypeVar("Entry", bound=np.generic)


class _NumberedDraws:
    """A sampler whose draws depend on its seed and on the number of earlier draws."""

    def __init__(self, seed: int) -> None:
        if not 0 <= seed < _MAX_SEED:
            raise SamplingError(f"the seed must be at least 0 and below 2^128, got {seed}")
        self._seed = seed
        self._drawn = 0

    def state(self) -> dict[str, Any]:
        """Return the state for `set_state`, as JSON values."""
        return {"seed": self._seed, "drawn": self._drawn}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state; one of another seed is a SamplingError."""
        if state["seed"] != self._seed:
            raise SamplingError(
                f"a sampler of seed {self._seed} cannot continue from one of seed {state['seed']}"
            )
        self._drawn = int(state["drawn"])


class ThreeStepSampler(_NumberedDraws):
    """Draws (slide, patch) with replacement.

    Draw i depends on the seed and on i alone, not on the batches or the process. A training can
    therefore be replayed, resumed within an epoch, and split over workers.

    Parameters
    ----------
    labels : sequence of (n_s,) int8, one per slide
        Label of each patch: 0, 1 (or more classes); negative ones are never drawn.
    seed : int
        At least 0, below 2^128.
    classes : sequence of int, optional
        Labels to draw. Default: 0 and 1.
    hard : sequence of (n_s,) bool, one per slide, optional
        Patches that are drawn more often.
    hard_share : float
        At least 0, below 1. With this chance the patch is drawn from the hard ones of its label
        and slide, if there are any, and else from all of them.

    Raises
    ------
    SamplingError
        If no patch of any slide has one of the classes, a class is negative or named twice, the
        share is out of its range, or the seed is negative or beyond 128 bits.
    """

    def __init__(
        self,
        labels: Sequence[NDArray[np.int8]],
        *,
        seed: int,
        classes: Sequence[int] = (0, 1),
        hard: Sequence[NDArray[np.bool_]] | None = None,
        hard_share: float = 0.0,
    ) -> None:
        super().__init__(seed)
        if not 0 <= hard_share < 1:
            raise SamplingError(f"hard_share must be at least 0 and below 1, got {hard_share}")
        if not classes or min(classes) < 0 or len(set(classes)) < len(classes):
            raise SamplingError(
                f"classes to draw are distinct and at least 0, got {tuple(classes)}; "
                "-1 marks patches that are never drawn"
            )
        # A group is the patches of one label on one slide. Groups of a label are contiguous, by
        # slide; `_patches` has the rows of group after group.
        found = [_find_groups(labels, label) for label in classes]
        self._classes = np.array(classes, np.int8)
        n_slides = np.array([len(slides) for slides, _ in found])
        self._n_slides = n_slides.astype(np.float64)  # (k,) |S_y|
        self._first_group = np.cumsum(n_slides) - n_slides  # (k,)
        self._slides = np.concatenate([slides for slides, _ in found])  # (groups,)
        rows = [of_group for _, of_label in found for of_group in of_label]
        sizes = np.array([len(of_group) for of_group in rows])
        self._sizes = sizes.astype(np.float64)  # (groups,) n_{s,y}
        self._starts = np.cumsum(sizes) - sizes  # (groups,) into `_patches`
        self._patches: NDArray[np.int32] = np.concatenate(rows)
        self._hard: _HardPatches | None = None
        if hard is not None and hard_share:
            of_groups = [g[hard[s][g]] for s, g in zip(self._slides.tolist(), rows, strict=True)]
            if any(g.size for g in of_groups):
                self._hard = _HardPatches(of_groups, hard_share)

    def draw(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
        """Draw patches.

        Returns
        -------
        slide, patch : (n,)
            Index into the slides given, and row of that slide.
        label : (n,)
        """
        slide, patch = np.empty(n, np.int64), np.empty(n, np.int64)
        label = np.empty(n, np.int8)
        generator = self._generator()
        for start in range(0, n, _CHUNK):
            part = slice(start, min(start + _CHUNK, n))
            numbers = self._uniform(generator, part.stop - start)
            slide[part], patch[part], label[part] = self._choose(numbers)
        self._drawn += n
        return slide, patch, label

    def _choose(
        self, number: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int8]]:
        """Turn numbers in [0, 1), (n,), which are overwritten, into slides, patches and labels."""
        # One number per draw: what a choice leaves over of it, stretched to [0, 1), makes the next
        # choice. Of its 53 bits a million patches on a thousand slides use 31, so that all chances
        # are right to 1 in 10^6.
        which = _pick(number, len(self._classes))
        group = _pick(number, _at(self._n_slides, which))
        group += _at(self._first_group, which)
        hard = None if self._hard is None else self._hard.choose(number, group)
        row = _pick(number, _at(self._sizes, group))
        row += _at(self._starts, group)
        patch = _at(self._patches, row)
        if hard is not None:
            places, patches = hard
            patch[places] = patches
        return _at(self._slides, group), patch, _at(self._classes, which)

    def probability(self, slide: int, patch: int) -> float:
        """Return the exact chance that a draw is this patch.

        That is 1/|classes| * 1/|S_y| * 1/n_{s,y}; where h of the n patches are hard, with the share
        q, the last factor is (1 - q)/n, and q/h more for a hard one.
        """
        for group in np.flatnonzero(self._slides == slide):
            start, size = self._starts[group], int(self._sizes[group])
            if patch in self._patches[start : start + size]:
                which = np.searchsorted(self._first_group, group, side="right") - 1
                of_group = 1 / len(self._classes) / float(self._n_slides[which])
                if self._hard is None:
                    return of_group / size
                return of_group * self._hard.probability(int(group), patch, size)
        return 0.0

    def _generator(self) -> np.random.Philox:
        """Return the random generator, positioned at the next draw."""
        blocks, within = divmod(self._drawn, _WORDS_PER_BLOCK)
        generator = np.random.Philox(key=self._seed)
        generator.advance(blocks)
        generator.random_raw(within)
        return generator

    def _uniform(self, generator: np.random.Philox, n: int) -> NDArray[np.float64]:
        """Return the numbers of the next `n` draws: (n,) in [0, 1)."""
        words = generator.random_raw(n) >> np.uint64(11)
        signed = words.view(np.int64)  # which become floats faster
        return signed * np.float64(2.0**-53)


class _HardPatches:
    """The hard patches of each group, and how often a draw is from them."""

    def __init__(self, rows: Sequence[NDArray[np.int32]], share: float) -> None:
        sizes = np.array([len(of_group) for of_group in rows])
        self._sizes = sizes.astype(np.float64)  # (groups,)
        self._starts = np.cumsum(sizes) - sizes
        self._patches: NDArray[np.int32] = np.concatenate(rows)
        self._share = np.where(sizes > 0, share, 0.0)  # (groups,)

    def choose(
        self, number: NDArray[np.float64], group: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Choose which draws are from hard patches, and these patches.

        Parameters
        ----------
        number : (n,) in [0, 1)
            Overwritten with what is over, in [0, 1).
        group : (n,)

        Returns
        -------
        places : (m,) indices into `number`
        patches : (m,)
        """
        share = _at(self._share, group)
        is_hard = number < share
        # Below 1 even when rounded, as numbers are multiples of 2^-53.
        number -= np.where(is_hard, 0.0, share)
        number /= np.where(is_hard, share, 1 - share)
        places = np.flatnonzero(is_hard)
        row = _pick(number[places], _at(self._sizes, group[places]))
        return places, _at(self._patches, row + _at(self._starts, group[places]))

    def probability(self, group: int, patch: int, size: int) -> float:
        """Return the chance of a patch within its group of `size` patches."""
        share, start, n = self._share[group], self._starts[group], int(self._sizes[group])
        is_hard = patch in self._patches[start : start + n]
        return float((1 - share) / size + (share / n if is_hard else 0.0))


class ShuffledSampler(_NumberedDraws):
    """Passes over all patches, each in a random order of its own.

    Draw i depends on the seed and on i alone, as with `ThreeStepSampler`.

    Parameters
    ----------
    labels : sequence of (n_s,) int8, one per slide
        Label of each patch; negative ones are in no pass.
    seed : int
        At least 0, below 2^128.

    Raises
    ------
    SamplingError
        If there is no patch with a label, or the seed is negative or beyond 128 bits.
    """

    def __init__(self, labels: Sequence[NDArray[np.int8]], *, seed: int) -> None:
        super().__init__(seed)
        rows = [np.flatnonzero(np.asarray(of_slide) >= 0) for of_slide in labels]
        self._slide = np.concatenate(
            [np.full(len(found), s, np.int64) for s, found in enumerate(rows)]
        )
        self._patch = np.concatenate(rows).astype(np.int64)
        self._label = np.concatenate(
            [np.asarray(y, np.int8)[r] for y, r in zip(labels, rows, strict=True)]
        )
        if not len(self):
            raise SamplingError(
                f"none of {pluralize(len(labels), 'slide')} has a patch with a label to draw"
            )

    def __len__(self) -> int:
        """Number of patches in a pass."""
        return len(self._patch)

    def draw(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
        """Take the next patches of the passes: slide, patch and label, (n,) each."""
        first, end = self._drawn // len(self), -(-(self._drawn + n) // len(self))
        passes = [self._order(number) for number in range(first, max(end, first + 1))]
        order = np.concatenate(passes)
        start = self._drawn - first * len(self)
        chosen = order[start : start + n]
        self._drawn += n
        return self._slide[chosen], self._patch[chosen], self._label[chosen]

    def _order(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, number]).permutation(len(self))


def _find_groups(
    labels: Sequence[NDArray[np.int8]], label: int
) -> tuple[NDArray[np.int64], list[NDArray[np.int32]]]:
    """Return the slides that have a label, ascending, and which rows of each have it."""
    rows = [np.flatnonzero(np.asarray(of_slide) == label).astype(np.int32) for of_slide in labels]
    slides = np.array([s for s, found in enumerate(rows) if found.size], np.int64)
    if not slides.size:
        kind = {0: "negative patch (label 0)", 1: "positive patch (label 1)"}
        raise SamplingError(
            f"none of {pluralize(len(labels), 'slide')} has a "
            f"{kind.get(label, f'patch of label {label}')} to draw; add slides of that class to "
            "the split, or check the label rule and the annotations"
        )
    return slides, [rows[s] for s in slides]


def _pick(number: NDArray[np.float64], count: NDArray[np.float64] | int) -> NDArray[np.int64]:
    """Turn numbers in [0, 1) into whole ones in [0, count); leave what is over, in [0, 1)."""
    number *= count  # below count even when rounded: a number is at most 1 - 2^-53
    picked = number.astype(np.int64)
    number -= picked
    return picked


def _at(table: NDArray[Entry], places: NDArray[np.int64]) -> NDArray[Entry]:
    # `clip` only saves take's own look at the places, which are all within the table.
    return table.take(places, mode="clip")
