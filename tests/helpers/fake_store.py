"""A patch store in memory."""

import numpy as np
from numpy.typing import NDArray

from tiling.contracts import PatchKind, PatchOrigin, SlideInfo, TileGeometry


class FakeStore:
    """A patch store in memory, with the attributes of `tiling.store.PatchStore`.

    Patches of noise; tumour is redder. Keeps what was read; rows in `broken`
    turn out to be unreadable when they are read.
    """

    def __init__(
        self,
        slide_id: str,
        labels,
        *,
        patch_px: int = 15,
        target_mpp: float = 0.5,
        seed: int = 0,
        unreadable=(),
        broken=(),
    ) -> None:
        self.label = np.asarray(labels, np.int8)
        n = len(self.label)
        random = np.random.default_rng([seed, *slide_id.encode()])
        pixels = random.integers(60, 160, (n, patch_px, patch_px, 3))
        pixels[self.label == 1, ..., 0] += 60
        self.pixels = pixels.astype(np.uint8)
        self.coords = np.stack([np.arange(n) * patch_px, np.zeros(n)], axis=1).astype(np.int64)
        self.unreadable = np.isin(np.arange(n), unreadable)
        self.broken = frozenset(broken)
        self.fingerprint = f"{slide_id}-{seed}"
        self.tiling = {"patch_px": patch_px, "target_mpp": target_mpp}
        self.slide_id = slide_id
        self.kind = PatchKind((patch_px, patch_px, 3), target_mpp)
        self.info = SlideInfo(
            slide_id=slide_id,
            file_name=f"{slide_id}.tif",
            vendor="generic-tiff",
            size=(n * patch_px, patch_px),
            mpp=(target_mpp, target_mpp),
            level_sizes=((n * patch_px, patch_px),),
            level_downsamples=(1.0,),
            bounds=None,
            objective_power=None,
            fingerprint="f" * 16,
        )
        self.geometry = TileGeometry(
            patch_px=patch_px,
            inner_px=patch_px // 2,
            target_mpp=target_mpp,
            patch_l0=patch_px,
            patch_l0_y=patch_px,
            stride_l0=patch_px,
            stride_l0_y=patch_px,
            scale=(1.0, 1.0),
        )
        self.reads: list[list[int]] = []

    def locate(self, row: int) -> PatchOrigin:
        x, y = self.coords[row].tolist()
        return PatchOrigin(self.slide_id, row, (x, y), self.geometry.scale)

    def __len__(self) -> int:
        return len(self.label)

    def read_into(self, indices, out) -> NDArray[np.bool_]:
        self.reads.append([int(i) for i in indices])
        bad = np.isin(indices, list(self.broken))
        for index, lost, patch in zip(indices, bad, out, strict=True):
            patch[...] = 255 if lost else self.pixels[index]
        return bad
