"""The equations under JAX's transforms, on meshes of both kinds and in three types of numbers.

One program holds every function with parameters and rows of its own, so a failure has its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from d3jax import generation
from d3jax.balance import (
    complexity,
    naive_complexity,
    normalized_complexity,
    row_weights,
    weighted_loss,
)
from d3jax.fusion import declare_fused, fused_layer
from d3jax.layer import d3_layer
from d3jax.parameters import initialize
from tests.cases import cases

B, N, D, M, I, O = 8, 3, 4, 5, 6, 2  # noqa: E741
LAYER = d3_layer(fields=N, dim=D, inputs=I, outputs=O, rank=2, field_hidden=2, gate_layers=(3,))
DENSE = d3_layer(
    fields=N,
    dim=D,
    inputs=I,
    outputs=O,
    field_hidden=2,
    gate_layers=(),
    kernel_fusion="additive",
    bias_fusion="additive",
    attention_value="danet",
    separate_bias=True,
)
BY_ROW = d3_layer(fields=N, dim=D, inputs=I, outputs=O, rank=2, attention_value="row")
Rows = dict[str, jax.Array]


class Case(NamedTuple):
    """A function of parameters, rows and the name of the axis that shares them."""

    params: Any
    run: Callable[[Any, Rows, Any], Any]


def functions() -> dict[str, Case]:
    cut = partial(fused_layer, budget=B * I)
    none = ()
    declared = {
        "layer": (LAYER, lambda p, r, _: LAYER.with_info(p, r["u"], r["x"])),
        "dense layer": (DENSE, lambda p, r, _: DENSE.with_info(p, r["u"], r["x"])),
        "layer by row": (BY_ROW, lambda p, r, _: BY_ROW.with_info(p, r["u"], r["x"])),
        "layer in slices": (
            declare_fused(M, I, O, shared=True, rank=3),
            lambda p, r, _: cut(p, r["gate"], r["units"], r["u"]),
        ),
        "mean row": (none, lambda p, r, _: complexity(r["logits"], form="mean_row")),
        "naive": (none, lambda p, r, _: naive_complexity(r["logits"])),
        "normalized": (
            none,
            lambda p, r, axis: normalized_complexity(r["losses"], r["mask"], axis_name=axis),
        ),
        "weights": (
            none,
            lambda p, r, axis: row_weights(
                r["logits"], r["gate"], r["mask"], normalize=True, axis_name=axis
            ),
        ),
        "loss": (none, loss),
    }
    keys = dict(zip(declared, jax.random.split(jax.random.key(1), len(declared)), strict=True))
    return {
        name: Case(
            owner.init(keys[name]) if hasattr(owner, "init") else initialize(owner, keys[name]), run
        )
        for name, (owner, run) in declared.items()
    }


def loss(params: Any, rows: Rows, axis: Any) -> jax.Array:
    share = weighted_loss(rows["losses"], rows["gate"][:, 0], rows["mask"], axis_name=axis)
    return share if axis is None else lax.psum(share, axis)


def make_rows(count: int) -> Rows:
    generator = np.random.default_rng(2)
    shapes = {"x": (N, D), "u": (I,), "units": (M,), "logits": (N, N), "losses": ()}
    rows = {name: np.float32(generator.normal(size=(count, *s))) for name, s in shapes.items()}
    share = np.float32(generator.uniform(0.1, 0.9, (count, 1)))
    mask = np.arange(count) % 4 < 3
    return {**rows, "gate": np.concatenate([share, 1 - share], 1), "mask": mask}


CASES = functions()
ALL = {name: (case.params, make_rows(B)) for name, case in CASES.items()}
ONE = {name: (case.params, make_rows(1)) for name, case in CASES.items()}


def outputs(arguments: Any, axis: Any = None) -> Any:
    return {name: case.run(*arguments[name], axis) for name, case in CASES.items()}


def differentiate(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The outputs, and the gradient of the sum of their sines."""

    def total(arguments: Any) -> tuple[jax.Array, Any]:
        made = run(arguments)
        leaves = [leaf.astype(jnp.float64) for leaf in jax.tree.leaves(made)]
        return sum(jnp.sin(leaf).sum() for leaf in leaves), made

    def both(arguments: Any) -> tuple[Any, Any]:
        (_, made), gradient = jax.value_and_grad(total, has_aux=True, allow_int=True)(arguments)
        return made, without_masks(gradient)

    return jax.jit(both)


