"""Scripts of the jobs, from templates that users can copy and edit; their submission."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, get_args

import jinja2

from tiling.files import write_text
from wsi_pipeline.config.reading import Config
from wsi_pipeline.errors import ConfigError, StageError
from wsi_pipeline.jobs.job_list import AFTER_TILE, AT_END, Job, list_jobs
from wsi_pipeline.stages.tile import list_entries
from wsi_pipeline.stages.whole_run import check_stages

Cluster = Literal["slurm", "pbs", "sge"]
CLUSTERS: tuple[Cluster, ...] = get_args(Cluster)
SUBMITS_BY = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub"}
SUBMIT = "submit.sh"
# Of each cluster: the place of a task in its array, from 0, and the range of the array.
_PLACES = {
    "slurm": ("$SLURM_ARRAY_TASK_ID", 0),
    "pbs": ("$PBS_ARRAY_INDEX", 0),
    "sge": ("$((SGE_TASK_ID - 1))", 1),
}


@dataclass(frozen=True)
class Submission:
    """What the jobs of a run are made from."""

    config_file: Path
    config: Config
    settings: tuple[str, ...] = ()  # of --set
    checkpoints: tuple[Path, ...] = ()  # for predict; empty: the run's own models


def write_scripts(
    submission: Submission, cluster: Cluster, *, out: Path, templates: Path | None = None
) -> list[Path]:
    """Write a script for each job, and one that submits all of them in order.

    Parameters
    ----------
    submission : Submission
    cluster : {"slurm", "pbs", "sge"}
    out : Path
        Folder of the scripts; the jobs' logs are written to ``logs/`` in it.
    templates : Path, optional
        Folder with templates that replace those of the same name.

    Returns
    -------
    paths : list of Path
        The scripts; the last one submits the others.

    Raises
    ------
    ConfigError
        If the config cannot be run, or a template has an error.
    """
    config = submission.config
    if config.out is None:
        raise ConfigError("no run folder; set out in the config, or use --set out=RUN")
    if submission.checkpoints and "train" in config.stages:
        raise ConfigError("--checkpoint: leave train out of the config's stages")
    for path in submission.checkpoints:  # now, not after the hours of tile
        if not path.exists():
            raise ConfigError(f"--checkpoint {path}: no such file")
    check_stages(config)
    n_slides = None if config.images is not None else len(list_entries(config))
    jobs = list_jobs(config, n_slides=n_slides)
    environment = _environment(templates)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    paths = []
    try:
        template = environment.get_template(f"{cluster}/job.sh.j2")
        for job in jobs:
            values = _values_of(job, submission, cluster)
            paths.append(_write(out / f"{job.name}.sh", template.render(values)))
        text = environment.get_template(f"{cluster}/{SUBMIT}.j2").render(jobs=jobs)
        paths.append(_write(out / SUBMIT, text))
    except jinja2.TemplateError as error:
        name, line = getattr(error, "name", None), getattr(error, "lineno", None)
        where = f" {name}, line {line}" if name else ""
        raise ConfigError(f"--template:{where} {error}") from error
    return paths


def _environment(templates: Path | None) -> jinja2.Environment:
    loaders: list[jinja2.BaseLoader] = [jinja2.PackageLoader("wsi_pipeline.jobs")]
    if templates is not None:
        if not any(templates.rglob("*.sh.j2")):
            raise ConfigError(
                f"--template {templates}: contains no template (*.sh.j2); --copy-templates DIR "
                "copies those of the program"
            )
        loaders.insert(0, jinja2.FileSystemLoader(templates))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are shell scripts: values are quoted for a shell
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    return environment


def _write(path: Path, text: str) -> Path:
    write_text(path, text)
    path.chmod(0o755)
    return path


def copy_templates(out: Path) -> list[Path]:
    """Copy the templates to a folder, to edit; existing files are kept.

    Raises
    ------
    ConfigError
        If one of them is already there.
    """
    made = []
    with as_file(files("wsi_pipeline.jobs") / "templates") as source:
        found = sorted(source.rglob("*.sh.j2"))
        there = [out / path.relative_to(source) for path in found]
        if kept := [path for path in there if path.exists()]:
            raise ConfigError(f"{kept[0]}: already exists; use another folder")
        for path, copy in zip(found, there, strict=True):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            made.append(copy)
    return made


def _values_of(job: Job, submission: Submission, cluster: Cluster) -> dict[str, Any]:
    """Return what a template can use; commands and paths are quoted for a shell."""
    settings, resources = submission.config.cluster, job.resources
    place, first = _PLACES[cluster]
    shard = f"auto/{first}-{first + job.n_tasks - 1}" if job.n_tasks > 1 else ""
    program = ["wsi-pipeline"]
    if settings.container is not None:
        program = ["apptainer", "run", *(["--nv"] if resources.gpus else [])]
        program += [word for folder in settings.binds for word in ("--bind", folder)]
        program.append(str(settings.container.absolute()))
    own_environment = not settings.setup and settings.container is None
    return {
        "job": job,
        "resources": resources,
        "cluster": settings,
        "soft_limit_s": max(1, resources.walltime_s - settings.grace_s),
        "folder": shlex.quote(str(Path.cwd())),
        "bin": shlex.quote(str(Path(sys.executable).parent)) if own_environment else "",
        "place": place,
        "failure": 100 if cluster == "sge" else 1,  # of a script; 100: Grid Engine's error state
        "models": shlex.join(job.models),
        "command": f"{shlex.join(program)} {_command(job, submission, shard)}",
        "continues": settings.failed_slides == "continue" and job.name != AT_END,
    }


def _command(job: Job, submission: Submission, shard: str) -> str:
    config = submission.config
    run, given = str(config.out), str(submission.config_file.absolute())
    options = [word for setting in submission.settings for word in ("--set", setting)]
    if job.name in (AFTER_TILE, AT_END):
        return shlex.join(["collect", run])
    if len(job.models) > 1:
        words = shlex.join(["train", run, "--config", given, *options])
        return f'{words} --model "$model"'
    options += ["--shard", shard] if shard else []
    if job.stage == "predict" and submission.checkpoints:
        files = [word for path in submission.checkpoints for word in ("--checkpoint", str(path))]
        return shlex.join(["predict", run, "--config", given, *files, *options])
    return shlex.join(["run", given, "--set", f"stages=[{job.stage}]", *options])


def submit_scripts(scripts: Sequence[Path], cluster: Cluster) -> list[str]:
    """Submit the jobs; returns a line with the number of each.

    Raises
    ------
    StageError
        If the scheduler is not on this machine, or refuses a job.
    """
    program = SUBMITS_BY[cluster]
    if shutil.which(program) is None:
        raise StageError(
            f"--submit: no program {program} on this machine; run {scripts[-1]} where it is"
        )
    done = subprocess.run(
        ["bash", str(scripts[-1])],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StageError(f"{scripts[-1]}: {done.stderr.strip() or 'failed'}")
    return done.stdout.splitlines()
