"""A trained model as a folder that needs neither the run nor the code of its model.

The program is StableHLO and takes the weights as an argument, so that it stays small, and any
number of rows. It maps ids and scenarios to click probabilities on each platform it was exported
for. Schema and vocabularies beside it turn raw values into ids, as they did in training.
"""

from __future__ import annotations

import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Float, Int

from d3jax.base import Model, ModelParams
from d3jax.batch import Batch, Schema
from d3jax.data.checksums import verify_checksums, write_checksums
from d3jax.data.prepared import read_schema
from d3jax.errors import DataError
from d3jax.evaluate import Loaded, load_best
from d3jax.owned import building
from d3jax.parameters import Tree, named_leaves
from d3jax.predictor import Predictor
from d3jax.run import Run

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM, WEIGHTS = "program.stablehlo", "weights.npz"
TABLE = "0.embedding.table"
"""The name of the embedding table among the weights."""

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


def export_run(run: Run, out: Path, loaded: Loaded | None = None, overwrite: bool = False) -> int:
    """Write program, weights, schema and vocabularies into `out`; return the bytes they take.

    Raises `OutputError` when `out` exists, or is no exported model to overwrite, or can't be
    written.
    """
    with building(out, "export", overwrite, cure="choose another folder, or remove it") as draft:
        loaded = loaded or load_best(run)
        state = loaded.state
        export_model(loaded.trainer.model, loaded.trainer.weights(state), state.model_state, draft)
        shutil.copyfile(run.directory / "schema.json", draft / "schema.json")
        shutil.copytree(run.directory / "vocabularies", draft / "vocabularies")
        write_checksums(draft)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())


class Exported(Predictor):
    """An exported model, which needs neither the run nor the code of its model.

    Raises `DataError` naming a file that is missing or damaged.
    """

    def __repr__(self) -> str:
        return f"<Exported {self.directory}>"

    def __init__(self, directory: Path | str) -> None:
        """Reads the folder."""
        self.directory = Path(directory)
        verify_checksums(self.directory)
        self.described = read_schema(self.directory)
        self._score = load_exported(self.directory, self.schema)

    def _probabilities(
        self, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Float[np.ndarray, " B"]]]:
        for batch in batches:
            yield batch, self._score(batch.ids, batch.scenario)[batch.mask]

    def _table(self) -> Float[np.ndarray, "V D"]:
        with np.load(self.directory / WEIGHTS, allow_pickle=False) as arrays:
            return arrays[TABLE]
