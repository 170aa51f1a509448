"""Measure the structure of the source: folders, layers, imports between folders, cycles, lines.

A room is a folder of a package, or a module next to the folders; an arrow is an import from one
room to another, at module level or inside a function. Floors are the layers of the graph of rooms,
with cycles (rings) merged. Nothing is imported or run.

python benchmarks/structure.py [ROOT]
"""

import argparse
import ast
import io
import json
import statistics
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("tiling", "wsi_pipeline")
STAGES = ("tile", "train", "predict", "heatmap", "explain", "evaluate", "export", "report")
Arrows = dict[str, set[str]]  # room -> rooms it imports from


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path(__file__).parents[1]
    parser.add_argument("root", type=Path, nargs="?", default=default, help="of a checkout")
    root: Path = parser.parse_args().root
    json.dump(measure(root), sys.stdout, indent=1)
    sys.stdout.write("\n")


def measure(root: Path) -> dict[str, object]:
    """Count what the packages under `root` consist of."""
    modules = list_modules(root)
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in modules.values()}
    arrows = find_arrows(modules, trees)
    rings = find_rings(arrows)
    lengths = [n for tree in trees.values() for n in function_lengths(tree)]
    return {
        "modules": len(modules),
        "rooms": len(arrows),
        "folders": len([room for room in arrows if modules[room].name == "__init__.py"]),
        "modules_at_root": {p: len([*(root / p).glob("*.py")]) - 1 for p in PACKAGES},
        "floors": count_floors(arrows, rings),
        "arrows": sum(len(found) for found in arrows.values()),
        "rings": [sorted(ring) for ring in rings if len(ring) > 1],
        "lines": sum(len(p.read_text(encoding="utf-8").splitlines()) for p in trees),
        "lines_of_code": sum(count_code_lines(path) for path in trees),
        "lines_of_tests": sum(
            len(p.read_text(encoding="utf-8").splitlines()) for p in (root / "tests").rglob("*.py")
        ),
        "function_lines": {
            "median": statistics.median(lengths),
            "p90": statistics.quantiles(lengths, n=10)[-1],
        },
        "module_names_used_twice": names_used_twice(modules),
        "files_that_hold_a_stage_name": {
            stage: sum(holds_string(tree, stage) for tree in trees.values()) for stage in STAGES
        },
    }


def list_modules(root: Path) -> dict[str, Path]:
    """Map dotted names to files."""
    found = {}
    for path in sorted(p for package in PACKAGES for p in (root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room_of(name: str, modules: dict[str, Path]) -> str:
    """Name the folder of a module, dotted; of a module at the root of a package, its own name."""
    folder = name if modules[name].name == "__init__.py" else name.rpartition(".")[0]
    return name if folder in PACKAGES else folder


def imported_modules(tree: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules that a file imports from, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                name = inner if inner in modules else node.module
                if name in modules:
                    yield name


def find_arrows(modules: dict[str, Path], trees: dict[Path, ast.Module]) -> Arrows:
    """Find which room imports from which other."""
    arrows: Arrows = {room_of(name, modules): set() for name in modules}
    for name, path in modules.items():
        here = room_of(name, modules)
        there = {room_of(other, modules) for other in imported_modules(trees[path], modules)}
        arrows[here] |= there - {here}
    return arrows


def find_rings(arrows: Arrows) -> list[frozenset[str]]:
    """Find the sets of rooms that reach one another; a room on no ring is a set of one."""
    reached = {room: reach(room, arrows) for room in arrows}
    return list(
        {
            frozenset({room} | {other for other in reached[room] if room in reached[other]})
            for room in arrows
        }
    )


def reach(room: str, arrows: Arrows) -> set[str]:
    """List the rooms that can be reached from a room by one arrow or more."""
    found: set[str] = set()
    waiting = [*arrows[room]]
    while waiting:
        other = waiting.pop()
        if other not in found:
            found.add(other)
            waiting += arrows[other]
    return found


def count_floors(arrows: Arrows, rings: list[frozenset[str]]) -> int:
    """Count the rooms of the longest way down, rings being one room."""
    ring_of = {room: ring for ring in rings for room in ring}
    floors: dict[frozenset[str], int] = {}

    def floor(ring: frozenset[str]) -> int:
        if ring not in floors:
            below = {ring_of[other] for room in ring for other in arrows[room]} - {ring}
            floors[ring] = 1 + max((floor(other) for other in below), default=0)
        return floors[ring]

    return max(floor(ring) for ring in rings)


def function_lengths(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of each function's body, its docstring left out."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 1


def count_code_lines(path: Path) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text(encoding="utf-8")
    lines: set[int] = set()
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        first = (
            node.body[0] if isinstance(getattr(node, "body", None), list) and node.body else None
        )
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
        if is_text and isinstance(first.value.value, str):
            lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def names_used_twice(modules: dict[str, Path]) -> dict[str, int]:
    """Count the file names that several modules of one package have."""
    names = Counter(
        (name.partition(".")[0], path.stem)
        for name, path in modules.items()
        if path.name != "__init__.py"
    )
    return {f"{package}: {name}": n for (package, name), n in sorted(names.items()) if n > 1}


def holds_string(tree: ast.AST, text: str) -> bool:
    """Whether a file's code has a string literal of exactly this text."""
    return any(isinstance(node, ast.Constant) and node.value == text for node in ast.walk(tree))


if __name__ == "__main__":
    main()
