"""Any text is shown as it is, wherever it is shown."""

from __future__ import annotations

import csv
import io
import re
from html.parser import HTMLParser

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.cbook import is_math_text

from d3jax.console.safe_text import (
    csv_writer,
    for_csv,
    for_html,
    for_markdown,
    for_picture,
    markdown_code,
    shorten,
    visible,
)
from tests.names import HOSTILE

MARKS = "\\`*_[]<>|~&$#@:/.=+-!(){}'\" \n\t\r\x00\x1b\u200b\u202e\ufeff\u3164\ud800awx0;é首"
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(), st.text(st.sampled_from(MARKS)))


def shown_by(markdown: str) -> str:
    """The text that a Markdown document of one paragraph or cell shows, by markdown-it."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    inline = [token for token in tokens if token.type == "inline"][-1]
    assert {child.type for child in inline.children or ()} <= {
        "text",
        "text_special",
        "code_inline",
    }
    return "".join(child.content for child in inline.children or ())


@given(TEXTS)
def test_whatever_cannot_be_seen_is_an_escape(text: str) -> None:
    assert visible(text).isprintable()
    visible(text).encode("utf-8")
    assert visible(visible(text)) == visible(text)


def test_what_can_be_seen_stays() -> None:
    assert visible("首页 é [x] \\") == "首页 é [x] \\"
    assert visible("a\n\x1b\u202e\u200b\ufe0f\u3164\udcff") == (
        r"a\n\x1b\u202e\u200b\ufe0f\u3164\udcff"
    )


@given(TEXTS)
def test_html_shows_it(text: str) -> None:
    seen: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            seen.append(data)

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert (tag, attrs) == ("p", [("title", visible(text))])

    reader = Reader()
    reader.feed(f'<p title="{for_html(text)}">{for_html(text)}</p>')
    reader.close()
    assert "".join(seen) == visible(text)


@given(TEXTS)
@example("a www.evil.com b")
@example("&amp; & &#x41;")
def test_markdown_shows_it(text: str) -> None:
    line = f"x{for_markdown(text)}x"
    assert shown_by(line) == f"x{visible(text)}x"
    assert shown_by(f"| a |\n| --- |\n| {line} |") == f"x{visible(text)}x"
    # GitHub makes links of addresses, and mathematics of dollars.
    assert not re.search(r"(?<!\\)(://|[@$])|www\.", for_markdown(text).lower())


@given(TEXTS.filter(str.strip))
def test_code_in_markdown_shows_it(text: str) -> None:
    assert shown_by(f"x {markdown_code(text)} x") == f"x {visible(text)} x"


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_csv_keeps_cells_and_no_spreadsheet_computes_them(texts: list[str]) -> None:
    file = io.StringIO()
    csv_writer(file)([*texts, 0.5, None])
    (line,) = csv.reader(io.StringIO(file.getvalue()))
    assert line == [*map(for_csv, texts), "0.5", ""]
    assert not any(cell.lstrip().startswith(("=", "@")) for cell in line)


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+cmd", "'+cmd"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("-1", "-1"),
        ("+1.5e3", "+1.5e3"),
        ("25-34", "25-34"),
        ("new\nline", r"new\nline"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_a_formula_gets_an_apostrophe(text: str, cell: str) -> None:
    assert for_csv(text) == cell


@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_pictures_show_no_mathematics_and_hide_no_label(texts: list[str]) -> None:
    shown = for_picture(texts)
    assert list(shown) == list(dict.fromkeys(texts))
    assert len(set(shown.values())) == len({visible(text) for text in texts})
    for label in shown.values():
        assert not is_math_text(label)
        assert not label.startswith("_")


def test_a_name_in_a_picture() -> None:
    names = ["pay$_in_$", "首页", "_x", "a\nb"]
    assert list(for_picture(names).values()) == [r"pay\$_in_\$", r"\u9996\u9875", " _x", r"a\nb"]
    assert for_picture(["abcdef$"], fold=3)["abcdef$"] == "abc\ndef\n\\$"


@given(st.text(), st.integers(1, 30))
def test_a_shortened_text_fits_and_keeps_both_ends(text: str, width: int) -> None:
    from rich.cells import cell_len

    short = shorten(visible(text), width)
    assert cell_len(short) <= width
    if "…" not in text and "…" in short:
        start, end = short.split("…")
        assert visible(text).startswith(start)
        assert visible(text).endswith(end)
