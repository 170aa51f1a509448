"""environment.yml and pyproject.toml agree; `--help` stays light."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_conda_and_pip_name_the_same_requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]

    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert sorted(line for line in pip if not line.startswith("-c")) == sorted(wanted)
    assert f"python{project['requires-python']}" in conda
    assert "-c constraints.txt" in pip


def test_the_constraint_is_within_what_pyproject_allows():
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()


@pytest.mark.parametrize(
    "arguments", [["--help"], ["tile", "--help"], ["froc", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; from wsi_pipeline.cli.app import main; main(sys.argv[1:]); "
        "heavy = {'torch', 'dask', 'zarr', 'numpy', 'skimage'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert result.stderr.strip() == "[]"
    assert "wsi-pipeline" in result.stdout
