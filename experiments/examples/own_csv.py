"""From a CSV of one's own to predictions: prepare, train, evaluate, predict, export.

python -m experiments.examples.own_csv clicks

The folder is a new one, and the file in it made up: 4,000 impressions in two tabs, where a phone's
owner clicks more often in one tab and less often in the other.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np

import d3jax
from data_pipelines.sources.table import Table, TableConfig
from data_pipelines.workplace import prepare_data_set


def write_clicks(path: Path, rows: int = 4000) -> None:
    """Write made-up impressions, one a row."""
    draw = np.random.default_rng(0)
    users, items = draw.integers(0, 200, rows), draw.integers(0, 50, rows)
    tab, phone = draw.integers(0, 2, rows), draw.integers(0, 2, rows)
    click = draw.random(rows) < np.where(tab == phone, 0.6, 0.2)
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["user", "item", "tab", "device", "click"])
        for user, item, t, p, c in zip(users, items, tab, phone, click, strict=True):
            out.writerow([f"u{user}", f"i{item}", ("home", "cart")[t], ("tv", "phone")[p], int(c)])


def main(folder: Path) -> np.ndarray:
    """Return the click probabilities of three new rows."""
    folder.mkdir(parents=True)
    write_clicks(folder / "clicks.csv")
    table = TableConfig(label="click", scenario="tab", user="user", item="item", fields=("device",))
    data = prepare_data_set(Table(files=folder / "clicks.csv", out=folder / "clicks", table=table))
    run = d3jax.train(data, folder / "run", epochs=3, batch_size=256, learning_rate=0.01)
    print(run.evaluate("test"))

    rows = {
        "user": ["u1", "u1", "a new one"],
        "item": ["i3", "i3", "i4"],
        "device": ["phone", "phone", "tv"],
        "tab": ["home", "cart", "home"],
    }
    clicks = run.predict(rows)
    model = d3jax.load(run.export(folder / "model"))  # as a service would, without the run
    np.testing.assert_allclose(model.predict(rows), clicks, rtol=1e-4)
    print("click probabilities:", np.round(clicks, 3))
    return clicks


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "clicks-example"))
