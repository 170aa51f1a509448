"""Lists of names in messages."""

from collections.abc import Sequence


def name_some(names: Sequence[str], n: int = 5) -> str:
    """Join the first `n` names, and count the others.

    Examples
    --------
    >>> name_some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = len(names) - n
    return ", ".join(names[:n]) + (f" and {rest} more" if rest > 0 else "")
