"""The end of each command's help: two examples, its settings, and its page of the manual."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """Where a user of a command goes on."""

    examples: tuple[str, str]
    page: str  # in docs/
    sections: tuple[str, ...] = ()  # of the config

    @property
    def epilog(self) -> str:
        """The text below the options of the command's help."""
        settings = f"Settings: {', '.join(self.sections)} (docs/config.md). " * bool(self.sections)
        escaped = [example.replace("[", "\\[") for example in self.examples]  # no markup of Rich
        examples = "\n\n".join(f"  wsi-pipeline {example}" for example in escaped)
        return f"Examples:\n\n{examples}\n\n{settings}Manual: docs/{self.page}"


def epilog_of(name: str) -> str | None:
    """Return the end of a command's help; None of a command without examples."""
    guide = GUIDES.get(name)
    return guide.epilog if guide else None


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
        ("plan my.yaml", "plan my.yaml --set tile.stride_px=256 --format json"), "plan.md"
    ),
    "tile": Guide(
        (
            "tile manifest.csv --out run --set patch_px=256",
            "tile slides/ --out run --set store=coords --workers 8",
        ),
        "tile.md",
        ("tile", "splits", "images"),
    ),
    "train": Guide(
        (
            "train run --model vgg16",
            "train run --model patchnet --set lr=0.001 --device cuda:0",
        ),
        "train.md",
        ("train",),
    ),
    "predict": Guide(
        (
            "predict run",
            "predict new --checkpoint model.safetensors --slides new_slides/",
        ),
        "predict.md",
        ("predict",),
    ),
    "heatmap": Guide(
        ("heatmap run", "heatmap run --set method=grad_cam"), "heatmap.md", ("heatmap",)
    ),
    "explain": Guide(
        (
            "explain run --method grad_cam --method occlusion",
            "explain run --method all --masked 20",
        ),
        "explain.md",
        ("explain",),
    ),
    "evaluate": Guide(
        ("evaluate run", "evaluate run --set split=val --set threshold=0.5"),
        "evaluate.md",
        ("evaluate",),
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
            "run configs/camelyon16.yaml --set input=manifest.csv --out run",
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
    "demo": Guide(("demo", "demo --out my_demo --quiet"), "README.md"),
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
    "compare": Guide(
        ("compare run --out comparison", "compare run_a run_b --out comparison"), "report.md"
    ),
    "baselines": Guide(
        ("baselines images/", "baselines images/ --set channels=1 --nonzero-is-object"),
        "baselines.md",
        ("images", "splits"),
    ),
    "collect": Guide(("collect run", "collect run --verify"), "cluster.md"),
    "doctor": Guide(("doctor", "doctor run/models/vgg16/checkpoint.safetensors"), "errors.md"),
}
