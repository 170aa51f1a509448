"""The end of each command's help: two examples, its settings, and its page of the manual.

Also the command that usually follows, printed when a stage ends.
"""

import shlex
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Guide:
    """Where a user of a command goes on."""

    examples: tuple[str, str]
    page: str  # in docs/
    sections: tuple[str, ...] = ()  # of the config
    then: str = ""  # the command that usually follows, on the run folder RUN

    @property
    def epilog(self) -> str:
        """The text below the options of the command's help."""
        settings = f"Settings: {', '.join(self.sections)} (docs/config.md). " * bool(self.sections)
        escaped = [example.replace("[", "\\[") for example in self.examples]  # no markup of Rich
        command = f"wsi-pipeline docs {self.page.removesuffix('.md')}"
        examples = "\n\n".join(f"  wsi-pipeline {example}" for example in escaped)
        return f"Examples:\n\n{examples}\n\n{settings}Manual: docs/{self.page} ({command})"


def epilog_of(name: str) -> str | None:
    """Return the end of a command's help; None of a command without examples."""
    guide = GUIDES.get(name)
    return guide.epilog if guide else None


def describe_next(name: str, run: Path) -> str:
    """Write the line with the command that usually follows a command; empty for the last ones.

    Examples
    --------
    >>> describe_next("predict", Path("my run"))
    "next: wsi-pipeline heatmap 'my run'"
    """
    guide = GUIDES.get(name)
    if guide is None or not guide.then:
        return ""
    return f"next: wsi-pipeline {guide.then.replace('RUN', shlex.quote(str(run)))}"


GUIDES = {
    "init": Guide(("init > my.yaml", "init --for froc > froc.sh"), "config.md"),
    "settings": Guide(("settings tile", "settings train.augment"), "config.md"),
    "slides": Guide(
        (
            "slides slides/ --csv manifest.csv",
            "slides slides/ --annotations xml/ --splits 0.2,0.2 --csv manifest.csv",
        ),
        "slides.md",
    ),
    "plan": Guide(
        ("plan my.yaml", "plan slides/ --config my.yaml --set tile.stride_px=256 --format json"),
        "plan.md",
    ),
    "tile": Guide(
        (
            "tile manifest.csv --out run --set patch_px=256",
            "tile slides/ --out run --set store=coords --workers 8",
        ),
        "tile.md",
        ("tile", "splits", "images"),
        then="train RUN",
    ),
    "train": Guide(
        (
            "train run --model vgg16",
            "train run --model patchnet --set lr=0.001 --device cuda:0",
        ),
        "train.md",
        ("train",),
        then="predict RUN",
    ),
    "predict": Guide(
        (
            "predict run",
            "predict new --checkpoint model.safetensors --slides new_slides/",
        ),
        "predict.md",
        ("predict",),
        then="heatmap RUN",
    ),
    "heatmap": Guide(
        ("heatmap run", "heatmap run --set method=grad_cam"),
        "heatmap.md",
        ("heatmap",),
        then="evaluate RUN",
    ),
    "explain": Guide(
        (
            "explain run --method grad_cam --method occlusion",
            "explain run --method all --masked 20",
        ),
        "explain.md",
        ("explain",),
        then="report RUN",
    ),
    "evaluate": Guide(
        ("evaluate run", "evaluate run --set split=val --set threshold=0.5"),
        "evaluate.md",
        ("evaluate",),
        then="report RUN",
    ),
    "export": Guide(
        ("export run --format qupath", "export run --format wsinfer --format clam"),
        "export.md",
        ("export",),
    ),
    "report": Guide(
        ("report run --pdf", "report run --set slide_pictures=10"), "report.md", ("report",)
    ),
    "run": Guide(
        (
            "run manifest.csv --config configs/camelyon16.yaml --out run",
            "run my.yaml --set 'stages=[tile, train]' --workers 4",
        ),
        "config.md",
    ),
    "apply": Guide(
        (
            "apply slides/ --checkpoint model.safetensors --out run",
            "apply slides/ --checkpoint zoo/breast-resnet34 --positive Tumor --out run",
        ),
        "predict.md",
        ("predict", "heatmap", "export"),
    ),
    "submit": Guide(
        (
            "submit my.yaml --cluster slurm",
            "submit my.yaml --cluster slurm --set cluster.tasks=16 --submit",
        ),
        "cluster.md",
        ("cluster",),
    ),
    "demo": Guide(("demo", "demo --quick --out my_demo"), "README.md"),
    "example": Guide(
        ("example slides data", "example teams challenge --seed 1"), "tutorials/slides.md"
    ),
    "froc": Guide(
        (
            "froc --detections csv/ --reference masks/ --out froc",
            "froc --detections team_a/ --detections team_b/ --reference masks/ --out rank",
        ),
        "froc.md",
    ),
    "stage": Guide(
        (
            "stage --predictions nodes.csv --reference stage_labels.csv --out stages",
            "stage --run run --model vgg16 --threshold 0.75 --out stages",
        ),
        "stage.md",
    ),
    "view": Guide(("view run/", "view run/ --export pages/ --worst 5"), "view.md"),
    "compare": Guide(
        ("compare run --out comparison", "compare run_a run_b --out comparison"), "report.md"
    ),
    "baselines": Guide(
        ("baselines images/", "baselines images/ --set channels=1 --nonzero-is-object"),
        "baselines.md",
        ("images", "splits"),
    ),
    "status": Guide(("status run", "status run --json"), "status.md"),
    "collect": Guide(("collect run", "collect run --verify"), "cluster.md"),
    "docs": Guide(("docs", "docs tile"), "README.md"),
    "doctor": Guide(("doctor", "doctor run/models/vgg16/checkpoint.safetensors"), "errors.md"),
}
