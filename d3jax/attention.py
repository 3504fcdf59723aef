"""Domain division: attention over a row's fields picks those its domain depends on.

Equations 6-8 of Jia et al., "D3: A Methodological Exploration of Domain Division, Modeling,
and Balance in Multi-Domain Recommendations" (AAAI 2024).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from d3jax.floats import widened
from d3jax.layers.dense import Dense, declare_dense, dense
from d3jax.parameters import declare_array, zeros

ValueForm = Literal["text", "official", "danet", "row"]


class AttentionParams(NamedTuple):
    """Projections of a field's embedding, shared by all fields; `value` and `gain` by form."""

    query: Dense
    key: Dense
    value: Dense | None = None
    gain: Float[Array, ""] | None = None


def declare_attention(dim: int, form: ValueForm = "text") -> AttentionParams:
    """The parameters of one form; what a form doesn't use doesn't exist.

    `text` is Eq. 8 as printed (the values are the embeddings), `official` the authors' code
    (projected values, biases), `danet` dual attention (Fu et al., 2019), which D3 cites; `row`, the
    form of `select_by_row`, has the parameters of `text`.
    """
    bias = zeros if form == "official" else None
    projection = declare_dense(dim, dim, bias=bias)
    return AttentionParams(
        query=projection,
        key=projection,
        value=projection if form in ("official", "danet") else None,
        gain=declare_array((), zeros) if form == "danet" else None,
    )


def select_features(
    params: AttentionParams, x: Float[Array, "B N D"], *, scaled: bool = False
) -> tuple[Float[Array, "B N D"], Float[Array, "B N N"]]:
    """The fields of each row, mixed by how much they matter to one another (Eq. 6-8).

    Returns `selected = softmax(Q Kᵀ) V + V` with V = x unless `params` has a value projection
    (`gain · softmax(Q Kᵀ) V + x` when it has a gain), and the logits Q Kᵀ, whose rows are the
    fields that ask. The paper doesn't divide by √D; `scaled` does.
    """
    params, x = widened(params, x)
    logits = jnp.einsum("bqd,bkd->bqk", dense(params.query, x), dense(params.key, x))
    logits = _over_root(logits, x) if scaled else logits
    values = x if params.value is None else dense(params.value, x)
    mixed = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(logits), values)
    return (mixed + values if params.gain is None else params.gain * mixed + x), logits


def select_by_row(
    params: AttentionParams, x: Float[Array, "B N D"], *, scaled: bool = False
) -> tuple[Float[Array, "B N D"], Float[Array, "B N N"]]:
    """The fields of each row by how much they matter to the row, which asks once for all of them.

    The query is that of the mean embedding, and a field keeps its own embedding instead of a
    mixture: `selected_f = (1 + N a_f) x_f`, a = softmax(q Kᵀ). That takes N products a row where
    `select_features` takes 2 N², which CPUs are slow at. Returns `selected`, and the logits, the
    same for every field that asks.
    """
    params, x = widened(params, x)
    query = dense(params.query, x.mean(1)) @ params.key.kernel.T
    logits = jnp.einsum("bd,bkd->bk", query, x)
    logits = _over_root(logits, x) if scaled else logits
    fields = x.shape[1]
    selected = x * (1 + fields * jax.nn.softmax(logits))[:, :, None]
    return selected, jnp.broadcast_to(logits[:, None], (x.shape[0], fields, fields))


def _over_root(logits: Array, x: Float[Array, "B N D"]) -> Array:
    """Divide logits by √D."""
    return logits / jnp.sqrt(jnp.asarray(x.shape[-1], x.dtype))
