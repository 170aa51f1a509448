"""Small networks saved as other programs save theirs."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = ("benign", "grade 3", "grade 4")
TRANSFORM: list[dict[str, Any]] = [
    {"name": "Resize", "arguments": {"size": 16}},
    {"name": "ToTensor"},
    {"name": "Normalize", "arguments": {"mean": [0.7, 0.6, 0.5], "std": [0.2, 0.25, 0.5]}},
]


class ColourNet(nn.Module):
    """Logits that are a fixed linear function of an image's mean colour, by a view of its maps."""

    def __init__(self, n_classes: int = len(CLASSES)) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(16)
        self.last = nn.Linear(3, n_classes)
        with torch.no_grad():
            self.last.weight.copy_(torch.arange(3.0 * n_classes).view(n_classes, 3).sin())
            self.last.bias.copy_(torch.linspace(-1, 1, n_classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(self.pool(x).view(x.size(0), -1))
        return logits


def describe(**changes: Any) -> dict[str, Any]:
    """Describe a network in the form of WSInfer's zoo; what is None is left out."""
    values = {
        "spec_version": "1.0",
        "architecture": "colournet",
        "num_classes": len(CLASSES),
        "class_names": list(CLASSES),
        "patch_size_pixels": 32,
        "spacing_um_px": 0.5,
        "transform": TRANSFORM,
    } | changes
    return {key: value for key, value in values.items() if value is not None}


def write_zoo(folder: Path, network: nn.Module | None = None, **changes: Any) -> Path:
    """Write a folder as the zoo has it; return the model's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "torchscript_model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit
        torch.jit.trace((network or ColourNet()).eval(), torch.rand(1, 3, 16, 16)).save(path)
    (folder / "config.json").write_text(json.dumps(describe(**changes)))
    return path


def write_export(path: Path, network: nn.Module, *, batch: int | None = None) -> Path:
    """Export a network for batches of any size, or of one."""
    size = None if batch else ({0: torch.export.Dim("b", min=1, max=999)},)
    example = torch.rand(batch or 3, 3, 16, 16)
    torch.export.save(torch.export.export(network.eval(), (example,), dynamic_shapes=size), path)
    path.with_suffix(".json").write_text(json.dumps(describe()))
    return path
