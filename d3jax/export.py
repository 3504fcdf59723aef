"""A trained model as a folder that needs neither the run nor the code of its model.

The program is StableHLO and takes the weights as an argument, so that it stays small, and any
number of rows. It maps ids and scenarios to click probabilities on each platform it was exported
for. Schema and vocabularies beside it turn raw values into ids, as they did in training.
"""

from __future__ import annotations

import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float, Int

from d3jax.base import Model, ModelParams
from d3jax.batch import Batch, Schema
from d3jax.data.checksums import verify_checksums, write_checksums
from d3jax.data.encoder import unknown_rows
from d3jax.data.prepared import load_encoder, read_schema
from d3jax.data.tables import to_table
from d3jax.errors import DataError
from d3jax.evaluate import load_best
from d3jax.owned import building
from d3jax.parameters import Tree, named_leaves
from d3jax.run import Run
from d3jax.unknown import Unknown, training_share

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS = "program.stablehlo", "weights.npz"

ENOUGH = 100
"""Rows of which the share of unknown values is worth a warning."""

Weights = dict[str, np.ndarray]
"""The parameters and the model's state by name, as a checkpoint has them."""

Probabilities = Callable[[Int[np.ndarray, "B K"], Int[np.ndarray, " B"]], Float[np.ndarray, " B"]]
"""Click probabilities of rows of ids and their scenarios."""


def export_model(
    model: Model,
    params: ModelParams,
    model_state: Tree,
    directory: Path,
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes the program and its weights into `directory`, which must exist."""
    weights = named_leaves((params, model_state))
    structure = jax.tree.structure((params, model_state))

    def probabilities(weights: dict[str, jax.Array], ids: jax.Array, scenario: jax.Array):
        params, state = jax.tree.unflatten(structure, [weights[name] for name in names])
        rows = ids.shape[0]
        batch = Batch(ids, scenario, jnp.zeros(rows), jnp.ones(rows, bool))
        output, _ = model.apply(params, state, batch)
        return jax.nn.sigmoid(output.logits)

    names = list(weights)
    (rows,) = export.symbolic_shape("rows", constraints=("rows >= 1",))
    program = export.export(jax.jit(probabilities), platforms=platforms)(
        {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in weights.items()},
        jax.ShapeDtypeStruct((rows, model.schema.num_slots), jnp.int32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    (directory / PROGRAM).write_bytes(program.serialize())
    with (directory / WEIGHTS).open("wb") as file:
        np.savez(file, allow_pickle=False, **jax.device_get(weights))


def load_exported(directory: Path, schema: Schema) -> Probabilities:
    """The function that `export_model` wrote, for this machine's devices.

    Ids are checked against `schema` first, because a device reads a wrong row in silence. Each
    new number of rows compiles once: ask for the same few. Raises `DataError` when a file is
    missing or damaged, and for an id or a scenario out of range.
    """
    try:
        program = export.deserialize(bytearray((directory / PROGRAM).read_bytes()))
        with (directory / WEIGHTS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            weights = jax.device_put({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, struct.error, zipfile.BadZipFile) as error:
        raise DataError(
            f"{directory} holds no exported model, or a damaged one ({error}); export it again"
        ) from error
    call = jax.jit(program.call)

    def probabilities(
        ids: Int[np.ndarray, "B K"], scenario: Int[np.ndarray, " B"]
    ) -> Float[np.ndarray, " B"]:
        if not len(ids):
            raise DataError("there are no rows to score; give at least one")
        schema.check(ids, scenario, where="the rows to score")
        return np.asarray(call(weights, np.int32(ids), np.int32(scenario)))

    return probabilities


def export_run(run: Run, out: Path) -> int:
    """Writes program, weights, schema and vocabularies into `out`; returns the bytes they take.

    Raises `OutputError` when `out` exists or can't be written.
    """
    with building(out, "export", cure="choose another folder, or remove it") as draft:
        loaded = load_best(run)
        state = loaded.state
        export_model(loaded.trainer.model, loaded.trainer.weights(state), state.model_state, draft)
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
