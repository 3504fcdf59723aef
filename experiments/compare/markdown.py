"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from d3jax.console.safe_text import for_markdown


class Strong(str):
    """The text of a cell that stands out."""


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1
) -> list[str]:
    """The lines of a table; its first `words` columns hold text, the others numbers.

    Cells are text as it is, not Markdown.
    """
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [_line(head), _line(rule), *map(_line, lines)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return f"**{for_markdown(text)}**" if isinstance(text, Strong) else for_markdown(text)
