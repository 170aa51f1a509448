"""A slide with everything that can go wrong: odd sizes, two resolutions, bounds, overlap, NaN."""

import numpy as np

from tiling.contracts import SlideInfo, TileGeometry
from wsi_pipeline.config.settings import ExportConfig
from wsi_pipeline.contracts import Scores
from wsi_pipeline.exports.base import ExportJob, ExportSlide
from wsi_pipeline.inference.scores import clam_attributes

SIZE = (1003, 811)
BOUNDS = (37, 61, 900, 700)


def make_slide(*, stride_l0=(33, 31), bounds=BOUNDS, seed=0) -> ExportSlide:
    """Patches of 66 x 62 level-0 px, half overlapping; every ninth without score."""
    rng = np.random.default_rng(seed)
    info = SlideInfo(
        slide_id="odd µ <1>",
        file_name="odd.mrxs",
        vendor="mirax",
        size=SIZE,
        mpp=(0.2427, 0.2588),
        level_sizes=(SIZE,),
        level_downsamples=(1.0,),
        bounds=bounds,
        objective_power=None,
        fingerprint="f" * 16,
    )
    geometry = TileGeometry(
        patch_px=32,
        inner_px=16,
        target_mpp=0.5,
        patch_l0=66,
        patch_l0_y=62,
        stride_l0=stride_l0[0],
        stride_l0_y=stride_l0[1],
        scale=(0.5 / 0.2427, 0.5 / 0.2588),
    )
    x = np.arange(0, SIZE[0] - 60, stride_l0[0])  # the last ones hang over the edge
    y = np.arange(0, SIZE[1] - 60, stride_l0[1])
    coords = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.int64)
    values = rng.random(len(coords)).astype(np.float32)
    values[::9] = np.nan
    scores = Scores(coords, values, {"fingerprint": "x"}, clam_attributes(info, geometry))
    return ExportSlide(info, geometry, "patchnet", scores)


def make_job(slide: ExportSlide, **settings) -> ExportJob:
    return ExportJob(slide, ExportConfig(**settings))
