"""Pictures of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from d3jax.console.safe_text import for_picture
from d3jax.pictures.charts import save_as


def attention_heat_map(
    path: Path,
    attention: Float[np.ndarray, "S N"],
    scenarios: Sequence[str],
    fields: Sequence[str],
    marked: np.ndarray | None = None,
) -> None:
    """Draws which fields a scenario's rows attend to (Figure 4 of the D3 paper).

    `attention` is what each field receives on average, as a multiple of an even share; `marked`
    [S N] outlines cells, such as those of planted domain-sensitive fields. The title says where
    all cells are 1.00.
    """
    ratio = attention * len(fields)
    spread = max(0.05, float(np.nanmax(np.abs(ratio - 1.0))))
    figure = Figure(figsize=(2.4 + 0.62 * len(fields), 1.9 + 0.5 * len(scenarios)), dpi=150)
    axes = figure.subplots()
    image = axes.imshow(ratio, cmap="RdBu_r", vmin=1 - spread, vmax=1 + spread, aspect="auto")
    axes.set_xticks(range(len(fields)), list(for_picture(fields).values()), rotation=35, ha="right")
    axes.set_yticks(range(len(scenarios)), list(for_picture(scenarios).values()))
    axes.set_ylabel("scenario")
    even = np.nanmax(np.abs(ratio - 1.0)) < 0.005
    title = "even: every cell is 1.00, so that it selects nothing" if even else "1 = an even share"
    axes.set_title(f"Attention that each field receives ({title})", fontsize=10)
    for (row, column), value in np.ndenumerate(ratio):
        strong = abs(value - 1) > 0.6 * spread
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if strong else "black",
        )
        if marked is not None and marked[row, column]:
            axes.add_patch(_outline(column, row))
    if marked is not None:
        axes.set_xlabel("outlined: fields whose effect was planted to differ in that scenario")
    figure.colorbar(image, ax=axes, shrink=0.9)
    save_as(figure, path, bbox_inches="tight")


def _outline(column: int, row: int):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, linewidth=1.8)
