"""The encoder of a prepared directory, or of a run or an exported model that kept its schema."""

from __future__ import annotations

from d3jax.data.encoder import Encoder, ScenarioRule
from d3jax.errors import DataError
from data_pipelines.columns import Prepared


def load_encoder(prepared: Prepared) -> Encoder:
    """Return what gives raw rows the ids that they had when the data were prepared.

    Raises `DataError` when a vocabulary is missing or not the one of the schema, or when
    `schema.json` has no rule for scenarios.
    """
    try:
        scenario = prepared.provenance["scenario"]
        rule = ScenarioRule(scenario["field"], scenario["values"], scenario.get("edges", ()))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{prepared.directory / 'schema.json'} does not say {error} of its raw values; "
            "prepare the data again"
        ) from error
    return Encoder(prepared.schema, prepared.codes(), rule)
