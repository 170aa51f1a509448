"""A model without cost, and the program with it among its models; not a benchmark itself.

python benchmarks/trivial.py write CHECKPOINT [PATCH_PX MPP]
python benchmarks/trivial.py COMMAND ...        (as wsi-pipeline COMMAND ...)
"""

import sys
from pathlib import Path

NAME = "trivial"


def register():
    """Add the model to the program's models; imports torch."""
    import torch
    from torch import nn

    from wsi_pipeline.models import MODELS, PatchClassifier

    class Trivial(PatchClassifier):
        """Mean of a corner."""

        def __init__(self):
            super().__init__()
            self.options = {}
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, x):
            """(B, 3, H, W) -> (B,)."""
            return self.weight * x[:, 0, :8, :8].mean((1, 2))

    MODELS[NAME] = Trivial
    return Trivial


def write_checkpoint(path, patch_px=512, mpp=0.5):
    """Write a checkpoint of the model."""
    from wsi_pipeline.models.checkpoint import CheckpointMeta, save_checkpoint

    model = register()()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, model, CheckpointMeta(NAME, {}, patch_px=patch_px, target_mpp=mpp))
    return path


def main(argv):
    """Run the program; the model is registered when torch is imported anyway, to load it."""
    from wsi_pipeline.cli.app import main as program

    if not argv:
        print(__doc__)
        return 0
    if argv[0] == "write":
        write_checkpoint(
            Path(argv[1]), *(kind(v) for kind, v in zip((int, float), argv[2:], strict=False))
        )
        return 0
    from wsi_pipeline.stages import predict

    load_model = predict.load_model

    def load(*arguments):
        register()
        return load_model(*arguments)

    predict.load_model = load
    return program(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
