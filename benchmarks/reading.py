"""Patches from a tiled JPEG slide, against openslide-python; one thread, equal bit for bit.

The slide: real H&E content (``CMU-1-Small-Region.svs`` of the project's shared data) mirrored to
20,000 x 20,000 px with a little grain, in an Aperio-like SVS of 240 px JPEG tiles (quality 80,
4:2:0) with levels at 1, 4 and 16. Patches of 512 px in raster order from a window over tissue.

Counted in the first figures: reading patches from a slide just opened (opening included), page
cache warm. In the second: whole processes, from `python` to the last patch. Not counted: making
the slide. Rows for comparison: cuCIM, where it is installed (``--cucim-python`` may name another
interpreter that has it), and the limit: each needed tile decoded once, nothing assembled.

    python benchmarks/reading.py
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDE, TILE, PATCH = 20_000, 240, 512
ACROSS = 36  # patches per row at stride 512; rows are as many as 900 patches need
N_PATCHES = 900
TARGETS = {512: (4.5, 4.0), 256: (14.0, 7.0)}  # patches, whole process
SOURCE = Path(os.environ.get("WSI_PIPELINE_DATA", "data")) / "slides/CMU-1-Small-Region.svs"
RESULT = Path(__file__).parent / "results" / "reading.json"


# --- the slide -------------------------------------------------------------------------------


def make_content(side):
    """(side, side, 3) uint8 of mirrored H&E with grain; made-up tissue where there is no slide."""
    import numpy as np

    rng = np.random.default_rng(0)
    if SOURCE.exists():
        import openslide

        with openslide.OpenSlide(SOURCE) as slide:
            piece = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    else:
        y, x = np.mgrid[:2048, :2048]
        waves = 30 * np.sin(x / 17) * np.cos(y / 23) + 20 * np.sin((x + y) / 5)
        piece = np.clip([200, 130, 170] + waves[..., None], 0, 255).astype(np.uint8)
    piece = np.concatenate([piece, piece[:, ::-1]], axis=1)
    piece = np.concatenate([piece, piece[::-1]], axis=0)
    times = [-(-side // length) for length in piece.shape[:2]]
    content = np.tile(piece, (*times, 1))[:side, :side]
    grain = rng.integers(-3, 4, (1009, side, 3), dtype=np.int16)  # no period of the tiles
    for top in range(0, side, 1009):
        rows = content[top : top + 1009]
        rows[:] = np.clip(rows + grain[: len(rows)], 0, 255)
    return content


def write_slide(path, side=SIDE):
    """Write the SVS and return what its pixels are made of."""
    import numpy as np
    import tifffile

    level = make_content(side)
    options = {
        "photometric": "ycbcr",
        "compression": "jpeg",
        "compressionargs": {"level": 80},
        "subsampling": (2, 2),
        "metadata": None,
    }
    head = f"Aperio Image Library v11.2.1 \r\n{side}x{side} [0,0 {side}x{side}] ({TILE}x{TILE})"
    with tifffile.TiffWriter(path, bigtiff=True) as tif:
        about = f"{head} JPEG/RGB Q=80|AppMag = 20|MPP = 0.499"
        tif.write(level, tile=(TILE, TILE), description=about, **options)
        tif.write(np.ascontiguousarray(level[::32, ::32]), description=head, **options)
        for _ in range(2):
            height, width = (length // 4 * 4 for length in level.shape[:2])
            blocks = level[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
            means = [block.mean(axis=(0, 2)) for block in blocks]
            level = np.rint(np.stack(means)).astype(np.uint8)
            tif.write(level, tile=(TILE, TILE), description=head, **options)
    return "real H&E (CMU-1-Small-Region.svs)" if SOURCE.exists() else "made-up tissue"


def raster(stride, n_patches=N_PATCHES):
    """Positions in raster order, as wide as the slide allows up to `ACROSS` patches."""
    across = min(ACROSS, (SIDE - PATCH) // stride + 1)
    return [(i % across * stride + 7, i // across * stride + 5) for i in range(n_patches)]


# --- ways to read ----------------------------------------------------------------------------


def read_openslide(path, places):
    """openslide-python, called directly."""
    import numpy as np
    import openslide

    with openslide.OpenSlide(path) as slide:
        for place in places:
            yield np.asarray(slide.read_region(place, 0, (PATCH, PATCH)).convert("RGB"))


def read_ours(path, places):
    """What the pipeline calls."""
    from tiling.slide import open_slide

    with open_slide(Path(path)) as slide:
        for place in places:
            yield slide.read_region(place, 0, (PATCH, PATCH))


def read_cucim(path, places):
    """The cuCIM library on the CPU, its own cache on."""
    import numpy as np
    from cucim import CuImage

    CuImage.cache("per_process", memory_capacity=512)
    slide = CuImage(str(path))
    for place in places:
        yield np.asarray(slide.read_region(place, (PATCH, PATCH), 0, num_workers=1))


def decode_only(path, places):
    """The limit: each file tile that some patch needs, decoded once into the same memory."""
    import imagecodecs
    import numpy as np
    import tifffile

    with tifffile.TiffFile(path) as tif, Path(path).open("rb", buffering=0) as file:
        page = tif.pages[0].aspage()
        across = -(-page.imagewidth // TILE)
        needed = {
            row * across + column
            for x, y in places
            for row in range(y // TILE, (y + PATCH - 1) // TILE + 1)
            for column in range(x // TILE, (x + PATCH - 1) // TILE + 1)
        }
        buffer = np.empty((TILE, TILE, 3), np.uint8)
        for index in sorted(needed):
            data = os.pread(file.fileno(), page.databytecounts[index], page.dataoffsets[index])
            imagecodecs.jpeg8_decode(
                data,
                tables=page.jpegtables,
                colorspace="YCBCR",
                outcolorspace="RGB",
                out=buffer,
            )
            yield buffer


WAYS = {"openslide": read_openslide, "ours": read_ours, "limit": decode_only, "cucim": read_cucim}


# --- measuring -------------------------------------------------------------------------------


def seconds(way, path, places):
    """Time of one pass, opening the slide included."""
    start = time.perf_counter()
    for _ in WAYS[way](path, places):
        pass
    return time.perf_counter() - start


def process_seconds(way, path, stride, python):
    """Time and peak memory (MB) of one process that does one pass."""
    start = time.perf_counter()
    done = subprocess.run(
        [python, __file__, "--only", way, "--slide", path, "--stride", str(stride)],
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, json.loads(done.stdout)["peak_mb"]


def check_equal(path, places):
    """Each patch of ours is OpenSlide's, bit for bit."""
    pairs = zip(read_ours(path, places), read_openslide(path, places), strict=True)
    for place, (ours, expected) in zip(places, pairs, strict=True):
        if not (ours == expected).all():
            raise SystemExit(f"the patch at {place} differs from OpenSlide's")


