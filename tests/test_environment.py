"""What is declared is what is imported; environment.yml agrees with it; `--help` stays light."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from wsi_pipeline import __version__
from wsi_pipeline.config.extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
OF_USERS = [extra.name for extra in EXTRAS]
OWN = {"tiling", "wsi_pipeline", "tests", "benchmarks"}


def plain_name(line: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", line)[0]).lower()


def imports_of(*folders: str) -> set[str]:
    """List the packages that files import, by the names under which they are installed."""
    found = set()
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    found -= OWN | set(sys.stdlib_module_names)
    distributions = packages_distributions()
    return {plain_name(distributions[name][0]) for name in found}


# Loaded by openslide-python, by fsspec, and by torch.utils.tensorboard.
WITHOUT_IMPORT = {"openslide-bin", "s3fs", "tensorboard"}


def test_every_imported_package_is_declared_and_every_declared_one_imported():
    users = [*PROJECT["dependencies"], *(line for name in OF_USERS for line in OPTIONAL[name])]
    declared = {plain_name(line) for line in users}
    assert imports_of("tiling", "wsi_pipeline") == declared - WITHOUT_IMPORT


def test_what_only_tests_import_is_in_the_extra_dev():
    needed = imports_of("tests") - imports_of("tiling", "wsi_pipeline")
    assert needed - WITHOUT_IMPORT <= {plain_name(line) for line in OPTIONAL["dev"]}


def test_extras_are_those_of_which_commands_know():
    for extra in EXTRAS:
        modules = {plain_name(name) for name in extra.modules}
        assert {plain_name(line) for line in OPTIONAL[extra.name]} == modules
    assert set(OPTIONAL) == {*OF_USERS, "all", "dev"}
    assert OPTIONAL["all"] == [f"wsi-pipeline[{','.join(sorted(OF_USERS))}]"]
    assert OPTIONAL["dev"][0] == "wsi-pipeline[all]"
    assert not {plain_name(line) for name in OF_USERS for line in OPTIONAL[name]} & {
        plain_name(line) for line in PROJECT["dependencies"]
    }


def test_conda_and_pip_name_the_same_requirements():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = [entry["pip"] for entry in conda if isinstance(entry, dict)]

    wanted = [*PROJECT["dependencies"], *(line for name in OF_USERS for line in OPTIONAL[name])]
    assert sorted(line for line in pip if not line.startswith("-c")) == sorted(wanted)
    assert f"python{PROJECT['requires-python']}" in conda
    assert "-c constraints.txt" in pip


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert PROJECT["version"] == __version__ == citation["version"]


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
