"""What it costs that finished slides are on the disk: the flushes of `tile`, and their time.

Each slide is tiled by the command, in this process. Counted: the flushes of files and folders, and
the time of the command over what it is without the time that it waits for them, within one run.

    python benchmarks/durability.py --folder DIR
"""

import argparse
import contextlib
import io
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

RESULT = Path(__file__).parent / "results" / "durability.json"
SIDES_PX = (1000, 2500, 8000)
SETTINGS = ("--set", "patch_px=256", "--set", "target_mpp=0.5")


def tile(slide, run):
    """Tile a slide; return the seconds."""
    from wsi_pipeline.cli.app import main

    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(["tile", str(slide), "--out", str(run), *SETTINGS])
    assert code == 0
    seconds = time.perf_counter() - start
    shutil.rmtree(run)  # of this script
    return seconds


def measure(slide, folder, rounds):
    """Tile the slide `rounds` times."""
    from wsi_pipeline.run import state

    fsync, make_durable, waits = os.fsync, state.make_durable, []

    def timed(*paths, **options):
        start = time.perf_counter()
        make_durable(*paths, **options)
        waits[-1] += time.perf_counter() - start

    waits.append(0.0)
    tile(slide, folder / "run")  # warm
    seconds, counts, ratios = [], [], []
    for _ in range(rounds):
        waits.append(0.0)
        with (
            mock.patch("os.fsync", side_effect=fsync) as flushed,
            mock.patch.object(state, "make_durable", timed),
        ):
            seconds.append(tile(slide, folder / "run"))
        counts.append(flushed.call_count)
        ratios.append(seconds[-1] / (seconds[-1] - waits[-1]))
    return {
        "flushes": statistics.median(counts),
        "seconds": statistics.median(seconds),
        "flush_seconds": statistics.median(waits[1:]),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; default: for temporary files"
    )
    parser.add_argument("--sides-px", type=int, nargs="*", default=SIDES_PX)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    import slides

    from tiling.files import write_json

    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for side in arguments.sides_px:
            slide = slides.make_slide(Path(name) / f"{side}.svs", side)
            rows.append({"side_px": side, **measure(slide, Path(name), arguments.rounds)})
            print(json.dumps(rows[-1]), flush=True)
    machine = {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    settings = {"patch_px": 256, "rounds": arguments.rounds}
    write_json(
        arguments.out,
        {"benchmark": "durability", "settings": settings, "machine": machine, "results": rows},
    )


if __name__ == "__main__":
    main()
