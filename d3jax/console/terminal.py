"""The one place that prints: what is shown is text as it is, and tables fit the screen.

A string never has markup here: colours are given beside it, to `styled`. No other module imports
rich, so that none can show a name, a path or an error's words in another way.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import rich.console
import rich.progress
import rich.table
from rich.cells import cell_len
from rich.console import ConsoleOptions
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from d3jax.console.safe_text import shorten, visible

__all__ = [
    "BarColumn",
    "Console",
    "Grid",
    "MofNCompleteColumn",
    "Progress",
    "Table",
    "TimeRemainingColumn",
    "Words",
    "as_text",
    "ready_streams",
    "styled",
]

_LEAST = (16, 32)
"""Cells that a name keeps, when it has more; the second where the first makes two look alike."""


def ready_streams() -> None:
    """Makes the standard streams of this process fit for any text, and for being closed.

    Without this, the next file that is opened would take the number of a closed one, and be
    written to by whatever prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # What is written to a closed standard output is refused, as by any other command.
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    sys.stdout = sys.stdout or os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Console(rich.console.Console):
    """A screen, or a file, on which strings are data; a message is one line, however long."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The string as it is, without markup or emoji codes."""
        return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints messages without breaking their lines, which would break paths."""
        is_message = all(isinstance(one, str | Text) for one in objects)
        try:
            super().print(*objects, **{"soft_wrap": is_message, **options})
        except OSError:
            # Nobody reads the words beside the results; the work goes on.
            if not self.stderr:
                raise


def as_text(*shown: Any, width: int = 100) -> str:
    """Return what the console would show, without colours, on a screen of the given width."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(*shown)
    return captured.get().rstrip("\n")


def styled(text: str, style: str) -> Text:
    """A string as it is, in a colour."""
    return Text(visible(text), style)


class Table(rich.table.Table):
    """A table whose strings are data."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        """Adds a line of strings, or of what `styled` made of them."""
        super().add_row(*map(_literal, cells), **options)

    def add_column(self, header: Any = "", *args: Any, **options: Any) -> None:
        """Adds a column, whose header is a string."""
        super().add_column(_literal(header), *args, **options)

    def __init__(self, *headers: Any, **options: Any) -> None:
        for name in ("title", "caption"):
            options[name] = _literal(options.get(name))
        super().__init__(*map(_literal, headers), **options)


class Words(ProgressColumn):
    """Words beside a progress bar, from a format with `task`; a task's texts are data."""

    def __init__(self, form: str, style: str = "none") -> None:
        super().__init__()
        self._form, self._style = form, style

    def render(self, task: Task) -> Text:
        """The words of now."""
        return styled(self._form.format(task=task), self._style)


class Progress(rich.progress.Progress):
    """A progress bar whose texts are data."""

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        """Description, bar, share and time."""
        return (
            Words("{task.description}"),
            BarColumn(),
            Words("{task.percentage:>3.0f}%", "magenta"),
            TimeRemainingColumn(),
        )


@dataclass(frozen=True)
class Grid:
    """A table of names and numbers, of whatever width the screen has.

    `head` and `lines` begin with a name; of the other columns, all numbers, the first `fixed` - 1
    say what a line is. Numbers are never cut: where they don't fit side by side, the other columns
    go into several tables, each with the names. A name is shortened in the middle where it doesn't
    fit, and folded where two would then look alike. A line stands apart from those above it when
    its number is in `apart`.
    """

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    fixed: int = 1
    caption: str | None = None
    apart: Sequence[int] = ()

    def __rich_console__(
        self, console: rich.console.Console, options: ConsoleOptions
    ) -> Iterator[Table | Text]:
        columns = [
            [visible(text) for text in column]
            for column in zip(self.head, *self.lines, strict=True)
        ]
        layout = _layout(columns, self.fixed, options.max_width)
        columns[0][1:] = layout.names
        yield styled(self.title, "italic")
        for block in layout.blocks:
            chosen = [*range(self.fixed), *block]
            yield self._table(
                [columns[index] for index in chosen], [layout.widths[index] for index in chosen]
            )
        if self.caption is not None:
            yield styled(self.caption, "dim italic")

    def _table(self, columns: list[list[str]], widths: list[int]) -> Table:
        table = Table()
        full = [column[0] for column in columns]
        headers = [shorten(text, 3 * width) for text, width in zip(full, widths, strict=True)]
        if len(set(headers)) < len(set(full)):
            headers = full
        for index, width in enumerate(widths):
            justify: Any = "right" if index else "left"
            table.add_column(headers[index], justify=justify, width=width, overflow="fold")
        for index, cells in enumerate(zip(*(column[1:] for column in columns), strict=True)):
            if index in self.apart:
                table.add_section()
            table.add_row(*cells)
        return table


class _Layout(NamedTuple):
    """The names as they are shown, every column's width, and the columns of each table."""

    names: list[str]
    widths: list[int]
    blocks: list[range]


def _layout(columns: Sequence[Sequence[str]], fixed: int, total: int) -> _Layout:
    """One table without a line folded if the screen is wide enough; else what loses least."""
    names = list(columns[0][1:])
    longest, *wide = (max(map(cell_len, column)) for column in columns)
    blocks = _blocks([longest, *wide], fixed, total, longest)
    if len(blocks) == 1 and _room([longest, *wide], fixed, blocks[0], total) >= longest:
        return _Layout(names, [longest, *wide], blocks)
    widths = [longest, *map(_narrowest, columns[1:])]
    for least in _LEAST:
        blocks = _blocks(widths, fixed, total, min(longest, least))
        room = max(1, min(_room(widths, fixed, block, total) for block in blocks))
        widths[0] = min(longest, room)
        shown = [shorten(name, widths[0]) for name in names]
        if len(set(shown)) == len(set(names)):
            return _Layout(shown, widths, blocks)
    return _Layout(names, widths, blocks)


def _narrowest(column: Sequence[str]) -> int:
    """Return the width that the numbers need, and the longest word of the header if it is short."""
    head, *numbers = column
    word = min(max(map(cell_len, head.split()), default=1), 10)
    return max(word, *map(cell_len, numbers)) if numbers else word


def _blocks(widths: Sequence[int], fixed: int, total: int, least: int) -> list[range]:
    """Consecutive columns that fit beside `least` cells of the name; at least one each."""
    ends = [fixed]
    for column in range(fixed, len(widths)):
        if column > ends[-1] and _room(widths, fixed, range(ends[-1], column + 1), total) < least:
            ends.append(column)
    return [range(start, end) for start, end in pairwise([*ends, len(widths)])]


def _room(widths: Sequence[int], fixed: int, block: range, total: int) -> int:
    """Return the width left for the name, beside borders and the blanks around each column."""
    others = [*widths[1:fixed], *widths[block.start : block.stop]]
    return total - sum(others) - 3 * (len(others) + 1) - 1


def _literal(content: Any) -> Any:
    return Text(visible(content)) if isinstance(content, str) else content
