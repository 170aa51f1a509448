"""Download what the project needs on a GPU machine that has no network; run by `make gpu-wheels`.

The machine is expected to have PyTorch with CUDA and what usually comes with it (`PRESENT`). All
other dependencies are downloaded as wheels for its Python and x86-64 Linux; nothing is installed.

    python benchmarks/gpu/wheels.py --out .wheels
    python benchmarks/gpu/wheels.py --out .wheels --python 3.13 --present torch,numpy,scipy
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What an image with PyTorch and the usual scientific packages holds; with what these need.
PRESENT = (
    "torch", "numpy", "scipy", "numba", "llvmlite", "scikit-learn", "scikit-image", "networkx",
    "matplotlib", "fonttools", "contourpy", "kiwisolver", "cycler", "pyparsing", "pillow", "h5py",
    "python-dateutil", "joblib", "threadpoolctl", "pygments", "tzdata",
)  # fmt: skip
FOR_TESTS = ("pytest", "pytest-timeout", "hypothesis")
GLIBC_NEWEST = 28  # wheels for glibc 2.28 or older


def requirements():
    """The project's dependencies, without PyTorch, and what its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["torch"], *extras["cluster"], *extras["textures"]]
    return [*(line for line in lines if plain_name(line) != "torch"), *FOR_TESTS]


def plain_name(text):
    """The name that a requirement or a wheel's file begins with, as PyPI spells it."""
    name = text.split("-")[0] if text.endswith(".whl") else re.match(r"[A-Za-z0-9._-]+", text)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def download(folder, python):
    """Resolve and download everything for `python` (3.12) on x86-64 Linux."""
    tags = [f"manylinux_2_{n}_x86_64" for n in range(GLIBC_NEWEST, 4, -1)]
    tags += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [part for tag in tags for part in ("--platform", tag)]
    subprocess.run([*command, *requirements()], check=True)


def main():
    """Download, keep what is not there already, state the size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / ".wheels", help="folder of wheels")
    parser.add_argument("--python", default="3.12", help="Python version of the GPU machine")
    parser.add_argument(
        "--present", default=",".join(PRESENT), help="packages the GPU machine has, commas between"
    )
    asked = parser.parse_args()
    present = {plain_name(name) for name in asked.present.split(",") if name}
    asked.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder), asked.python)
        wheels = sorted(Path(folder).glob("*.whl"))
        kept = [wheel for wheel in wheels if plain_name(wheel.name) not in present]
        for old in asked.out.glob("*.whl"):
            old.unlink()
        for wheel in kept:
            shutil.copy(wheel, asked.out)
    size = sum(wheel.stat().st_size for wheel in asked.out.glob("*.whl"))
    print(f"{len(kept)} wheels, {size / 2**20:.1f} MiB in {asked.out}; the GPU machine must have:")
    print("  " + ", ".join(sorted(present)))


if __name__ == "__main__":
    main()
