"""D3 in a model of one's own, trained by a loop of one's own: plain JAX and optax.

python -m experiments.examples.own_loop

The model embeds eight fields, passes them through a dense layer, and lets D3 generate the next one
for each row. Once training has come halfway, the loss weighs rows as D3 does (Eq. 15-19). In the
made-up rows one field decides which of two others counts, which no single shared layer knows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import d3jax

FIELDS, VALUES, DIM, HIDDEN, OUTPUTS = 8, 20, 8, 32, 16

layer = d3jax.d3_layer(fields=FIELDS, dim=DIM, inputs=HIDDEN, outputs=OUTPUTS, rank=8)
optimizer = optax.adam(5e-3)


def init(key: Array) -> dict[str, Any]:
    """Return the parameters: a table for each field, a dense layer, D3's layer and a last one."""
    keys = jax.random.split(key, 4)
    return {
        "table": 0.3 * jax.random.normal(keys[0], (FIELDS, VALUES, DIM)),
        "body": jax.random.normal(keys[1], (FIELDS * DIM, HIDDEN)) / (FIELDS * DIM) ** 0.5,
        "layer": layer.init(keys[2]),
        "last": jax.random.normal(keys[3], (OUTPUTS,)) / OUTPUTS**0.5,
    }


def loss(params: dict[str, Any], ids: Array, label: Array, weigh: bool) -> Array:
    """Return the mean loss of rows with `ids` [B 8] and clicks `label` [B]."""
    x = params["table"][jnp.arange(FIELDS), ids]
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["body"])
    made, info = layer.with_info(params["layer"], hidden, x)
    logits = jax.nn.relu(made) @ params["last"]
    losses = optax.sigmoid_binary_cross_entropy(logits, label)
    weights = d3jax.row_weights(*info) if weigh else jnp.ones_like(losses)
    return jnp.mean(weights * losses)


@partial(jax.jit, static_argnames="weigh")
def step(params: Any, state: Any, ids: Array, label: Array, weigh: bool) -> tuple[Any, Any, Array]:
    """Return parameters and optimizer state after a step, and the loss before it."""
    value, gradient = jax.value_and_grad(loss)(params, ids, label, weigh)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


def draw(generator: np.random.Generator, rows: int = 256) -> tuple[Array, Array]:
    """Return made-up rows: field 0 says whether field 1 or field 2 decides about the click."""
    ids = generator.integers(0, VALUES, (rows, FIELDS))
    decides = np.where(ids[:, 0] % 2, ids[:, 1], ids[:, 2])
    chance = np.where(decides % 2, 0.9, 0.1)
    return jnp.asarray(ids), jnp.asarray(generator.random(rows) < chance, jnp.float32)


def main(steps: int = 600) -> float:
    """Train, print the loss now and then, and return that of fresh rows."""
    generator = np.random.default_rng(0)
    params = init(jax.random.key(0))
    state = optimizer.init(params)
    for number in range(steps):
        ids, label = draw(generator)
        params, state, value = step(params, state, ids, label, weigh=number >= steps // 2)
        if number % 100 == 0:
            print(f"step {number}: loss {value:.4f}")
    fresh = float(loss(params, *draw(generator, 4096), weigh=False))
    print(f"fresh rows: {fresh:.4f} (a constant: 0.6931, at best: 0.3251)")
    return fresh


if __name__ == "__main__":
    main()
