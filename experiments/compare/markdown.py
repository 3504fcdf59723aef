"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from d3jax.console.safe_text import for_markdown


def markdown_table(
    head: Sequence[str], lines: Iterable[Sequence[str]], words: int = 1
) -> list[str]:
    """The lines of a table; its first `words` columns hold text, the others numbers.

    Cells are text as it is, not Markdown.
    """
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return [_line(head), _line(rule), *map(_line, lines)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(for_markdown(cell) for cell in cells) + " |"
