"""Public names, for type checkers; `__init__.py` imports them on first use."""

from tiling.readers.order import READERS as READERS

__all__: list[str]
