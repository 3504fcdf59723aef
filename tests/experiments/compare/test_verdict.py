"""The verdict says what the tests allow, and no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from d3jax.batch import Field, Schema
from d3jax.config import Config
from d3jax.data.prepared import Prepared
from d3jax.training.metrics import Evaluation, Metrics
from experiments.compare.cells import CellResult
from experiments.compare.comparison import Comparison
from experiments.compare.tables import MLP, Method, Table
from experiments.compare.verdict import TEST, listed, smallest, verdict

NONE_LOSES = "No method loses to the constant predictor in logloss, overall or in a scenario."
FEW = "Nothing can be told apart with fewer than three seeds."
METHODS = (MLP, Method("STAR", "star"), Method("MMoE", "mmoe"), Method("PLE", "ple"))
SCHEMA = Schema((Field("user", 9), Field("tab", 3)), ("home", "slot"), "tab", "user")

Values = Sequence[float | None]
"""A method's figure of each seed."""


def group(rows: int, auc: float | None, logloss: float = 0.4) -> Metrics:
    return Metrics(rows, 0.2, auc, logloss, 0.5)


def compared(aucs: Mapping[str, Values], slot: Mapping[str, Values] | None = None) -> Comparison:
    """Made-up overall AUCs by method; those of the small scenario are the same unless given."""

    def cell(auc: float | None, small: float | None) -> CellResult:
        scenarios = {"home": group(9000, 0.7), "slot": group(1204, small)}
        return CellResult(Evaluation(group(10_204, auc), scenarios), 1, 9, 5, 0.5, 1.0, None)

    results = {
        method: {
            seed: cell(*pair)
            for seed, pair in enumerate(zip(values, (slot or aucs)[method], strict=True))
        }
        for method, values in aucs.items()
    }
    prepared = Prepared(Path("nowhere"), SCHEMA, {})
    return Comparison(Table("t", "T", METHODS), prepared, Config(), "", results)


def grouped(comparison: Comparison, **groups: Metrics) -> Comparison:
    """With these groups in every cell, "overall" as it is unless given."""

    def cell(old: CellResult) -> CellResult:
        overall = groups.get("overall", old.evaluation.overall)
        scenarios = {name: one for name, one in groups.items() if name != "overall"}
        return replace(old, evaluation=Evaluation(overall, scenarios))

    return replace(
        comparison,
        results={
            m: {s: cell(c) for s, c in cells.items()} for m, cells in comparison.results.items()
        },
    )


CLEAR = {"MLP": [0.70, 0.71, 0.72], "STAR": [0.73, 0.74, 0.7501], "MMoE": [0.731, 0.739, 0.7505]}


def test_the_best_what_may_be_as_good_and_the_smallest_scenario() -> None:
    slot = {"MLP": [0.65, 0.66, 0.67], "STAR": [0.60, 0.61, 0.6201], "MMoE": [0.5, 0.51, 0.5203]}
    assert verdict(compared(CLEAR, slot)) == [
        "The best mean AUC overall is that of MMoE, 0.7402; STAR can't be told from it, the "
        "others are worse.",
        "The best mean AUC in the smallest scenario, slot (1,204 test rows), is that of MLP, "
        "0.6600; all others are worse.",
        NONE_LOSES,
        TEST,
    ]


def test_the_correction_is_over_the_methods() -> None:
    aucs = {"STAR": [0.70, 0.72, 0.74, 0.76], "MLP": [0.69, 0.714, 0.729, 0.7566]}
    [first, *_] = verdict(compared(aucs))
    assert first == "The best mean AUC overall is that of STAR, 0.7300; all others are worse."
    more = {**aucs, "MMoE": [0.6, 0.75, 0.8, 0.72], "PLE": [0.74, 0.7, 0.7, 0.74]}
    [first, *_] = verdict(compared(more))
    assert first == (
        "The best mean AUC overall is that of STAR, 0.7300; MLP, MMoE and PLE can't be told from "
        "it."
    )


def test_a_tie_is_no_victory() -> None:
    [first, *_] = verdict(compared({"MLP": [0.7, 0.71, 0.72], "STAR": [0.7, 0.71, 0.72]}))
    assert first == (
        "The best mean AUC overall is that of MLP, 0.7100; STAR can't be told from it."
    )


