"""The encoder of a prepared directory, or of a run or an exported model that kept its schema."""

from __future__ import annotations

from d3jax.data.encoder import Encoder, ScenarioRule
from d3jax.errors import DataError
from d3jax.typed import from_json
from data_pipelines.columns import Prepared


def load_encoder(prepared: Prepared) -> Encoder:
    """Return what gives raw rows the ids that they had when the data were prepared.

    Raises `DataError` when a vocabulary is missing or not the one of the schema, or when
    `schema.json` has no rule for scenarios.
    """
    if "scenario" not in prepared.provenance:
        raise DataError(
            f"{prepared.directory / 'schema.json'} does not say 'scenario' of its raw values; "
            "prepare the data again"
        )
    rule = from_json(ScenarioRule, prepared.provenance["scenario"])
    return Encoder(prepared.schema, prepared.codes(), rule)
