"""Job scripts: run as a scheduler would, with programs that record how they were called."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.helpers.tiny_cohort import draw_cohort, write_config
from wsi_pipeline.cli.app import main

ODD = 'it\'s $HOME, "a" folder'
RECORD = '#!/bin/bash\nprintf "%q " "$0" "$@" >> "$RECORD"; echo >> "$RECORD"\n'
CLUSTERS = ("slurm", "pbs", "sge")
VARIABLES = {
    "slurm": {"SLURM_ARRAY_TASK_ID": "1", "SLURM_JOB_ID": "77"},
    "pbs": {"PBS_ARRAY_INDEX": "1"},
    "sge": {"SGE_TASK_ID": "2"},
}
MORE = """
export: {formats: [wsinfer]}
cluster: {tasks: 3, setup: ["source 'an environment'"], account: lab, gpu_queue: fast}
"""
TWO_MODELS = "\n  second: {model: {name: patchnet}}\npredict:"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("submit") / ODD
    folder.mkdir()
    draw_cohort(folder / "data")
    return folder


@pytest.fixture
def folder(cohort, tmp_path, monkeypatch) -> Path:
    """A folder with a config of two models, in which the commands run, and stub programs."""
    here = tmp_path / ODD
    here.mkdir()
    path = write_config(here, Path("data"), Path("run"))
    text = path.read_text().replace("\npredict:", TWO_MODELS)
    path.write_text(text + MORE)
    (here / "data").symlink_to(cohort / "data")
    monkeypatch.chdir(here)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, then in (
        ("wsi-pipeline", "exit ${CODE:-0}"),
        ("scontrol", "exit 0"),
        ("sbatch", 'n=$(grep -c sbatch "$RECORD"); echo "$n;cluster"'),
        ("qsub", 'n=$(grep -c qsub "$RECORD"); echo "$n${SUFFIX:-}"'),
    ):
        (programs / name).write_text(RECORD + then + "\n")
        (programs / name).chmod(0o755)
    (here / "an environment").write_text(f"PATH={shlex.quote(str(programs))}:$PATH\n")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return here


def submit(cluster: str, *more: str) -> int:
    return main(["submit", "config.yaml", "--cluster", cluster, *more])


def recorded() -> list[list[str]]:
    """Return how the programs were called since the last time."""
    path = Path(os.environ["RECORD"])
    lines = path.read_text().splitlines() if path.is_file() else []
    path.unlink(missing_ok=True)
    words = []
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", f'printf "%s\\0" {line}'], capture_output=True, text=True, check=True
        )
        words.append(done.stdout.split("\0")[:-1])
    return [[Path(name).name, *rest] for name, *rest in words]


def run_script(cluster: str, name: str, code: int = 0) -> int:
    """Run a job's script as task 1 of its array, elsewhere."""
    environment = os.environ | VARIABLES[cluster] | {"CODE": str(code)}
    script = Path("run/jobs") / f"{name}.sh"
    return subprocess.run(["bash", script.absolute()], env=environment, cwd="/").returncode


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_scripts_are_shell_and_call_the_stages(folder, cluster, capsys):
    assert submit(cluster, "--set", "predict.splits=[val, test]") == 0
    scripts = sorted(Path("run/jobs").glob("*.sh"))
    for script in scripts:
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "nothing submitted; submit all with: bash run/jobs/submit.sh"
    config, given = str(folder / "config.yaml"), ["--set", "predict.splits=[val, test]"]
    shard = ["--shard", "auto/1-3" if cluster == "sge" else "auto/0-2"]
    train = ["train", "run", "--config", config, *given, "--model", "second"]
    expected = {"collect": ["collect", "run"], "train": train}
    for stage in ("tile", "predict", "heatmap", "evaluate", "export", "report"):
        parts = shard if stage in ("tile", "predict", "heatmap", "export") else []
        expected[stage] = ["run", config, "--set", f"stages=[{stage}]", *given, *parts]
    assert {script.stem for script in scripts} == {*expected, "collect_tile", "submit"}
    for name, words in expected.items():
        assert run_script(cluster, name) == 0
        assert recorded() == [["wsi-pipeline", *words]]


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_exit_codes(folder, cluster):
    """3: some slides failed, which does not stop the others; anything else stops them."""
    assert submit(cluster) == 0
    bad = 100 if cluster == "sge" else 1  # Grid Engine starts dependent jobs otherwise
    assert [run_script(cluster, "predict", code) for code in (0, 3, 1)] == [0, 0, bad]
    assert [run_script(cluster, "collect", code) for code in (0, 3, 1)] == [0, 3, bad]
    assert submit(cluster, "--set", "cluster.failed_slides=stop") == 0
    assert run_script(cluster, "predict", 3) == (100 if cluster == "sge" else 3)


