"""The formulas against the matrix products that JAX finds in the models themselves."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import jax
import pytest

from d3jax.config import Config
from d3jax.parameters import initialize
from d3jax.parts import build_model
from experiments.bench.variants import reference, text_d3
from experiments.bench.work import (
    Work,
    d3_flops,
    row_flops,
    score_work,
    share_of_limit,
    train_work,
)
from experiments.bench.workload import Workload, make_batches, make_schema

ROWS = 6


def products(jaxpr: Any) -> int:
    """Multiplications and additions of all `dot_general`s, inner programs included.

    One that sums nothing is a way to write a broadcast, and isn't counted.
    """
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = math.prod(left[axis] for axis in contracted)
            if contracted:
                total += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            if hasattr(value, "jaxpr"):
                total += products(value.jaxpr)
    return total


def counted(workload: Workload, config: Config) -> float:
    model = build_model(make_schema(workload), config)
    params, state = (
        initialize(tree, jax.random.key(0))
        for tree in (model.declared.params, model.declared.state)
    )
    batch = make_batches(workload, ROWS, 1)[0]
    program = jax.make_jaxpr(lambda p, s: model.apply(p, s, batch)[0].logits)(params, state)
    return products(program.jaxpr) / ROWS


@pytest.mark.parametrize(
    "config",
    [
        reference("d3"),
        text_d3(),
        text_d3(16),
        replace(text_d3(), d3=replace(text_d3().d3, head_layers=(8,), gate_layers=(4,))),
        replace(text_d3(), d3=replace(text_d3().d3, attention_value="danet")),
        replace(text_d3(), d3=replace(text_d3().d3, attention_value="row")),
        replace(text_d3(), d3=replace(text_d3().d3, parts="d1")),
        reference("plain"),
        reference("mmoe"),
        reference("star"),
    ],
)
def test_formula_counts_the_model_s_products(config: Config) -> None:
    one = Workload("one scenario", (7, 5, 3), (1.0,))
    assert row_flops(config, make_schema(one)) == counted(one, config)


@pytest.mark.parametrize("family", ["mmoe", "star"])
def test_only_a_row_s_own_scenario_is_counted(family: Any) -> None:
    one, three = Workload("", (7, 5, 3), (1.0,)), Workload("", (7, 5, 3), (0.3, 0.3, 0.4))
    config = reference(family)
    assert row_flops(config, make_schema(three)) == row_flops(config, make_schema(one))
    assert counted(three, config) > counted(one, config)


def test_ali_ccp_s_generator_is_what_a_step_computes() -> None:
    flops = d3_flops(reference("d3").d3, fields=23, dim=16, width=128)
    assert flops == pytest.approx(2 * 1472 * 368 * 128, rel=0.05)


def test_work_of_a_step() -> None:
    schema = make_schema(Workload("", (60, 40), (1.0,)))
    config = reference("plain")
    row = 2 * (32 * 128 + 128 * 64 + 64)
    assert train_work(config, schema, 10, 1000) == Work(3 * 10 * row, 24 * (1000 + 1600))
    assert train_work(config, schema, 10, 1000, whole_table=False).bytes == 24 * 1000
    assert score_work(config, schema, 10, 1000) == Work(10 * row, 4000)


def test_the_scarcer_of_arithmetic_and_memory_limits() -> None:
    assert share_of_limit(Work(100, 10), 4.0, flops=50.0, bandwidth=10.0) == 0.5
    assert share_of_limit(Work(100, 30), 4.0, flops=50.0, bandwidth=10.0) == 0.75
