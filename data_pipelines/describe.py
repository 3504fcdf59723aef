"""The contents of a prepared directory: rows, click rates and ids of each split and scenario."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from d3jax.batch import UNKNOWN
from d3jax.configure import is_split_at_random
from d3jax.console.report import split_grid
from d3jax.console.safe_text import for_picture
from d3jax.console.terminal import Console, Grid
from d3jax.data.columns import SPLITS
from d3jax.data.prepared import Prepared, open_prepared
from d3jax.disk import writing
from d3jax.division import Division, divisions
from d3jax.owned import check_output, replacing
from d3jax.pictures.charts import save_as

_CHUNK = 1 << 18
SHOWN_DIVISIONS = 4
SHOWN_FIELDS = 5


class Facts(NamedTuple):
    """The counts of a split: `rows` and `clicks` per scenario, per scenario and field the number of
    `distinct` known ids and of rows whose id is `unknown`."""

    rows: Int[np.ndarray, " S"]
    clicks: Int[np.ndarray, " S"]
    distinct: Int[np.ndarray, "S N"]
    unknown: Int[np.ndarray, "S N"]


def describe(directory: Path, picture: Path | None, console: Console) -> None:
    """Prints tables of the splits and fields, and draws the scenarios when `picture` is given."""
    prepared = open_prepared(directory)
    if picture is not None:
        check_output(picture, ours=_is_picture)
    facts = {split: split_facts(prepared, split) for split in SPLITS}
    sizes = {split: (fact.rows, fact.clicks) for split, fact in facts.items()}
    title = f"{prepared.directory}: rows and click rates"
    console.print(split_grid(title, prepared.schema.scenarios, sizes))
    console.print(field_grid(prepared, facts))
    found = divisions(prepared.schema, prepared.rows("train"))
    console.print(division_grid(found, is_split_at_random(prepared)))
    if picture is not None:
        with writing(picture), replacing(picture) as draft:
            draw_scenarios(draft, prepared.schema.scenarios, facts)
        console.print(f"scenarios drawn in {picture}")


def split_facts(prepared: Prepared, split: str) -> Facts:
    """Streams over a split once."""
    schema, rows = prepared.schema, prepared.rows(split)
    seen = np.zeros((schema.num_scenarios, schema.num_rows), bool)
    sizes = np.zeros((schema.num_scenarios, 2), np.int64)
    unknown = np.zeros((schema.num_scenarios, schema.num_fields), np.int64)
    for start in range(0, len(rows.label), _CHUNK):
        ids, scenario, label = (column[start : start + _CHUNK] for column in rows)
        np.add.at(sizes, scenario, np.stack([np.ones_like(label), label], axis=1).astype(np.int64))
        np.add.at(unknown, scenario, ids[:, schema.first_slot] == UNKNOWN)
        row, slot = np.nonzero(ids > UNKNOWN)
        seen[scenario[row], ids[row, slot] + schema.slot_offset[slot]] = True
    borders = schema.slot_offset[schema.first_slot]
    distinct = np.add.reduceat(seen, borders, axis=1, dtype=np.int64)
    return Facts(sizes[:, 0], sizes[:, 1], distinct, unknown)


def field_grid(prepared: Prepared, facts: dict[str, Facts]) -> Grid:
    """Known values of each field, those that each scenario of train has, and shares of unknown."""
    names = prepared.schema.scenarios
    head = ("field", "values", "unknown in train", "in test", *(f"in {name}" for name in names))
    unknown = [_unknown_share(facts[split]) for split in ("train", "test")]
    lines = [
        (
            field.name,
            f"{field.size - 1:,}",
            *(f"{share[index]:.2%}" for share in unknown),
            *(f"{count:,}" for count in facts["train"].distinct[:, index]),
        )
        for index, field in enumerate(prepared.schema.fields)
    ]
    note = "unknown: no value, a rare one, or one that train lacks; in a scenario: values in train"
    return Grid("fields", head, lines, caption=note)


def division_grid(found: Sequence[Division], at_random: bool = True) -> Grid:
    """The ways to divide the rows that have most evidence, and what acts differently in each."""
    shown = list(found[:SHOWN_DIVISIONS])
    if all(one.fields for one in shown):
        shown.append(next(one for one in found if not one.fields))
    lines = [
        (
            " and ".join(one.fields) or "the scenarios",
            f"{one.evidence:,.0f}",
            ", ".join(_acting(one)) or "nothing",
        )
        for one in shown
    ]
    note = (
        "evidence: by how many nats it is likelier that fields act differently in these domains "
        "than that they act alike; the first are the domains of --domain auto"
    )
    if not at_random:
        note += (
            ", for a model that divides rows: rows that were not split at random get no terms by "
            "--wide auto"
        )
    return Grid("domains", ("domains by", "evidence", "what acts differently"), lines, caption=note)


def _acting(division: Division) -> list[str]:
    """The fields that act differently in the domains, the strongest first."""
    ranked = sorted(division.acting.items(), key=lambda item: -item[1])
    return [name for name, nats in ranked[:SHOWN_FIELDS] if nats >= 1]


def _unknown_share(facts: Facts) -> Float[np.ndarray, " N"]:
    return facts.unknown.sum(axis=0) / facts.rows.sum()


def _is_picture(path: Path) -> bool:
    """Return whether a file is a picture that Matplotlib drew, as it says at the beginning."""
    with path.open("rb") as file:
        return b"Matplotlib" in file.read(1000)


def draw_scenarios(path: Path, scenarios: tuple[str, ...], facts: dict[str, Facts]) -> None:
    """Sizes and click rates of the scenarios side by side, a bar for each split."""
    height = 1.4 + 0.55 * len(scenarios)
    figure = Figure(figsize=(9, height), dpi=150, layout="constrained")
    sizes, rates = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(scenarios))
    width = 0.8 / len(facts)
    for index, (split, fact) in enumerate(facts.items()):
        offset = places + (index - (len(facts) - 1) / 2) * width
        sizes.barh(offset, fact.rows, width, label=split)
        rates.barh(offset, fact.clicks / np.maximum(fact.rows, 1), width, label=split)
    sizes.set_yticks(places, list(for_picture(scenarios).values()))
    sizes.invert_yaxis()
    sizes.set_xlabel("rows")
    rates.set_xlabel("click rate")
    figure.legend(*sizes.get_legend_handles_labels(), loc="outside upper center", ncols=len(facts))
    save_as(figure, path)
