"""The verdict of a comparison: what its tests allow to say of its methods, in a few sentences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from d3jax.checks import OVERALL
from d3jax.training.metrics import Evaluation
from experiments.compare.comparison import AMPLE, Comparison
from experiments.compare.statistics import (
    FEWEST_PAIRS,
    LEVEL,
    defined,
    holm,
    paired_p,
    pairs_of,
)

MOST = 3
"""Names that a sentence lists before it counts the others."""

TEST = (
    "What can't be told from the best has p ≥ .05 in a paired t-test over seeds, after Holm's "
    "correction over the methods."
)


def verdict(comparison: Comparison) -> list[str]:
    """Return the best method overall and in the smallest scenario, what can't be told from it, and
    what loses to the constant predictor."""
    sentences = [_best(comparison, OVERALL, lambda one: one.overall.auc)]
    if _few(comparison):
        sentences.insert(0, "Nothing can be told apart with fewer than three seeds.")
    if small := smallest(comparison):
        rows = f"{comparison.rows[small[0]]:,} test rows"
        left_out = len(comparison.ample) < len(comparison.groups) - 1
        of = f" of at least {AMPLE:,} test rows" if left_out else ""
        where = f"in the smallest scenario{of}, {small[0]} ({rows}),"
        if len(small) > 1:
            where = f"in the smallest scenarios{of}, {listed(small)} ({rows} each),"
        sentences.append(_best(comparison, where, lambda one: one.macro_auc(small)))
    sentences.append(_losing(comparison))
    if len(comparison.methods) > 1 and not _few(comparison):
        sentences.append(TEST)
    return sentences


def smallest(comparison: Comparison) -> list[str]:
    """The scenarios with the fewest test rows of those that count and have an AUC; none where all
    are of one size."""
    rows = {name: comparison.rows[name] for name in comparison.ample if _has_auc(comparison, name)}
    fewest = min(rows.values(), default=0)
    found = [name for name, count in rows.items() if count == fewest]
    return found if len(found) < len(rows) else []


def listed(names: Sequence[str], most: int = MOST) -> str:
    """Names in a sentence, such as "a, b and c", or "a, b, c and 2 more"."""
    shown = list(names[:most]) + ([f"{len(names) - most} more"] if len(names) > most else [])
    *others, last = shown
    return f"{', '.join(others)} and {last}" if others else last


def _best(comparison: Comparison, where: str, auc: Callable[[Evaluation], float | None]) -> str:
    """The sentence on the best mean AUC of some rows, and on the methods that may be as good."""
    values = {
        method: defined({seed: auc(one) for seed, one in comparison.evaluations[method].items()})
        for method in comparison.methods
    }
    means = {method: sum(found.values()) / len(found) for method, found in values.items() if found}
    if not means:
        return f"No method has an AUC {where}, for want of rows of both classes."
    best = max(means, key=lambda method: means[method])
    said = f"The best mean AUC {where} is that of {best}, {means[best]:.4f}"
    others = [method for method in means if method != best]
    if _few(comparison) or not others:
        return f"{said}." if others else f"{said}; it is the only method."
    tests = [paired_p(*pairs_of(values[best], values[method])) for method in others]
    corrected = dict(zip(others, holm(tests), strict=True))
    alike = [method for method, p in corrected.items() if p is not None and p >= LEVEL]
    worse = [method for method, p in corrected.items() if p is not None and p < LEVEL]
    untested = [method for method, p in corrected.items() if p is None]
    clauses = [
        *([f"{listed(alike)} can't be told from it"] if alike else []),
        *(
            ["the others are worse" if alike or untested else "all others are worse"]
            if worse
            else []
        ),
        *(
            [f"{listed(untested)} can't be tested, with too few seeds in common"]
            if untested
            else []
        ),
    ]
    return f"{said}; {', '.join(clauses)}."


def _few(comparison: Comparison) -> bool:
    """Return whether no method has seeds enough for a test."""
    return max(len(seeds) for seeds in comparison.evaluations.values()) < FEWEST_PAIRS


def _losing(comparison: Comparison) -> str:
    """The sentence on methods whose mean logloss is above that of answering with the click rate."""
    places = {
        method: [group for group in comparison.groups if _loses(comparison, method, group)]
        for method in comparison.methods
    }
    losers = [f"{method} ({listed(where)})" for method, where in places.items() if where]
    if not losers:
        return "No method loses to the constant predictor in logloss, overall or in a scenario."
    return f"Worse than the constant predictor in logloss: {listed(losers)}."


def _loses(comparison: Comparison, method: str, group: str) -> bool:
    """Rows of one class don't count: a constant that knows them is beyond reach."""
    mean = comparison.summaries[method, group, "logloss"].mean
    constant = comparison.constants[group]
    return mean is not None and constant is not None and mean > constant > 0


def _has_auc(comparison: Comparison, scenario: str) -> bool:
    summaries = (comparison.summaries[m, scenario, "auc"] for m in comparison.methods)
    return any(one.mean is not None for one in summaries)
