"""The demo: the drawn cohort, and the config that runs every stage on it."""

from importlib.resources import files
from pathlib import Path

from tiling.files import write_text
from tiling.threads import count_cores
from wsi_pipeline.demo.synthetic import draw_cohort


def prepare_demo(out: Path) -> Path:
    """Draw the cohort and write its config.

    Parameters
    ----------
    out : Path
        Becomes the run folder; gets ``cohort/`` and ``demo.yaml``, an example config for
        ``wsi-pipeline run`` that users can edit.

    Returns
    -------
    config : Path
    """
    draw_cohort(out / "cohort", workers=count_cores())
    config = out / "demo.yaml"
    if not config.exists():
        text = files("wsi_pipeline.demo").joinpath("demo.yaml").read_text(encoding="utf-8")
        write_text(config, text)
    return config
