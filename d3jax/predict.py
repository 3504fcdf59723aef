"""Click probabilities of new rows in their raw values, streamed from file to file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from d3jax.console.safe_text import for_csv
from d3jax.data.format import Format
from d3jax.data.reading import find_files
from d3jax.disk import writing
from d3jax.errors import DataError
from d3jax.owned import check_output, replacing
from d3jax.predictor import Predictor

SCHEMA = pa.schema({"scenario": pa.string(), "probability": pa.float32()})


def predict(model: Predictor, source: Path, out: Path | None, form: Format) -> None:
    """Writes scenario and click probability of each row of `source`, in its order.

    `source` is what `prepare` reads: text or Parquet, one file or a folder of them. `out` is .csv
    or .parquet, standard output as CSV when None; it is written under another name first, so a
    failure leaves no half of it.
    """
    if out is not None:
        check_output(out, inputs=find_files(source))
    shown = np.asarray(model.schema.scenarios)
    if not (out and out.suffix == ".parquet"):
        shown = np.asarray([for_csv(name) for name in shown])
    scored = model.scored(source, form)
    # What can't be read is refused before anything is written.
    parts = chain(list(islice(scored, 1)), scored)
    with _writer(out) as write:
        for rows in parts:
            columns = [pa.array(shown[rows.scenario]), pa.array(rows.probability)]
            write(pa.record_batch(columns, schema=SCHEMA))


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
