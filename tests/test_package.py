"""The sdist and the wheel: built, installed into a clean environment, and used from there.

Needs no network: the packages that the wheel depends on are those of the running Python.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("tiling", "wsi_pipeline", "docs")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
HOOK = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command: object, cwd: Path) -> str:
    """Run a command without this project's folder in its environment; returns its stdout."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The sdist, and a wheel that is built from it, as by ``python -m build``."""
    folder = tmp_path_factory.mktemp("built")
    tree, out = folder / "tree", folder / "dist"
    ignored = shutil.ignore_patterns("__pycache__", "_build", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, tree)
    out.mkdir()
    run(sys.executable, "-c", HOOK.format("sdist"), out, cwd=tree)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", HOOK.format("wheel"), out, cwd=unpacked)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The folder of the programs of an environment with the wheel and nothing else of its own."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(folder, with_pip=False)
    (wheel,) = built.glob("*.whl")
    (own,) = folder.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin/python")
    run(*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", wheel, cwd=built)
    # Paths are added behind its own, and no .pth file there is read, so the wheel is what is used.
    (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_sdist_has_the_sources_of_everything(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    docs = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert docs | set(FILES) <= names
    assert not {name for name in names if "__pycache__" in name or "_build" in name}


def test_the_wheel_is_what_is_imported(installed, tmp_path):
    code = "import tiling, wsi_pipeline; print(tiling.__file__, wsi_pipeline.__file__)"
    paths = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert all(Path(path).is_relative_to(installed.parent) for path in paths)


def test_every_file_of_the_packages_is_in_the_wheel(installed):
    (site,) = installed.parent.glob("lib/python*/site-packages")
    for package in ("tiling", "wsi_pipeline"):
        wanted = {p.relative_to(ROOT) for p in (ROOT / package).rglob("*") if p.is_file()}
        wanted = {p for p in wanted if "__pycache__" not in p.parts}
        assert not {p for p in wanted if not (site / p).is_file()}


def test_commands(installed, tmp_path):
    program = installed / "wsi-pipeline"
    assert "demo" in run(program, "--help", cwd=tmp_path)
    run(program, "doctor", cwd=tmp_path)
    pages = Path(run(program, "docs", "--path", cwd=tmp_path).strip())
    assert pages.is_relative_to(installed.parent)
    assert (pages / "tile.md").read_bytes() == (ROOT / "docs/tile.md").read_bytes()
    pictures = {path.name for path in (ROOT / "docs/images").iterdir()}
    assert {path.name for path in (pages / "images").iterdir()} == pictures
    assert (pages / "tutorials/slides.md").is_file()


def test_the_quick_demo_ends_with_its_report(installed, tmp_path):
    printed = run(installed / "wsi-pipeline", "demo", "--quick", cwd=tmp_path).splitlines()
    assert printed[-1] == "demo/report.html"
    assert "mean nothing" in printed[0]
    assert (tmp_path / printed[-1]).is_file()
