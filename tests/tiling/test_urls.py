"""Paths that are URLs, on a real S3 server: reading, atomic replacement, and what is refused."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from tests.helpers.s3_server import serve_s3
from tests.helpers.slides import tissue, write_slide
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import StoreError
from tiling.files import open_file, read_text, write_aside, write_json
from tiling.store import PatchStore
from tiling.store_files import find_damaged_pixels, is_store_folder
from tiling.urls import LocalOnlyError, RemotePath, as_path, local_path

CONFIG = TileConfig(patch_px=32, tissue=TissueConfig(mpp=2.0, min_object_um2=100.0))
URL = as_path("s3://bucket/run")


@pytest.fixture(scope="module")
def server():
    with serve_s3() as found:
        yield found


@pytest.fixture
def url(server, request) -> RemotePath:
    """A prefix of its own."""
    return as_path(f"{server.url}/{request.node.name}")


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A patch store of several shards."""
    folder = tmp_path_factory.mktemp("local")
    write_slide(folder / "a.tif", [tissue(420, 340)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tiling.store_files.SHARD_BYTES", 20 * 3 * 32**2)
        tile_slide(folder / "a.tif", folder / "a.zarr", config=CONFIG)
    return folder / "a.zarr"


def upload(local: Path, url: RemotePath) -> RemotePath:
    url.put_all(local, [p.relative_to(local).as_posix() for p in local.rglob("*") if p.is_file()])
    return url


# --- without a server ------------------------------------------------------------------------


def test_a_url_keeps_its_slashes():
    path = URL / "tiles" / "a.zarr"

    assert str(path) == f"{path}" == path.as_posix() == "s3://bucket/run/tiles/a.zarr"
    assert as_path(Path("s3://bucket/run")) == URL
    assert (path.name, path.suffix, str(path.parent)) == ("a.zarr", ".zarr", f"{URL}/tiles")
    assert path.relative_to(URL).as_posix() == "tiles/a.zarr"
    assert pickle.loads(pickle.dumps(path)) == path
    assert str((URL / "a" / ".." / ".." / "b").resolve()) == "s3://bucket/b"
    assert not isinstance(as_path("data/a:b"), RemotePath)
    assert local_path("data/a:b", "slides") == Path("data/a:b")


@pytest.mark.parametrize(
    "use",
    [
        lambda path: path.open("w"),
        lambda path: Path.open(path),
        lambda path: path.rename("b"),
        lambda path: path.touch(),
        lambda path: path.write_text("a"),
        lambda path: path.rmdir(),
        lambda path: os.path.lexists(path),
        lambda path: np.load(path, mmap_mode="r"),
        lambda path: shutil.rmtree(path),
        lambda path: local_path(path, "slides"),
    ],
)
def test_what_needs_a_file_system_is_refused(use, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(LocalOnlyError, match=r"^s3://bucket/run: .*; copy it to a local folder"):
        use(URL)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["http", "sftp", "memory", "file"])
def test_nothing_is_written_where_uploads_are_not_atomic(scheme):
    pytest.importorskip("fsspec")

    with pytest.raises(LocalOnlyError, match=f"nothing is written to {scheme}://"):
        write_json(as_path(f"{scheme}://host/a.json"), {})


def test_an_unknown_kind_of_url_is_refused():
    pytest.importorskip("fsspec")

    with pytest.raises(LocalOnlyError, match="nowhere://a"):
        as_path("nowhere://a").read_bytes()


# --- files -----------------------------------------------------------------------------------


def test_files_are_written_and_read(url):
    write_json(url / "deep" / "a.json", {"a": 1})
    (url / "empty").put(Path(os.devnull))

    assert read_text(url / "deep" / "a.json") == '{\n  "a": 1\n}\n'
    assert (url / "empty").read_bytes() == b""
    with open_file(url / "deep" / "a.json") as file:
        assert file.readline() == "{\n"
    assert (url / "deep").is_dir()
    assert not (url / "deep").is_file()
    assert (url / "deep" / "a.json").is_file()
    assert not (url / "none").exists()
    assert [path.name for path in url.iterdir()] == ["deep", "empty"]
    assert [path.name for path in url.glob("*/")] == ["deep"]
    found = [url / "deep" / "a.json"]
    assert list(url.rglob("*.json")) == list(url.glob("*/*.json")) == list(url.glob("**/*.json"))
    assert list(url.rglob("*.json")) == found
    with pytest.raises(FileNotFoundError) as missing:
        read_text(url / "none")
    assert missing.value.filename == f"{url}/none"
    (url / "empty").unlink()
    (url / "empty").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (url / "empty").unlink()


def test_a_failed_write_leaves_the_old_file(url):
    write_json(url / "a.json", {"a": 1})

    def write_half() -> None:
        with write_aside(url / "a.json") as scratch:
            scratch.write_text("half")
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        write_half()

    assert read_text(url / "a.json") == '{\n  "a": 1\n}\n'
    assert url.measure_all() == {"a.json": 13}


def test_a_folder_takes_the_place_of_ours_only(url, local):
    upload(local, url / "a.zarr")
    (url / "a.zarr" / "patches" / "c" / "99" / "0").put(local / "zarr.json")

    with pytest.raises(FileExistsError), write_aside(url / "a.zarr") as scratch:
        scratch.mkdir()
    with write_aside(url / "a.zarr", is_ours=is_store_folder) as scratch:
        shutil.copytree(local, scratch)

    names = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
    assert sorted((url / "a.zarr").measure_all()) == sorted(names)


def test_a_store_whose_upload_is_cut_off_is_not_finished(url, local, monkeypatch):
    upload(local, url / "a.zarr")
    put = RemotePath.put

    def cut_off(self, source):
        if self.name == "zarr.json":
            raise OSError("connection lost")
        put(self, source)

    monkeypatch.setattr(RemotePath, "put", cut_off)
    with (
        pytest.raises(OSError, match="connection lost"),
        write_aside(url / "a.zarr", is_ours=is_store_folder) as scratch,
    ):
        shutil.copytree(local, scratch)

    with pytest.raises(StoreError, match="not a patch store"):
        PatchStore.open(url / "a.zarr")


# --- patch stores ----------------------------------------------------------------------------


def test_a_store_reads_as_the_local_one(url, local, server):
    here, there = PatchStore.open(local), PatchStore.open(str(upload(local, url)))
    rows = np.random.default_rng(0).permutation(np.arange(len(here)).repeat(2))

    assert len(here) > 60  # several shards
    np.testing.assert_array_equal(there.coords, here.coords)
    np.testing.assert_array_equal(there.read(rows), here.read(rows))
    server.requests.clear()
    there.read(rows)
    n_shards = len(list((local / "patches/c").iterdir()))
    assert server.count() == n_shards > 2  # one for the patches of each
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(there))[3], here[3])
    assert find_damaged_pixels(url) is None


