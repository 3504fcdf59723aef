"""Raw rows become batches of few sizes, in order, with nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from d3jax.rows import SIZES, padded_batches


@pytest.mark.parametrize(
    ("rows", "devices", "sizes"),
    [
        ([1], 1, [16]),
        ([16, 17], 1, [16, 128]),
        ([2500], 1, [1024, 1024, 1024]),
        ([1025], 1, [1024, 16]),
        ([1, 200], 3, [18, 1026]),
    ],
)
def test_parts_are_cut_and_padded_to_few_sizes(
    rows: list[int], devices: int, sizes: list[int]
) -> None:
    parts = [(np.arange(2 * n, dtype=np.int32).reshape(n, 2), np.arange(n) % 3) for n in rows]
    batches = list(padded_batches(parts, devices))
    assert [len(batch.mask) for batch in batches] == sizes
    assert all(len(batch.mask) % devices == 0 for batch in batches)
    assert len({*sizes}) <= len(SIZES)
    for column, index in (("ids", 0), ("scenario", 1)):
        kept = np.concatenate([getattr(batch, column)[batch.mask] for batch in batches])
        np.testing.assert_array_equal(kept, np.concatenate([part[index] for part in parts]))
