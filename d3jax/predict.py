"""Click probabilities of new rows in their raw values, streamed through a trained run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.console.safe_text import for_csv
from d3jax.data.format import Format
from d3jax.data.prepared import load_encoder
from d3jax.data.reading import find_files
from d3jax.disk import writing
from d3jax.errors import DataError
from d3jax.evaluate import load_best
from d3jax.owned import check_output, replacing
from d3jax.rows import encoded_rows, padded_batches
from d3jax.run import Run
from d3jax.training.metrics import probabilities
from d3jax.unknown import Unknown, Watch

SCHEMA = pa.schema({"scenario": pa.string(), "probability": pa.float32()})


class Predicted(NamedTuple):
    """The number of rows that were scored, and the values of them that training had not seen."""

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
    shown = np.asarray(run.schema.scenarios)
    if not (out and out.suffix == ".parquet"):
        shown = np.asarray([for_csv(name) for name in shown])
    watch = Watch(run.described)
    with closing(encoded_rows(load_encoder(run.described), source, form)) as read:
        # What can't be read is refused before anything is loaded or written.
        parts = chain(list(islice(read, 1)), read)
        loaded = load_best(run)
        with _writer(out) as write:
            for batch, scored in loaded.score(padded_batches(parts, loaded.trainer.mesh.size)):
                watch.look(batch.ids)
                names = shown[batch.scenario]
                probability = probabilities(np.asarray(scored.logits))
                write(pa.record_batch([pa.array(names), pa.array(probability)], schema=SCHEMA))
    return Predicted(watch.seen.total, watch.seen)


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
