"""The methods that a trained run and an exported model share: rows and fields, in raw values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from d3jax.batch import Batch, Schema
from d3jax.data.encoder import Encoder
from d3jax.data.format import Format
from d3jax.data.prepared import Prepared, load_encoder
from d3jax.errors import DataError
from d3jax.rows import PLAIN, Encoded, encoded_rows, padded_batches
from d3jax.unknown import Unknown, Watch


class Embeddings(NamedTuple):
    """The embeddings of a field's V values: row i is that of id i, and `values[i]` its text.

    Id 0 stands for every value that training didn't know; its text is None.
    """

    values: np.ndarray
    vectors: Float[np.ndarray, "V D"]


class ScoredRows(NamedTuple):
    """The number of the scenario, and the click probability, of R rows."""

    scenario: Int[np.ndarray, " R"]
    probability: Float[np.ndarray, " R"]


class Predictor(ABC):
    """A model with its weights and vocabularies, ready for rows in their raw values."""

    described: Prepared
    """Schema, vocabularies and provenance, as the model keeps them."""

    @property
    def schema(self) -> Schema:
        """The fields and scenarios that the model was built for."""
        return self.described.schema

    @property
    def unknown(self) -> Unknown:
        """Return the rows scored so far with a value that training didn't see, by field."""
        return self._watch.seen

    def predict(self, rows: Any, form: Format = PLAIN) -> Float[np.ndarray, " B"]:
        """Return the click probability of each row, in order, float32.

        `rows` is a data frame, an Arrow table, a dict of columns, or the path of a text or Parquet
        file or a folder of them, whose text is written as `form` says. It needs the columns that
        the data were prepared from, but for the label. Warns once of a field in which far more
        values are unknown than in training. Raises `DataError` when there are no rows, for a
        column that is missing, and for a row of an unknown scenario.
        """
        found = [probability for _, probability in self.scored(rows, form)]
        self._watch.warn()
        if not found:
            raise no_rows(rows)
        return np.concatenate(found)

    def scored(self, rows: Any, form: Format = PLAIN) -> Iterator[ScoredRows]:
        """Yield scenario and click probability of rows that `predict` takes, some at a time.

        Raises what `predict` raises, but for no rows, of which there is nothing to yield.
        """
        for batch, probability in self._probabilities(self._batches(rows, form)):
            yield ScoredRows(batch.scenario[batch.mask], probability)

    def embeddings(self, field: str) -> Embeddings:
        """Return the embedding of each value of a field, such as every item's.

        Raises `DataError` for a field that there isn't.
        """
        index = self.schema.index(field)
        start = self.schema.slot_offset[self.schema.first_slot[index]]
        size = self.schema.fields[index].size
        texts = self.described.codes()[index].values.to_pylist()
        values = np.array([None, *texts], object)
        return Embeddings(values, self._table()[start : start + size])

    @abstractmethod
    def _probabilities(
        self, batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Float[np.ndarray, " R"]]]:
        """Yield each batch and the probabilities of its real rows."""

    @abstractmethod
    def _table(self) -> Float[np.ndarray, "V D"]:
        """Return the embedding table."""

    @cached_property
    def _encoder(self) -> Encoder:
        return load_encoder(self.described)

    @cached_property
    def _watch(self) -> Watch:
        return Watch(self.described)

    @property
    def _devices(self) -> int:
        """Return how many devices share a batch."""
        return 1

    def _batches(self, rows: Any, form: Format) -> Iterator[Batch]:
        """Return padded batches of the rows; those that can't be read are refused at once."""
        parts = self._watched(encoded_rows(self._encoder, rows, form))
        return padded_batches(chain(list(islice(parts, 1)), parts), self._devices)

    def _watched(self, parts: Iterable[Encoded]) -> Iterator[Encoded]:
        for ids, scenario in parts:
            self._watch.look(ids)
            if len(scenario):
                yield ids, scenario


def no_rows(rows: Any) -> DataError:
    """Return the refusal of rows of which there are none."""
    called = str(rows) if isinstance(rows, str) or hasattr(rows, "__fspath__") else "the table"
    return DataError(f"{called} has no rows to score; give at least one")
