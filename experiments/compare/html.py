"""A comparison as one HTML file that needs nothing beside it: no script, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from d3jax.console.safe_text import for_html
from experiments.compare.comparison import Comparison
from experiments.compare.markdown import Strong
from experiments.compare.report import (
    INTERVALS,
    LEGEND,
    TITLES,
    cell_text,
    grid,
    interval_grid,
    remarks,
)
from experiments.compare.statistics import METRICS, TESTED, MetricName
from experiments.compare.verdict import verdict

META = (
    '<meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/>'
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 100rem; padding: 0 1rem;
       color: #1a1a1a; background: #fff; --name: 13rem; }
p { max-width: 75rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
.verdict { font-size: 1.1rem; border-left: 4px solid #888; padding-left: .8rem }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd;
         background: #fff; white-space: nowrap; }
th { border-bottom: 2px solid #888; white-space: normal; vertical-align: bottom; }
tr > :first-child { text-align: left }
.better, .better td { background: #d9ecf7 } .worse, .worse td { background: #fbe3d3 }
.paper td { color: #666; font-style: italic }
.wide { overflow-x: auto } img { max-width: 100% }
.metric tr > :first-child, .intervals tr > :first-child { position: sticky; left: 0; z-index: 1;
  box-sizing: border-box; min-width: var(--name); max-width: var(--name);
  white-space: normal; overflow-wrap: anywhere }
.metric tr > :nth-child(4), .intervals tr > :nth-child(2) { position: sticky; left: var(--name);
  z-index: 1; border-right: 1px solid #bbb }
code, pre { background: #f3f3f3; padding: .1rem .3rem; overflow-x: auto; overflow-wrap: anywhere }
figure { margin: 1rem 0 } figcaption { color: #555 }
@media (max-width: 40rem) {
  body { margin: 1rem auto; padding: 0 .6rem; --name: 6.5rem }
  th, td { padding: .25rem .4rem; font-size: .85rem }
  figure { overflow-x: auto } figure img { max-width: none; width: 45rem }
}
@media print {
  @page { size: A4 landscape; margin: 10mm }
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt }
  p { max-width: none }
  table { width: 100%; font-size: min(9pt, 277mm / (var(--columns) + 4) / 5) }
  th, td { padding: .15em .2em; white-space: normal; font-size: inherit }
  th:nth-child(n+5) { overflow-wrap: anywhere }
  .wide { overflow: visible }
  .metric tr > *, .intervals tr > * { position: static !important }
  .metric tr > :first-child, .intervals tr > :first-child { min-width: 10em }
  tr, figure, h2 { break-inside: avoid } h2 { break-after: avoid }
  figure img { max-height: 170mm }
  .better, .worse, .better td, .worse td { print-color-adjust: exact;
    -webkit-print-color-adjust: exact }
}
"""

READING = (
    "Each number is a mean over training runs that differ in their seed, and with --splits in "
    "their rows; the spread beside it says how much a single run can be believed. Blue cells are "
    "significantly better than the method's base, orange ones worse; without colour, the "
    "difference may be chance. Compare a gain with the plain MLP too, not only with its base, and "
    "a logloss with the constant's. The bootstrap interval says how much the AUC of one run "
    "depends on which test rows were drawn."
)


def html(comparison: Comparison, figures: Mapping[str, Path]) -> str:
    """The page; `figures` are SVG files by caption, which are put into it."""
    title = for_html(comparison.table.title)
    sections = [
        f"<h1>{title}</h1>",
        f'<p class="verdict">{" ".join(map(for_html, verdict(comparison)))}</p>',
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
    head = f"{META}<title>{title}</title><style>{STYLE}</style>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + (
        "\n".join(sections) + "\n</body></html>\n"
    )


def _table(comparison: Comparison, metric: MetricName) -> str:
    head, *lines = grid(comparison, metric)
    return _wide("metric", head, (_line(comparison, metric, line) for line in lines))


def _intervals(comparison: Comparison) -> str:
    head, *lines = interval_grid(comparison)
    return _wide("intervals", head, (_row(line) for line in lines))


def _wide(kind: str, head: list[str], rows: Iterable[str]) -> str:
    """A table that scrolls sideways, and is told its columns so that all of them can be printed."""
    titles = "".join(f"<th>{for_html(text)}</th>" for text in head)
    return (
        f'<div class="wide"><table class="{kind}" style="--columns: {len(head)}">\n'
        f"<thead><tr>{titles}</tr></thead>\n<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(texts: Iterable[str], kind: str = "") -> str:
    start = f'<tr class="{kind}">' if kind else "<tr>"
    return start + "".join(map(_cell, texts)) + "</tr>\n"


def _line(comparison: Comparison, metric: MetricName, line: list[str]) -> str:
    method, texts = line[0], line[3:]
    if method not in comparison.methods:
        return _row(line, "paper")
    pairs = zip(texts, comparison.line(method, metric), strict=True)
    cells = [*map(_cell, line[:3]), *(_cell(text, one.verdict) for text, one in pairs)]
    return f"<tr>{''.join(cells)}</tr>\n"


def _cell(text: str, kind: str = "") -> str:
    start, shown = f'<td class="{kind}">' if kind else "<td>", for_html(text)
    if isinstance(text, Strong):
        shown = f"<strong>{shown}</strong>"
    return f"{start}{shown}</td>"


def _differences(comparison: Comparison) -> Iterator[str]:
    """Every tested difference with its p-values, before and after the correction."""
    titles = ["method", "base", "metric", "scenario", "value", "difference", "p", "p (Holm)"]
    if tests := list(_tests(comparison)):
        yield "<h2>Differences from the base</h2>"
        yield _wide("tests", titles, tests)


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
            yield _row(texts, one.verdict)


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
