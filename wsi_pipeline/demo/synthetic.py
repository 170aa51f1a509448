"""The embedded cohort: small slides of synthetic tissue, tumours known exactly, all from a seed.

``python -m wsi_pipeline.demo.synthetic --out DIR`` draws it and prints the manifest's path.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiling.annotation.formats.asap_xml import write_asap_xml
from tiling.files import digest_file, digest_json, write_json
from wsi_pipeline.cohort.manifest import check_entries, write_manifest
from wsi_pipeline.contracts import SPLITS, SlideEntry
from wsi_pipeline.demo import cells, painting, pyramid, textures
from wsi_pipeline.demo import layout as plan
from wsi_pipeline.demo.painting import paint_slide
from wsi_pipeline.demo.pyramid import write_pyramid
from wsi_pipeline.demo.specs import MPP, SlideSpec, TumourSpec
from wsi_pipeline.run.cluster import map_tasks

log = logging.getLogger(__name__)

GREEN, BLUE, BLACK = (70, 165, 105), (65, 85, 190), (55, 52, 60)

# 19 slides of 14 patients. The test holds what FROC is about: large lesions, micrometastases (0.2
# to 2 mm) and isolated tumour cells (below 0.2 mm), a lesion with a hole, lesions that lymphocytes
# infiltrate (harder to see), and follicles that resemble tumour.
DEMO_COHORT: tuple[SlideSpec, ...] = (
    SlideSpec(
        "demo_01",
        "patient_01",
        "train",
        (2701, 2590),
        (
            TumourSpec((0.4, 0.54), 680),
            TumourSpec((0.76, 0.32), 220, infiltrated=0.9),
            TumourSpec((0.76, 0.7), 120, infiltrated=0.8),
        ),
        n_follicles=2,
    ),
    SlideSpec(
        "demo_02", "patient_01", "train", (2450, 2511), lymphoid=0.5, n_glands=15, n_follicles=4
    ),
    SlideSpec(
        "demo_03",
        "patient_02",
        "train",
        (2777, 2603),
        (
            TumourSpec((0.36, 0.42), 640, hole_um=190, hole_group="_2", group="_0"),
            TumourSpec((0.76, 0.7), 300, infiltrated=0.6, group="_1"),
            TumourSpec((0.36, 0.84), 150, group="_1"),
        ),
        pens=(GREEN,),
        n_follicles=2,
    ),
    SlideSpec(
        "demo_04",
        "patient_03",
        "train",
        (2550, 2633),
        (
            TumourSpec((0.56, 0.6), 620),
            TumourSpec((0.26, 0.26), 240, infiltrated=0.9),
            TumourSpec((0.72, 0.24), 110),
        ),
        lymphoid=0.6,
        n_follicles=2,
    ),
    SlideSpec(
        "demo_05",
        "patient_04",
        "train",
        (2501, 2602),
        lymphoid=0.3,
        n_glands=20,
        pens=(BLUE,),
        n_follicles=4,
    ),
    SlideSpec(
        "demo_06",
        "patient_05",
        "train",
        (2704, 2577),
        (
            TumourSpec((0.32, 0.6), 560),
            TumourSpec((0.73, 0.36), 380, infiltrated=0.3),
            TumourSpec((0.4, 0.24), 180),
        ),
        lymphoid=0.45,
        n_follicles=2,
    ),
    SlideSpec(
        "demo_07",
        "patient_06",
        "val",
        (2411, 2405),
        (
            TumourSpec((0.4, 0.42), 480),
            TumourSpec((0.74, 0.66), 240, infiltrated=0.9),
            TumourSpec((0.36, 0.76), 130),
        ),
        n_follicles=2,
    ),
    SlideSpec(
        "demo_08", "patient_06", "val", (2303, 2300), lymphoid=0.45, n_glands=15, n_follicles=3
    ),
    SlideSpec(
        "demo_09",
        "patient_07",
        "val",
        (2499, 2451),
        (
            TumourSpec((0.34, 0.36), 340, infiltrated=0.3),
            TumourSpec((0.7, 0.67), 260),
            TumourSpec((0.7, 0.32), 210, infiltrated=0.9),
            TumourSpec((0.36, 0.72), 100),
        ),
        lymphoid=0.5,
        n_follicles=2,
    ),
    SlideSpec("demo_10", "patient_08", "val", (2300, 2355), pens=(BLACK,), n_follicles=3),
    SlideSpec(
        "demo_11",
        "patient_09",
        "test",
        (2501, 2355),
        (
            TumourSpec((0.4, 0.52), 520, hole_um=170),
            TumourSpec((0.76, 0.3), 230, infiltrated=0.9),
            TumourSpec((0.76, 0.7), 100, infiltrated=0.8),
        ),
        lymphoid=0.45,
        pens=(BLACK,),
        n_follicles=2,
    ),
    SlideSpec("demo_12", "patient_09", "test", (2205, 2300), lymphoid=0.4, n_follicles=3),
    SlideSpec(
        "demo_13",
        "patient_10",
        "test",
        (2402, 2405),
        (
            TumourSpec((0.36, 0.36), 300, infiltrated=0.2),
            TumourSpec((0.7, 0.6), 240),
            TumourSpec((0.4, 0.74), 180, infiltrated=0.9),
            TumourSpec((0.7, 0.3), 90),
        ),
        lymphoid=0.5,
        n_follicles=2,
    ),
    SlideSpec(
        "demo_14",
        "patient_11",
        "test",
        (2255, 2250),
        lymphoid=0.3,
        n_glands=20,
        n_fat=4,
        pens=(GREEN,),
        n_follicles=3,
    ),
    SlideSpec(
        "demo_15",
        "patient_12",
        "test",
        (2455, 2350),
        (
            TumourSpec((0.36, 0.4), 380),
            TumourSpec((0.72, 0.32), 260, infiltrated=0.9),
            TumourSpec((0.7, 0.68), 220),
            TumourSpec((0.36, 0.76), 130, infiltrated=0.8),
        ),
        lymphoid=0.4,
        n_follicles=2,
    ),
    SlideSpec("demo_16", "patient_12", "test", (2202, 2305), lymphoid=0.5, n_follicles=3),
    SlideSpec(
        "demo_17",
        "patient_13",
        "test",
        (2355, 2400),
        (
            TumourSpec((0.34, 0.4), 250, infiltrated=0.8),
            TumourSpec((0.66, 0.68), 220, infiltrated=0.9),
            TumourSpec((0.68, 0.32), 160),
            TumourSpec((0.34, 0.72), 110),
        ),
        n_follicles=2,
    ),
    SlideSpec(
        "demo_18",
        "patient_14",
        "test",
        (2501, 2402),
        (
            TumourSpec((0.38, 0.4), 420, infiltrated=0.3),
            TumourSpec((0.74, 0.36), 270),
            TumourSpec((0.72, 0.72), 200, infiltrated=0.9),
            TumourSpec((0.38, 0.78), 140),
        ),
        lymphoid=0.45,
        n_follicles=2,
    ),
    SlideSpec(
        "demo_19", "patient_14", "test", (2250, 2205), lymphoid=0.3, n_glands=15, n_follicles=4
    ),
)

# Two patients in each split, with and without a tumour.
QUICK_COHORT = tuple(
    SlideSpec(
        f"quick_{2 * number + is_tumour + 1}",
        f"patient_{2 * number + is_tumour + 1}",
        split,
        (1100, 1000),
        (TumourSpec((0.5, 0.5), 220),) if is_tumour else (),
        n_glands=3,
        n_vessels=2,
        n_fat=1,
    )
    for number, split in enumerate(SPLITS)
    for is_tumour in (0, 1)
)


def draw_cohort(
    out: Path, *, seed: int = 0, slides: Sequence[SlideSpec] = DEMO_COHORT, workers: int = 1
) -> Path:
    """Draw a cohort: slides, annotations, manifest.

    Files that are already there, intact and of the same seed and specs, are kept.

    Parameters
    ----------
    out : Path
        Folder; gets ``manifest.csv``, ``slides/``, ``annotations/`` and ``cohort.json``, which is
        written last and contains the seed and every file's SHA-256.
    seed : int, >= 0
        The same seed gives the same bytes, for any number of `workers`.
    slides : sequence of SlideSpec
    workers : int
        Processes that draw.

    Returns
    -------
    manifest : Path
        ``out/manifest.csv``, columns as in docs/formats.md.

    Raises
    ------
    ManifestError
        If two specs share an id, or a patient is in two splits.
    """
    entries = [_entry(out, spec) for spec in slides]
    check_entries(entries)
    manifest, mark = out / "manifest.csv", out / "cohort.json"
    fingerprint = _fingerprint(slides, seed)
    if _is_whole(out, mark, fingerprint):
        log.info("%s: drawn before, kept", out)
        return manifest
    mark.unlink(missing_ok=True)
    work = functools.partial(_draw_slide, out=out, seed=seed)
    for number, result in map_tasks(work, slides, workers=workers):
        if isinstance(result, Exception):
            raise result
        log.info("%s: drawn", slides[number].slide_id)
    write_manifest(manifest, entries)
    files = [manifest, *(e.path for e in entries), *(e.annotation for e in entries if e.annotation)]
    digests = {path.relative_to(out).as_posix(): digest_file(path) for path in files}
    write_json(mark, {"fingerprint": fingerprint, "seed": seed, "sha256": digests})
    return manifest


def _entry(out: Path, spec: SlideSpec) -> SlideEntry:
    return SlideEntry(
        slide_id=spec.slide_id,
        path=out / "slides" / f"{spec.slide_id}.tif",
        patient=spec.patient,
        label=int(bool(spec.tumours)),
        annotation=out / "annotations" / f"{spec.slide_id}.xml" if spec.tumours else None,
        split=spec.split,
    )


def _draw_slide(spec: SlideSpec, *, out: Path, seed: int) -> None:
    entry = _entry(out, spec)
    drawn = paint_slide(spec, seed=seed)
    write_pyramid(entry.path, drawn.image, mpp=MPP)
    if entry.annotation:
        groups = list(dict.fromkeys(group for _, group, _ in drawn.polygons))
        entry.annotation.parent.mkdir(parents=True, exist_ok=True)
        write_asap_xml(entry.annotation, drawn.polygons, groups)


def _fingerprint(slides: Sequence[SlideSpec], seed: int) -> str:
    # The drawing code counts as a setting: a cohort drawn by an older version is not kept.
    modules = (cells, painting, plan, pyramid, textures)
    code = hashlib.sha256(b"".join(Path(str(m.__file__)).read_bytes() for m in modules))
    specs = [dataclasses.asdict(spec) for spec in slides]
    return digest_json({"seed": seed, "slides": specs, "code": code.hexdigest()})


def _is_whole(out: Path, mark: Path, fingerprint: str) -> bool:
    try:
        found: Any = json.loads(mark.read_text(encoding="utf-8"))
        return found["fingerprint"] == fingerprint and all(
            digest_file(out / name) == digest for name, digest in found["sha256"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the cohort and print the manifest's path."""
    parser = argparse.ArgumentParser(prog="python -m wsi_pipeline.demo.synthetic")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cohort")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same bytes")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    args = parser.parse_args(argv)
    sys.stdout.write(f"{draw_cohort(args.out, seed=args.seed, workers=args.workers)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
