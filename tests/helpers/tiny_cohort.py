"""Six small slides with drawn tumour, and a config that takes them through every stage."""

import re
from pathlib import Path

from tests.helpers.slides import halve, tissue, write_slide
from wsi_pipeline.cli.app import main

SIZE = (420, 340)
TUMOUR = [(120, 100), (260, 100), (260, 230), (120, 230)]
ASAP = (
    '<?xml version="1.0"?><ASAP_Annotations><Annotations>'
    '<Annotation Name="a" Type="Polygon" PartOfGroup="Tumor"><Coordinates>{}</Coordinates>'
    '</Annotation></Annotations><AnnotationGroups><Group Name="Tumor"/></AnnotationGroups>'
    "</ASAP_Annotations>"
)
CONFIG = """
input: {data}/manifest.csv
out: {run}
tile: {{target_mpp: 0.5, patch_px: 32, tissue: {{mpp: 2.0, min_object_um2: 100.0}}}}
train:
  patchnet:
    model: {{options: {{m: 5, stride: 5, filters: 4, depth: 2}}}}
    lr: 0.01
    batch_size: 8
    steps_per_epoch: 6
    max_epochs: 2
predict: {{splits: [val, test]}}
evaluate: {{bootstrap: 20}}
"""


def draw_cohort(folder: Path) -> None:
    """Six slides of three pairs of patients; tumour is darker."""
    folder.mkdir()
    points = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(TUMOUR)
    )
    rows = ["slide,label,annotation,split"]
    for number, split in enumerate(("train", "train", "val", "val", "test", "test")):
        name, label = f"s{number}", number % 2
        pixels = tissue(*SIZE, seed=number)
        if label:
            pixels[100:230, 120:260] //= 2
            (folder / f"{name}.xml").write_text(ASAP.format(points))
        write_slide(folder / f"{name}.tif", [pixels, halve(pixels)])
        rows.append(f"{name}.tif,{label},{f'{name}.xml' if label else ''},{split}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")


def write_config(folder: Path, data: Path, run: Path) -> Path:
    path = folder / "config.yaml"
    path.write_text(CONFIG.format(data=data, run=run))
    return path


def again(folder: Path, *more: str) -> int:
    return main(["run", str(folder / "config.yaml"), *more])


def contents(run: Path) -> dict[str, bytes]:
    """Everything a run wrote but its logs and how long its epochs took."""
    return {
        path.relative_to(run).as_posix(): _without_times(path)
        for path in sorted(run.rglob("*"))
        if path.is_file() and "logs" not in path.parts
    }


def _without_times(path: Path) -> bytes:
    """Take away the seconds of epochs, and what marks know of files that hold them."""
    data = path.read_bytes()
    if path.name == "history.csv":
        return b"\n".join(line.rpartition(b",")[0] for line in data.splitlines())
    if path.name == "report.html":
        return re.sub(rb"An epoch took .*? s \(median", b"", data)
    if path.parts[-3:-1] == (".state", "report"):
        return re.sub(rb'"fingerprint": "\w+"|"report.html": (\d+|"\w+")', b"", data)
    return re.sub(rb'history.csv": (\d+|"\w+")', b"", data) if ".state" in path.parts else data