def test_a_setup_line_that_fails_ends_the_job(folder):
    (folder / "an environment").unlink()
    for cluster, code in (("slurm", 1), ("sge", 100)):
        assert submit(cluster) == 0
        assert run_script(cluster, "tile") == code
    assert recorded() == []


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_the_jobs_are_submitted_in_order_with_their_dependencies(
    folder, cluster, capsys, monkeypatch
):
    monkeypatch.setenv("SUFFIX", ".1-3:1" if cluster == "sge" else "[].server")
    assert submit(cluster, "--submit") == 0
    names = ["tile", "collect_tile", "train", "predict", "heatmap", "evaluate", "export"]
    names += ["report", "collect"]
    suffix = "[].server" if cluster == "pbs" else ""
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"{name} {n}{suffix}" for n, name in enumerate(names, 1)]
    called = recorded()
    assert [words[-1] for words in called] == [f"{name}.sh" for name in names]
    options = {words[-1].removesuffix(".sh"): words[1:-1] for words in called}
    if cluster == "slurm":
        always = ["--parsable", "--kill-on-invalid-dep=yes"]
        assert options["tile"] == always
        assert options["train"] == [*always, "--dependency=afterok:2"]
        assert options["heatmap"] == [*always, "--dependency=aftercorr:4"]
        assert options["evaluate"] == [*always, "--dependency=afterok:4,afterany:5"]
    elif cluster == "pbs":
        assert options["tile"] == []
        assert options["heatmap"] == ["-W", "depend=afterok:4[].server"]
        one, two = "afterok:4[].server", "afterany:5[].server"
        assert options["evaluate"] == ["-W", f"depend={one},{two}"]
    else:
        assert options["tile"] == ["-terse"]
        assert options["heatmap"] == ["-terse", "-hold_jid_ad", "4"]
        assert options["evaluate"] == ["-terse", "-hold_jid", "4,5"]


def directives(name: str, mark: str) -> list[str]:
    lines = Path(f"run/jobs/{name}.sh").read_text().splitlines()
    return [line.removeprefix(mark).strip() for line in lines if line.startswith(mark)]


def test_directives(folder):
    settings = ["--set", "cluster.stages.predict={gpu_type: a100, at_once: 2, options: [-x y]}"]
    for cluster, mark, expected in (
        ("slurm", "#SBATCH", ["--array=0-2%2", "--cpus-per-task=8", "--mem=32768M",
                              "--time=08:00:00", "--partition=fast", "--account=lab",
                              "--gres=gpu:a100:1", "--signal=B:USR1@60", "-x y"]),
        ("pbs", "#PBS", ["-J 0-2%2", "-l select=1:ncpus=8:mem=32768mb:ngpus=1",
                         "-l walltime=08:00:00", "-q fast", "-A lab", "-x y"]),
        ("sge", "#$", ["-t 1-3", "-tc 2", "-pe smp 8", "-l h_vmem=4096M",
                       "-l h_rt=28800,s_rt=28740", "-q fast", "-P lab", "-l gpu=1", "-x y"]),
    ):  # fmt: skip
        assert submit(cluster, *settings) == 0
        found = directives("predict", mark)
        assert [line for line in expected if line not in found] == [], found
        assert not any("array" in line or "-J" in line for line in directives("report", mark))


