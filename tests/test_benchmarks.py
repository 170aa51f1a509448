"""`make bench` runs every script without an argument; where data are absent, one is skipped."""

import ast
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run_labels(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "benchmarks/labels.py"
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_labels_are_skipped_with_a_line_where_there_are_no_annotations(tmp_path):
    """Without its argument the script ended in an IndexError, and `make bench` there."""
    done = run_labels("--annotations", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("skipped: no CAMELYON JSON in")


def test_labels_know_where_the_annotations_lie():
    done = run_labels("--help")
    assert done.returncode == 0, done.stderr
    assert "--annotations DIR" in done.stdout


@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: p.stem
)
def test_what_a_benchmark_imports_from_the_project_is_there(script):
    """`froc.py` imported a function that had been merged into another, and ended at once."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        package = node.module.split(".")[0] if isinstance(node, ast.ImportFrom) else ""
        if package in ("tiling", "wsi_pipeline"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                inner = f"{node.module}.{alias.name}" if hasattr(module, "__path__") else ""
                found = hasattr(module, alias.name) or (inner and find_spec(inner))
                assert found, f"{script.name}: {node.module} has no {alias.name}"


def run_gpu(out: Path, *arguments: str) -> tuple[int, dict, str]:
    command = [sys.executable, ROOT / "benchmarks/gpu/run.py", "--out", out, *arguments]
    command += ["--wheels", out / "none"]  # the packages that are installed here
    done = subprocess.run(
        [str(part) for part in command], cwd=out, capture_output=True, text=True, check=False
    )
    assert (out / "gpu.json").is_file(), done.stdout + done.stderr
    return done.returncode, json.loads((out / "gpu.json").read_text()), done.stdout


@pytest.mark.slow
def test_the_gpu_check_runs_on_a_cpu_in_reduced_form(tmp_path):
    code, found, printed = run_gpu(
        tmp_path, "--device", "cpu", "--quick", "--parts", "packages,dense,memory"
    )

    assert code == 0, printed
    assert [name for name, part in found["parts"].items() if part["ok"]] == [
        "install", "packages", "dense", "memory",
    ]  # fmt: skip
    memory = dict(found["parts"]["memory"]["rows"])
    asked, used = map(int, memory["batch asked for, and used"].split(", "))
    assert used <= 5 < asked
    assert (tmp_path / "gpu.md").read_text().rstrip() in printed
    assert "| memory |" in printed


@pytest.mark.slow
def test_every_part_of_the_gpu_check_runs_on_a_cpu(tmp_path):
    code, found, printed = run_gpu(tmp_path, "--device", "cpu", "--quick")

    assert code == 0, printed
    assert found["parts"]["predict"]["patches_per_s"] > 0
    assert found["parts"]["predict"]["share"] > 0


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_part_of_the_gpu_check_that_fails_does_not_stop_the_others(tmp_path):
    code, found, printed = run_gpu(tmp_path, "--parts", "packages,dense")

    assert code == 1
    for name in ("packages", "dense"):
        assert not found["parts"][name]["ok"]
        assert found["parts"][name]["reason"] == "RuntimeError: PyTorch sees no CUDA device"
        assert f"| {name} |" in printed


def test_the_gpu_check_refuses_an_unknown_part(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/gpu/run.py"), "--parts", "tarin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown parts: tarin; known: packages, predict" in done.stderr


@pytest.fixture
def wheels(monkeypatch):
    """The script `benchmarks/gpu/wheels.py` as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    return importlib.import_module("wheels")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("scikit-image>=0.26", "scikit-image"),
        ("torch>=2.6,<2.14", "torch"),
        ("scikit_image-0.26.0-cp312-cp312-manylinux_2_28_x86_64.whl", "scikit-image"),
        ("typing_extensions-4.16.0-py3-none-any.whl", "typing-extensions"),
        ("PyYAML-6.0.4-cp312-cp312-linux_x86_64.whl", "pyyaml"),
    ],
)
def test_wheels_and_requirements_are_matched_by_name(wheels, text, name):
    """Else a package that the GPU machine has is carried there, or one that it lacks is not."""
    assert wheels.plain_name(text) == name


def test_what_the_gpu_machine_has_is_not_carried_but_everything_else_is(wheels):
    names = {wheels.plain_name(line) for line in wheels.requirements()}
    assert "torch" not in names
    assert {"zarr", "openslide-bin", "pytest"} <= names - set(wheels.PRESENT)
