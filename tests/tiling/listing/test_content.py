"""The digest of a slide's files: every byte counts, and nothing is read twice without need."""

import hashlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import dicoms, slides
from tiling.build import tile_slide
from tiling.contracts import TileConfig, TissueConfig
from tiling.errors import SlideError, StoreError
from tiling.listing import content
from tiling.listing.content import digest_content, find_digest
from tiling.listing.slide_parts import list_parts
from tiling.store import PatchStore

pytestmark = pytest.mark.usefixtures("settled_contents")

SIZE = 300_000


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    (tmp_path / "a.svs").write_bytes(np.random.default_rng(0).bytes(SIZE))
    return tmp_path / "a.svs"


def forget() -> None:
    """As another process, which has only the file."""
    content._known.clear()


def overwrite(path: Path, place: int) -> None:
    """Change one byte, and put the old date back as ``cp -p`` and ``rsync -t`` do."""
    time.sleep(0.02)  # file systems count in milliseconds
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 0x55]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_of_one_file_it_is_the_files_sha256(slide):
    assert digest_content(slide) == "sha256:" + hashlib.sha256(slide.read_bytes()).hexdigest()


@pytest.mark.parametrize("place", [0, 1, 70_000, 150_001, 299_998, 299_999])
@pytest.mark.parametrize("is_cached", [False, True])
def test_every_byte_counts_though_size_and_date_are_as_they_were(slide, tmp_path, place, is_cached):
    """97 % of a slide's bytes could change unnoticed."""
    cache = tmp_path / "a.digest" if is_cached else None
    before = digest_content(slide, cache=cache)
    overwrite(slide, place)
    forget()
    assert digest_content(slide, cache=cache) != before


def test_a_file_put_in_its_place_is_noticed(slide, tmp_path):
    """A copy under another name, with the date of the source, renamed."""
    cache = tmp_path / "a.digest"
    before = digest_content(slide, cache=cache)
    shutil.copy2(slide, tmp_path / "b.svs")
    overwrite(tmp_path / "b.svs", 123_456)
    (tmp_path / "b.svs").replace(slide)
    assert find_digest(slide, cache=cache) is None
    assert digest_content(slide, cache=cache) != before


def test_nothing_is_read_twice_while_nothing_changes(slide, tmp_path, hashed):
    cache = tmp_path / "run" / "a.digest"
    first = digest_content(slide, cache=cache)
    assert digest_content(slide, cache=cache) == digest_content(slide) == first
    forget()
    assert find_digest(slide, cache=cache) == digest_content(slide, cache=cache) == first
    assert hashed == ["a.svs"]


def test_what_is_known_in_memory_is_written_where_it_is_asked_for(slide, tmp_path, hashed):
    digest_content(slide)
    digest_content(slide, cache=tmp_path / "a.digest")
    forget()
    assert find_digest(slide, cache=tmp_path / "a.digest") is not None
    assert hashed == ["a.svs"]


def test_a_slide_that_was_touched_or_moved_is_read_once_and_is_the_same(slide, tmp_path, hashed):
    cache = tmp_path / "a.digest"
    before = digest_content(slide, cache=cache)
    os.utime(slide, ns=(1, 10**18))
    for _ in range(2):
        forget()
        assert digest_content(slide, cache=cache) == before
    assert len(hashed) == 2
    (tmp_path / "moved").mkdir()
    moved = slide.rename(tmp_path / "moved" / "a.svs")
    for _ in range(2):
        forget()
        assert digest_content(moved, cache=cache) == before
    assert len(hashed) == 3


def test_the_file_is_the_same_wherever_slides_are_copied_to_and_holds_no_date(slide, tmp_path):
    shutil.copytree(tmp_path, tmp_path.parent / "copy")
    ours, theirs = tmp_path / "a.digest", tmp_path.parent / "copy" / "a.digest"
    digest_content(slide, cache=ours)
    digest_content(theirs.with_name("a.svs"), cache=theirs)
    assert ours.read_bytes() == theirs.read_bytes()
    assert str(slide.stat().st_mtime_ns)[:9] not in ours.read_text()


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b"\xff", b'{"state": 1}', None])
def test_a_damaged_file_is_not_believed(slide, tmp_path, hashed, damage):
    cache = tmp_path / "a.digest"
    before = digest_content(slide, cache=cache)
    date = cache.stat().st_mtime_ns
    text = cache.read_text()
    other = text.replace(before[7:17], "0123456789")
    cache.write_bytes(other.encode() if damage is None else damage)
    os.utime(cache, ns=(date, date))
    forget()
    assert digest_content(slide, cache=cache) == before
    assert cache.read_text() == text
    assert len(hashed) == 2


def test_a_slide_that_has_only_just_changed_is_not_remembered(slide, tmp_path, monkeypatch, hashed):
    """It might change again within one tick of the file system's clock."""
    monkeypatch.setattr(content, "RECENT_NS", 10**12)
    for _ in range(2):
        digest_content(slide, cache=tmp_path / "a.digest")
    assert len(hashed) == 2
    assert not (tmp_path / "a.digest").exists()


def test_a_slide_dated_in_the_future_is_read_once(slide, tmp_path, hashed):
    """Each command read it again, until that date."""
    os.utime(slide, (4e9, 4e9))
    time.sleep(content.RECENT_NS / 1e9 + 0.02)
    for _ in range(2):
        digest_content(slide, cache=tmp_path / "a.digest")
    assert len(hashed) == 1


