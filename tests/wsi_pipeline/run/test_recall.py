"""A stage without a config uses the settings recorded by the run."""

import json

from tests.helpers.tiny_cohort import contents
from wsi_pipeline.cli.app import main


def test_stages_alone_keep_what_the_run_recorded(copy, capsys):
    run, before = copy / "run", contents(copy / "run")
    for stage in ("train", "predict", "heatmap", "evaluate"):
        assert main([stage, str(run)]) == 0
        message = capsys.readouterr().out
        assert f"{stage}: 0 done" in message
    after = contents(run)
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_training_says_which_settings_it_recalls(copy, capsys):
    assert main(["train", str(copy / "run")]) == 0
    message = capsys.readouterr().err
    given = "patchnet.model.options.m=5, patchnet.model.options.stride=5"
    assert f"train: settings that differ from the defaults, from {copy}/run/run.json: {given}" in (
        message
    )
    assert "patchnet.max_epochs=2 (set by train)" in message
    assert "patchnet.lr=0.01, patchnet.batch_size=8" in message
    assert "optimizer" not in message  # as the recipe has it
    assert main(["train", str(copy / "run"), "--quiet"]) == 0
    assert "run.json" not in capsys.readouterr().err


def test_settings_that_nothing_came_of_are_not_recalled(copy, capsys):
    """Settings with which every unit fails do not replace the recorded ones."""
    before = (copy / "run/run.json").read_bytes()
    for words in (["predict", "--set", "batch_size=0"], ["train", "--set", "model.options.m=4"]):
        assert main([words[0], str(copy / "run"), *words[1:], "--overwrite"]) == 1
        assert (copy / "run/run.json").read_bytes() == before
    capsys.readouterr()
    assert main(["predict", str(copy / "run"), "--overwrite"]) == 0


def test_a_section_is_what_its_own_stage_last_ran_with(copy, capsys):
    run = copy / "run"
    assert main(["heatmap", str(run), "--set", "overlap=max", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), "--set", "top_k=3"]) == 0
    message = capsys.readouterr().err
    assert "bootstrap=20 (set by evaluate); heatmap.overlap=max (set by heatmap)" in message
    given = json.loads((run / "run.json").read_text())["stages"]
    assert list(given)[-1] == "evaluate"
    assert given["evaluate"]["config"]["heatmap"]["overlap"] == "max"  # as they were built
    assert given["evaluate"]["config"]["evaluate"]["bootstrap"] == 20  # as the config had it
    assert main(["heatmap", str(run)]) == 0
    message = capsys.readouterr()
    assert "4 kept" in message.out
    assert "overlap=max" in message.err


def test_what_the_command_line_sets_otherwise_is_not_listed(copy, capsys):
    run = str(copy / "run")
    assert main(["predict", run, "--set", "batch_size=3"]) == 0
    capsys.readouterr()
    assert main(["predict", run]) == 0
    assert "batch_size=3" in capsys.readouterr().err
    assert main(["predict", run, "--set", "batch_size=4"]) == 0
    assert "batch_size" not in capsys.readouterr().err
    assert main(["train", run, "--set", "seed=5"]) == 0
    capsys.readouterr()
    assert main(["train", run]) == 0
    assert "; seed=5 (set by train)" in capsys.readouterr().err


def test_one_export_does_not_affect_the_next(copy, capsys):
    for words in (["--set", "thresholds=[0.1]"], []):
        assert main(["export", str(copy / "run"), "--format", "qupath", *words]) == 0
    given = json.loads((copy / "run/run.json").read_text())["stages"]
    assert given["export"]["config"]["export"]["thresholds"] == [0.5, 0.75, 0.9]