def without_masks(tree: Any) -> Any:
    """A mask has no gradient."""
    return {
        name: (params, {key: rows[key] for key in rows if key != "mask"})
        for name, (params, rows) in tree.items()
    }


def cast(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, leaf.dtype if leaf.dtype == bool else dtype), tree
    )


def on_mesh(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Parameters on every device, the rows of each function over all of them."""
    rows = NamedSharding(mesh, P(mesh.axis_names))
    return {
        name: (
            jax.device_put(params, NamedSharding(mesh, P())),
            jax.device_put(own, rows),
        )
        for name, (params, own) in tree.items()
    }


def mesh_of(kind: AxisType, *shape: int) -> jax.sharding.Mesh:
    return jax.make_mesh(shape, ("a", "b")[: len(shape)], axis_types=(kind,) * len(shape))


def twice(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), tree)


def first_two(result: Any) -> list[Any]:
    return [jax.tree.map(lambda leaf, i=i: leaf[i], result) for i in (0, 1)]


def by_jit(arguments: Any) -> list[Any]:
    return [differentiate(outputs)(arguments)]


def by_vmap(arguments: Any) -> list[Any]:
    return first_two(differentiate(jax.vmap(outputs))(twice(arguments)))


def by_scan(arguments: Any) -> list[Any]:
    def scan(stacked: Any) -> Any:
        return lax.scan(lambda count, each: (count + 1, outputs(each)), 0, stacked)[1]

    return first_two(differentiate(scan)(twice(arguments)))


def by_shard_map(kind: AxisType, arguments: Any) -> list[Any]:
    mesh = mesh_of(kind, 4)
    spread = {name: (P(), P("a")) for name in arguments}
    outs = {name: P() if name == "loss" else P("a") for name in arguments}
    run = jax.shard_map(partial(outputs, axis="a"), mesh=mesh, in_specs=(spread,), out_specs=outs)
    return [differentiate(run)(on_mesh(arguments, mesh))]


def by_mesh(kind: AxisType, shape: tuple[int, ...], ambient: bool, arguments: Any) -> list[Any]:
    """On arrays that lie on a mesh, which is the session's own or not."""
    mesh = mesh_of(kind, *shape)
    with jax.set_mesh(mesh) if ambient else nullcontext():
        return [differentiate(outputs)(on_mesh(arguments, mesh))]


TRANSFORMS: dict[str, Callable[[Any], list[Any]]] = {
    "jit": by_jit,
    "vmap": by_vmap,
    "scan": by_scan,
    "shard_map": partial(by_shard_map, AxisType.Auto),
    "shard_map of an explicit mesh": partial(by_shard_map, AxisType.Explicit),
    "explicit mesh": partial(by_mesh, AxisType.Explicit, (4,), True),
    "explicit mesh of the arrays": partial(by_mesh, AxisType.Explicit, (4,), False),
    "explicit mesh of two axes": partial(by_mesh, AxisType.Explicit, (2, 2), True),
    "auto mesh": partial(by_mesh, AxisType.Auto, (4,), False),
}
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float64": 1e-12}


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """On a CPU a ranked layer takes each row as a block of its own."""
    monkeypatch.setattr(generation, "BLOCK", 1)
    return


@cache
def plain(dtype: str) -> Any:
    """The functions' own values and gradients, in float64, of numbers rounded to a type."""
    return differentiate(outputs)(cast(cast(ALL, dtype), "float64"))


def check(found: Any, expected: Any, dtype: str) -> None:
    """Every output and every gradient is finite and that of the plain call in float64."""
    named = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (found, expected)]
    assert named[0].keys() == named[1].keys()
    for path, leaf in named[0].items():
        ours, theirs = np.float64(leaf), np.float64(named[1][path])
        scale = max(np.abs(theirs).max(), 1e-3)
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=jax.tree_util.keystr(path)
        )


QUICK = {
    ("explicit mesh", "float32"),
    ("auto mesh", "float64"),
}
"""Each kind of mesh."""


@pytest.mark.parametrize(
    ("transform", "dtype"), cases(itertools.product(TRANSFORMS, TOLERANCE), QUICK)
)
def test_every_transform_gives_the_plain_values(transform: str, dtype: str) -> None:
    with jax.enable_x64(True):
        for found in TRANSFORMS[transform](cast(ALL, dtype)):
            check(found, plain(dtype), dtype)


@pytest.mark.slow
def test_one_row() -> None:
    with jax.enable_x64(True):
        check(
            differentiate(outputs)(cast(ONE, "float32")), by_jit(cast(ONE, "float64"))[0], "float32"
        )
