"""Cost of binding a store to every byte of its slide: reading a slide of 2 GB once.

python benchmarks/content.py

A file of random bytes is hashed from the disk (its pages dropped from the system's memory first)
and from memory, as one file and as a MIRAX slide of 64 files; then its digest is looked up as a
command does on a finished slide. The sampled fingerprint of earlier versions is timed for
comparison, and reading alone, which is the limit of a disk.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

from tiling.files import BLOCK_BYTES, write_json
from tiling.listing import content
from tiling.listing.content import digest_content, find_digest
from tiling.listing.samples import fingerprint_file

RESULT = Path(__file__).parent / "results" / "content.json"
BLOCK = 2**22
PARTS = 64


def write_random(path: Path, size: int) -> None:
    """Write a file that cannot be compressed."""
    with path.open("wb") as file:
        for _ in range(size // BLOCK):
            file.write(os.urandom(BLOCK))


def drop(paths: list[Path]) -> None:
    """Drop files from the page cache, as far as the system allows."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(path: Path) -> None:
    """Read a file and do nothing with it."""
    buffer = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def seconds(work, rounds: int, before=lambda: None) -> float:
    """Median time of some rounds."""
    times = []
    for _ in range(rounds):
        content._known.clear()
        before()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="Where the files are written; default: /tmp.")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    size = max(PARTS * BLOCK, int(arguments.gigabytes * 1e9) // (PARTS * BLOCK) * PARTS * BLOCK)
    rounds = arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        one, many, cache = folder / "one.svs", folder / "many.mrxs", folder / "one.digest"
        write_random(one, size)
        (folder / "many").mkdir()
        many.write_bytes(b"\xff\xd8")
        parts = [folder / "many" / f"Data{number:04d}.dat" for number in range(PARTS)]
        for part in parts:
            write_random(part, size // PARTS)
        time.sleep(content.RECENT_NS / 1e9)
        result = {
            "bytes": size,
            "rounds": rounds,
            "python": platform.python_version(),
            "read_from_disk_s": seconds(lambda: read(one), rounds, lambda: drop([one])),
            "digest_from_disk_s": seconds(lambda: digest_content(one), rounds, lambda: drop([one])),
            "digest_from_memory_s": seconds(lambda: digest_content(one), rounds),
            "digest_of_64_files_from_disk_s": seconds(
                lambda: digest_content(many), rounds, lambda: drop(parts)
            ),
            "sampled_fingerprint_from_disk_s": seconds(
                lambda: fingerprint_file(one), rounds, lambda: drop([one])
            ),
        }
        digest_content(one, cache=cache)
        result["lookup_s"] = seconds(lambda: find_digest(one, cache=cache), 100)
        result["lookup_of_64_files_s"] = seconds(lambda: content.look_at_files(many), 100)
    print(json.dumps(result, indent=1))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
