"""Models of other packages: the entry points of the group ``wsi_pipeline.models``.

A package's own code runs only where one of its models is named.
"""

import difflib
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from wsi_pipeline.errors import ModelError

GROUP = "wsi_pipeline.models"


def list_plugins() -> list[str]:
    """Return the names of all models of installed packages, without loading any."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load_plugin(name: str, *, known: Sequence[str]) -> Any:
    """Load the class, or the function that builds the network, behind a name.

    Parameters
    ----------
    name : str
        Of the entry point.
    known : sequence of str
        Other names that the caller has, for the message.

    Raises
    ------
    ModelError
        If no installed package has it, several have, or it cannot be imported.
    """
    found: list[EntryPoint] = list(entry_points(group=GROUP, name=name))
    if not found:
        names = [*known, *list_plugins()]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ModelError(
            f"no model is called {name!r}; {hint}known: {', '.join(names)}; a package adds its own "
            f"by an entry point of the group {GROUP}"
        )
    values = sorted({point.value for point in found})
    if len(values) > 1:
        raise ModelError(
            f"the model {name!r} is an entry point of several packages ({', '.join(values)}); "
            "uninstall one"
        )
    try:
        loaded = found[0].load()
    except Exception as error:  # whatever the import of another package raises
        raise ModelError(
            f"the model {name!r} cannot be imported from {values[0]} "
            f"({type(error).__name__}: {error}); install its package again"
        ) from error
    if not callable(loaded):
        raise ModelError(
            f"the entry point {name!r} ({values[0]}) is a {type(loaded).__name__}, not a class or "
            "a function that builds a network"
        )
    return loaded
