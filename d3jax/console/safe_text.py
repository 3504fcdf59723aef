"""Names, values and paths are data: one function for each place where they are shown.

A scenario may be called `[red]x`, `$\\frac$`, `<script>` or `=cmd|...`, and hold line breaks,
escape sequences or characters that take no room. Each function returns text that the place shows
as it is, with whatever can't be seen as the escape that Python's `repr` has for it.
"""

from __future__ import annotations

import csv
import html
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TextIO

from rich.cells import cell_len

_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""Characters that Python takes for printable, and that yet show nothing of their own."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]")
_NUMBER = re.compile(r"[+-]?[0-9.,]+(?:[eE][+-]?[0-9]+)?%?")
_OTHER_SCRIPTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
)
_PICTURED = (32, 64)
"""Characters of a name in a picture; the second where the first makes two look alike."""

_MARKS = re.compile(
    r"([\\`*\[\]<>|~$#@]|&(?=#?\w+;)|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.)", re.IGNORECASE
)
"""Characters that act in GitHub's Markdown; an underscore within a word and a lone & don't."""


def visible(text: str) -> str:
    """Control, direction, invisible and lone surrogate characters as escapes such as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_seen, text))


def for_html(text: str) -> str:
    """As the text of an element, or within the quotes of an attribute."""
    return html.escape(visible(text))


def for_markdown(text: str) -> str:
    """Within a line or a cell, where no mark acts as one."""
    return _MARKS.sub(r"\\\1", visible(text))


def markdown_code(text: str) -> str:
    """As a span of code, whose fence is longer than any within it (CommonMark, 6.1)."""
    text = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    blank = " " if "`" in text else ""
    return f"{fence}{blank}{text}{blank}{fence}"


def for_csv(text: str) -> str:
    """As a cell that no spreadsheet takes for a formula (an apostrophe says that it is text).

    Numbers stay as they are, and so do characters that are no control characters, since programs
    read the file too.
    """
    text = _CONTROL.sub(lambda match: _escape(match[0]), text)
    is_formula = _FORMULA.match(text) and not _NUMBER.fullmatch(text)
    return f"'{text}" if is_formula else text


def csv_writer(file: TextIO) -> Callable[[Iterable[Any]], None]:
    """Returns a function that appends a line of cells; texts among them are made safe."""
    writer = csv.writer(file)

    def write(cells: Iterable[Any]) -> None:
        writer.writerow(for_csv(cell) if isinstance(cell, str) else cell for cell in cells)

    return write


def csv_lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of such a file, each by the names of its columns."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def for_picture(names: Iterable[str], fold: int | None = None) -> dict[str, str]:
    """Each name as a text of Matplotlib's, without mathematics, in lines of `fold` characters.

    A character that no font has is shown as its escape, as no two would look different
    otherwise. Long names are shortened where that leaves them different.
    """
    names = list(dict.fromkeys(names))
    full = ["".join(c if ord(c) in _glyphs() else _escape(c) for c in visible(n)) for n in names]
    for width in _PICTURED:
        shown = [shorten(text, width) for text in full]
        if len(set(shown)) == len(set(full)):
            break
    else:
        shown = full
    return {name: _drawn(text, fold) for name, text in zip(names, shown, strict=True)}


def _drawn(text: str, fold: int | None) -> str:
    size = fold or len(text) or 1
    lines = (text[start : start + size] for start in range(0, len(text), size))
    # Matplotlib hides labels that begin with an underscore; a blank before it doesn't.
    blank = " " if text.startswith("_") else ""
    return blank + "\n".join(line.replace("$", r"\$") for line in lines)


def shorten(text: str, width: int) -> str:
    """The text in `width` cells of the screen, with its middle left out when it is longer."""
    if cell_len(text) <= width:
        return text
    tail = max(0, (width - 1) // 2)
    end = _beginning(text[::-1], tail)[::-1]
    return f"{_beginning(text, max(0, width - 1 - tail))}…{end}"


def _beginning(text: str, width: int) -> str:
    """As much of a text as fits."""
    used = 0
    for index, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return text[:index]
    return text


def _seen(character: str) -> str:
    shown = character.isprintable() and not _UNSEEN.match(character)
    return character if shown else _escape(character)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def picture_families() -> list[str]:
    """Matplotlib's font, and after it what is installed of those that have other scripts."""
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["sans-serif", *(family for family in _OTHER_SCRIPTS if family in installed)]


@cache
def _glyphs() -> frozenset[int]:
    """The characters that the fonts of pictures have."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    paths = [findfont(FontProperties(family=[family])) for family in picture_families()]
    return frozenset().union(*(get_font(path).get_charmap() for path in paths))