def test_fewer_than_three_seeds_tell_nothing() -> None:
    assert verdict(compared({"MLP": [0.7, 0.71], "STAR": [0.8, 0.81]})) == [
        FEW,
        "The best mean AUC overall is that of STAR, 0.8050.",
        "The best mean AUC in the smallest scenario, slot (1,204 test rows), is that of STAR, "
        "0.8050.",
        NONE_LOSES,
    ]


def test_one_method_has_nothing_to_be_compared_with() -> None:
    assert verdict(compared({"MLP": [0.7, 0.71, 0.72]})) == [
        "The best mean AUC overall is that of MLP, 0.7100; it is the only method.",
        "The best mean AUC in the smallest scenario, slot (1,204 test rows), is that of MLP, "
        "0.7100; it is the only method.",
        NONE_LOSES,
    ]


def test_cells_that_failed_are_not_paired() -> None:
    aucs = {
        "MLP": [0.70, 0.71, 0.72],
        "STAR": [0.73, 0.74, 0.7501],
        "MMoE": [0.72, 0.73],
        "PLE": [],
    }
    [first, *_] = verdict(compared(aucs))
    assert first == (
        "The best mean AUC overall is that of STAR, 0.7400; the others are worse, MMoE can't be "
        "tested, with too few seeds in common."
    )


def test_an_undefined_auc_is_said_or_left_out() -> None:
    nowhere = compared({"MLP": [None, None, None]})
    assert verdict(nowhere)[:2] == [
        "No method has an AUC overall, for want of rows of both classes.",
        NONE_LOSES,
    ]
    slot = {"MLP": [None] * 3, "STAR": [None] * 3, "MMoE": [None] * 3}
    assert "smallest" not in " ".join(verdict(compared(CLEAR, slot)))


def test_the_smallest_scenario_has_rows_enough_unless_none_has() -> None:
    one = compared(CLEAR)
    many, ample, few = group(9000, 0.7), group(1000, 0.7), group(999, 0.7)
    assert smallest(grouped(one, a=many, b=ample, c=few)) == ["b"]
    assert smallest(grouped(one, a=few, b=group(50, 0.7))) == ["b"]
    assert smallest(grouped(one, a=many, b=ample, c=ample)) == ["b", "c"]
    assert smallest(grouped(one, a=ample, b=ample)) == []
    assert smallest(grouped(one, a=ample)) == []
    assert verdict(grouped(one, a=many, b=ample, c=few))[1].startswith(
        "The best mean AUC in the smallest scenario of at least 1,000 test rows, b (1,000 test "
        "rows), is that of "
    )
    tied = grouped(one, a=many, b=ample, c=group(1000, 0.8))
    assert verdict(tied)[1] == (
        "The best mean AUC in the smallest scenarios, b and c (1,000 test rows each), is that of "
        "MLP, 0.7500; STAR and MMoE can't be told from it."
    )


def test_what_loses_to_the_constant_is_named_with_its_places() -> None:
    one = compared({m.name: [0.7, 0.71, 0.72] for m in METHODS})
    bad = group(9000, 0.7, 0.51)
    assert "logloss: MLP (overall), STAR (overall), MMoE (overall) and 1 more." in " ".join(
        verdict(grouped(one, overall=bad, home=group(9000, 0.7)))
    )
    scenarios = {name: bad for name in "abcde"}
    assert "logloss: MLP (a, b, c and 2 more), STAR" in " ".join(verdict(grouped(one, **scenarios)))
    # Rows of one class: the constant that knows them has no loss.
    single = replace(bad, constant_logloss=0.0)
    assert NONE_LOSES in verdict(grouped(one, a=single, b=replace(bad, constant_logloss=None)))


@pytest.mark.parametrize(
    ("count", "text"), [(1, "a"), (2, "a and b"), (3, "a, b and c"), (5, "a, b, c and 2 more")]
)
def test_names_in_a_sentence(count: int, text: str) -> None:
    assert listed("abcde"[:count]) == text
