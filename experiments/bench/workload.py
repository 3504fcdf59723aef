"""The data that the speed benchmark trains on: made-up rows in the shapes of public data sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from d3jax.batch import Batch, Field, Schema


@dataclass(frozen=True)
class Workload:
    """The vocabulary of each field, and the share of each scenario among the rows."""

    name: str
    vocabularies: tuple[int, ...]
    scenario_shares: tuple[float, ...]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", (40, 30, 3, 5), (0.3, 0.1, 0.6)),
        Workload("movielens", (6041, 3707, 3, 8, 22, 3440, 19, 82), (0.211, 0.395, 0.394)),
        Workload(
            "ali-ccp",
            (
                *(238635, 98, 14, 3, 8, 4, 4, 3, 5, 467298, 6929, 263942, 80232, 106399),
                *(5888, 104830, 51878, 37148, 4, 5853, 105622, 53843, 31858),
            ),
            (0.378, 0.0075, 0.6145),
        ),
    )
}
"""MovieLens-1M with one genre a film (Harper and Konstan, 2015); Ali-CCP's 23 categorical fields
(Ma et al., 2018) with the vocabulary that the D3 authors' code states; and a size for tests."""


FIELD_COUNTS = (4, 8, 16, 32)
"""The fields of the sizes that show how the cost grows with their number."""

WORKLOADS |= {
    f"{count} fields": Workload(f"{count} fields", (10_000,) * count, (0.4, 0.1, 0.5))
    for count in FIELD_COUNTS
}

SCENARIO_COUNTS = (3, 10, 30, 100)
"""The scenarios of the sizes that show how the cost grows with their number."""

WORKLOADS |= {
    f"{count} scenarios": Workload(
        f"{count} scenarios", (10_000,) * 8, tuple(1 / (n + 1) for n in range(count))
    )
    for count in SCENARIO_COUNTS
}


def make_schema(workload: Workload) -> Schema:
    """Single-valued fields, and scenarios that are called by their number."""
    fields = [Field(f"field_{n}", size) for n, size in enumerate(workload.vocabularies)]
    scenarios = [str(number) for number in range(len(workload.scenario_shares))]
    return Schema(tuple(fields), tuple(scenarios))


def make_batches(workload: Workload, rows: int, count: int, seed: int = 0) -> list[Batch]:
    """`count` batches of `rows` rows, the same for a seed on any machine.

    The k-th most frequent id of a field has about 1 / k of the rows of its first (Zipf); labels
    are independent of all else.
    """
    rng = np.random.default_rng(seed)
    logs = np.log(np.asarray(workload.vocabularies) + 1.0)
    batches = []
    for _ in range(count):
        ranks = np.exp(rng.random((rows, len(logs))) * logs)
        ids = np.minimum(ranks.astype(np.int32), workload.vocabularies) - 1
        batches.append(
            Batch(
                ids=ids.astype(np.int32),
                scenario=_scenarios(rng, workload.scenario_shares, rows),
                label=(rng.random(rows) < 0.2).astype(np.float32),
                mask=np.ones(rows, bool),
            )
        )
    return batches


def _scenarios(rng: np.random.Generator, shares: tuple[float, ...], rows: int) -> np.ndarray:
    total = math.fsum(shares)
    probabilities = [share / total for share in shares]
    return rng.choice(len(shares), rows, p=probabilities).astype(np.int32)
