"""What commands print."""


def summaries(printed: str) -> list[str]:
    """The lines of the stages, without their output paths and the next command."""
    lines = [line for line in printed.splitlines() if not line.startswith("next: ")]
    return [line.partition("; output: ")[0] for line in lines]
