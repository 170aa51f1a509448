"""Safe YAML for configs: no duplicate keys, bounded depth and size, no NUL characters."""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_DEPTH = 50  # a config is five or six deep
MAX_VALUES = 100_000  # with aliases expanded; a config has some hundreds


class ConfigLoader(yaml.SafeLoader):
    """A safe loader that refuses duplicate keys and deep nesting."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        """Compose a node; refuse deep nesting."""
        self._depth = getattr(self, "_depth", 0) + 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self._depth -= 1
        assert node is not None  # of the events that are left, each begins a node
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping; refuse duplicate keys."""
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            value = self.construct_object(key)
            if value in seen:
                raise yaml.YAMLError(
                    f"duplicate key '{key.value}' on lines {seen[value]} and {line}; remove one of "
                    "them"
                )
            seen[value] = line
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Parse YAML.

    Raises
    ------
    ValueError
        If it is not YAML, has a duplicate key or a NUL, is nested more than `MAX_DEPTH` deep, or
        has more than `MAX_VALUES` values with aliases expanded.
    """
    try:
        loader = ConfigLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {})
        value = loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, TypeError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    _refuse_nul(value, "")
    return value


def _measure(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node, with aliases expanded."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1  # while it is counted: a node that contains itself
        inner: list[Any] = [] if isinstance(node, yaml.ScalarNode) else list(node.value)
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_measure(part, known) for part in parts)
    if known[id(node)] > MAX_VALUES:
        raise yaml.YAMLError(
            f"it has more than {MAX_VALUES} values with aliases expanded, or contains itself"
        )
    return known[id(node)]


def _refuse_nul(value: Any, place: str) -> None:
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"{place or 'the value'}: {value!r} contains a NUL character; remove it")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_nul(key, f"a key under {place}" if place else "a key")
            _refuse_nul(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _refuse_nul(item, f"{place}.{number}")
