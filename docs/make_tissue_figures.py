"""Draw docs/images/tissue-*.jpg: the tissue that is detected on real and on drawn slides.

Each picture shows the thumbnail of a slide and, next to it, its mask: excluded parts are darkened,
the tissue's edge is green. `tissue-drawn.jpg` shows the tests' drawn slides.

    WSI_PIPELINE_DATA=DIR python docs/make_tissue_figures.py
"""

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers.thumbnails import draw_scene  # noqa: E402
from tiling.contracts import TissueConfig  # noqa: E402
from tiling.overview import read_overview  # noqa: E402
from tiling.slide import open_slide  # noqa: E402
from tiling.tissue.mask import segment_tissue  # noqa: E402

SLIDES = Path(os.environ.get("WSI_PIPELINE_DATA", "data")) / "slides"
IMAGES = ROOT / "docs/images"
SIDE_PX = 1000  # of the longer side of a picture
QUALITIES = (88, 80, 70, 60)  # of JPEG; the best that keeps a picture below MAX_BYTES
MAX_BYTES = 150_000
GREEN = (0, 255, 90)
GAP_PX = 6
DRAWN = [  # stain, what else is on the slide
    ("H&E", {"ink": "blue"}),
    ("H&E", {"ink": "red"}),
    ("faint H&E", {"ink": "green"}),
    ("DAB", {"ink": "black"}),
    ("haematoxylin", {"edges": True}),
    ("faint H&E", {"bubble": True, "glass": (240, 233, 220)}),
    ("H&E", {"glass": (238, 220, 230)}),
    ("DAB", {"glass": (244, 238, 205)}),
]


def main() -> None:
    """Write all pictures."""
    names = ["CMU-1-Small-Region.svs", "camelyon-overview-jpeg.dcm", "nuclei-dapi.ndpi"]
    for name in [*names, "tiny-sm.dcm"]:
        with open_slide(SLIDES / name) as slide:
            mpp = slide.mpp
            assert mpp is not None
            overview = read_overview(slide, mpp=mpp, target_mpp=TissueConfig().mpp)
        pixel_um = (overview.pixel_l0[0] * mpp[0], overview.pixel_l0[1] * mpp[1])
        _save(_pair(overview.rgb, pixel_um), f"tissue-{Path(name).stem}.jpg")
    pairs = [
        _shrink(_pair(draw_scene(stain, **things).rgb, (8.0, 8.0), gap=0), 500)
        for stain, things in DRAWN
    ]
    rows = [np.hstack(pairs[first : first + 2]) for first in range(0, len(pairs), 2)]
    _save(np.vstack(rows), "tissue-drawn.jpg")


def _pair(
    rgb: NDArray[np.uint8], mpp: tuple[float, float], *, gap: int = GAP_PX
) -> NDArray[np.uint8]:
    """Place the mask to the right of a picture, or below a wide one."""
    mask = segment_tissue(rgb, mpp=mpp, config=TissueConfig())
    wide = rgb.shape[1] > rgb.shape[0]
    longest = max(rgb.shape[1] * (1 if wide else 2), rgb.shape[0] * (2 if wide else 1))
    zoom = max(1, SIDE_PX // longest)
    rgb, mask = (a.repeat(zoom, axis=0).repeat(zoom, axis=1) for a in (rgb, mask))
    dark = np.where(mask[..., None], rgb, rgb * 0.55).astype(np.uint8)
    width = 1 + max(rgb.shape) // 700
    dark[mask & ~binary_erosion(mask, np.ones((3, 3), bool), width)] = GREEN
    axis = 0 if wide else 1
    space = np.full((gap, rgb.shape[1], 3) if wide else (rgb.shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([rgb, space, dark], axis=axis)


def _shrink(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    image = Image.fromarray(picture)
    image.thumbnail((side_px, side_px), Image.Resampling.BOX)
    return np.asarray(image)


def _save(picture: NDArray[np.uint8], name: str) -> None:
    image = Image.fromarray(_shrink(picture, SIDE_PX))
    path = IMAGES / name
    for quality in QUALITIES:
        image.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MAX_BYTES:
            return
    raise SystemExit(f"{name} has {path.stat().st_size} bytes, more than {MAX_BYTES}")


if __name__ == "__main__":
    main()
