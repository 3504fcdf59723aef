"""A comparison as one HTML file that needs nothing beside it: no script, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from d3jax.console.safe_text import for_html
from experiments.compare.report import (
    INTERVALS,
    LEGEND,
    TITLES,
    Comparison,
    cell_text,
    grid,
    interval_grid,
    remarks,
)
from experiments.compare.statistics import METRICS, TESTED, MetricName, Summary

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #888 }
.better { background: #d9ecf7 } .worse { background: #fbe3d3 }
.paper td { color: #666; font-style: italic }
.wide { overflow-x: auto } img { max-width: 100% }
code, pre { background: #f3f3f3; padding: .1rem .3rem; overflow-x: auto }
figure { margin: 1rem 0 } figcaption { color: #555 }
"""

READING = (
    "Each number is a mean over training runs that differ in their seed alone; the spread beside "
    "it says how much a single run can be believed. Blue cells are significantly better than the "
    "method's base, orange ones worse; without colour, the difference may be chance. Compare a "
    "gain with the plain MLP too, not only with its base, and a logloss with the constant's. The "
    "bootstrap interval says how much the AUC of one run depends on which test rows were drawn."
)


def html(comparison: Comparison, figures: Mapping[str, Path]) -> str:
    """The page; `figures` are SVG files by caption, which are put into it."""
    title = for_html(comparison.table.title)
    sections = [
        f"<h1>{title}</h1>",
        f"<p>{for_html(LEGEND)}</p>",
        *([f"<p><code>{for_html(comparison.command)}</code></p>"] if comparison.command else []),
        f"<h2>How to read this</h2><p>{for_html(READING)}</p>",
        *(f"<h2>{for_html(TITLES[m])}</h2>{_table(comparison, m)}" for m in METRICS),
        f"<h2>{for_html(INTERVALS)}</h2>{_intervals(comparison)}",
        "<h2>Pictures</h2>",
        *(_figure(caption, path) for caption, path in figures.items()),
        *_differences(comparison),
        *_remarks(comparison),
        "<h2>Settings</h2>",
        f"<details><summary>The configuration that the methods change</summary>"
        f"<pre>{_lines(comparison.config.to_json())}</pre></details>",
    ]
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + (
        "\n".join(sections) + "\n</body></html>\n"
    )


def _table(comparison: Comparison, metric: MetricName) -> str:
    head, *lines = grid(comparison, metric)
    body = "".join(_line(comparison, metric, line) for line in lines)
    return f'<div class="wide"><table>{_row("th", head)}{body}</table></div>'


def _intervals(comparison: Comparison) -> str:
    head, *lines = interval_grid(comparison)
    rows = [_row("th", head), *(_row("td", line) for line in lines)]
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _row(tag: str, texts: list[str], kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return start + "".join(f"<{tag}>{for_html(text)}</{tag}>" for text in texts) + "</tr>\n"


def _line(comparison: Comparison, metric: MetricName, line: list[str]) -> str:
    method, texts = line[0], line[3:]
    if method not in comparison.methods:
        return _row("td", line, "paper")
    start = "".join(f"<td>{for_html(text)}</td>" for text in line[:3])
    summaries = (comparison.summaries[method, group, metric] for group in comparison.groups)
    pairs = zip(texts, summaries, strict=True)
    return f"<tr>{start}{''.join(_cell(text, one) for text, one in pairs)}</tr>\n"


def _cell(text: str, summary: Summary) -> str:
    kind = f' class="{summary.verdict}"' if summary.verdict else ""
    return f"<td{kind}>{for_html(text)}</td>"


def _differences(comparison: Comparison) -> Iterator[str]:
    """Every tested difference with its p-values, before and after the correction."""
    titles = ["method", "base", "metric", "scenario", "value", "difference", "p", "p (Holm)"]
    if tests := list(_tests(comparison)):
        yield "<h2>Differences from the base</h2>"
        yield f'<div class="wide"><table>{_row("th", titles)}{"".join(tests)}</table></div>'


def _tests(comparison: Comparison) -> Iterator[str]:
    for one in comparison.summaries.values():
        if one.metric in TESTED and one.difference is not None and one.method != one.base:
            texts = [
                one.method,
                one.base or "",
                TITLES[one.metric],
                one.group,
                cell_text(one),
                f"{one.difference:+.4f}",
                _p(one.p),
                _p(one.p_holm),
            ]
            yield _row("td", texts, one.verdict)


def _figure(caption: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{for_html(caption)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{for_html(caption)}</figcaption></figure>"
    )


def _remarks(comparison: Comparison) -> Iterator[str]:
    for title, notes in remarks(comparison).items():
        items = "".join(f"<li>{for_html(note)}</li>" for note in notes)
        yield f"<h2>{for_html(title)}</h2><ul>{items}</ul>"


def _p(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _lines(settings: dict[str, Any]) -> str:
    return "\n".join(map(for_html, json.dumps(settings, indent=1).splitlines()))
