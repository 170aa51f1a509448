"""Only regular files are read: opening a named pipe waits for ever, and a device has no end."""

import ast
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import dicoms, slides
from tiling.annotation.reading import read_annotation
from tiling.coords_hdf5 import read_coords
from tiling.errors import TilingError
from tiling.files import check_file, digest_file, open_file, read_bytes, read_text
from tiling.listing.content import digest_content
from tiling.listing.samples import fingerprint_file
from tiling.slide import open_slide
from tiling.tissue.given_masks import read_tissue_mask as read_tissue_mask
from wsi_pipeline.cli.app import main
from wsi_pipeline.cohort.image_folder import list_images
from wsi_pipeline.cohort.image_pixels import read_image
from wsi_pipeline.cohort.manifest import read_manifest
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.config.settings import ImagesConfig
from wsi_pipeline.demo.mosaic import _read_patch
from wsi_pipeline.errors import PipelineError
from wsi_pipeline.evaluation.masks import read_mask
from wsi_pipeline.evaluation.tables import read_rows
from wsi_pipeline.models.checkpoint import load_checkpoint

pytestmark = pytest.mark.timeout(20)  # where one is opened, the test would hang


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(str(path))


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


ODD = {"pipe": make_fifo, "socket": make_socket, "device": link_to_device}


def images_by_table(path: Path) -> None:
    list_images(path.parent, ImagesConfig(table=path))


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "slide": ("a.svs", open_slide),
    "DICOM slide": ("a.dcm", open_slide),
    "digest of a slide": ("a.svs", digest_content),
    "fingerprint of a slide": ("a.svs", fingerprint_file),
    "annotation": ("a.xml", read_annotation),
    "packed annotation": ("a.geojson.gz", read_annotation),
    "tissue mask": ("a.tif", lambda p: read_tissue_mask(p, slide_size=(9, 9), wanted_px=(9, 9))),
    "tissue outline": (
        "a.geojson",
        lambda p: read_tissue_mask(p, slide_size=(9, 9), wanted_px=(9, 9)),
    ),
    "reference mask": ("a.tif", read_mask),
    "coordinates": ("a.h5", read_coords),
    "manifest": ("a.csv", read_manifest),
    "detections": ("a.csv", lambda p: list(read_rows(p))),
    "config": ("a.yaml", read_config),
    "checkpoint": ("a.safetensors", load_checkpoint),
    "image": ("a.png", lambda p: read_image(p, channels=3)),
    "TIFF image": ("a.tif", lambda p: read_image(p, channels=3)),
    "table of images": ("a.csv", images_by_table),
    "patch": ("a.png", _read_patch),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, reader, kind):
    name, read = READERS[reader]
    ODD[kind](tmp_path / name)
    with pytest.raises((TilingError, PipelineError)) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert {"pipe": "named pipe", "socket": "a socket", "device": "a device"}[kind] in str(
        caught.value
    )


@pytest.mark.parametrize("kind", ODD)
def test_the_helpers_refuse_them(tmp_path, kind):
    ODD[kind](tmp_path / "a")
    for helper in (check_file, open_file, read_bytes, read_text, digest_file):
        with pytest.raises(OSError, match="not a regular file"):
            helper(tmp_path / "a")
    with pytest.raises(IsADirectoryError, match="a folder, not a regular file"):
        check_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_file(tmp_path / "gone")


def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path / "a").write_text("text")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert read_text(tmp_path / "b") == "text"


def test_a_pipe_beside_a_dicom_slide_does_not_block_it(tmp_path):
    """OpenSlide opens every file of the folder."""
    path = dicoms.write_series(tmp_path / "a")
    (tmp_path / "a" / "broken link").symlink_to(tmp_path / "nowhere")
    open_slide(path).close()
    os.mkfifo(tmp_path / "a" / "pipe")
    with pytest.raises(TilingError, match=r"pipe next to it is a named pipe \(FIFO\)"):
        open_slide(path)


def test_a_pipe_among_the_files_of_a_mirax_slide_does_not_block_it(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8")
    os.mkfifo(tmp_path / "a" / "Slidedat.ini")
    with pytest.raises(TilingError, match=r"Slidedat\.ini next to it is a named pipe"):
        open_slide(tmp_path / "a.mrxs")


def test_a_pipe_in_a_manifest_fails_and_the_others_are_done(tmp_path):
    slides.write_slide(tmp_path / "good.tif", [slides.tissue(260, 210)])
    os.mkfifo(tmp_path / "bad.tif")
    (tmp_path / "m.csv").write_text("slide\ngood.tif\nbad.tif\n")
    settings = ("target_mpp=0.5", "patch_px=32", "tissue.mpp=2.0", "tissue.min_object_um2=100")
    more = [part for setting in settings for part in ("--set", setting)]
    assert main(["tile", str(tmp_path / "m.csv"), "--out", str(tmp_path / "run"), *more]) == 3
    assert "bad.tif: cannot be read: a named pipe" in (tmp_path / "run/failures.csv").read_text()


# ------------------------------------------------------------ no other way to open a user's file

ROOT = Path(__file__).parents[1]
READ_USERS_FILES = [
    "tiling/annotation/reading.py",
    "tiling/hdf5.py",
    "tiling/listing/content.py",
    "tiling/listing/slide_parts.py",
    "tiling/readers/mask_picture.py",
    "tiling/readers/tiff_structure.py",
    "tiling/same_content.py",
    "tiling/slide.py",
    "tiling/tissue/given_masks.py",
    "wsi_pipeline/cohort/image_folder.py",
    "wsi_pipeline/cohort/image_pixels.py",
    "wsi_pipeline/cohort/listing.py",
    "wsi_pipeline/cohort/manifest.py",
    "wsi_pipeline/config/reading.py",
    "wsi_pipeline/csv_files.py",
    "wsi_pipeline/evaluation/masks.py",
    "wsi_pipeline/evaluation/reference.py",
    "wsi_pipeline/evaluation/tables.py",
    "wsi_pipeline/models/checkpoint.py",
]
OPENERS = {"read_text", "read_bytes", "open"}
MAY_OPEN = {"Image", "gzip", "os"}  # after `check_file`, or of no path


def opened_bare(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder = node.func.value
            name = holder.id if isinstance(holder, ast.Name) else "?"
            writes = any(isinstance(a, ast.Constant) and a.value in ("w", "wb") for a in node.args)
            if node.func.attr in OPENERS and name not in MAY_OPEN and not writes:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("name", READ_USERS_FILES)
def test_files_of_users_are_opened_by_the_helpers_of_tiling_files(name):
    """Use `open_file`, `read_text` or `read_bytes` of `tiling.files`."""
    path = ROOT / name
    assert opened_bare(path.read_text()) == []


def test_a_bare_open_is_found():
    assert opened_bare("path.read_text()") == ["line 1: path.read_text()"]
    assert opened_bare("with (a / 'b').open('rb') as file: pass") != []
    assert opened_bare("open_file(path)\npath.open('w')\nImage.open(path)") == []
