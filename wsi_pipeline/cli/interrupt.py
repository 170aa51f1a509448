"""What a command reports when it is interrupted (Ctrl-C, or a scheduler's SIGTERM).

For each command: which of its work is kept, and whether the same command continues from there or
starts over.
"""

from collections.abc import Sequence

# What each command keeps; commands that are not listed keep nothing.
_KEPT = {
    "tile": "finished slides are kept (a folder of images is prepared in one piece)",
    "train": "finished models are kept, and the epochs that a model in training has completed",
    "predict": (
        "finished slides and scored batches are kept (of a folder of images, finished models)"
    ),
    "heatmap": "finished slides are kept (of a folder of images, finished models)",
    "evaluate": "finished models are kept",
    "report": "what the other stages finished is kept",
    "export": "finished slides are kept",
    "run": "finished slides, epochs and stages are kept",
    "demo": "finished slides, epochs and stages are kept (an unfinished cohort is drawn again)",
}
_BASELINES = "features of the images that were read are kept in the folder of --out"


def describe_interrupt(command: str | None, arguments: Sequence[str]) -> str:
    """Describe what an interrupted command has kept.

    Parameters
    ----------
    command : str, optional
        Name of the command; None if the interrupt came before it was parsed.
    arguments : sequence of str
        Command-line arguments after the name.

    Examples
    --------
    >>> describe_interrupt("froc", ["--out", "x"])
    'interrupted: the same command starts over'
    """
    kept = _KEPT.get(command or "")
    if command == "baselines":
        kept = _BASELINES if _is_given("--out", arguments) else None
    if kept is None:
        if command == "baselines":
            return "interrupted: without --out nothing is kept; the same command starts over"
        return "interrupted: the same command starts over"
    if _is_given("--overwrite", arguments):
        return f"interrupted: {kept}; the same command without --overwrite continues from there"
    return f"interrupted: {kept}; the same command continues from there"


def _is_given(option: str, arguments: Sequence[str]) -> bool:
    return any(word == option or word.startswith(f"{option}=") for word in arguments)
