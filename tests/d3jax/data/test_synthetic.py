"""The made-up data: what was planted is there, can be found from the rows, and is written whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse
from scipy.special import logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from d3jax.data.columns import Rows
from d3jax.data.prepared import check_rows, open_prepared
from d3jax.data.synthetic import SyntheticConfig, SyntheticData, synthetic, write
from d3jax.errors import ConfigError, OutputError

PLANTED = {
    "home": {"hour", "category", "city"},
    "detail": {"age", "price", "brand"},
    "slot": {"age", "device"},
}
SMALL = SyntheticConfig(rows=40_000, smallest_share=0.1, users=60, items=60)


@pytest.fixture(scope="module")
def default() -> SyntheticData:
    return synthetic()


@pytest.fixture(scope="module")
def small() -> SyntheticData:
    return synthetic(SMALL)


def one_hot(data: SyntheticData, ids: np.ndarray, names: list[str]) -> sparse.csr_matrix:
    blocks = []
    for field, column in zip(data.schema.fields, ids.T, strict=True):
        if field.name in names:
            entries = (np.ones(len(ids)), (np.arange(len(ids)), column))
            blocks.append(sparse.csr_matrix(entries, shape=(len(ids), field.size)))
    return sparse.hstack(blocks).tocsr()


def field_names(data: SyntheticData) -> list[str]:
    return [field.name for field in data.schema.fields]


def field_effects(data: SyntheticData, scenario: int) -> dict[str, np.ndarray]:
    """Each field's centred effects on the true logit, by least squares on the train rows."""
    rows, best = data.rows["train"], data.best["train"]
    here = rows.scenario == scenario
    names = field_names(data)[1:]
    design = one_hot(data, rows.ids[here], names).toarray()
    target = logit(best[here])
    # Each field's columns sum to 1, so that some directions are free; rounding must not count.
    inverse = np.linalg.pinv(design.T @ design, rcond=1e-10, hermitian=True)
    weights = inverse @ (design.T @ target)
    np.testing.assert_allclose(design @ weights, target, atol=1e-6)
    ends = np.cumsum([field.size for field in data.schema.fields[1:]])[:-1]
    parts = [part[1:] for part in np.split(weights, ends)]
    return {name: part - part.mean() for name, part in zip(names, parts, strict=True)}


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(small: SyntheticData) -> None:
    again = synthetic(SMALL)
    assert again.schema == small.schema
    for split, rows in small.rows.items():
        for left, right in zip(rows, again.rows[split], strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(small.best[split], again.best[split])
    other = synthetic(replace(SMALL, seed=1))
    assert (other.rows["train"].ids == small.rows["train"].ids).mean() < 0.7


def test_splits_scenarios_and_click_rates_are_as_planned(default: SyntheticData) -> None:
    sizes = {split: len(rows.label) for split, rows in default.rows.items()}
    assert sizes == {"train": 280_000, "validation": 40_000, "test": 80_000}
    scenario = np.concatenate([rows.scenario for rows in default.rows.values()])
    shares = np.bincount(scenario) / len(scenario)
    np.testing.assert_allclose(shares, [0.6944, 0.2976, 0.008], atol=0.003)
    assert shares[2] < 0.01
    best = np.concatenate(list(default.best.values()))
    rates = [best[scenario == s].mean() for s in range(3)]
    np.testing.assert_allclose(rates, [0.12, 0.20, 0.30], atol=1e-9)


def test_labels_are_drawn_from_the_true_probabilities(default: SyntheticData) -> None:
    for split, rows in default.rows.items():
        best = default.best[split]
        assert set(np.unique(rows.label)) == {0.0, 1.0}
        for group in [*(rows.scenario == s for s in range(3)), best < 0.05, best > 0.4]:
            deviation = np.sqrt((best * (1 - best))[group].sum())
            assert abs((rows.label - best)[group].sum()) < 4 * deviation


def test_ids_are_by_frequency_in_train_and_unknown_only_outside(default: SyntheticData) -> None:
    train, test = default.rows["train"], default.rows["test"]
    for slot, field in enumerate(default.schema.fields):
        counts = np.bincount(train.ids[:, slot], minlength=field.size)
        assert counts[0] == 0
        assert (np.diff(counts[1:]) <= 0).all()
        assert counts[-1] > 0
        assert default.vocabulary[field.name]["count"].to_pylist() == counts[1:].tolist()
        assert default.vocabulary[field.name]["id"].to_pylist() == [*range(1, field.size)]
    unseen = (test.ids == 0).any(axis=1).mean()
    assert 0.01 < unseen < 0.03
    for rows in default.rows.values():
        default.schema.check(rows.ids, rows.scenario)
        assert (rows.ids.dtype, rows.scenario.dtype) == (np.int32, np.int32)
        assert rows.label.dtype == np.float32


def test_unseen_items_keep_effects_of_their_own() -> None:
    data = synthetic(SyntheticConfig(rows=40_000, smallest_share=0.1, users=60, items=400))
    rows, best = data.rows["test"], data.best["test"]
    user, item = data.schema.index("user"), data.schema.index("item")
    here = (rows.scenario == 0) & (rows.ids[:, item] == 0) & (rows.ids[:, user] > 0)
    effects = field_effects(data, 0)
    known = sum(
        effects[name][rows.ids[here, data.schema.index(name)] - 1]
        for name in effects
        if name != "item"
    )
    hidden = np.unique(np.round(logit(best[here]) - known, 5))
    assert 5 <= hidden.size <= 10  # of the ten items in 400 that come late
    assert np.ptp(hidden) > 0.1


def test_the_scenario_is_a_field_with_its_own_id(default: SyntheticData) -> None:
    assert default.schema.scenarios == ("home", "detail", "slot")
    assert default.schema.scenario_field == "scenario"
    assert (default.schema.user_field, default.schema.item_field) == ("user", "item")
    for rows in default.rows.values():
        np.testing.assert_array_equal(rows.ids[:, 0], rows.scenario + 1)
    assert default.vocabulary["scenario"]["value"].to_pylist() == ["home", "detail", "slot"]


def test_only_the_planted_fields_act_differently_in_a_scenario(small: SyntheticData) -> None:
    effects = [field_effects(small, scenario) for scenario in range(3)]
    for name in field_names(small)[1:]:
        for one, two in [(0, 1), (0, 2), (1, 2)]:
            difference = np.abs(effects[one][name] - effects[two][name]).max()
            scenarios = (small.schema.scenarios[one], small.schema.scenarios[two])
            if any(name in PLANTED[scenario] for scenario in scenarios):
                assert difference > 0.3, (name, scenarios)
            else:
                assert difference < 1e-6, (name, scenarios)


def test_sensitive_marks_the_planted_fields(small: SyntheticData) -> None:
    names = np.array(field_names(small))
    for scenario, marks in zip(small.schema.scenarios, small.sensitive, strict=True):
        assert set(names[marks]) == PLANTED[scenario]


def test_without_sensitivity_all_scenarios_are_alike(small: SyntheticData) -> None:
    alike = synthetic(replace(SMALL, sensitivity=0))
    assert not alike.sensitive.any()
    np.testing.assert_array_equal(alike.rows["test"].ids, small.rows["test"].ids)
    home, slot = field_effects(alike, 0), field_effects(alike, 2)
    for name in home:
        np.testing.assert_allclose(home[name], slot[name], atol=1e-6)


def test_a_model_with_crosses_nears_the_best_auc_and_a_plain_one_does_not(
    default: SyntheticData,
) -> None:
    names = field_names(default)
    local = [name for name in names if name not in ("user", "item")]

    def plain(rows: Rows) -> sparse.csr_matrix:
        return one_hot(default, rows.ids, names)

    def crossed(rows: Rows) -> sparse.csr_matrix:
        fields = one_hot(default, rows.ids, local)
        crosses = [sparse.diags((rows.scenario == s).astype(float)) @ fields for s in range(3)]
        return sparse.hstack([plain(rows), *crosses]).tocsr()

    train, test = default.rows["train"], default.rows["test"]
    best = roc_auc_score(test.label, default.best["test"])
    aucs = []
    for features in (plain, crossed):
        model = LogisticRegression(C=0.05, max_iter=40, tol=1e-3).fit(features(train), train.label)
        aucs.append(roc_auc_score(test.label, model.predict_proba(features(test))[:, 1]))
    assert 0.75 < best < 0.80
    assert aucs[0] < best - 0.03
    assert best - 0.01 < aucs[1] < best


def test_writing_makes_a_prepared_directory_with_the_truth(
    small: SyntheticData, tmp_path: Path
) -> None:
    write(small, tmp_path / "made")
    prepared = open_prepared(tmp_path / "made")
    check_rows(prepared)
    fields = tuple(replace(field, fingerprint="") for field in prepared.schema.fields)
    assert replace(prepared.schema, fields=fields, fingerprint="") == small.schema
    for split, rows in small.rows.items():
        for one, other in zip(prepared.rows(split), rows, strict=True):
            np.testing.assert_array_equal(one, other)
        truth = np.load(tmp_path / "made" / split / "truth.npy", allow_pickle=False)
        assert truth.dtype == np.float64
        np.testing.assert_array_equal(truth, small.best[split])
    for field in small.schema.fields:
        assert (
            prepared.vocabulary(field.name).to_pydict() == small.vocabulary[field.name].to_pydict()
        )


def test_the_provenance_explains_the_rows(small: SyntheticData, tmp_path: Path) -> None:
    write(small, tmp_path / "made")
    provenance = json.loads((tmp_path / "made" / "schema.json").read_text())["provenance"]
    assert provenance["rows"] == {"train": 28_000, "validation": 4_000, "test": 8_000}
    assert provenance["split"] == {"train": 0.7, "validation": 0.1, "test": 0.2}
    names = {name: name for name in PLANTED}
    assert provenance["scenario"] == {"field": "scenario", "values": names}
    assert provenance["separators"] == {}
    assert "true click probability" in provenance["label_rule"]
    assert {name: set(fields) for name, fields in provenance["planted"].items()} == PLANTED


def test_writing_replaces_only_when_told(small: SyntheticData, tmp_path: Path) -> None:
    write(small, tmp_path / "made")
    with pytest.raises(OutputError, match="made exists; choose another directory or pass"):
        write(small, tmp_path / "made")
    other = synthetic(SyntheticConfig(rows=2_000, smallest_share=0.1))
    write(other, tmp_path / "made", overwrite=True)
    assert len(open_prepared(tmp_path / "made").rows("train").label) == 1_400


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rows", 999, "synthetic.rows is 999; it must be between 1000 and 100000000"),
        ("seed", -1, "synthetic.seed is -1; it must be between 0 and"),
        ("sensitivity", -0.1, "synthetic.sensitivity is -0.1; it must be between 0.0 and 10.0"),
        ("smallest_share", 0.3, "smallest_share is 0.3; it must be between 0.001 and 0.2, both"),
        ("users", 39, "synthetic.users is 39; it must be between 40 and 1000000"),
        ("items", 39, "synthetic.items is 39; it must be between 40 and 1000000"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SyntheticConfig(), **{field: value})


def test_a_smallest_scenario_without_rows_is_refused() -> None:
    message = "smallest_share 0.01 of 1999 rows is fewer than 20; raise smallest_share or rows"
    with pytest.raises(ConfigError, match=message):
        SyntheticConfig(rows=1_999, smallest_share=0.01)
