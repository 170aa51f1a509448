"""From a slide file to a finished store, against a plain script of OpenSlide and Zarr.

The plain script is given the coordinates that `tile` found (finding tissue, labels, picture and
table cost it nothing) and writes the same pixel array: read_region and convert("RGB") patch by
patch, zarr-python shard by shard. Each side runs in a process of its own. Counted: everything after
the imports; `process` counts these too. The bytes of both arrays are compared.

    python benchmarks/tile_stage.py
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

RESULT = Path(__file__).parent / "results" / "tile_stage.json"
PATCH = 512


def peak_rss_mib():
    """Peak memory of this process; not ru_maxrss, of which a child inherits its parent's."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def run_ours(slide, out, stride, threads):
    """`tile_slide`, whole."""
    from tiling.build import tile_slide
    from tiling.contracts import TileConfig

    start = time.perf_counter()
    tile_slide(
        slide,
        out,
        slide_id="bench",
        config=TileConfig(patch_px=PATCH, stride_px=stride),
        qc_path=out.with_suffix(".png"),
        threads=threads,
    )
    return time.perf_counter() - start


def run_plain(slide, out, coords):
    """A plain script of OpenSlide and zarr-python."""
    import numpy as np
    import openslide
    import zarr

    start = time.perf_counter()
    xy = np.load(coords)
    length = max(1, min(len(xy), 48 * 2**20 // (3 * PATCH**2)))
    array = zarr.create_array(
        out,
        shape=(len(xy), PATCH, PATCH, 3),
        dtype="uint8",
        chunks=(1, PATCH, PATCH, 3),
        shards=(length, PATCH, PATCH, 3),
        compressors=None,
        config={"write_empty_chunks": True},
    )
    with openslide.OpenSlide(slide) as reader:
        for first in range(0, len(xy), length):
            block = [
                np.asarray(reader.read_region((int(x), int(y)), 0, (PATCH, PATCH)).convert("RGB"))
                for x, y in xy[first : first + length]
            ]
            array[first : first + length] = np.stack(block)
    return time.perf_counter() - start


def one_side(arguments):
    """Run one side in the child process and print its measurements."""
    threads = len(os.sched_getaffinity(0)) if arguments.threads is None else arguments.threads
    if arguments.side == "ours":
        seconds = run_ours(arguments.slide, arguments.out, arguments.stride, threads)
    else:
        seconds = run_plain(arguments.slide, arguments.out, arguments.coords)
    peak = peak_rss_mib()
    cpu = time.process_time()
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "cpu_s": cpu}))


def call(side, slide, out, stride, *more):
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--slide", slide, "--out", out]
    start = time.perf_counter()
    done = subprocess.run(
        [str(part) for part in (*command, "--stride", stride, *more)],
        check=True,
        capture_output=True,
        text=True,
    )
    return {**json.loads(done.stdout), "process_s": time.perf_counter() - start}


def check_equal(ours, plain):
    """Every shard of both arrays holds the same bytes."""
    names = sorted(path.relative_to(plain) for path in plain.rglob("c/*/0/0/0"))
    assert names == sorted(path.relative_to(ours) for path in ours.rglob("c/*/0/0/0"))
    for name in names:
        assert (ours / name).read_bytes() == (plain / name).read_bytes(), name


def remove(path):
    """Remove what this script wrote."""
    for file in sorted(path.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    path.rmdir()


def measure(slide, folder, stride, rounds):
    """Both sides in turn, `rounds` times."""
    import numpy as np
    import zarr

    ours, plain, coords = folder / "ours.zarr", folder / "plain.zarr", folder / "coords.npy"
    call("ours", slide, ours, stride)  # warm
    np.save(coords, zarr.open_group(ours, mode="r")["coords"][...])
    remove(ours)
    runs = []
    for number in range(rounds):
        a = call("ours", slide, ours, stride)
        b = call("plain", slide, plain, stride, "--coords", coords)
        if number == 0:
            check_equal(ours / "patches", plain)
        runs.append((a, b))
        remove(ours), remove(plain)
        print(json.dumps(runs[-1]), flush=True)
    n_patches = len(np.load(coords))
    row = {"stride": stride, "patches": n_patches}
    for key in ("seconds", "process_s"):
        ratios = [b[key] / a[key] for a, b in runs]
        row[f"ratio_{key}"] = statistics.median(ratios)
        row[f"ratio_{key}_spread"] = [min(ratios), max(ratios)]
    row["ours_patches_per_s"] = n_patches / statistics.median(a["seconds"] for a, _ in runs)
    row["plain_patches_per_s"] = n_patches / statistics.median(b["seconds"] for _, b in runs)
    row["ours_peak_mib"] = max(a["peak_mib"] for a, _ in runs)
    row["plain_peak_mib"] = max(b["peak_mib"] for _, b in runs)
    return row


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--coords", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--stride", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--side-px", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if arguments.side:
        one_side(arguments)
        return
    import slides

    from tiling.files import write_json

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slide = arguments.slide or slides.make_slide(folder / "bench.svs", arguments.side_px)
        for stride in [arguments.stride] if arguments.stride else [256, 512]:
            rows.append(measure(slide, folder, stride, arguments.rounds))
            print(json.dumps(rows[-1], indent=1), flush=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    settings = {"side_px": arguments.side_px, "patch_px": PATCH, "rounds": arguments.rounds}
    write_json(
        arguments.out,
        {"benchmark": "tile_stage", "settings": settings, "machine": machine, "results": rows},
    )


if __name__ == "__main__":
    main()
