"""The steps that the accelerator benchmark measures, here on the computer's own cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.bench.accelerator import AcceleratorBench, config_of, main
from experiments.bench.work import train_work
from experiments.bench.workload import WORKLOADS, make_schema


@pytest.mark.parametrize("rank", [0, 32])
def test_a_step_is_the_papers_with_the_batchs_rows_of_the_table(rank: int) -> None:
    config = config_of("bf16", rank, 512)
    assert (config.d3.form, config.d3.precision, config.d3.rank) == ("text", "bf16", rank)
    assert config.train.batch_size == 512
    assert config.optimizer.embedding_update == "lazy_adamw"


@pytest.mark.slow
def test_what_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "found.json"
    main(
        AcceleratorBench(
            workload="tiny",
            precisions=("bf16", "float32"),
            ranks=(2,),
            batch_sizes=(16,),
            seconds=0.01,
            side=64,
            copied=1000,
            out=out,
        )
    )
    found = json.loads(out.read_text())
    assert set(found["machine"]["flops"]) == {"bf16", "float32", "float32, highest"}
    assert [line["precision"] for line in found["results"]] == ["bf16", "float32"]
    for line in found["results"]:
        assert line["rows_per_second"] * line["milliseconds"] / 1e3 == pytest.approx(16)
        work = train_work(
            config_of(line["precision"], 2, 16), make_schema(WORKLOADS["tiny"]), 16, 0, False
        )
        flops = 1e12 * line["tflops"] * line["milliseconds"] / 1e3
        assert flops == pytest.approx(work.flops)
        assert line["share"] > 0
        assert line["megabytes"] > 1
    printed = capsys.readouterr().out
    assert "rank 2, bf16, 16 rows" in printed
    assert "D3 at tiny on cpu" in printed
