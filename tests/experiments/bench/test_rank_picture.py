"""The table of AUC and speed by rank, from the files that two commands write."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.bench.rank_picture import RankPicture, main


def write_run(folder: Path, rank: int, auc: list[float]) -> Path:
    summary = {f"seed-{i}": {"overall": {"auc": value}} for i, value in enumerate(auc)}
    (folder / "seed-0").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    config = {"config": {"d3": {"rank": rank}}}
    (folder / "seed-0" / "config.json").write_text(json.dumps(config))
    return folder


def test_ranks_are_listed_with_the_papers_form_last(tmp_path: Path) -> None:
    lines = {
        size: [
            {"variant": f"rank {rank}", "train": [rows, rows, rows]}
            for rank, rows in ((0, rows), (16, 10 * rows))
        ]
        for size, rows in (("movielens", 2000.4), ("ali-ccp", 400.0))
    }
    (tmp_path / "rank.json").write_text(json.dumps({"results": lines}))
    runs = (
        write_run(tmp_path / "a", 0, [0.75, 0.76]),
        write_run(tmp_path / "b", 16, [0.7, 0.7]),
    )
    main(RankPicture(tmp_path / "rank.json", runs, tmp_path / "out"))
    assert (tmp_path / "out.md").read_text().splitlines() == [
        "| generator | AUC, 2 seeds | movielens, rows/s | ali-ccp, rows/s |",
        "| --- | --- | ---: | ---: |",
        "| 16 | 0.7000 ± 0.0000 | 20,004 | 4,000 |",
        "| the paper's | 0.7550 ± 0.0071 | 2,000 | 400 |",
    ]
    assert plt.imread(tmp_path / "out.png").std() > 0.05
