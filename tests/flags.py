"""Flags of small runs, and what a command said."""

from __future__ import annotations

import pytest

SMALL_PLAIN = [
    "--embedding-dim",
    "4",
    "--embedding-dropout",
    "0.2",
    "--bottom-layers",
    "8",
    "6",
]
"""Flags of a plain model without D3."""

SMALL = [
    *SMALL_PLAIN,
    "--field-hidden",
    "3",
    "--width",
    "5",
    "--gate-layers",
    "6",
    "4",
]
"""Flags of a model that compiles in a moment."""

LONG = [
    "--batch-size",
    "64",
    "--epochs",
    "3",
    "--evaluate-every",
    "0.5",
    "--patience",
    "0",
    "--checkpoint-every",
    "7",
    "--log-every",
    "5",
]
"""33 steps an epoch, 99 in all, often saved."""


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What went to standard error, on one line."""
    return " ".join(capsys.readouterr().err.split())