def test_a_container_is_run_with_the_gpu_and_the_folders(folder):
    settings = ("cluster.container=an image.sif", "cluster.binds=[/data, /more data]")
    assert submit("slurm", *(word for one in settings for word in ("--set", one))) == 0
    image = str(folder / "an image.sif")
    for stage, nv in (("predict", ["--nv"]), ("tile", [])):
        [line] = [
            line
            for line in Path(f"run/jobs/{stage}.sh").read_text().splitlines()
            if line.startswith("apptainer")
        ]
        words = ["apptainer", "run", *nv, "--bind", "/data", "--bind", "/more data", image, "run"]
        assert shlex.split(line)[: len(words)] == words


def test_a_checkpoint_is_what_predict_is_given(folder, capsys):
    assert submit("slurm", "--checkpoint", "a model.safetensors") == 1
    assert "leave train out" in capsys.readouterr().err
    stages = ["--set", "stages=[tile, predict]"]
    assert submit("slurm", "--checkpoint", "a model.safetensors", *stages) == 1
    assert "a model.safetensors: no such file" in capsys.readouterr().err
    Path("a model.safetensors").touch()
    assert submit("slurm", "--checkpoint", "a model.safetensors", *stages) == 0
    assert run_script("slurm", "predict") == 0
    config = str(folder / "config.yaml")
    checkpoint = ["--checkpoint", "a model.safetensors"]
    words = ["predict", "run", "--config", config, *checkpoint, *stages, "--shard", "auto/0-2"]
    assert recorded() == [["wsi-pipeline", *words]]


@pytest.mark.parametrize("code", [130, 143], ids=["handled", "not-handled-yet"])
@pytest.mark.parametrize(
    ("cluster", "sent", "requeued"),
    [("slurm", signal.SIGTERM, False), ("slurm", signal.SIGUSR1, True), ("pbs", 15, False)],
)
def test_a_signal_reaches_the_command(folder, tmp_path, cluster, sent, requeued, code):
    """Slurm sends SIGUSR1 to the script before the time limit, SIGTERM when it is cancelled."""
    program, ready = tmp_path / "bin/wsi-pipeline", tmp_path / "ready"
    ready_at = f"touch {shlex.quote(str(ready))}"
    program.write_text(f"#!/bin/bash\ntrap 'exit {code}' TERM\n{ready_at}\nsleep 20 & wait\n")
    assert submit(cluster) == 0
    environment = os.environ | VARIABLES[cluster]
    script = Path("run/jobs/tile.sh").absolute()
    with subprocess.Popen(["bash", script], env=environment) as process:
        while not ready.exists():
            time.sleep(0.02)
        process.send_signal(sent)
        assert process.wait(timeout=10) == code
    expected = [["scontrol", "requeue", "77"]] if requeued else []
    assert recorded() == expected


def test_templates_can_be_edited(folder, tmp_path, capsys):
    own = tmp_path / "own templates"
    assert submit("slurm", "--copy-templates", str(own)) == 0
    assert submit("slurm", "--copy-templates", str(own)) == 1
    assert "already exists" in capsys.readouterr().err
    template = own / "slurm/job.sh.j2"
    template.write_text(template.read_text().replace("--requeue", "--no-requeue"))
    (own / "job.sh.j2").unlink()  # taken from the program
    assert submit("slurm", "--template", str(own)) == 0
    assert "--no-requeue" in directives("tile", "#SBATCH")
    template.write_text("{{ no_such_value }}")
    assert submit("slurm", "--template", str(own)) == 1
    assert "--template: 'no_such_value' is undefined" in capsys.readouterr().err
    assert submit("slurm", "--template", str(tmp_path / "bin")) == 1
    assert "--copy-templates DIR" in capsys.readouterr().err


def test_what_cannot_be_submitted_is_refused(folder, capsys, monkeypatch):
    assert submit("slurm", "--set", "evaluate.split=train") == 1
    assert "predict.splits" in capsys.readouterr().err
    assert submit("slurm", "--set", "input=nowhere") == 1
    assert submit("slurm", "--set", "out=null") == 1
    assert "no run folder" in capsys.readouterr().err
    (Path(os.environ["PATH"].split(":")[0]) / "qsub").write_text("#!/bin/bash\necho no >&2; exit 1")
    assert submit("pbs", "--submit") == 1
    assert "no\nnot all jobs were submitted" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert submit("sge", "--submit") == 1
    assert "no program qsub on this machine" in capsys.readouterr().err
