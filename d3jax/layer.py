"""The D3 layer alone: a dense layer whose weights each row generates from its own fields.

It is the layer that the D3 head generates (Eq. 6-13 of Jia et al., AAAI 2024), to put into a model
of one's own:

    layer = d3_layer(fields=8, dim=16, inputs=64, outputs=32)
    params = layer.init(jax.random.key(0))
    outputs = jax.nn.relu(layer.apply(params, hidden, x))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields as settings_of
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from d3jax.base import Sizes
from d3jax.errors import ConfigError
from d3jax.floats import common_type
from d3jax.heads import D3Options, D3Params, d3_generator, generate_d3
from d3jax.names import did_you_mean
from d3jax.parameters import initialize
from d3jax.shapes import check_arrays, check_floats, check_rows, check_size

DEFAULTS = D3Options()
"""The settings of a D3 head, whose defaults a layer shares."""

RANK = "rank"
"""The name of `rank` among them."""

OF_A_HEAD = frozenset({"form", "width", "head_layers", "layer_activation"})
"""Settings of what surrounds the layer in a D3 head."""


class D3Info(NamedTuple):
    """Sources of a row's weights: the attention's logits [B N N] (rows: the field that asks) and
    the gate [B 2], specific first; None with `parts="d1"`, which has no gate.

    Both are float32, or float64, whatever the inputs are: `row_weights(*info)` needs the digits.
    """

    attention: Array
    gate: Array | None


class LayerFunctions(NamedTuple):
    """The pure functions of a D3 layer.

    `init(key)` returns its parameters, a pytree in float32; `apply(params, hidden, x)` the outputs
    [B O], before any activation; `with_info(params, hidden, x)` the outputs and a `D3Info`.
    """

    init: Callable[[Array], D3Params]
    apply: Callable[[D3Params, ArrayLike, ArrayLike], Array]
    with_info: Callable[[D3Params, ArrayLike, ArrayLike], tuple[Array, D3Info]]

    def __repr__(self) -> str:
        return "<the functions of a D3 layer: init, apply, with_info>"


def d3_layer(
    *,
    fields: int,
    dim: int,
    inputs: int,
    outputs: int,
    rank: int = DEFAULTS.rank,
    field_hidden: int = DEFAULTS.field_hidden,
    **settings: Any,
) -> LayerFunctions:
    """Return the functions of a layer from `inputs` to `outputs` numbers, generated row by row.

    `apply(params, hidden, x)` takes what the layer transforms, `hidden` [B inputs], and the field
    embeddings `x` [B fields dim] that decide how. It computes in float32, or in float64 where an
    argument has it, and returns the type that JAX promotes its arguments to. It works under jit,
    grad, vmap, scan and shard_map, and with rows spread over a mesh of any axis types.

    `rank` mixes a row's kernel from that many shared matrices (0: one per hidden unit, as in the
    paper), `field_hidden` is the width H of each field's own layer in the generator, and `settings`
    are further ones of the D3 head, such as `precision="bf16"` or `kernel_fusion="additive"`.

    Raises `ConfigError` naming the size or setting that can't be, and `apply` `ShapeError` naming
    the argument.

    >>> import jax
    >>> layer = d3_layer(fields=3, dim=4, inputs=6, outputs=2)
    >>> params = layer.init(jax.random.key(0))
    >>> hidden, x = jax.numpy.ones((5, 6)), jax.numpy.ones((5, 3, 4))
    >>> layer.apply(params, hidden, x).shape
    (5, 2)
    >>> outputs, info = layer.with_info(params, hidden, x)
    >>> info.attention.shape, info.gate.shape
    ((5, 3, 3), (5, 2))
    """
    sizes = {"fields": fields, "dim": dim, "inputs": inputs, "outputs": outputs}
    for name, size in sizes.items():
        check_size(name, size)
    config = d3_settings(rank, field_hidden, settings, unread=OF_A_HEAD)
    declared = d3_generator(config).declare(Sizes(fields, dim, 1), [(inputs, outputs)])

    def with_info(params: D3Params, hidden: ArrayLike, x: ArrayLike) -> tuple[Array, D3Info]:
        hidden, x = jnp.asarray(hidden), jnp.asarray(x)
        check_inputs(hidden, x, fields, dim, inputs)
        check_arrays(declared, params)
        made = generate_d3(config, params, x)
        logits = made.attention
        assert logits is not None, "D3 attends"
        values = made.layer(0, hidden).astype(common_type(params, hidden, x))
        return values, D3Info(logits, made.gate)

    def apply(params: D3Params, hidden: ArrayLike, x: ArrayLike) -> Array:
        return with_info(params, hidden, x)[0]

    return LayerFunctions(partial(initialize, declared), apply, with_info)


def d3_settings(
    rank: int, field_hidden: int, settings: dict[str, Any], unread: frozenset[str] = frozenset()
) -> D3Options:
    """Return the settings of a D3 head with those given.

    Raises `ConfigError` naming one that is out of its range, unknown, or among `unread`.
    """
    check_size("rank", rank, least=0)
    check_size("field_hidden", field_hidden)
    known = {setting.name for setting in settings_of(D3Options)} - unread - {RANK}
    for name in settings:
        if name in unread:
            raise ConfigError(f"{name} is a setting of a whole D3 head; a layer has no use for it")
        if name not in known:
            raise ConfigError(
                f"there is no setting {name!r}{did_you_mean(name, known)}; "
                f"there are rank, {', '.join(sorted(known))}"
            )
    return D3Options(**{RANK: int(rank), "field_hidden": int(field_hidden), **settings})


def check_inputs(hidden: Array, x: Array, fields: int, dim: int, inputs: int) -> None:
    """Raise `ShapeError` naming the argument that a layer of these sizes can't take."""
    check_floats("hidden", hidden, rows=None, inputs=inputs)
    check_floats("x", x, rows=None, fields=fields, dim=dim)
    check_rows(hidden=hidden, x=x)
