"""Train and test every fold of a config of an image folder, and pool the held-out scores.

``python -m wsi_pipeline.cli.cross_validation CONFIG --folds 4 --out OUT --set input=FOLDER``

Each fold is a run of its own (``OUT_0``, ``OUT_1``, ...), so an interrupted benchmark continues
with the same command. Prints, first for the validation images and then for the test images, the
table of `wsi_pipeline.evaluation.pooled_scores`: settings are chosen by the first one.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from wsi_pipeline.cli.app import main as run_command
from wsi_pipeline.config.reading import read_config
from wsi_pipeline.evaluation import pooled_scores


def list_commands(args: argparse.Namespace) -> list[list[str]]:
    """List the arguments of ``wsi-pipeline`` for each fold."""
    settings: list[str] = list(args.set)
    if args.weights:
        trained = read_config(args.config).train
        pretrained = [name for name, train in trained.items() if train.model.weights]
        settings += [f"train.{name}.model.weights={args.weights}" for name in pretrained]
    first = ["run", str(args.config), "--device", args.device]
    found = []
    for fold in range(args.folds):
        own = [*settings, f"splits={{folds: {args.folds}, fold: {fold}}}"]
        words = [word for setting in own for word in ("--set", setting)]
        found.append([*first, "--out", f"{args.out}_{fold}", *words])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run all folds and print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m wsi_pipeline.cli.cross_validation",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--out", required=True, help="start of the run folders' names")
    parser.add_argument("--weights", type=Path, help="of all models that start from weights")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(argv)
    for command in list_commands(args):
        if code := run_command(command):
            return code
    runs = [f"{args.out}_{fold}" for fold in range(args.folds)]
    for split in ("val", "test"):
        sys.stdout.write(f"{split}\n")
        pooled_scores.main([*runs, "--split", split])
    return 0


if __name__ == "__main__":
    sys.exit(main())
