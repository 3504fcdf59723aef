"""`d3jax export`: a run's best weights as a folder that needs neither the run nor its code."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from d3jax.data.encoder import unknown_rows
from d3jax.data.tables import to_table
from d3jax.errors import DataError
from d3jax.export import export_model, load_exported
from d3jax.owned import building
from data_pipelines.checksums import verify_checksums, write_checksums
from data_pipelines.columns import read_schema
from data_pipelines.encoder import load_encoder
from experiments.evaluate import load_best
from experiments.run import Run
from experiments.unknown import Unknown, training_share

ENOUGH = 100
"""Rows of which the share of unknown values is worth a warning."""


def export_run(run: Run, out: Path) -> int:
    """Writes program, weights, schema and vocabularies into `out`; returns the bytes they take.

    Raises `OutputError` when `out` exists or can't be written.
    """
    with building(out, "export", cure="choose another folder, or remove it") as draft:
        loaded = load_best(run)
        state = loaded.state
        export_model(loaded.trainer.model, loaded.trainer.settle(state), state.model_state, draft)
        shutil.copyfile(run.directory / "schema.json", draft / "schema.json")
        shutil.copytree(run.directory / "vocabularies", draft / "vocabularies")
        write_checksums(draft)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


class Exported:
    """An exported model: `Exported(folder)(rows)` scores rows in their raw values."""

    def __init__(self, directory: Path | str) -> None:
        """Reads the folder; raises `DataError` naming a file that is missing or damaged."""
        directory = Path(directory)
        verify_checksums(directory)
        described = read_schema(directory)
        self._encoder = load_encoder(described)
        self._probabilities = load_exported(directory, described.schema)
        none = np.zeros(described.schema.num_fields, np.int64)
        self.unknown = Unknown(described.schema, none, 0, training_share(described))
        """What of all rows scored so far training had not seen."""
        self._told: set[str] = set()

    def __call__(self, rows: Any) -> Float[np.ndarray, " B"]:
        """Return the click probability of each row of a data frame, Arrow table or dict of columns.

        Warns once of a field in which far more values are unknown than in training. Raises
        `DataError` when there are no rows, for a column that is missing, and for a row of an
        unknown scenario.
        """
        table = to_table(rows, self._encoder.columns)
        if not table.num_rows:
            raise DataError("the table has no rows to score; give at least one")
        [batch] = table.combine_chunks().to_batches()
        ids, scenario = self._encoder.encode(batch, 0, "the table")
        self._look_for_unknown(ids)
        return self._probabilities(ids, scenario)

    def _look_for_unknown(self, ids: np.ndarray) -> None:
        seen = self.unknown
        rows = seen.rows + unknown_rows(seen.schema, ids)
        self.unknown = seen._replace(rows=rows, total=seen.total + len(ids))
        if self.unknown.total < ENOUGH:
            return
        for name, warning in self.unknown.warnings().items():
            if name not in self._told:
                self._told.add(name)
                warnings.warn(warning, stacklevel=3)