def test_damage_is_found(url, local, tmp_path):
    upload(local, url)
    path = "patches/c/1/0/0/0"
    content = bytearray((local / path).read_bytes())
    content[100] ^= 1
    (tmp_path / "bad").write_bytes(content)
    (url / path).put(tmp_path / "bad")
    (url / "patches/c/2/0/0/0").unlink()

    store = PatchStore.open(url)
    store.read([0])
    with pytest.raises(StoreError, match="shard 1: the checksum of patch 20 does not match"):
        store.read([0, 20])
    with pytest.raises(StoreError, match="shard 2: its file is missing"):
        store.read([0, 40])
    assert "shard 1" in find_damaged_pixels(url)

    (tmp_path / "bad").write_bytes(content[:1000])
    (url / path).put(tmp_path / "bad")
    with pytest.raises(StoreError, match=r"shard 1: it .*(index|ends)"):
        PatchStore.open(url).read([20])


def test_a_missing_store_is_named(url):
    with pytest.raises(StoreError, match=f"{url.name}: there is no patch store in s3://"):
        PatchStore.open(url)


def test_a_compressed_store_is_read_by_zarr(url, local, tmp_path):
    here = PatchStore.open(local)
    shutil.copytree(local, tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "patches")
    packed = zarr.create_array(
        tmp_path / "a" / "patches", shape=(len(here), 32, 32, 3), chunks=(1, 32, 32, 3), dtype="u1"
    )
    packed[...] = here.read(np.arange(len(here)))

    np.testing.assert_array_equal(PatchStore.open(upload(tmp_path / "a", url))[5], here[5])
