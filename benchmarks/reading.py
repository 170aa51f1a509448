"""Patches from a tiled JPEG slide, against openslide-python; one thread, equal bit for bit.

Two slides (`slides.make_slide`): real H&E mirrored to 20,000 x 20,000 px, 240 px JPEG tiles
(quality 80, 4:2:0), with grain of 3 and of 11 levels: about 0.24 and 0.36 bytes per pixel. Patches
of 512 px in raster order.

Counted in the first figures: reading patches from a slide just opened (opening included), page
cache warm. In the second: whole processes, from `python` to the last patch. Not counted: making
the slide. Rows for comparison: cuCIM (its batches of locations, one worker, its own cache) and
tiffslide (arrays, not images), where they are installed (``--peer-python`` may name another
interpreter that has them), and the limit: each needed tile decoded once, nothing assembled.

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
GRAINS = {"sparse": 3, "dense": 11}  # by slide: levels of noise
RESULT = Path(__file__).parent / "results" / "reading.json"


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
    """The cuCIM library on the CPU, a batch of places in each call, its own cache on."""
    import numpy as np
    from cucim import CuImage

    CuImage.cache("per_process", memory_capacity=512)
    slide = CuImage(str(path))
    for patch in slide.read_region(places, (PATCH, PATCH), 0, num_workers=1, batch_size=1):
        yield np.asarray(patch)


def read_tiffslide(path, places):
    """The tiffslide library."""
    from tiffslide import TiffSlide

    with TiffSlide(path) as slide:
        for place in places:
            yield slide.read_region(place, 0, (PATCH, PATCH), as_array=True)


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


PEERS = {"cucim": read_cucim, "tiffslide": read_tiffslide}
WAYS = {"openslide": read_openslide, "ours": read_ours, "limit": decode_only, **PEERS}


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


def measure(path, stride, rounds, peers):
    """Both figures at one stride, the ways in turn."""
    places = raster(stride)
    check_equal(path, places)
    inside = {way: [] for way in ("openslide", "ours", "limit")}
    whole = {way: [] for way in ("openslide", "ours", *peers)}
    peaks = dict.fromkeys(whole, 0.0)
    for _ in range(rounds):
        for way, values in inside.items():
            values.append(seconds(way, path, places))
        for way, values in whole.items():
            elapsed, peak = process_seconds(way, path, stride, peers.get(way, sys.executable))
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


def find_peers(python):
    """The interpreter, for each peer that can be imported there."""
    found = {}
    for peer in PEERS:
        tried = subprocess.run([python, "-c", f"import {peer}"], capture_output=True, check=False)
        if tried.returncode == 0:
            found[peer] = python
        else:
            print(f"{peer} is not installed: not compared", file=sys.stderr)
    return found


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
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--slide", help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--grain", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        only(arguments.only, arguments.slide, arguments.stride)
        return
    if arguments.make:
        import slides

        slides.make_slide(arguments.make, SIDE, grain=arguments.grain)
        return
    peers = find_peers(arguments.peer_python)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, grain in GRAINS.items():
            path = str(Path(folder) / f"{name}.svs")
            # In a process of its own: making it takes more memory than all that is measured.
            make = [sys.executable, __file__, "--make", path, "--grain", str(grain)]
            subprocess.run(make, check=True)
            for stride in TARGETS:
                row = measure(path, stride, arguments.rounds, peers)
                rows.append(
                    {"slide": name, "bytes_per_px": Path(path).stat().st_size / SIDE**2} | row
                )
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
    settings["grain"] = GRAINS
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
