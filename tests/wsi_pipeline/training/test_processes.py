"""Several processes train as one does with the same batches; here on the CPU, over gloo."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from tests.helpers.tiny_cohort import draw_cohort, write_config
from wsi_pipeline.cli.app import main
from wsi_pipeline.errors import TrainingError
from wsi_pipeline.training import processes


@pytest.fixture(scope="module")
def tiled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    draw_cohort(folder / "data")
    config = write_config(folder, folder / "data", folder / "run")
    assert main(["run", str(config), "--quiet", "--set", "stages=[tile]"]) == 0
    return folder


def train(folder: Path, *settings: str) -> int:
    given = [part for setting in settings for part in ("--set", setting)]
    return main(["train", str(folder / "run"), "--config", str(folder / "config.yaml"), "--quiet",
                 "--overwrite", *given])  # fmt: skip


def results(folder: Path):
    model = folder / "run/models/patchnet"
    history = list(csv.DictReader((model / "history.csv").read_text().splitlines()))
    for row in history:  # how long an epoch took is no result
        row.pop("seconds")
    weights = safetensors.torch.load((model / "checkpoint.safetensors").read_bytes())
    return history, weights, (model / "draws.csv").read_bytes()


@pytest.mark.parametrize(
    ("size", "sampling"),
    [
        (8, "balanced"),
        pytest.param(5, "balanced", marks=pytest.mark.slow),
        # The last batch of a pass may hold fewer patches than there are processes.
        pytest.param(53, "shuffle", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_loss_curve_and_weights_of_one(tiled, size, sampling):
    how = (f"train.patchnet.batch_size={size}", f"train.patchnet.sampling={sampling}")
    assert train(tiled, *how) == 0
    alone, alone_weights, alone_draws = results(tiled)

    assert train(tiled, *how, "train.patchnet.processes=2") == 0

    history, weights, draws = results(tiled)
    assert draws == alone_draws
    for ours, theirs in zip(history, alone, strict=True):
        for name in ("train_loss", "val_loss", "val_roc_auc", "lr"):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4), name
    for name, tensor in weights.items():
        np.testing.assert_allclose(
            tensor.numpy(), alone_weights[name].numpy(), rtol=1e-3, atol=5e-4, err_msg=name
        )


@pytest.mark.slow
def test_more_processes_than_patches_of_a_batch_do_no_harm(tiled):
    size = "train.patchnet.batch_size=1"
    assert train(tiled, size) == 0
    alone, _, _ = results(tiled)
    assert train(tiled, size, "train.patchnet.processes=2") == 0

    assert float(results(tiled)[0][-1]["train_loss"]) == pytest.approx(
        float(alone[-1]["train_loss"]), rel=1e-3
    )


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_reported_here(tiled, capsys):
    settings = ("train.patchnet.processes=2", "train.patchnet.model.options.depth=0")

    assert train(tiled, *settings) == 1

    failures = (tiled / "run/failures.csv").read_text()
    assert "PatchNet needs at least one filter, one layer" in failures


def die_or_wait(tell) -> str:
    """Second process: dies; first one: waits for it."""
    if processes.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.wait_for_all()
    return "not reached"


def tell_who_is_there(folder: Path, tell) -> str:
    processes.wait_for_all()
    (folder / str(processes.rank())).write_text(str(os.getpid()))
    time.sleep(120)
    return "not reached"


@pytest.mark.slow
def test_a_process_that_dies_in_the_middle_is_named_as_dead(monkeypatch):
    """Not by what the others noticed of it: a connection closed by its peer."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
    with pytest.raises(TrainingError, match=r"was killed \(signal 9\).*memory"):
        processes.in_processes(die_or_wait, processes=2, device="cpu", on_progress=print)


START = """
import sys
from pathlib import Path
from tests.wsi_pipeline.training.test_processes import tell_who_is_there
from wsi_pipeline.training.processes import in_processes

if __name__ == "__main__":
    in_processes(tell_who_is_there, Path(sys.argv[1]), processes=2, device="cpu", on_progress=print)
"""


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str)
def test_processes_end_when_the_one_that_started_them_ends(tmp_path, how):
    (tmp_path / "start.py").write_text(START)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "start.py"), str(tmp_path)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    until = time.monotonic() + 120
    while len(recorded := [tmp_path / name for name in "01" if (tmp_path / name).exists()]) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(0.2)
    pids = [int(path.read_text()) for path in recorded]
    if how == signal.SIGINT:  # Ctrl-C reaches the whole group
        os.killpg(parent.pid, how)
    else:
        parent.send_signal(how)
    _, message = parent.communicate(timeout=60)
    until = time.monotonic() + 20
    while any(is_there(pid) for pid in pids):
        assert time.monotonic() < until, "processes were left behind"
        time.sleep(0.1)
    if how == signal.SIGINT:
        assert message.count(b"Traceback") == 1  # the parent's alone


@pytest.mark.slow
def test_two_processes_killed_and_resumed_give_what_undisturbed_ones_do(tiled):
    epochs = ("train.patchnet.max_epochs=4", "train.patchnet.processes=2")
    assert train(tiled, *epochs) == 0
    history, weights, draws = results(tiled)
    model = tiled / "run/models/patchnet"
    (model / "checkpoint.safetensors").unlink()

    settings = [part for setting in epochs for part in ("--set", setting)]
    call = "import sys; from wsi_pipeline.cli.app import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", call, "train", str(tiled / "run"), "--config",
               str(tiled / "config.yaml"), *settings]  # fmt: skip
    killed = subprocess.Popen(command)
    until = time.monotonic() + 120
    while not (model / "resume.safetensors").exists():
        assert time.monotonic() < until
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    killed.wait()
    assert not (model / "checkpoint.safetensors").exists()
    time.sleep(1)  # the others notice
    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "resumed after" in done.stdout + done.stderr
    again, again_weights, again_draws = results(tiled)
    assert again_draws == draws
    for ours, theirs in zip(again, history, strict=True):
        assert float(ours["train_loss"]) == pytest.approx(float(theirs["train_loss"]), rel=1e-5)
    for name, tensor in again_weights.items():
        np.testing.assert_allclose(tensor.numpy(), weights[name].numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_workers_of_dask_may_train_in_several_processes(tiled):
    """They are daemons, which multiprocessing forbids to have children."""
    assert train(tiled, "train.patchnet.max_epochs=1", "train.patchnet.processes=2") == 0
    alone, _, _ = results(tiled)
    given = ["--dask", "local", "--set", "train.patchnet.max_epochs=1"]
    given += ["--set", "train.patchnet.processes=2"]
    assert main(["train", str(tiled / "run"), "--config", str(tiled / "config.yaml"), "--quiet",
                 "--overwrite", *given]) == 0  # fmt: skip
    assert results(tiled)[0] == alone


def test_the_shares_of_a_batch_are_disjoint_and_cover_it(monkeypatch):
    for count in (1, 2, 3, 7):
        monkeypatch.setattr(processes, "n_processes", lambda count=count: count)
        for n in (0, 1, 5, 32):
            rows: list[int] = []
            for number in range(count):
                monkeypatch.setattr(processes, "rank", lambda number=number: number)
                rows += range(n)[processes.own_share(n)]
            assert rows == list(range(n))
