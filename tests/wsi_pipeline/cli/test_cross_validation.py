"""Every fold of a config is a run, and the held-out scores are pooled."""

import numpy as np
import yaml
from PIL import Image

from wsi_pipeline.cli.cross_validation import main

CONFIG = {
    "stages": ["tile", "train", "predict"],
    "images": {"classes": ["dark", "bright"], "table": "images/table.csv"},
    "train": {
        "probe": {
            "model": {"name": "vgg11_pooled", "options": {"width": 0.02}},
            "freeze": "all",
            "lr": 0.01,
            "batch_size": 4,
            "steps_per_epoch": 2,
            "max_epochs": 1,
            "monitor": "none",
            "lr_halve_after": None,
        }
    },
}


def test_each_image_is_held_out_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = ["file,class,patient"]
    (tmp_path / "images").mkdir()
    for number in range(12):
        values = np.full((32, 32, 3), 40 + 150 * (number % 2) + number, np.uint8)
        Image.fromarray(values).save(tmp_path / "images" / f"{number}.png")
        rows.append(f"{number}.png,{('dark', 'bright')[number % 2]},p{number // 2}")
    (tmp_path / "images" / "table.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    words = ["config.yaml", "--folds", "3", "--out", "run", "--set", "input=images"]
    assert main([*words, "--device", "cpu"]) == 0

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    tables = [line for line in lines if line and line[0] in ("val", "test", "probe")]
    assert [line[0] for line in tables] == ["val", "probe", "test", "probe"]
    assert [line[1] for line in tables if line[0] == "probe"] == ["12", "12"]
    assert sorted(p.name for p in tmp_path.glob("run_*")) == ["run_0", "run_1", "run_2"]


def test_a_fold_that_fails_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    words = ["config.yaml", "--folds", "2", "--out", "run", "--set", "input=nowhere"]
    assert main(words) != 0
    assert not (tmp_path / "run_1").exists()
