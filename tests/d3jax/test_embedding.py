from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from d3jax.batch import EMPTY, Field, Schema
from d3jax.embedding import (
    EmbeddingParams,
    declare_embedding,
    lookup,
    padded_rows,
    pool,
    table_rows,
)
from d3jax.parameters import initialize
from tests.conftest import Draw
from tests.d3jax import reference

SCHEMA = Schema((Field("user", 5), Field("genres", 4, slots=3), Field("tab", 3)), ("all",))
IDS = np.array(
    [[4, 0, EMPTY, EMPTY, 2], [1, 3, EMPTY, 2, 0], [0, 1, 2, 3, 1], [2, 2, 2, EMPTY, 2]], np.int32
)


def field_tables(table: np.ndarray) -> list[np.ndarray]:
    return [table[0:5], table[5:9], table[9:12]]


def test_table_rows_begin_where_their_field_does() -> None:
    rows = table_rows(SCHEMA, jnp.asarray(IDS))
    np.testing.assert_array_equal(rows[:2], [[4, 5, 512, 512, 11], [1, 8, 512, 7, 9]])
    assert rows.dtype == jnp.int32


def test_embeddings_are_means_over_the_used_slots(draw: Draw) -> None:
    params, exact = draw(declare_embedding(SCHEMA, 6))
    ids = jnp.asarray(IDS)
    x = pool(SCHEMA, lookup(params, table_rows(SCHEMA, ids)), ids)
    expected = reference.embed(field_tables(exact.table), [1, 3, 1], IDS)
    np.testing.assert_allclose(x, expected, rtol=1e-6)


def test_single_valued_fields_are_plain_rows(draw: Draw) -> None:
    schema = Schema((Field("a", 3), Field("b", 2)), ("all",))
    params, exact = draw(declare_embedding(schema, 4))
    ids = jnp.array([[2, 0], [1, 1]])
    x = pool(schema, lookup(params, table_rows(schema, ids)), ids)
    np.testing.assert_array_equal(x, np.float32(exact.table[[[2, 3], [1, 4]]]))


def test_an_empty_slot_reads_zero_and_not_the_last_row(draw: Draw) -> None:
    params, _ = draw(declare_embedding(SCHEMA, 6))
    rows = lookup(params, table_rows(SCHEMA, jnp.asarray(IDS)))
    np.testing.assert_array_equal(rows[0, 2:4], np.zeros((2, 6)))
    assert np.abs(params.table).min() > 0


def test_gradient_goes_to_the_rows_read_each_by_its_share(draw: Draw) -> None:
    params, _ = draw(declare_embedding(SCHEMA, 1))
    ids = jnp.asarray(IDS)

    def total(params: EmbeddingParams) -> jax.Array:
        return pool(SCHEMA, lookup(params, table_rows(SCHEMA, ids)), ids).sum()

    third = 1 / 3
    expected = [1, 1, 1, 0, 1, 1, third, 0.5 + third + 1, 0.5 + third, 1, 1, 2]
    gradient = jax.grad(total)(params).table[:, 0]
    np.testing.assert_allclose(gradient[:12], expected, rtol=1e-6)
    assert not gradient[12:].any()


@pytest.mark.parametrize(("rows", "padded"), [(1, 512), (512, 512), (513, 1024)])
def test_rows_are_padded_so_that_devices_can_share_them(rows: int, padded: int) -> None:
    schema = Schema((Field("a", rows),), ("all",))
    assert padded_rows(schema) == padded
    assert declare_embedding(schema, 3).table.shape == (padded, 3)


def test_padding_leaves_the_first_rows_as_they_were(key: jax.Array) -> None:
    short, long = (Schema((Field("a", rows),), ("all",)) for rows in (500, 600))
    ours, theirs = (
        initialize(declare_embedding(schema, 3, "normal"), key).table for schema in (short, long)
    )
    np.testing.assert_array_equal(ours, theirs[:512])


@pytest.mark.parametrize(
    ("init", "scale", "std", "limit"),
    [
        ("normal", 0.01, 0.01, 0.1),
        ("xavier_table", 0.01, np.sqrt(2 / 20016), np.sqrt(6 / 20016)),
    ],
)
def test_initial_scale(init: str, scale: float, std: float, limit: float, key: jax.Array) -> None:
    schema = Schema((Field("user", 15000), Field("item", 5000)), ("all",))
    table = np.asarray(initialize(declare_embedding(schema, 16, init, scale), key).table)
    assert table.shape == (20480, 16)
    assert table.std() == pytest.approx(std, rel=0.01)
    assert np.abs(table).max() <= limit
