"""The provenance of a prepared directory: the part that decides ids, scenarios and labels."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from d3jax.data.encoder import ScenarioRule
from d3jax.errors import DataError
from d3jax.typed import from_json

_RULES = {
    "rows": dict[str, int],
    "unknown": dict[str, int],
    "separators": dict[str, str],
    "buckets": dict[str, Any],
    "hashed": dict[str, int],
    "scenario": ScenarioRule,
}
"""The parts of the provenance that decide ids and scenarios, or are counted on, by type."""


def read_provenance(value: Any) -> dict[str, Any]:
    """Return how the data was prepared, with the types that are counted on."""
    provenance = from_json(dict[str, Any], value, "provenance", DataError)
    for name, kind in _RULES.items():
        if name in provenance:
            from_json(kind, provenance[name], f"provenance.{name}", DataError)
    for name, edges in provenance.get("buckets", {}).items():
        from_json(tuple[float, ...], edges, f"provenance.buckets.{name}", DataError)
    if negative := [n for n, rows in provenance.get("rows", {}).items() if rows < 0]:
        raise DataError(f"provenance.rows.{negative[0]} is below 0")
    return provenance


def rules_fingerprint(provenance: dict[str, Any]) -> str:
    """Return a hash of the rules for the scenario and the label."""
    rules = [provenance.get("scenario"), provenance.get("label_rule")]
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
