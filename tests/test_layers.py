"""The walls of docs/design.md, held up by reading the source: nothing is imported to find out."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src"
PACKAGE = "ulmfit"

# From the bottom up. The package's own __init__ gathers public names, so it stands above all but the command line.
LAYERS = (
    {"errors"},
    {"config"},
    {"presets", "compute", "heap", "int8_rows"},
    {"text", "models", "training"},
    {"card", "weights", "bag_of_words", "bundle", "run_folder", "curves"},
    {"pretrained"},
    {"learning"},
    {"pipeline", "predict", "generation", "merging", "baseline", "report"},
    {"estimator", "serve", "experiments", "demo"},
    {"__init__"},
    {"console", "flags"},
    {"summaries", "cli_experiments", "endings"},
    {"cli", "__main__"},
)
HEIGHT = {unit: height for height, layer in enumerate(LAYERS) for unit in layer}
STRANGERS = {"text", "models", "training"}
SHELLS = {"cli", "cli_experiments", "endings", "flags", "serve", "__main__"}
SHELF_NAMES = {"utils", "util", "common", "helpers", "helper", "misc"}

PRINTS_OR_EXITS = {"print", "input", "exit", "quit", "sys.exit", "os._exit", "SystemExit"}
# A worker that outlives the process it works for has nobody to tell.
MAY_EXIT = {("text/child_processes.py", "os._exit")}
PARSERS = {"argparse", "cyclopts", "click", "typer"}

Found = Iterator[tuple[str, str]]  # where ("path:line"), what


def modules() -> list[Path]:
    """Every module of the package; finding none would let each test below pass for nothing."""
    paths = sorted((SOURCE / PACKAGE).rglob("*.py"))
    assert paths, f"no source under {SOURCE / PACKAGE}"
    return paths


def unit_of(path: Path) -> str:
    """The name in `LAYERS` that a file belongs to: the top-level module, or the subpackage it lies in."""
    return path.relative_to(SOURCE / PACKAGE).parts[0].removesuffix(".py")


def nodes(path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Each node of a file that has a place, late imports and type-checking blocks included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if hasattr(node, "lineno"):
            yield f"{path.relative_to(SOURCE)}:{node.lineno}", node


def imports(path: Path) -> Found:
    """The full dotted name of each import; `from a import b` counts as `a.b`, for b may be a module."""
    package = path.relative_to(SOURCE).parts[:-1]
    for where, node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((where, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((where, f"{start}.{alias.name}") for alias in node.names)


def own_imports(path: Path) -> Found:
    """The units of this package that a file imports from, its own left out."""
    for where, name in imports(path):
        first, *rest = name.split(".")
        if first == PACKAGE:
            unit = rest[0] if rest and rest[0] in HEIGHT else "__init__"
            if unit != unit_of(path):
                yield where, unit


def calls(path: Path) -> Found:
    """The dotted name of whatever is called or raised."""
    for where, node in nodes(path):
        if isinstance(node, ast.Call):
            yield where, ast.unparse(node.func)
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name):
            yield where, node.exc.id


def test_every_module_has_a_layer() -> None:
    homeless = sorted({unit_of(path) for path in modules()} - HEIGHT.keys())
    assert not homeless, f"{homeless} stand in no layer; place them in docs/design.md and in LAYERS"


def test_imports_never_point_up() -> None:
    upward = [
        f"{where} imports {unit}"
        for path in modules()
        for where, unit in own_imports(path)
        if HEIGHT[unit] > HEIGHT[unit_of(path)]
    ]
    assert not upward, "\n".join(upward)


def test_neighbours_in_one_layer_import_each_other_in_no_circle() -> None:
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for path in modules():
        graph[unit_of(path)].update(unit for _, unit in own_imports(path))
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_text_models_and_training_are_strangers() -> None:
    meetings = [
        f"{where} imports {unit}"
        for path in modules()
        if unit_of(path) in STRANGERS
        for where, unit in own_imports(path)
        if unit in STRANGERS
    ]
    assert not meetings, "\n".join(meetings)


def test_text_does_without_torch() -> None:
    found = [
        f"{where} imports {name}"
        for path in modules()
        if unit_of(path) == "text"
        for where, name in imports(path)
        if "torch" in name.split(".")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("module", [PACKAGE, f"{PACKAGE}.config", f"{PACKAGE}.text"])
def test_a_light_import_stays_light(module: str) -> None:
    heavy = "{'torch', 'sklearn', 'pyarrow', 'tokenizers', 'huggingface_hub'}"
    program = f"import sys, {module}; print(*sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=SOURCE, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_only_shells_print_parse_or_exit() -> None:
    found = []
    for path in modules():
        if unit_of(path) not in SHELLS:
            home = path.relative_to(SOURCE / PACKAGE).as_posix()
            banned = {name for name in PRINTS_OR_EXITS if (home, name) not in MAY_EXIT}
            found += [f"{where} calls {name}" for where, name in calls(path) if name in banned]
            found += [f"{where} imports {name}" for where, name in imports(path) if name.split(".")[0] in PARSERS]
    assert not found, "\n".join(found)


def test_no_module_is_a_shelf_for_odds_and_ends() -> None:
    shelves = [path for path in modules() if SHELF_NAMES & set(path.relative_to(SOURCE).with_suffix("").parts)]
    assert not shelves, f"{shelves}: name a module after the one thing it is about"
