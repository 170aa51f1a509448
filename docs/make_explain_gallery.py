"""Draw the pictures of docs/explain.md: what each method shows on real tissue.

    python docs/make_explain_gallery.py PATCHES WEIGHTS [OUT]

PATCHES has the 57 patches of CAMELYON16 that docs/camelyon16_mosaic.md names, WEIGHTS is a file of
ImageNet's VGG16 (docs/train.md). The run of configs/camelyon16_explained.yaml is made in OUT
(default: explained), or taken from there, and its pictures go to docs/images/explain_*.jpg. About
half an hour on two CPU cores.
"""

import sys
from pathlib import Path

from PIL import Image

from wsi_pipeline.cli.app import main as run_command
from wsi_pipeline.demo.mosaic import main as compose_slides

ROOT = Path(__file__).parents[1]
IMAGES = Path(__file__).parent / "images"
LONGEST_PX = 1400


def main() -> None:
    """Make the run, where it is not there, and the pictures."""
    patches, weights, *more = sys.argv[1:]
    out = Path(more[0] if more else "explained")
    manifest = out / "cohort/manifest.csv"
    if not manifest.is_file():
        compose_slides(["--patches", patches, "--out", str(manifest.parent)])
    command = ["run", str(ROOT / "configs/camelyon16_explained.yaml"), "--out", str(out)]
    command += ["--set", f"input={manifest}", "--set", f"train.vgg16.model.weights={weights}"]
    if code := run_command(command):
        raise SystemExit(code)
    for model in ("vgg16", "patchnet"):
        explanations = out / "explanations" / model
        shrink(explanations / "sheet.png", f"explain_{model}.jpg")
    strip = next((out / "explanations/patchnet/unveiling").glob("*_rounds.png"))
    shrink(strip, "explain_unveiling.jpg")
    for model, method in (("vgg16", "grad_cam"), ("patchnet", "patchnet")):
        picture = next((out / "heatmaps" / model).glob(f"tumor_064*.{method}.png"))
        shrink(picture, f"explain_slide_{method}.jpg")


def shrink(path: Path, name: str) -> None:
    """Copy a picture as JPEG, no side longer than `LONGEST_PX`."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((LONGEST_PX, LONGEST_PX), Image.Resampling.LANCZOS)
        small.save(IMAGES / name, quality=85, optimize=True)


if __name__ == "__main__":
    main()
