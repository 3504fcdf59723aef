"""Which cases of a test run always, and which only with the marker `slow`."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest


def cases(every: Iterable[Any], quick: Container[Any]) -> list[Any]:
    """One parameter set for each case; those that are not in `quick` are marked slow.

    A case of several arguments is a tuple.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in quick else pytest.mark.slow,
        )
        for case in every
    ]
