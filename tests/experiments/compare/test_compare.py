"""A comparison trains each cell once, goes on where it stopped, and reports what it measured."""

from __future__ import annotations

import csv
import gc
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from d3jax.adapters.d3 import BalanceOptions
from d3jax.batch import Field
from d3jax.cli import main, parse
from d3jax.config import Config, ModelConfig, TrainConfig
from d3jax.data.prepared import open_prepared
from d3jax.data.synthetic import SyntheticConfig, synthetic, write
from d3jax.domains import AUTO
from d3jax.errors import CheckpointError, ConfigError, Preempted, TrainingError
from d3jax.registry import BACKBONES
from d3jax.training.metrics import Evaluation, Metrics
from experiments.compare import cells, compare
from experiments.compare.cells import CellResult
from experiments.compare.compare import Plan, duration, remaining_seconds
from experiments.compare.comparison import Comparison
from experiments.compare.figures import draw_comparison
from experiments.compare.html import html
from experiments.compare.markdown import Strong
from experiments.compare.report import grid, interval_grid, markdown, remarks, write_csv
from experiments.compare.statistics import Repeat
from experiments.compare.tables import MLP, Method, Table, find_table
from tests.flags import said

QUIET = Console(quiet=True)
TABLE = Table("table3", "A | table", (MLP, Method("Shared-Bottom", "shared_bottom", base=MLP.name)))
CONFIG = Config(
    model=ModelConfig(embedding_dim=4, bottom_layers=(8, 6), tower_layers=(4,)),
    train=TrainConfig(batch_size=1024, epochs=2, patience=0),
)


@pytest.fixture(scope="module")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison of two methods and two seeds."""
    out = tmp_path_factory.mktemp("compared")
    compare.compare(prepared, Plan(TABLE, CONFIG, 2, out, command="d3jax compare <x>"), QUIET)
    return out


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that are trained from here on, by folder."""
    trained: list[str] = []
    run_cells = cells.run_cells

    def noted(runs, *rest):  # type: ignore[no-untyped-def]
        trained.extend("/".join(run.directory.parts[-2:]) for run in runs)
        return run_cells(runs, *rest)

    monkeypatch.setattr(compare, "run_cells", noted)
    return trained


def test_a_cell_is_a_run_whose_evaluation_is_in_the_report(finished: Path) -> None:
    names = [f"{method}/{seed}" for method in ("mlp", "shared-bottom") for seed in (0, 1)]
    found = sorted("/".join(p.parent.parts[-2:]) for p in finished.rglob("evaluation.json"))
    assert found == names
    values = [
        json.loads((finished / "cells" / "mlp" / str(seed) / "evaluation.json").read_text())
        for seed in (0, 1)
    ]
    slot = [value["scenarios"]["slot"]["auc"] for value in values]
    rows = list(csv.DictReader((finished / "table3.csv").read_text().splitlines()))
    line = next(r for r in rows if (r["method"], r["group"], r["metric"]) == ("MLP", "slot", "auc"))
    assert float(line["mean"]) == pytest.approx(np.mean(slot))
    assert float(line["std"]) == pytest.approx(np.std(slot, ddof=1))
    assert len(rows) == 2 * 4 * 5
    assert slot[0] != slot[1]


def test_a_cell_has_what_train_would_have_measured(
    finished: Path, prepared: Path, tmp_path: Path
) -> None:
    flags = ["--embedding-dim", "4", "--bottom-layers", "8", "6"]
    flags += ["--batch-size", "1024", "--epochs", "2", "--patience", "0", "--seed", "1"]
    flags += ["--preset", "text", "--backbone", "plain", "--head", "own"]
    main(["train", str(prepared), "--out", str(tmp_path / "run"), *flags])
    ours = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    theirs = json.loads((finished / "cells/mlp/1/evaluation.json").read_text())
    assert theirs["overall"]["auc"] == pytest.approx(ours["overall"]["auc"], abs=1e-6)
    assert theirs["overall"]["logloss"] == pytest.approx(ours["overall"]["logloss"], rel=1e-5)