def test_where_nothing_can_be_written_the_digest_is_given_all_the_same(slide, tmp_path):
    (tmp_path / "file").touch()
    assert digest_content(slide, cache=tmp_path / "file" / "a.digest").startswith("sha256:")


def test_a_slide_that_changes_while_it_is_read_is_refused(slide, monkeypatch):
    digest_file = content.digest_file

    def slowly(path: Path) -> str:
        found = digest_file(path)
        overwrite(path, 5)
        return found

    monkeypatch.setattr(content, "digest_file", slowly)
    with pytest.raises(SlideError, match=r"a\.svs: changes while it is read; wait until"):
        digest_content(slide)


def test_a_missing_slide_is_an_error_of_the_slide(tmp_path):
    with pytest.raises(SlideError, match=r"gone\.svs: no such file"):
        digest_content(tmp_path / "gone.svs")


# ------------------------------------------------------------ slides in several files


def write_mirax(folder: Path, name: str = "a") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / f"{name}.mrxs").write_bytes(b"\xff\xd8 a picture")
    (folder / name / "Slidedat.ini").write_text("[GENERAL]\n")
    for part in ("Index", "Data0000", "Data0001"):
        (folder / name / f"{part}.dat").write_bytes(part.encode() * 1000)
    return folder / f"{name}.mrxs"


def write_vms(folder: Path) -> Path:
    names = {"ImageFile": "i.jpg", "ImageFile(1,0)": "i1.jpg", "MapFile": "m.jpg"}
    lines = [f"{key}={name}" for key, name in {**names, "OptimisationFile": "o.opt"}.items()]
    (folder / "a.vms").write_text("[Virtual Microscope Specimen]\n" + "\n".join(lines))
    for name in (*names.values(), "o.opt"):
        (folder / name).write_bytes(name.encode() * 1000)
    return folder / "a.vms"


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (write_mirax, ["Data0000.dat", "Data0001.dat", "Index.dat", "Slidedat.ini"]),
        (write_vms, ["i.jpg", "i1.jpg", "m.jpg", "o.opt"]),
    ],
)
def test_all_files_of_a_slide_count(tmp_path, write, parts):
    """Only the one that is named in the manifest was examined."""
    path = write(tmp_path)
    assert [part.path.name for part in list_parts(path)] == [path.name, *parts]
    found = {digest_content(path)}
    for part in list_parts(path):
        overwrite(part.path, 7)
        found.add(digest_content(path))
    assert len(found) == 2 + len(parts)


def test_a_mirax_slide_may_be_renamed_and_have_files_that_are_not_its_own(tmp_path):
    path = write_mirax(tmp_path)
    before = digest_content(path)
    (tmp_path / "a" / "Thumbs.db").touch()
    assert digest_content(path) == before
    assert digest_content(write_mirax(tmp_path, "other")) == before
    data, index = tmp_path / "a/Data0000.dat", tmp_path / "a/Data0001.dat"
    content_of_both = data.read_bytes(), index.read_bytes()
    data.write_bytes(content_of_both[1])
    index.write_bytes(content_of_both[0])
    assert digest_content(path) != before


def test_a_dicom_series_is_one_slide_whichever_of_its_files_is_named(tmp_path):
    finest = dicoms.write_series(tmp_path / "a", seed=1)
    dicoms.write_series(tmp_path / "a", seed=2)
    levels = [part.path for part in list_parts(finest)]
    assert len(levels) == 3
    before = digest_content(finest)
    assert {digest_content(level) for level in levels} == {before}
    renamed = levels[1].rename(levels[1].with_name("renamed.dcm"))
    assert digest_content(finest) == before
    overwrite(renamed, renamed.stat().st_size - 9)
    assert digest_content(finest) != before


# ------------------------------------------------------------ stores


CONFIG = TileConfig(
    target_mpp=0.5, patch_px=32, store="coords", tissue=TissueConfig(mpp=4.0, min_object_um2=100)
)


def test_a_store_without_pixels_reads_no_slide_with_other_bytes(tmp_path, hashed):
    path = slides.write_slide(tmp_path / "a.tif", [slides.tissue(200, 200)])
    cache = tmp_path / "a.digest"
    tile_slide(path, tmp_path / "a.zarr", slide_id="a", config=CONFIG, content_cache=cache)
    assert hashed == ["a.tif"]
    with PatchStore.open(tmp_path / "a.zarr", slide_path=path, content_cache=cache) as store:
        store.read([0])
        assert store.info.fingerprint == digest_content(path)
    forget()
    with PatchStore.open(tmp_path / "a.zarr", slide_path=path, content_cache=cache) as store:
        store.read([0])
    assert hashed == ["a.tif"]
    overwrite(path, path.stat().st_size // 2)
    store = PatchStore.open(tmp_path / "a.zarr", slide_path=path, content_cache=cache)
    with pytest.raises(StoreError, match=r"a\.tif is not the slide it was made from"):
        store.read([0])


def test_a_slide_that_changes_while_it_is_tiled_leaves_no_store(tmp_path, monkeypatch):
    path = slides.write_slide(tmp_path / "a.tif", [slides.tissue(200, 200)])

    def change(done: int, total: int) -> None:
        if done == total:
            overwrite(path, path.stat().st_size - 1)

    config = TileConfig(**{**CONFIG.__dict__, "store": "patches"})
    with pytest.raises(SlideError, match=r"a\.tif: changed while it was tiled"):
        tile_slide(path, tmp_path / "a.zarr", slide_id="a", config=config, on_progress=change)
    assert not (tmp_path / "a.zarr").exists()
