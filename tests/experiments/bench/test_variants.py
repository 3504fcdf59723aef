"""The list of what is compared: every variant can be built, and each family has its basis."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from d3jax.parts import build_trainer
from experiments.bench.variants import TUNED, Family, bf16_variants, text_d3, variants
from experiments.bench.workload import WORKLOADS, make_schema


@pytest.mark.parametrize("family", get_args(Family))
def test_every_variant_is_a_model(family: Family) -> None:
    listed = variants(family)
    names = [variant.name for variant in listed]
    assert len(set(names)) == len(names)
    assert names[0] == "d3jax"
    assert TUNED in names
    for variant in listed:
        build_trainer(make_schema(WORKLOADS["tiny"]), variant.config, 10)


@pytest.mark.parametrize("family", get_args(Family))
def test_variants_for_a_gpu_round_to_bfloat16(family: Family) -> None:
    torch, *ours = bf16_variants(family)
    tuned = next(variant for variant in variants(family) if variant.name == TUNED)
    assert torch == replace(tuned, name="torch, tuned, bf16", bf16=True)
    assert [variant.config.d3.precision for variant in ours] == ["bf16"] * (2 * (family == "d3"))
    assert not {variant.name for variant in (torch, *ours)} & {v.name for v in variants(family)}


@pytest.mark.parametrize("family", get_args(Family))
def test_torch_has_the_model_of_the_first_variant(family: Family) -> None:
    listed = variants(family)
    assert listed[0].config.optimizer.embedding_update == "dense"
    for variant in listed:
        if variant.side == "torch":
            assert variant.config == listed[0].config


def test_who_moves_the_whole_table() -> None:
    moves = {variant.name: variant.whole_table for variant in variants("plain")}
    assert {name for name, whole in moves.items() if not whole} == {
        "d3jax, lazy_adamw table",
        "d3jax, adagrad table",
        "torch, tuned, sparse table",
    }


def test_sizes_of_d3() -> None:
    for config in (variants("d3")[0].config, text_d3(), text_d3(32)):
        assert (config.d3.field_hidden, config.d3.width, config.balance.start_ratio) == (64, 128, 0)
    assert text_d3(32).d3.rank == 32
    assert variants("d3")[0].config.d3.form == "official"
