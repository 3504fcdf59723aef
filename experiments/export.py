"""`d3jax export`: a run's best weights as a folder that needs neither the run nor its code."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from d3jax.export import export_model, load_exported
from d3jax.owned import building
from data_pipelines.columns import read_schema
from data_pipelines.encoder import load_encoder
from experiments.evaluate import load_best
from experiments.run import Run


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
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


class Exported:
    """An exported model: `Exported(folder)(table)` scores rows in their raw values."""

    def __init__(self, directory: Path | str) -> None:
        directory = Path(directory)
        described = read_schema(directory)
        self._encoder = load_encoder(described)
        self._probabilities = load_exported(directory, described.schema)

    def __call__(self, rows: pa.Table) -> Float[np.ndarray, " B"]:
        """The click probability of each row; raises `DataError` for a column that is missing."""
        [batch] = rows.combine_chunks().to_batches()
        ids, scenario = self._encoder.encode(batch, 0, "the table")
        return self._probabilities(ids, scenario)
