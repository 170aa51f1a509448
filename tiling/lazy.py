"""Public names of a package that are imported when they are first used.

So a package can offer what needs heavy libraries and still be imported at once.
"""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, module_by_name: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make a package's ``__getattr__`` and ``__dir__``.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    module_by_name : mapping
        Where each public name is defined.

    Returns
    -------
    get_attribute, list_names : functions
        The first keeps what it has imported in the package and raises AttributeError for any name
        that is not in the mapping.
    """

    def get_attribute(name: str) -> Any:
        if name not in module_by_name:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(module_by_name[name])
        is_room = module.__name__ == f"{package}.{name}"  # offered as a whole
        value = module if is_room else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_by_name})

    return get_attribute, list_names
