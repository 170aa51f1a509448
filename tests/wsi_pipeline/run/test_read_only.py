"""A read-only run folder: commands with nothing to do work, others give one error."""

import pytest

from tests.helpers.disks import read_only
from tests.helpers.tiny_cohort import again, contents
from wsi_pipeline.cli.app import main


def test_everything_works_that_has_nothing_to_do(copy, capsys):
    run = copy / "run"
    before = contents(run)
    with read_only(run):
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (run / "x").touch()
        assert main(["collect", str(run)]) == 0
        for stage in ("train", "predict", "heatmap", "evaluate", "report"):
            assert main([stage, str(run)]) == 0, stage
            assert f"{stage}: 0 done" in capsys.readouterr().out
        assert again(copy) == 0
        assert main(["plan", str(copy / "config.yaml"), "--quiet"]) == 0
        assert contents(run) == before


def test_what_has_something_to_do_says_so_once(copy, capsys):
    run = copy / "run"
    (run / "scores/patchnet/s4.h5").unlink()
    with read_only(run):
        for stage, units in (("predict", "s4 by patchnet"), ("evaluate", "patchnet")):
            more = ["--overwrite"] if stage == "evaluate" else []
            assert main([stage, str(run), *more]) == 1
            message = capsys.readouterr().err
            assert "Traceback" not in message
            if stage == "predict":
                assert f"{run}: cannot be written to (" in message
                assert (
                    f"but predict has to process {units}; copy the run folder, or make it"
                    in message
                )
        assert main(["collect", str(run)]) == 3
        assert "1 missing (s4)" in capsys.readouterr().out
