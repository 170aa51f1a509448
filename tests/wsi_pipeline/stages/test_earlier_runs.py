"""A run folder of an earlier version is kept, not rebuilt, by this one."""

import zipfile
from pathlib import Path

from wsi_pipeline.cli.app import main

# Four slides of 160 x 128 px taken through tile, train, predict, heatmap and evaluate by 0.1.
KNOWN_ANEW = {".json", ".digest"}  # run.json, and when a slide's bytes were last read
RUN = Path(__file__).with_name("run_of_0.1.zip")


def test_a_run_of_0_1_is_kept(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(RUN) as file:
        file.extractall(tmp_path)
    monkeypatch.chdir(tmp_path)
    files = [p for p in Path("run").rglob("*") if p.is_file() and p.suffix not in KNOWN_ANEW]
    before = {path: path.read_bytes() for path in files}
    assert main(["run", "config.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if " done" in line] == [
        "tile: 0 done, 4 kept from before",
        "train: 0 done, 1 kept from before",
        "predict: 0 done, 2 kept from before",
        "heatmap: 0 done, 2 kept from before",
        "evaluate: 0 done, 1 kept from before",
    ]
    assert not [path for path, content in before.items() if path.read_bytes() != content]
