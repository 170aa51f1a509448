"""Counts and lists of names in messages."""

from collections.abc import Sequence


def count_nouns(n: int, noun: str) -> str:
    """Count something.

    Examples
    --------
    >>> count_nouns(1, "slide"), count_nouns(0, "slide"), count_nouns(2, "patch")
    ('1 slide', '0 slides', '2 patches')
    """
    plural = "es" if noun.endswith("ch") else "s"
    return f"{n} {noun}{'' if n == 1 else plural}"


def name_some(names: Sequence[str], n: int = 5) -> str:
    """Join the first `n` names, and count the others.

    Examples
    --------
    >>> name_some(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    rest = len(names) - n
    return ", ".join(names[:n]) + (f" and {rest} more" if rest > 0 else "")
