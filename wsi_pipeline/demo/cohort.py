"""The demo: the drawn cohort, and the config that runs every stage on it."""

from importlib.resources import files
from pathlib import Path

from tiling.files import write_text
from tiling.threads import count_cores
from wsi_pipeline.demo.synthetic import DEMO_COHORT, QUICK_COHORT, draw_cohort


def prepare_demo(out: Path, *, quick: bool = False) -> Path:
    """Draw the cohort and write its config.

    Parameters
    ----------
    out : Path
        Becomes the run folder; gets ``cohort/`` and ``demo.yaml`` (``quick.yaml``), an example
        config for ``wsi-pipeline run`` that users can edit.
    quick : bool
        Few small slides and hardly any training, to try an installation.

    Returns
    -------
    config : Path
    """
    slides = QUICK_COHORT if quick else DEMO_COHORT
    draw_cohort(out / "cohort", slides=slides, workers=count_cores())
    config = out / ("quick.yaml" if quick else "demo.yaml")
    if not config.exists():
        text = files("wsi_pipeline.demo").joinpath(config.name).read_text(encoding="utf-8")
        write_text(config, text)
    return config
