"""`plan`: its figures are those of the run that follows; it writes nothing."""

import json
from pathlib import Path

import pytest
import yaml
import zarr

from tests.helpers.real_data import real_data
from tests.helpers.slides import halve, tissue, write_slide
from tiling.annotation.formats.asap_xml import write_asap_xml
from wsi_pipeline.cli.app import main
from wsi_pipeline.planning.plan_text import size_text

TILE = {"target_mpp": 0.5, "patch_px": 32, "tissue": {"mpp": 2.0, "min_object_um2": 100.0}}


def make_slides(folder: Path, sizes=((420, 340), (700, 500))) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        pixels = tissue(*size, seed=number)
        write_slide(folder / f"s{number}.tif", [pixels, halve(pixels)])
    return folder


def write_config(folder: Path, source: Path, *, tile=TILE, **more) -> Path:
    path = folder / "config.yaml"
    values = {"input": str(source), "out": str(folder / "run"), "tile": tile, "stages": ["tile"]}
    path.write_text(yaml.safe_dump(values | more))
    return path


def plan(config: Path, capsys, *more: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = main(["plan", str(config), "--format", "json", "--quiet", "--workers", "2", *more])
    return code, json.loads(capsys.readouterr().out)


def held(run: Path, slide_id: str) -> tuple[int, int]:
    files = [p for p in (run / "tiles" / f"{slide_id}.zarr").rglob("*") if p.is_file()]
    files.append(run / "tiles" / f"{slide_id}.png")
    return len(files), sum(p.stat().st_size for p in files)


def check_against_tile(config: Path, run: Path, capsys) -> None:
    code, found = plan(config, capsys)
    assert not run.exists()
    assert main(["run", str(config), "--quiet"]) == code
    for slide in found["slides"]:
        if slide["problem"]:
            assert not (run / "tiles" / f"{slide['slide_id']}.zarr").exists()
            continue
        store = zarr.open_group(run / "tiles" / f"{slide['slide_id']}.zarr", mode="r")
        assert store["coords"].shape[0] == slide["patches"]
        files, n_bytes = held(run, slide["slide_id"])
        assert files == slide["files"]
        assert n_bytes == pytest.approx(slide["bytes"], rel=0.01)
    written = [p for p in run.rglob("*") if p.is_file() and p.suffix != ".jsonl"]  # no logs
    assert found["totals"]["new_files"] == len(written)
    assert found["totals"]["new_bytes"] == pytest.approx(
        sum(p.stat().st_size for p in written), rel=0.01
    )


@pytest.mark.parametrize(
    "tile", [{}, {"stride_px": 16}, {"store": "coords"}, {"patch_px": 96, "edge": "pad"}]
)
def test_patches_files_and_bytes_are_those_of_tile(tmp_path, capsys, tile):
    config = write_config(tmp_path, make_slides(tmp_path / "data"), tile=TILE | tile)
    check_against_tile(config, tmp_path / "run", capsys)


@pytest.mark.slow
def test_several_shards_are_counted(tmp_path, capsys, monkeypatch):
    data = make_slides(tmp_path / "data", [(2400, 2400)])
    tile = TILE | {"patch_px": 256, "stride_px": 48}  # more patches than one shard holds
    check_against_tile(write_config(tmp_path, data, tile=tile), tmp_path / "run", capsys)
    shards = [p for p in (tmp_path / "run/tiles/s0.zarr/patches").rglob("*") if p.is_file()]
    assert len(shards) > 2


@pytest.mark.slow
@pytest.mark.parametrize("store", ["patches", "coords"])
def test_the_label_audit_is_counted_with_its_pictures(tmp_path, capsys, store):
    data = make_slides(tmp_path / "data")
    outline = [(121, 101), (259, 105), (255, 229), (118, 226)]
    write_asap_xml(data / "s0.xml", [("one", "Tumor", outline)], ["Tumor"])
    (data / "broken.tif").write_bytes(b"II*\0rubbish")
    rows = "slide,label,annotation\ns0.tif,1,s0.xml\ns1.tif,0,\nbroken.tif,0,\n"
    (data / "m.csv").write_text(rows)
    config = write_config(tmp_path, data / "m.csv", tile=TILE | {"store": store})
    check_against_tile(config, tmp_path / "run", capsys)
    assert len(list((tmp_path / "run/tiles/label_audit").iterdir())) == 8
    _, found = plan(config, capsys)
    assert found["totals"]["new_files"] == 3  # the failing slide is tried again


def test_real_slides_take_what_was_planned(tmp_path, capsys):
    config = write_config(tmp_path, real_data("slides"), tile={"patch_px": 256})
    check_against_tile(config, tmp_path / "run", capsys)


def test_plan_writes_nothing(tmp_path, capsys):
    config = write_config(tmp_path, make_slides(tmp_path / "data"))
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", str(config), "--quiet"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert "2 slides: 2 new" in capsys.readouterr().out


def test_finished_and_stale_slides_are_reported(tmp_path, capsys):
    config = write_config(tmp_path, make_slides(tmp_path / "data"))
    assert main(["run", str(config), "--quiet"]) == 0
    assert [s["state"] for s in plan(config, capsys)[1]["slides"]] == ["finished"] * 2
    _, found = plan(config, capsys, "--set", "tile.stride_px=16")
    assert [s["state"] for s in found["slides"]] == ["stale"] * 2


def test_slides_that_would_fail_are_named_and_exit_3(tmp_path, capsys):
    data = make_slides(tmp_path / "data")
    (data / "broken.tif").write_bytes(b"II*\0rubbish")
    write_slide(data / "without.tif", [tissue(300, 300)], mpp=None)
    write_slide(data / "coarse.tif", [tissue(300, 300)], mpp=4.0)
    code, found = plan(write_config(tmp_path, data), capsys)
    problems = {s["slide_id"]: s["problem"] for s in found["slides"] if s["problem"]}
    assert code == 3
    assert set(problems) == {"broken", "without", "coarse"}
    assert "mpp column" in problems["without"]
    assert "coarser" in problems["coarse"]


def test_nothing_that_could_be_done_exits_1(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "broken.tif").write_bytes(b"II*\0rubbish")
    assert plan(write_config(tmp_path, tmp_path / "data"), capsys)[0] == 1


def test_training_on_one_class_would_fail(tmp_path, capsys):
    data = make_slides(tmp_path / "data")
    (data / "m.csv").write_text("slide,label,split\ns0.tif,0,train\ns1.tif,0,val\n")
    config = write_config(
        tmp_path,
        data / "m.csv",
        stages=["tile", "train", "predict", "heatmap"],
        train={"patchnet": {"model": {"options": {"m": 5, "stride": 5, "filters": 4, "depth": 2}}}},
    )
    code, found = plan(config, capsys)
    assert code == 3
    assert [
        p.startswith(f"train: split {s} has no positive")
        for p, s in zip(found["problems"], ("train", "val"), strict=True)
    ] == [True, True]
    assert found["models"][0]["predict_patches"] == found["totals"]["patches"]
    assert found["models"][0]["seconds_per_patch"] > 0
    assert found["estimates"]["predict"]["files"] == 2


@pytest.mark.slow
def test_shards_share_the_slides(tmp_path, capsys):
    config = write_config(tmp_path, make_slides(tmp_path / "data"))
    parts = [plan(config, capsys, "--shard", f"{i}/2")[1] for i in range(2)]
    ids = [s["slide_id"] for part in parts for s in part["slides"]]
    assert sorted(ids) == ["s0", "s1"]
    assert len(parts[0]["shard_bytes"]) == 2


def test_sizes_are_in_the_unit_that_fits():
    assert size_text(512) == "512 B"
    assert size_text(5 * 2**40) == "5.0 TiB"
