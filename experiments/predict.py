"""Click probabilities of new rows in their raw values, streamed through a trained run."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.batch import UNKNOWN, Batch
from d3jax.errors import DataError
from d3jax.owned import check_output
from d3jax.training.scoring import score_batches
from data_pipelines.encoder import Encoder, load_encoder, read_batches
from experiments.evaluate import load_best
from experiments.run import Run

SCHEMA = pa.schema({"scenario": pa.string(), "probability": pa.float32()})


def predict(run: Run, rows: Path, out: Path | None) -> int:
    """Writes scenario and click probability of each row of a .csv or .parquet file, in its order.

    `out` is .csv or .parquet, standard output as CSV when None; it is written under another name
    first, so a failure leaves no half of it. Returns the number of rows.
    """
    if out is not None:
        check_output(out, inputs=[rows])
    loaded = load_best(run)
    encoder = load_encoder(run.described)
    size = run.config.train.batch_size
    batches = encoded_batches(encoder, rows, size)
    trainer, state = loaded.trainer, loaded.state
    total = 0
    with _writer(out) as write, closing(batches):
        for batch, scored in score_batches(
            trainer.score_step, trainer.settle(state), state.model_state, batches, trainer.mesh
        ):
            logits = np.asarray(scored.logits, np.float64)
            names = np.asarray(run.schema.scenarios)[batch.scenario]
            probability = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
            write(pa.record_batch([pa.array(names), pa.array(probability)], schema=SCHEMA))
            total += logits.size
    return total


def encoded_batches(encoder: Encoder, rows: Path, size: int) -> Generator[Batch, None, None]:
    """The file's rows as batches of `size`, the last one of each part padded.

    Labels are 0, for there are none.
    """
    first = 0
    for part in read_batches(rows, encoder.columns):
        ids, scenario = encoder.encode(part, first, str(rows))
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
    draft = out.with_name(f".{out.name}.part")
    kind = pa.csv.CSVWriter if out.suffix == ".csv" else pq.ParquetWriter
    try:
        with kind(draft, SCHEMA) as writer:
            yield writer.write
        draft.replace(out)
    except OSError as error:
        raise DataError(f"can't write {out} ({error.strerror}); choose another --out") from error
    finally:
        draft.unlink(missing_ok=True)