@pytest.mark.slow
def test_checkpoints_are_gone_unless_kept_and_the_cell_can_be_inspected_then(
    finished: Path, prepared: Path, tmp_path: Path
) -> None:
    assert not list(finished.rglob("checkpoints"))
    table = replace(TABLE, methods=(MLP,))
    compare.compare(prepared, Plan(table, CONFIG, 1, tmp_path, keep=True), QUIET)
    main(["inspect", str(tmp_path / "cells/mlp/0"), "--split", "validation"])
    # A plain network has neither gate nor attention, and weighs no rows.
    drawn = sorted(path.name for path in (tmp_path / "cells/mlp/0/figures").iterdir())
    names = ("calibration", "learning-curves")
    assert drawn == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]


@pytest.mark.slow
def test_cells_leave_no_open_file_behind_also_those_that_fail(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    run_cells = cells.run_cells

    def watched(runs, *rest):  # type: ignore[no-untyped-def]
        try:
            return run_cells(runs, *rest)
        finally:
            gc.collect()
            opened.append(len(os.listdir("/dev/fd")))

    monkeypatch.setattr(compare, "run_cells", watched)
    table = replace(TABLE, methods=(MLP,))
    compare.compare(prepared, Plan(table, CONFIG, 2, tmp_path / "well"), QUIET)

    def diverges(journal: cells.QuietJournal, step: int, *rest: object) -> None:
        if step > 3:  # The evaluation at step 3 has been saved then.
            raise TrainingError(f"the loss at step {step} is nan")

    monkeypatch.setattr(cells.QuietJournal, "evaluated", diverges)
    compare.compare(prepared, Plan(table, CONFIG, 2, tmp_path / "badly"), QUIET)
    assert len(list(tmp_path.glob("badly/cells/mlp/*/checkpoints/3"))) == 2
    # Between the two, the report opens Matplotlib's fonts.
    assert opened == [opened[0]] * 2 + [opened[2]] * 2


@pytest.mark.slow
def test_a_log_has_a_line_a_cell_with_the_time_left(prepared: Path, tmp_path: Path) -> None:
    log = StringIO()
    table = replace(TABLE, methods=(MLP,))
    compare.compare(prepared, Plan(table, CONFIG, 2, tmp_path), Console(file=log, width=100))
    lines = log.getvalue().splitlines()
    assert lines[0] == "2 cells, 0 of them finished already"
    assert re.fullmatch(r"1 of 2: MLP, seed 0, about \d+ (s|min) left", lines[1])
    assert lines[2] == "2 of 2: MLP, seed 1"


@pytest.mark.slow
def test_a_finished_cell_is_not_trained_again_and_another_table_shares_it(
    finished: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    trained = counted(monkeypatch)
    compare.compare(prepared, Plan(TABLE, CONFIG, 2, tmp_path / "out"), QUIET)
    assert trained == []
    (tmp_path / "out/cells/mlp/1/evaluation.json").unlink()
    other = replace(TABLE, name="table1")
    compare.compare(prepared, Plan(other, CONFIG, 2, tmp_path / "out"), QUIET)
    assert trained == ["mlp/1"]
    assert (tmp_path / "out/table1.html").is_file()
    again = (tmp_path / "out/cells/mlp/1/evaluation.json").read_text()
    assert again == (finished / "cells/mlp/1/evaluation.json").read_text()


@pytest.mark.slow
def test_a_comparison_that_was_stopped_saves_reports_and_goes_on(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(replace(TABLE, methods=(MLP,)), CONFIG, 2, tmp_path)
    trained = counted(monkeypatch)
    stop_signals = compare.stop_signals

    class After:
        """Asks to stop at the second cell's second step."""

        def __enter__(self) -> Callable[[int], bool]:
            return lambda step: len(trained) == 2 and step == 2

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(compare, "stop_signals", After)
    with pytest.raises(Preempted, match="MLP, seed 1: stopped and saved; give the same"):
        compare.compare(prepared, plan, QUIET)
    assert "| MLP | 1 |" in (tmp_path / "table3.md").read_text()
    monkeypatch.setattr(compare, "stop_signals", stop_signals)
    compare.compare(prepared, plan, QUIET)
    assert "| MLP | 2 |" in (tmp_path / "table3.md").read_text()
    assert trained == ["mlp/0", "mlp/1", "mlp/1"]
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cells/mlp/1/metrics.jsonl").read_text().splitlines()
    ]
    assert sorted(set(steps)) == [3, 6]


def test_a_cell_of_other_settings_or_data_is_refused(
    finished: Path, prepared: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    plan = Plan(
        TABLE, replace(CONFIG, model=replace(CONFIG.model, embedding_dim=3)), 2, tmp_path / "out"
    )
    with pytest.raises(
        CheckpointError,
        match=r"mlp/0 was trained with other settings or data \(config.model.embedding_dim: 4 -> 3",
    ):
        compare.compare(prepared, plan, QUIET)


def test_a_cell_that_diverges_is_said_and_left_out(
    finished: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out/cells/mlp/1/evaluation.json").unlink()

    def diverges(*arguments: object) -> CellResult:
        raise TrainingError("the loss at step 3 is nan")

    monkeypatch.setattr(compare, "run_cells", diverges)
    compared = compare.compare(prepared, Plan(TABLE, CONFIG, 2, tmp_path / "out"), QUIET)
    assert compared.notes == ["MLP, seed 1, failed: the loss at step 3 is nan"]
    assert "MLP, seed 1, failed: the loss" in (tmp_path / "out/table3.md").read_text()
    assert "| MLP | 1 |" in (tmp_path / "out/table3.md").read_text()


@pytest.mark.slow
def test_every_seed_is_run_on_every_split(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = counted(monkeypatch)
    compare.compare(prepared, Plan(TABLE, CONFIG, 1, tmp_path), QUIET)
    compared = compare.compare(prepared, Plan(TABLE, CONFIG, 2, tmp_path, splits=2), QUIET)
    names = ("mlp", "shared-bottom")
    first, rest = [f"{name}/0" for name in names], ("0-split-1", "1", "1-split-1")
    # The prepared split is split 0, whose cells are taken over.
    assert trained == [*first, *(f"{name}/{repeat}" for repeat in rest for name in names)]
    assert [path.name for path in (tmp_path / "splits").iterdir()] == ["1"]
    [mlp, bottom] = (compared.summaries[name, "overall", "auc"] for name in compared.methods)
    assert len(set(mlp.by_seed.values())) == 4
    assert list(mlp.by_seed) == list(bottom.by_seed) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert bottom.p is not None
    rows = list(csv.DictReader((tmp_path / "table3.csv").read_text().splitlines()))
    names_in_csv = [pair.split(":")[0] for pair in rows[0]["by_seed"].split()]
    assert names_in_csv == ["0", "0-split-1", "1", "1-split-1"]
    assert (
        "- The rows were split 2 times; split 0 is the prepared one"
        in (tmp_path / "table3.md").read_text()
    )
    run = json.loads((tmp_path / "cells/mlp/1-split-1/config.json").read_text())
    assert str(tmp_path / "splits" / "1") in json.dumps(run)
    trained.clear()
    compare.compare(prepared, Plan(TABLE, CONFIG, 2, tmp_path, splits=2), QUIET)
    assert trained == []


def test_seeds_of_one_split_are_trained_together(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "is_faster_side_by_side", lambda *given: True)
    plan, data = Plan(TABLE, CONFIG, 2, Path("nowhere"), splits=2), open_prepared(prepared)
    found = compare.groups(list(compare._cells(plan, [(MLP, CONFIG)], [data, data])))
    assert [[cell.repeat for cell in cells] for cells in found] == [
        [(0, 0), (1, 0)],
        [(0, 1), (1, 1)],
    ]
    assert [compare.title(cells) for cells in found] == [
        "MLP, seeds 0, 1",
        "MLP, seeds 0, 1 on split 1",
    ]


def test_the_constant_is_the_mean_over_splits(comparison: Comparison) -> None:
    def result(constant: float | None) -> CellResult:
        one = replace(metrics(0.7), constant_logloss=constant)
        return CellResult(Evaluation(one, {"home": one}), 1, 6, 3, 0.5, 2.04, None)

    results = {"MLP": {Repeat(0): result(0.4), Repeat(0, 1): result(0.5)}}
    assert replace(comparison, results=results).constants == pytest.approx(
        {"overall": 0.45, "home": 0.45}
    )
    results = {"MLP": {Repeat(0): result(None)}}
    assert replace(comparison, results=results).constants == {"overall": None, "home": None}


@pytest.mark.slow
def test_seeds_side_by_side_are_the_cells_they_are_alone(
    finished: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator; a seed that diverges is left out, and the others come to their end."""
    monkeypatch.setattr(compare, "is_faster_side_by_side", lambda *given: True)
    trained: list[list[int]] = []
    run_cells = cells.run_cells

    def diverges(runs, *rest):  # type: ignore[no-untyped-def]
        trained.append([run.config.train.seed for run in runs])
        if 1 in trained[-1]:
            raise TrainingError("the loss at step 3 is nan")
        return run_cells(runs, *rest)

    table = replace(TABLE, methods=(MLP,))
    plan = Plan(table, CONFIG, 4, tmp_path)
    monkeypatch.setattr(compare, "run_cells", diverges)
    compared = compare.compare(prepared, plan, QUIET)
    assert trained == [[0, 1, 2, 3], [0], [1], [2], [3]]
    assert compared.notes == ["MLP, seed 1, failed: the loss at step 3 is nan"]
    shutil.rmtree(tmp_path / "cells/mlp/0")
    trained.clear()
    monkeypatch.setattr(compare, "run_cells", run_cells)
    compare.compare(prepared, plan, QUIET)  # Seeds 0 and 1 are left, the latter begun.
    for seed in (0, 1):
        ours, theirs = (
            json.loads((out / f"cells/mlp/{seed}/evaluation.json").read_text())["overall"]
            for out in (tmp_path, finished)
        )
        assert ours["auc"] == pytest.approx(theirs["auc"], abs=1e-4)
        assert ours["logloss"] == pytest.approx(theirs["logloss"], rel=1e-4)


def test_what_the_data_does_not_allow_is_left_out(prepared: Path) -> None:
    table = Table("t", "T", (MLP, Method("STAR + D1", "star", "d3", "d1")))
    plan = Plan(table, CONFIG, 1, Path("nowhere"))
    methods, notes = compare._trainable(plan, open_prepared(prepared))
    assert methods == [MLP]
    assert notes[0].startswith("STAR + D1 is left out: star takes D3's fusion gate and loss weight")


def test_runs_whose_best_weights_are_older_than_the_weighing_are_counted(prepared: Path) -> None:
    data = open_prepared(prepared)
    steps = cells.expected_steps(data, CONFIG)
    start = steps // 2
    method = Method("Plain + D3", "plain", "d3")
    plan = Plan(Table("t", "T", (MLP, method)), CONFIG, 3, Path("nowhere"))
    results = {
        "MLP": {0: result(best_step=1)},
        method.name: {seed: result(best) for seed, best in enumerate((start, start + 1, steps))},
    }
    assert compare._unweighed(plan, data, results) == [
        "Plain + D3: in 1 of 3 runs the best weights came before rows began to be weighed, "
        f"at step {start}."
    ]
    never = replace(plan, config=replace(CONFIG, balance=BalanceOptions(start_ratio=1.0)))
    assert compare._unweighed(never, data, results) == []


def result(best_step: int) -> CellResult:
    nothing = Metrics(0, None, None, None, None)
    return CellResult(Evaluation(nothing, {}), 1, 9, best_step, 0.5, 1.0, None)


def test_a_methods_own_preset_replaces_the_flags(tmp_path: Path) -> None:
    own = replace(CONFIG, model=replace(CONFIG.model, embedding_dropout=0.25))
    (tmp_path / "mlp.json").write_text(json.dumps({"config": own.to_json()}))
    plan = Plan(TABLE, CONFIG, 1, tmp_path, configs=tmp_path)
    mlp, bottom = (plan.config_of(method, 4) for method in TABLE.methods)
    assert (mlp.model.embedding_dropout, bottom.model.embedding_dropout) == (0.25, 0.0)
    assert (mlp.model.backbone, mlp.model.head, mlp.train.seed) == ("plain", "own", 4)
    (tmp_path / "mlp.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"mlp.json is no preset file \(it has no config\)"):
        plan.config_of(MLP, 0)


def test_time_left_is_the_mean_of_the_method_or_of_all() -> None:
    spent = {"MLP": [2.0, 4.0], "ADI": [12.0], "STAR": []}
    assert remaining_seconds(spent, ["MLP", "ADI", "ADI", "STAR"]) == pytest.approx(3 + 12 + 12 + 6)
    assert remaining_seconds({"MLP": []}, ["MLP"]) is None
    assert remaining_seconds(spent, []) == 0
    assert [duration(s) for s in (0.2, 29, 31, 3600, 7500)] == [
        "1 s",
        "29 s",
        "1 min",
        "1 h 00 min",
        "2 h 05 min",
    ]


def metrics(auc: float, logloss: float = 0.3) -> Metrics:
    return Metrics(50, 0.25, auc, logloss, 0.5623, 0.61, 1.02, 0.031, (auc - 0.02, auc + 0.02))


@pytest.fixture
def comparison(prepared: Path) -> Comparison:
    """Three seeds of made-up results: D3 beats its base by .01 each time, more or less."""
    table = find_table(3, None, "adi", None)
    attention = np.full((3, 9), 1 / 9)
    attention[2] = np.nan

    def result(auc: float) -> CellResult:
        groups = {name: metrics(auc) for name in ("home", "detail", "slot")}
        return CellResult(Evaluation(metrics(auc), groups), 1234, 6, 3, 0.5, 2.04, attention)

    noise = (0.0, 0.0004, -0.0003)
    results = {
        "MLP": {0: result(0.75)},
        "ADI": {seed: result(0.7 + seed / 100) for seed in range(3)},
        "ADI + D3": {seed: result(0.71 + seed / 100 + noise[seed]) for seed in range(3)},
    }
    command = "d3jax compare <data> --table 3"
    return Comparison(table, open_prepared(prepared), Config(), command, results, ["x & y"])


def test_the_grid_says_mean_spread_and_verdict(comparison: Comparison) -> None:
    lines = grid(comparison, "auc")
    averages = ["macro mean (all)", "worst scenario (all)"]
    head = ["method", "seeds", "weights", "overall"]
    assert lines[0] == [*head, *averages, "home", "detail", "slot"]
    assert lines[1] == ["MLP", "1", "1,234", *["0.7500"] * 6]
    assert lines[2] == ["ADI", "3", "1,234", *["0.7100 ± 0.0100"] * 6]
    tested, average = "0.7200 ± 0.0099 ▲", "0.7200 ± 0.0099"
    assert lines[3] == ["ADI + D3", "3", "1,234", tested, average, average, *[tested] * 3]
    assert grid(comparison, "gauc")[0] == [*head, "home", "detail", "slot"]
    assert interval_grid(comparison)[0] == ["method", "overall", "home", "detail", "slot"]
    assert grid(comparison, "logloss")[-1] == ["constant (click rate)", "", "0", *["0.5623"] * 4]
    assert "± 0.0000 ▲" not in str(grid(comparison, "logloss"))


def test_markdown_holds_the_tables_the_command_and_what_was_left_out(
    comparison: Comparison,
) -> None:
    text = markdown(comparison)
    assert "| ADI + D3 | 3 | 1,234 | 0.7200 ± 0.0099 ▲ |" in text
    assert "`d3jax compare <data> --table 3`" in text
    assert "- ADI + D3 against ADI" in text
    assert "- x & y" in text
    assert "the paper" not in text
    assert "| MLP | 0.7300-0.7700 |" in text
    piped = replace(comparison, results={"MLP": comparison.results["MLP"]})
    assert "ADI" not in grid(piped, "auc")[-1]


def test_scenarios_with_rows_enough_are_averaged_and_the_header_says_so(
    comparison: Comparison,
) -> None:
    def result(*aucs: float) -> CellResult:
        sizes = zip(("home", "detail", "slot"), aucs, (5000, 1000, 999), strict=True)
        groups = {name: replace(metrics(auc), rows=rows) for name, auc, rows in sizes}
        return CellResult(Evaluation(metrics(0.7), groups), 1234, 6, 3, 0.5, 2.04, None)

    results = {"MLP": {0: result(0.8, 0.6, 0.5), 1: result(0.6, 0.7, 0.9)}}
    lines = grid(replace(comparison, results=results), "auc")
    assert lines[0][4:6] == ["macro mean (≥ 1,000 rows)", "worst scenario (≥ 1,000 rows)"]
    assert lines[1][4:6] == ["0.6750 ± 0.0354", "0.6000 ± 0.0000"]


def test_the_best_of_a_column_stands_out_and_what_looks_the_same_does_too(
    comparison: Comparison,
) -> None:
    def result(*values: float) -> CellResult:
        auc, logloss, pcoc = values
        one = replace(metrics(auc, logloss), pcoc=pcoc)
        return CellResult(Evaluation(one, {"home": one}), 1, 6, 3, 0.5, 2.04, None)

    made = [(0.70001, 0.4, 0.9), (0.70004, 0.3, 1.02), (0.6, 0.5, 0.98)]
    names = ["MLP", "ADI", "ADI + D3"]
    results = {name: {0: result(*values)} for name, values in zip(names, made, strict=True)}
    compared = replace(comparison, results=results)

    def strong(metric: str) -> list[str]:
        lines = grid(compared, metric)[1:]
        return [line[0] for line in lines if isinstance(line[3], Strong)]

    assert strong("auc") == ["MLP", "ADI"]
    assert strong("logloss") == ["ADI"]
    assert strong("pcoc") == ["ADI", "ADI + D3"]
    assert strong("ece") == []
    assert "| ADI | 1 | 1 | **0.3000** |" in markdown(compared)
    assert not any(
        isinstance(text, Strong)
        for text in grid(replace(comparison, results={"MLP": results["MLP"]}), "auc")[1]
    )


def test_fewer_than_three_seeds_are_warned_of(comparison: Comparison) -> None:
    warning = (
        "No method has more than 2 of the 3 runs that a test needs, so that every difference may "
        "be chance; give --seeds 3 or more, which leaves finished cells as they are."
    )
    assert warning not in remarks(comparison)["Notes"]
    two = {name: dict(list(cells.items())[:2]) for name, cells in comparison.results.items()}
    assert remarks(replace(comparison, results=two))["Notes"] == [warning, "x & y"]


def test_the_verdict_is_the_first_of_all_reports(
    comparison: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare.write_reports(comparison, tmp_path)
    first = "The best mean AUC overall is that of MLP, 0.7500; "
    assert capsys.readouterr().out.startswith(first)
    assert (tmp_path / "table3.md").read_text().splitlines()[2].startswith(first)


def test_csv_has_all_digits_and_the_test(comparison: Comparison, tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", comparison)
    rows = list(csv.DictReader((tmp_path / "t.csv").read_text().splitlines()))
    row = next(
        r for r in rows if (r["method"], r["group"], r["metric"]) == ("ADI + D3", "slot", "auc")
    )
    assert row["base"] == "ADI"
    assert float(row["difference"]) == pytest.approx(0.01 + 0.0001 / 3)
    assert float(row["p_holm"]) == pytest.approx(4 * float(row["p"]))
    assert (row["weights"], row["seconds_per_seed"], row["paper"]) == ("1234", "2.0", "")
    assert float(row["interval_low"]) == pytest.approx(0.70 + 0.0001 / 3)


def test_the_page_stands_alone_and_is_escaped(comparison: Comparison, tmp_path: Path) -> None:
    page = html(comparison, draw_comparison(comparison, tmp_path))
    assert "d3jax compare &lt;data&gt; --table 3" in page
    assert "<data>" not in page
    assert "x &amp; y" in page
    assert 'name="viewport"' in page
    assert page.count("data:image/svg+xml;base64,") == page.count("<img ") == 3
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "<script" not in page
    assert "url(" not in page
    assert '<td class="better">0.7200 ± 0.0099 ▲</td>' in page
    assert "<td><strong>0.7500</strong></td>" in page
    assert '<p class="verdict">The best mean AUC overall is that of MLP, 0.7500; ' in page
    assert "<td>+0.0100</td>" in page
    body = page.removeprefix("<!doctype html>\n")
    body = re.sub(r"(<img [^>]*)>", r"\1/>", body)
    assert ElementTree.fromstring(body).tag == "html"
    for name in ("table3-auc", "table3-logloss", "table3-attention-adi-d3"):
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")


def test_the_papers_numbers_come_with_what_speaks_against_them(comparison: Comparison) -> None:
    fields = (Field("301", 4), *comparison.prepared.schema.fields)
    schema = replace(comparison.prepared.schema, fields=fields, scenario_field="301")
    prepared = replace(comparison.prepared, schema=schema)
    theirs = replace(comparison, prepared=prepared)
    lines = grid(theirs, "auc")
    assert lines[3] == ["  (the paper)", *[""] * 5, "0.6214", "0.5995", "0.6175"]
    assert lines[5] == ["  (the paper)", *[""] * 5, "0.6261", "0.6029", "0.6230"]
    assert "About the paper's numbers" in markdown(theirs)
    assert "answering every row with the click rate (.2027)" in html(theirs, {})


def test_flags_reach_the_comparison() -> None:
    verb = parse(["compare", "data", "--table", "2", "--on", "mmoe", "--epochs", "3"])
    assert (str(verb.prepared), verb.table, verb.figure, verb.on, verb.seeds) == (
        "data",
        2,
        None,
        "mmoe",
        5,
    )
    # The paper's own settings, unlike those of a first `train`.
    expected = Config()
    assert verb.chosen() == replace(expected, train=replace(expected.train, epochs=3))


def test_methods_bring_the_flags_of_their_parts() -> None:
    names = ["mlp", "mmoe", "shared_bottom+d3"]
    verb = parse(["compare", "data", "--methods", *names, "--mmoe.experts", "3", "--width", "9"])
    assert verb.methods == tuple(names)
    assert (verb.chosen().mmoe.experts, verb.chosen().d3.width) == (3, 9)


@pytest.mark.slow
def test_a_backbone_of_ones_own_is_compared_by_its_name(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKBONES._registered, "mine", BACKBONES.find("shared_bottom"))
    flags = ["--embedding-dim", "4", "--bottom-layers", "8", "6", "--epochs", "1", "--seeds", "1"]
    main(["compare", str(prepared), "--methods", "mlp", "mine", "--out", str(tmp_path), *flags])
    assert "- mine against MLP" in (tmp_path / "methods.md").read_text()
    assert (tmp_path / "cells/mine/0/evaluation.json").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [],
            "give --methods, --table 1, 2, 3, open, terms or default, or --figure 3 or 4, and one "
            "of them only",
        ),
        (
            ["--methods", "mlp", "--table", "1"],
            "give --methods, --table 1, 2, 3, open, terms or default",
        ),
        (["--methods", "mlp", "mmeo"], "there is no backbone 'mmeo' (did you mean mmoe?)"),
        (["--table", "1", "--figure", "3"], "and one of them only"),
        (["--table", "1", "--base", "GBDT"], "base 'GBDT' is not in the table; it has MLP"),
        (["--table", "1", "--splits", "0"], "splits is 0; it must be between 1 and 100"),
        (["--table", "1", "--seeds", "0"], "seeds is 0; it must be between 1 and 1000"),
        (["--table", "1", "--monitor-scenario", "attic"], "the data has home, detail, slot"),
    ],
)
def test_nonsense_is_refused(
    flags: list[str],
    message: str,
    prepared: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["compare", str(prepared), "--out", str(tmp_path / "out"), *flags])
    assert message in said(capsys)
    assert not (tmp_path / "out").exists()


def test_each_method_that_divides_rows_gets_the_domains_that_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the configuration by itself names a model that divides none."""
    write(synthetic(SyntheticConfig(60_000, domain=("device",))), tmp_path / "devices")
    left: list[compare.Cell] = []
    monkeypatch.setattr(compare, "_train", lambda cells, *rest: left.extend(cells) or [])
    config = CONFIG.changed(model=replace(CONFIG.model, domain=AUTO))
    table = replace(TABLE, methods=(MLP, Method("MMoE", "mmoe")))
    compare.compare(tmp_path / "devices", Plan(table, config, 1, tmp_path / "out"), QUIET)
    found = {cell.method.name: cell.config.model.domain for cell in left}
    assert found == {"MLP": (), "MMoE": ("device",)}
