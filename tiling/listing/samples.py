"""Fingerprints of samples of a file: quick, for finding copies, and in stores of old versions."""

import hashlib
from pathlib import Path

from tiling.files import open_file
from tiling.listing.slide_parts import check_slide_file

EDGE_BYTES = 2**20  # of the file's head and of its tail, hashed whole
SAMPLE_BYTES, N_SAMPLES = 2**16, 16  # and blocks spread evenly between them


def fingerprint_file(path: Path) -> str:
    """Hash a file's size, head and tail, and 16 blocks between: quick, and good for finding copies.

    Neither path nor date counts. A damaged copy of a slide may have the fingerprint of the sound
    one: what is made from a slide is bound to all of its bytes
    (`tiling.listing.content.digest_content`).
    Earlier versions wrote this fingerprint into patch stores.

    Returns
    -------
    fingerprint : 64 hexadecimal digits

    Raises
    ------
    SlideError
        If the file cannot be read.
    """
    check_slide_file(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with open_file(path, "rb") as file:
        digest.update(file.read(EDGE_BYTES))
        for part in range(1, N_SAMPLES + 1):
            file.seek(size * part // (N_SAMPLES + 1))
            digest.update(file.read(SAMPLE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()
