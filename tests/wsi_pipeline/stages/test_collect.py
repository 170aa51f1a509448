"""What `collect` reports: files, not marks; slides that were asked for, and no others."""

import shutil

import pytest

from wsi_pipeline.cli.app import main


def collect(run, capsys) -> tuple[int, list[str]]:
    capsys.readouterr()
    code = main(["collect", str(run)])
    return code, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("purged", "line"),
    [
        ("tiles/s4.zarr", "tile: 5 of 6 slides done, 1 missing (s4)"),
        ("tiles/s4.zarr/patches", "tile: 5 of 6 slides done, 1 damaged (s4)"),
        ("scores/patchnet/s4.h5", "predict patchnet: 3 of 4 slides done, 1 missing (s4)"),
        ("scores", "predict patchnet: 0 of 4 slides done, 4 missing (s2, s3, s4, s5)"),
        ("heatmaps", "heatmap patchnet: 0 of 4 slides done, 4 missing (s2, s3, s4, s5)"),
        ("models/patchnet/checkpoint.safetensors", "train patchnet: missing"),
        ("evaluation/patchnet/patches.csv", "evaluate patchnet: missing"),
        ("evaluation", "evaluate patchnet: missing"),
        ("report.html", "report: missing"),
    ],
)
def test_after_a_purge_what_is_gone_is_missing(copy, capsys, purged, line):
    """A mark was taken for the file: all was done, and the stages found nothing."""
    path = copy / "run" / purged
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    code, printed = collect(copy / "run", capsys)
    assert code == 3
    assert line in printed
    first = purged if path.suffix else ""
    assert any(first in further for further in printed)


def test_a_whole_run_misses_nothing(finished, capsys):
    code, printed = collect(finished / "run", capsys)
    assert code == 0
    assert "tile: 6 of 6 slides done" in printed
    assert "predict patchnet: 4 of 4 slides done" in printed
    assert not any("missing" in line or "damaged" in line for line in printed)


def test_a_damaged_mark_is_named_once(copy, capsys, caplog):
    """It was read, and named, three times."""
    (copy / "run/.state/heatmap/patchnet/s4.done.json").write_text("{")
    code, printed = collect(copy / "run", capsys)
    assert code == 3
    assert "heatmap patchnet: 3 of 4 slides done, 1 missing (s4)" in printed
    [record] = [r for r in caplog.records if "damaged mark" in r.message]
    assert "s4.done.json" in record.message


def test_slides_that_an_export_was_not_asked_for_are_not_missing(copy, capsys):
    """One export's splits do not apply to another format."""
    run = copy / "run"
    for name, splits in (("qupath", "[test]"), ("clam", "null"), ("wsinfer", "[val]")):
        code = main(["export", str(run), "--format", name, "--set", f"export.splits={splits}"])
        assert code == 0
    code, printed = collect(run, capsys)
    assert code == 0
    assert {
        "export qupath patchnet: 2 of 2 slides done",
        "export clam patchnet: 4 of 4 slides done",
        "export wsinfer patchnet: 2 of 2 slides done",
    } <= set(printed)
    (run / "exports/qupath/patchnet/s5.geojson").unlink()
    code, printed = collect(run, capsys)
    assert code == 3
    assert "export qupath patchnet: 1 of 2 slides done, 1 missing (s5)" in printed


def test_slides_that_one_checkpoint_was_not_asked_for_are_not_missing(copy, capsys):
    """Each model's predictions have the splits that were asked for last."""
    run = copy / "run"
    shutil.copy(run / "models/patchnet/checkpoint.safetensors", copy / "other.safetensors")
    checkpoint = ["--checkpoint", str(copy / "other.safetensors")]
    assert main(["predict", str(run), *checkpoint, "--set", "predict.splits=[test]"]) == 0
    code, printed = collect(run, capsys)
    assert code == 0
    assert "predict other: 2 of 2 slides done" in printed
    assert "predict patchnet: 4 of 4 slides done" in printed


def test_runs_of_earlier_versions_take_the_splits_of_run_json(copy, capsys):
    for path in (copy / "run/.state").rglob("asked.json"):
        path.unlink()
    code, printed = collect(copy / "run", capsys)
    assert code == 0
    assert "predict patchnet: 4 of 4 slides done" in printed
