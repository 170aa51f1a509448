"""A training of seconds on patch stores in memory, its files, and a kill at a batch."""

import csv
from pathlib import Path

import torch

from wsi_pipeline.config.settings import ModelConfig, TrainConfig
from wsi_pipeline.training import train_model

CPU = torch.device("cpu")
TINY = TrainConfig(
    model=ModelConfig("patchnet", {"m": 5, "stride": 5, "filters": 16, "depth": 3}),
    lr=1e-4,
    batch_size=4,
    steps_per_epoch=3,
    max_epochs=4,
)
PATIENTS = {"a": "p1", "b": "p2", "c": "p3"}
OUTPUTS = {"checkpoint.safetensors", "config.json", "curves.png", "draws.csv", "history.csv"}
OUTPUTS |= {"model_card.md"}


def train(fake_store, out, config=TINY, **options):
    return train_model(
        config,
        train=[fake_store("a", [0, 1] * 6), fake_store("b", [0] * 9)],
        val=[fake_store("c", [0, 1] * 4)],
        patients=PATIENTS,
        out=out,
        device=CPU,
        **{"fingerprint": "f", **options},
    )


def train_on_two_slides(fake_store, out, config, **options):
    """One slide to train on and one to validate, of patches that five poolings can take."""
    return train_model(
        config,
        train=[fake_store("a", [0, 1] * 6, patch_px=32)],
        val=[fake_store("c", [0, 1] * 4, patch_px=32)],
        patients=PATIENTS,
        out=out,
        device=CPU,
        **{"fingerprint": "f", **options},
    )


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without the column of the history that holds times."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    if "history.csv" in found:
        lines = found["history.csv"].splitlines()
        assert lines[0].endswith(b",seconds")
        found["history.csv"] = b"\n".join(line.rpartition(b",")[0] for line in lines)
    return found


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


class Killed(BaseException):
    """Like a signal: no handler of errors catches it."""


def kill_after(batches: int):
    seen = []

    def on_progress(done, total):
        seen.append(done)
        if len(seen) == batches:
            raise Killed

    return on_progress
