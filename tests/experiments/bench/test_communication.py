"""What the compiled step sends is what the paper model says, and nothing else of size."""

from __future__ import annotations

import pytest

from experiments.bench.communication import (
    Communication,
    Sent,
    as_compiled,
    compiled_step,
    on_paper,
)


@pytest.mark.parametrize("layout", ["sharded", "replicated"])
def test_the_compiled_step_sends_what_is_on_paper(layout: str) -> None:
    bench = Communication(rows=2000, fields=4, dim=8, batch_size=256, layout=layout)
    program, devices, weights = compiled_step(bench)
    compiled, sent = as_compiled(program, devices), on_paper(bench, weights)
    for kind, size in compiled.items():
        paper = sum(each.size for each in sent if each.kind == kind)
        assert paper <= size <= paper + 64, "beside it only a handful of sums"


def test_a_ring_sends_a_sum_twice_and_anything_else_once() -> None:
    assert Sent("", "all-reduce", 800).per_device(8) == 2 * 700
    assert Sent("", "all-gather", 800).per_device(8) == 700
    assert Sent("", "reduce-scatter", 800).per_device(2) == 400


def test_collectives_are_read_from_hlo() -> None:
    program = """
    %a = (f32[2,3]{1,0}, s32[]) all-reduce(%x, %y), replica_groups={{0,1}}
    ROOT %b = bf16[8]{0} all-gather-start(%z)
    %c = f32[5]{0} reduce-scatter(%w)
    %d = f32[100]{0} add(%a, %b)
    """
    assert as_compiled(program, devices=4) == {
        "all-reduce": 28,
        "all-gather": 16,
        "reduce-scatter": 80,
    }
