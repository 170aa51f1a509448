"""Real slides, annotations and patches, read in place; tests are skipped where there are none.

The environment variable ``WSI_PIPELINE_DATA`` names the folder; see `real_data`.
"""

import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("WSI_PIPELINE_DATA", Path(__file__).parents[2] / "../shared/data"))


def real_data(name: str) -> Path:
    """Find a file or folder of the real data; the test that needs it is skipped without it."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no {name} in {DATA.name}/; WSI_PIPELINE_DATA names the folder of real data")
    return path
