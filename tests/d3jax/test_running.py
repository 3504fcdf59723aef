"""How a run's settings reach its batches."""

import re
from dataclasses import replace

import numpy as np
import pytest

from d3jax.config import Config
from d3jax.data.loader import training_batches
from d3jax.data.prepared import Prepared, open_prepared
from d3jax.running import training_data

pytestmark = pytest.mark.trains


@pytest.mark.parametrize("window", [0, 500])
def test_training_batches_are_those_of_the_settings(prepared, window: int) -> None:
    data: Prepared = open_prepared(prepared)
    config = Config()
    train = replace(config.train, batch_size=128, seed=3, window_rows=window)
    ours = training_data(data, replace(config, train=train)).training(2, 5)
    theirs = training_batches(
        data.rows("train"),
        batch_size=128,
        seed=3,
        start_step=2,
        stop_step=5,
        window_rows=window or None,
    )
    for mine, expected in zip(ours, theirs, strict=True):
        for left, right in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(left, right)


def test_a_bad_row_is_located_in_the_prepared_directory(prepared) -> None:
    data: Prepared = open_prepared(prepared)
    config = replace(Config(), train=replace(Config().train, batch_size=128, seed=3))
    source = training_data(data, config)
    [batch] = source.training(4, 5)
    told = source.locate(5, 17)  # the batch that step 5 trains on
    row = int(re.search(r"^row ([\d,]+) of", told)[1].replace(",", ""))
    np.testing.assert_array_equal(data.rows("train").ids[row], batch.ids[17])
    scenario = data.schema.scenarios[batch.scenario[17]]
    assert told == f"row {row:,} of {data.directory / 'train'}, of scenario {scenario}"
