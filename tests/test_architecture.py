"""The floors: d3jax knows nothing of data_pipelines, which knows nothing of experiments."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("d3jax", "data_pipelines", "experiments")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for floor in FLOORS
    for path in sorted((ROOT / floor).rglob("*.py"))
}

RIDDLES = ("What", "Of", "Where", "How", "Which", "Whether")


def docstrings_of(path: Path) -> Iterator[str]:
    """Every string that stands alone in a file: docstrings, and those of attributes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                yield text


def imports_of(path: Path) -> Iterator[str]:
    """Every module of ours that a file names in an import, at any depth."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names.append(str(node.module))
        else:
            continue
        yield from (name for name in names if name in MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_floor_imports_only_from_floors_below(module):
    mine = FLOORS.index(module.split(".")[0])
    above = [
        name for name in imports_of(MODULES[module]) if name.split(".")[0] in FLOORS[mine + 1 :]
    ]
    assert not above


def test_no_file_imports_in_a_circle():
    graph = {module: set(imports_of(path)) - {module} for module, path in MODULES.items()}
    while graph:
        free = {module for module, needs in graph.items() if not needs & graph.keys()}
        assert free, f"these import one another: {sorted(graph)}"
        graph = {module: needs for module, needs in graph.items() if module not in free}


def test_the_top_level_holds_what_it_should():
    expected = {*FLOORS, "tests", "pyproject.toml", "README.md", "LICENSE"}
    made_by_tools = {path.name for path in ROOT.glob("*.egg-info")} | {"build", "runs", "prepared"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert found - made_by_tools == expected


@pytest.mark.parametrize("module", MODULES)
def test_docstrings_are_plain_sentences(module):
    path = MODULES[module]
    assert not [text for text in docstrings_of(path) if text.split()[0] in RIDDLES]
