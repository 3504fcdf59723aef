"""What is printed is text as it is, and no table loses a number to a narrow screen."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from d3jax.console.safe_text import visible
from d3jax.console.terminal import Console, Grid, Progress, Table, styled
from tests.names import HOSTILE
from tests.test_architecture import MODULES


def printed(*objects: object, width: int = 80, kind: type = Console) -> str:
    screen = io.StringIO()
    kind(file=screen, width=width).print(*objects)
    return screen.getvalue()


def cells(text: str) -> list[list[str]]:
    """The cells of every line of the tables in a text."""
    lines = [line.replace("┃", "│") for line in text.splitlines()]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_message_a_title_and_a_cell_show_a_name(name: str) -> None:
    table = Table(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    table.add_row(styled(name, "red"))
    for kind in (Console, rich.console.Console):
        assert printed(table, width=200, kind=kind).count(visible(name)) == 5
    assert printed(f"in {name}", styled(name, "red")) == f"in {visible(name)} {visible(name)}\n"
    screen = io.StringIO()
    Console(file=screen, width=200).rule(name)
    assert visible(name) in screen.getvalue()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_progress_bar_shows_a_name(name: str) -> None:
    screen = io.StringIO()
    with Progress(console=Console(file=screen, width=200)) as bar:
        bar.update(bar.add_task("reading"), description=name, total=1, completed=1)
    assert visible(name) in screen.getvalue()


def test_a_message_is_one_line() -> None:
    path = "/somewhere/" + "long/" * 60
    assert printed(f"everything is in {path}", width=40) == f"everything is in {path}\n"


NAMES = st.lists(
    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=70)), min_size=1, max_size=9, unique=True
)


@given(NAMES, st.integers(1, 12), st.integers(60, 200))
def test_every_number_is_whole_on_any_screen(names: list[str], columns: int, width: int) -> None:
    heads = [f"column {HOSTILE[c % len(HOSTILE)]} {c}" for c in range(columns)]
    numbers = [[f"{r + 1},{c:03},888" for c in range(columns)] for r in range(len(names))]
    lines = [[name, *line] for name, line in zip(names, numbers, strict=True)]
    text = printed(Grid("title", ["scenario", *heads], lines), width=width)
    assert max(map(cell_len, text.splitlines())) <= width
    shown = [cell for line in cells(text) for cell in line if re.fullmatch(r"\d,\d{3},888", cell)]
    assert sorted(shown) == sorted(number for line in numbers for number in line)


def test_names_are_shortened_in_the_middle_only_where_they_do_not_fit() -> None:
    names = [f"{'a' * 40}-{n:02}" for n in range(27)]
    lines = [[name, "12,345,678", "0.1234", "0.7123", "0.4567", "0.5678"] for name in names]
    head = ["scenario", "rows", "click rate", "AUC", "logloss", "constant's logloss"]
    narrow = printed(Grid("t", head, lines, apart=[26]), width=80)
    assert [row[0] for row in cells(narrow)[2:]] == [
        f"{'a' * 11}…aaaaaaa-{n:02}" for n in range(27)
    ]
    wide = printed(Grid("t", head, lines), width=140)
    assert [row[0] for row in cells(wide)] == ["scenario", *names]
    assert cells(wide)[0] == head


def test_names_that_would_look_alike_are_folded() -> None:
    names = [f"{'a' * 30}{n}{'a' * 30}" for n in range(3)]
    head = ["scenario", *("number" for _ in range(5))]
    text = printed(Grid("t", head, [[name, *["12,345"] * 5] for name in names]), width=80)
    first = "".join(row[0] for row in cells(text) if row[0].strip("a0123") == "")
    assert all(name in first for name in names)


def test_no_other_module_speaks_to_rich_or_makes_html_and_csv() -> None:
    """So that no module can show a name in a way of its own."""
    own = {
        "rich": {"terminal", "safe_text"},
        "html": {"safe_text"},
        "csv": {"safe_text", "text", "encoded"},
    }
    for module, path in MODULES.items():
        if ".examples." in module:  # a user's own programs
            continue
        nodes = list(ast.walk(ast.parse(Path(path).read_text(encoding="utf-8"))))
        names = [a.name for node in nodes if isinstance(node, ast.Import) for a in node.names]
        names += [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
        for name in {name.split(".")[0] for name in names} & own.keys():
            assert module.split(".")[-1] in own[name], f"{module} imports {name}"


def test_only_one_function_writes_pictures() -> None:
    """Of those that show names; the benchmarks have none."""
    for module, path in MODULES.items():
        if not {"bench", "examples"} & set(module.split(".")):
            assert ("savefig(" in path.read_text(encoding="utf-8")) == (
                module == "d3jax.pictures.charts"
            )
