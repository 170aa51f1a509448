"""Packages that only some commands need; ``pip install 'wsi-pipeline[EXTRA]'`` installs them."""

from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Extra:
    """An extra of pyproject.toml."""

    name: str
    package: str  # what it is known by
    modules: tuple[str, ...]  # that this project imports
    used_by: tuple[str, ...]  # commands, or options of all stages

    @property
    def remedy(self) -> str:
        """The command that installs it."""
        return f"pip install 'wsi-pipeline[{self.name}]'"

    @property
    def missing(self) -> list[str]:
        """Its modules that are not installed."""
        return [module for module in self.modules if find_spec(module) is None]


EXTRAS = (
    Extra(
        "torch",
        "PyTorch",
        ("torch", "captum", "llvmlite", "numba"),
        ("train", "predict", "explain", "apply", "demo"),
    ),
    Extra("cluster", "Dask", ("dask", "distributed", "dask_jobqueue"), ("--dask",)),
    Extra("remote", "s3fs", ("fsspec", "s3fs"), ("run folders at URLs",)),
    Extra("textures", "mahotas", ("mahotas",), ("baselines",)),
    Extra("tensorboard", "TensorBoard", ("tensorboard",), ("--log tensorboard",)),
)


def require(name: str) -> None:
    """Check that an extra is installed, before the work of a command that needs it in the end.

    Raises
    ------
    ModuleNotFoundError
        Naming a module of the extra, as its import would.
    """
    (extra,) = (extra for extra in EXTRAS if extra.name == name)
    for module in extra.missing:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def explain_missing(error: Exception, what: str) -> str | None:
    """Write the sentence for a command that needs a package of an extra.

    Parameters
    ----------
    error : Exception
        Raised by an import.
    what : str
        The command.

    Returns
    -------
    sentence : str or None
        None for any other error.

    Examples
    --------
    >>> explain_missing(ModuleNotFoundError("No module named 'torch'", name="torch"), "train")
    "`train` needs PyTorch: pip install 'wsi-pipeline[torch]'"
    """
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    root = error.name.partition(".")[0]
    for extra in EXTRAS:
        if root in extra.modules:
            # An option needs it, not the command itself.
            by_option = extra.used_by[0].startswith("--")
            reason = f" for {' and '.join(extra.used_by)}" if by_option else ""
            return f"`{what}` needs {extra.package}{reason}: {extra.remedy}"
    return None
