"""Click probabilities of new rows in their raw values, streamed through a trained run."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.batch import UNKNOWN, Batch
from d3jax.console.safe_text import for_csv
from d3jax.data.encoder import Encoder, unknown_rows
from d3jax.data.format import Format
from d3jax.data.prepared import load_encoder
from d3jax.data.reading import Files, find_files, open_files, raw_batches
from d3jax.disk import writing
from d3jax.errors import DataError
from d3jax.evaluate import Loaded, load_best
from d3jax.owned import check_output, replacing
from d3jax.run import Run
from d3jax.training.scoring import score_batches
from d3jax.unknown import Unknown, training_share

SCHEMA = pa.schema({"scenario": pa.string(), "probability": pa.float32()})


class Predicted(NamedTuple):
    """How many rows were scored, and what of them training had not seen."""

    rows: int
    unknown: Unknown


def predict(run: Run, source: Path, out: Path | None, form: Format) -> Predicted:
    """Writes scenario and click probability of each row of `source`, in its order.

    `source` is what `prepare` reads: text or Parquet, one file or a folder of them. `out` is .csv
    or .parquet, standard output as CSV when None; it is written under another name first, so a
    failure leaves no half of it.
    """
    if out is not None:
        check_output(out, inputs=find_files(source))
    encoder, schema = load_encoder(run.described), run.schema
    unknown = np.zeros(schema.num_fields, np.int64)
    shown = np.asarray(schema.scenarios)
    if not (out and out.suffix == ".parquet"):
        shown = np.asarray([for_csv(name) for name in shown])
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        files = open_files(find_files(source), form, Path(scratch))
        with closing(encoded_batches(encoder, files, run.config.train.batch_size)) as read:
            # What can't be read is refused before anything is loaded or written.
            batches = chain(list(islice(read, 1)), read)
            scored_batches = _scored(load_best(run), batches)
            with _writer(out) as write:
                for batch, logits in scored_batches:
                    unknown += unknown_rows(schema, batch.ids)
                    write(_answers(shown, batch, logits))
                    total += logits.size
    return Predicted(total, Unknown(run.schema, unknown, total, training_share(run.described)))


def _scored(loaded: Loaded, batches: Iterator[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
    trainer, state = loaded.trainer, loaded.state
    params = trainer.weights(state)
    for batch, scored in score_batches(
        trainer.score_step, params, state.model_state, batches, trainer.mesh
    ):
        yield batch, np.asarray(scored.logits, np.float64)


def _answers(scenarios: np.ndarray, batch: Batch, logits: np.ndarray) -> pa.RecordBatch:
    names = scenarios[batch.scenario]
    probability = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
    return pa.record_batch([pa.array(names), pa.array(probability)], schema=SCHEMA)


def encoded_batches(encoder: Encoder, files: Files, size: int) -> Generator[Batch, None, None]:
    """The files' rows as batches of `size`, the last one of each part padded.

    Labels are 0, for there are none.
    """
    first = 0
    for part in raw_batches(files, encoder.columns):
        ids, scenario = encoder.encode(part, first, f"file {files.name}")
        for start in range(0, part.num_rows, size):
            yield _padded(ids[start : start + size], scenario[start : start + size], size)
        first += part.num_rows


def _padded(ids: np.ndarray, scenario: np.ndarray, size: int) -> Batch:
    missing = size - len(scenario)
    return Batch(
        ids=np.pad(ids, ((0, missing), (0, 0)), constant_values=UNKNOWN),
        scenario=np.pad(scenario, (0, missing)),
        label=np.zeros(size, np.float32),
        mask=np.arange(size) < len(scenario),
    )


@contextmanager
def _writer(out: Path | None) -> Iterator[Any]:
    """Yields a function that appends a record batch to `out`."""
    if out is None:
        with pa.csv.CSVWriter(sys.stdout.buffer, SCHEMA) as writer:
            yield writer.write
        return
    if out.suffix not in (".csv", ".parquet"):
        raise DataError(f"{out} is neither .csv nor .parquet; name the output one of them")
    kind = pa.csv.CSVWriter if out.suffix == ".csv" else pq.ParquetWriter
    with writing(out), replacing(out) as draft, draft.open("wb") as file, kind(file, SCHEMA) as to:
        yield to.write