def compare(times):
    """Median ratio to openslide-python within each round, and its spread."""
    ratios = [a / b for a, b in zip(times["openslide"], times["ours"], strict=True)]
    return {
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
        **{f"{way}_s": statistics.median(values) for way, values in times.items()},
        **{
            f"{way}_ratio": statistics.median(
                a / b for a, b in zip(times["openslide"], values, strict=True)
            )
            for way, values in times.items()
            if way not in ("openslide", "ours")
        },
    }


def measure(path, stride, rounds, cucim):
    """Both figures at one stride, the ways in turn."""
    places = raster(stride)
    check_equal(path, places)
    inside = {way: [] for way in ("openslide", "ours", "limit")}
    whole = {way: [] for way in ("openslide", "ours", *(["cucim"] if cucim else []))}
    peaks = dict.fromkeys(whole, 0.0)
    for _ in range(rounds):
        for way, values in inside.items():
            values.append(seconds(way, path, places))
        for way, values in whole.items():
            python = cucim if way == "cucim" else sys.executable
            elapsed, peak = process_seconds(way, path, stride, python)
            values.append(elapsed)
            peaks[way] = max(peaks[way], peak)
    return {
        "stride": stride,
        "patches": len(places),
        "equal_bit_for_bit": True,
        "targets": {"reading": TARGETS[stride][0], "whole_process": TARGETS[stride][1]},
        "reading": compare(inside),
        "whole_process": compare(whole) | {"peak_mb": peaks},
    }


def find_cucim(python):
    """The interpreter, if cuCIM can be imported there."""
    found = subprocess.run([python, "-c", "import cucim"], capture_output=True, check=False)
    return python if found.returncode == 0 else None


def only(way, path, stride):
    """Run one pass in this process and print its peak memory."""
    for _ in WAYS[way](path, raster(stride)):
        pass
    # Not getrusage: it starts from what the parent had when it forked.
    status = Path("/proc/self/status").read_text()
    peak_kib = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
    print(json.dumps({"peak_mb": int(peak_kib) * 1024 / 1e6}))


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--slide", help="an existing slide; default: a new one is written")
    parser.add_argument("--cucim-python", default=sys.executable)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help="only write the slide there")
    arguments = parser.parse_args()
    if arguments.only:
        only(arguments.only, arguments.slide, arguments.stride)
        return
    if arguments.make:
        write_slide(arguments.make)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.slide or str(Path(folder) / "slide.svs")
        if arguments.slide is None:
            # In a process of its own: the content takes more memory than all that is measured.
            command = [sys.executable, __file__, "--make", path]
            subprocess.run(command, check=True)
        cucim = find_cucim(arguments.cucim_python)
        rows = []
        for stride in TARGETS:
            rows.append(measure(path, stride, arguments.rounds, cucim))
            print(json.dumps(rows[-1]), flush=True)
    write_report(arguments, rows)


def write_report(arguments, rows):
    """The JSON that the documentation quotes."""
    import imagecodecs
    import openslide

    from tiling.files import write_json

    machine = {
        "cpu": platform.machine(),
        "python": platform.python_version(),
        "openslide": openslide.__library_version__,
        "imagecodecs": imagecodecs.__version__,
    }
    settings = {"slide_px": SIDE, "tile_px": TILE, "patch_px": PATCH}
    settings["content"] = "real H&E" if SOURCE.exists() else "made-up tissue"
    write_json(
        arguments.out,
        {
            "benchmark": "reading",
            "settings": settings,
            "rounds": arguments.rounds,
            "machine": machine,
        }
        | {"results": rows},
    )


if __name__ == "__main__":
    main()
