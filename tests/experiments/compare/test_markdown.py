"""Markdown tables align numbers to the right and survive a bar in a name."""

from __future__ import annotations

from experiments.compare.markdown import Strong, markdown_table


def test_text_stands_left_and_numbers_right() -> None:
    assert markdown_table(("step", "model", "ms"), [("a", "b", "1"), ("c", "d", "2")], 2) == [
        "| step | model | ms |",
        "| --- | --- | ---: |",
        "| a | b | 1 |",
        "| c | d | 2 |",
    ]


def test_a_bar_in_a_cell_is_no_new_column() -> None:
    assert markdown_table(["tab", "n"], [["left|right", "1"]])[2] == "| left\\|right | 1 |"


def test_what_stands_out_is_bold_and_its_marks_are_text() -> None:
    assert markdown_table(["m", "n"], [["a", Strong("*1")]])[2] == "| a | **\\*1** |"
