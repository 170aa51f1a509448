"""The container recipes: parsed and checked; built where a tool and the base image can be had."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
APPTAINER = (ROOT / "apptainer.def").read_text(encoding="utf-8")
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "RUN", "USER", "WORKDIR"}
SECRET = re.compile(r"token|passw|secret|credential|api_?key|id_rsa|\.netrc|\.env\b", re.IGNORECASE)
INSTALL = re.compile(r"python -m pip install [^&\n]*")


def join_lines(text: str) -> str:
    return re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))


def parse_dockerfile(text: str) -> list[tuple[str, str]]:
    """List instructions and their arguments."""
    lines = [line for line in join_lines(text).splitlines() if line.strip()]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def parse_definition(text: str) -> dict[str, str]:
    """Return the header and each section of an Apptainer definition."""
    header, *sections = re.split(r"^%", join_lines(text), flags=re.MULTILINE)
    parts = (section.partition("\n") for section in sections)
    return {"header": header} | {name.strip(): body for name, _, body in parts}


def lint_dockerfile(text: str) -> list[str]:
    """List what is wrong with a Dockerfile of this project."""
    found = parse_dockerfile(text)
    names = [name for name, _ in found]
    values = dict(found)
    wrong = [f"unexpected instruction {name}" for name in names if name not in INSTRUCTIONS]
    if not re.fullmatch(r"python:3\.1[123]-slim-\w+", values.get("FROM", "")):
        wrong.append("the base is not a slim Python with a version")
    installs = any(name == "RUN" and "${TORCH}" in value for name, value in found)
    if values.get("ARG") != "TORCH=cpu" or not installs:
        wrong.append("the build argument TORCH has no effect, or another default")
    if values.get("USER", "root") in ("root", "0") or names.index("USER") < max(
        number for number, name in enumerate(names) if name == "RUN"
    ):
        wrong.append("it does not run as a user without rights")
    if values.get("ENTRYPOINT") != '["wsi-pipeline"]':
        wrong.append("the entry point is not the program")
    if SECRET.search(text):
        wrong.append("it may contain a secret")
    for name, value in found:
        for source in shlex.split(value)[:-1] if name == "COPY" else ():
            if source == "." or not (ROOT / source).exists():
                wrong.append(f"{source} is not one of the project's files")
    return wrong


def lint_definition(text: str) -> list[str]:
    """List what is wrong with an Apptainer definition of this project."""
    parts = parse_definition(text)
    base = dict(line.split(": ") for line in parts["header"].split("\n") if line)
    wrong = []
    if base != {"Bootstrap": "docker", "From": dict(parse_dockerfile(DOCKERFILE))["FROM"]}:
        wrong.append("the base is not the Dockerfile's")
    if parts.get("arguments", "").strip() != "TORCH=cpu" or "{{ TORCH }}" not in parts["post"]:
        wrong.append("the build argument TORCH has no effect, or another default")
    if parts.get("runscript", "").strip() != 'exec wsi-pipeline "$@"':
        wrong.append("the run script is not the program")
    if parts.get("test", "").strip() != "wsi-pipeline doctor":
        wrong.append("the build does not test the program")
    if SECRET.search(text):
        wrong.append("it may contain a secret")
    for line in filter(str.strip, parts.get("files", "").splitlines()):
        source, target = line.split()
        if target != f"/src/{source}" or not (ROOT / source).exists():
            wrong.append(f"{source} is not one of the project's files")
    for name in ("post", "environment", "runscript", "test"):
        script = parts.get(name, "").replace("{{ TORCH }}", "cpu")
        checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
        wrong += [f"%{name}: {checked.stderr}"] if checked.returncode else []
    return wrong


def test_the_recipes_are_sound():
    assert lint_dockerfile(DOCKERFILE) == []
    assert lint_definition(APPTAINER) == []


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("USER wsi", "USER root", "user"),
        ("USER wsi\n", "", "user"),
        ("COPY docs docs", "ADD docs docs", "ADD"),
        ("COPY docs docs", "COPY . .", "project's files"),
        ("COPY docs docs", "COPY docs .netrc", "secret"),
        ("${TORCH}", "cpu", "TORCH"),
        ("3.11-slim-bookworm", "latest", "base"),
        ('["wsi-pipeline"]', '["sh"]', "entry point"),
    ],
)
def test_a_faulty_dockerfile_is_found(before, after, problem):
    assert before in DOCKERFILE
    assert any(problem in wrong for wrong in lint_dockerfile(DOCKERFILE.replace(before, after)))


@pytest.mark.parametrize(
    ("before", "after", "problem"),
    [
        ("slim-bookworm", "slim-trixie", "base"),
        ("{{ TORCH }}", "cpu", "TORCH"),
        ('wsi-pipeline "$@"', "bash", "run script"),
        ("docs /src/docs", "/root /src/root", "project's files"),
        ("rm -rf /src", "rm -rf (", "post"),
        ("wsi-pipeline doctor", "true", "test"),
    ],
)
def test_a_faulty_definition_is_found(before, after, problem):
    assert before in APPTAINER
    assert any(problem in wrong for wrong in lint_definition(APPTAINER.replace(before, after)))


def test_both_install_the_same_files_in_the_same_way():
    copied = [
        shlex.split(value)[:-1] for name, value in parse_dockerfile(DOCKERFILE) if name == "COPY"
    ]
    files = [line.split()[0] for line in parse_definition(APPTAINER)["files"].splitlines() if line]
    assert sorted(name for names in copied for name in names) == sorted(files)
    (docker,) = INSTALL.findall(join_lines(DOCKERFILE))
    (apptainer,) = INSTALL.findall(join_lines(APPTAINER))
    assert docker.strip().replace("${TORCH}", "{{ TORCH }}") == apptainer.strip()

    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(files) == sorted(line[1:] for line in allowed if line.startswith("!"))
    assert allowed[1] == "*"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_image_is_built_and_runs():
    tool = next((name for name in ("podman", "buildah") if shutil.which(name)), None)
    if tool is None:
        pytest.skip("neither podman nor buildah is installed")

    def call(*words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        # In a chroot: another runtime than the kernel's own may not start inside a container.
        env = {**os.environ, "BUILDAH_ISOLATION": "chroot"}
        return subprocess.run(
            [tool, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=check
        )

    base = f"docker.io/library/{dict(parse_dockerfile(DOCKERFILE))['FROM']}"
    if not call("images", "-q", base, check=False).stdout.strip():
        pulled = call("pull", base, check=False)
        if pulled.returncode:
            pytest.skip(f"{base} cannot be had: {pulled.stderr.strip().splitlines()[-1]}")
    image = "localhost/wsi-pipeline-test"
    built = call("build", "-t", image, ".", check=False)
    if built.returncode and "connection broken" in built.stderr + built.stdout:
        pytest.skip("no package index can be reached from inside a build")
    assert built.returncode == 0, built.stderr
    if tool == "podman":
        done = call("run", "--rm", image, "doctor")
    else:
        container = call("from", image).stdout.strip()
        done = call("run", container, "--", "wsi-pipeline", "doctor")
        call("rm", container)
    assert "ok      PyTorch" in done.stdout
