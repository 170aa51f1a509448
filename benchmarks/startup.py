"""`wsi-pipeline --help` against `python -c "import numpy"`, whole processes in turn.

python benchmarks/startup.py
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from tiling.files import write_json

RESULT = Path(__file__).parent / "results" / "startup.json"
HELP = [str(Path(sys.executable).with_name("wsi-pipeline")), "--help"]
NUMPY = [sys.executable, "-c", "import numpy"]


def seconds(command):
    """How long a process takes."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    pairs = [(seconds(HELP), seconds(NUMPY)) for _ in range(arguments.rounds + 1)][1:]
    ratios = [a / b for a, b in pairs]
    result = {
        "benchmark": "startup",
        "rounds": arguments.rounds,
        "python": platform.python_version(),
        "help_s": statistics.median(a for a, _ in pairs),
        "numpy_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_spread": [min(ratios), max(ratios)],
    }
    print(json.dumps(result, indent=1))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
